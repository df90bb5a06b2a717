from __future__ import annotations

import pytest

from hwprune.errors import UsageError
from hwprune.sweep import grid


def test_every_combination_has_a_folder_of_its_own() -> None:
    axes = {"--target": ["a", "dir/b.toml"], "--budget": ["1KiB", "2 KiB"], "--seed": ["0", "7"]}
    runs = grid(["x/net.pt", None], axes, ["--data", "digits"])
    assert len(runs) == 2 * 2 * 2 * 2
    assert runs[0].name == "net-a-1KiB-seed0"
    assert runs[0].arguments == (
        "x/net.pt", "--target", "a", "--budget", "1KiB", "--seed", "0", "--data", "digits",
    )  # fmt: skip
    assert runs[1].name == "net-a-1KiB-seed7"
    assert runs[-1].name == "b-2_KiB-seed7"
    assert runs[-1].arguments[0] == "--target"
    assert len({run.name for run in runs}) == len(runs)


def test_what_would_be_there_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="--seed: 1 is there twice"):
        grid(["net.pt"], {"--seed": ["1", "2", "1"]})
    with pytest.raises(UsageError, match="two runs would share the folder net-a"):
        grid(["x/net.pt", "y/net.pt"], {"--target": ["a"]})
