"""Recipe files: what they say, and what is said about those that are wrong."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from hwprune.errors import UsageError
from hwprune.sparsity import STRATEGIES, make
from hwprune.training import Recipe
from hwprune.training.recipe_file import load, names


def write(folder: Path, text: str) -> Path:
    path = folder / "r.toml"
    path.write_text(text)
    return path


def test_a_whole_course_is_one_file(tmp_path: Path) -> None:
    text = (
        'epochs = 6\nlearning_rate = 1\nema_decay = 0.99\n[strategy]\nname = "cubic"\nuntil = 0.5'
    )
    found = load(write(tmp_path, text))
    assert found.epochs == 6
    assert found.recipe == {"learning_rate": 1.0, "ema_decay": 0.99}
    assert (found.strategy, found.options) == ("cubic", {"until": 0.5})
    empty = load(write(tmp_path, "# nothing\n"))
    assert (empty.epochs, empty.recipe, empty.strategy, empty.options) == (None, {}, None, {})


@pytest.mark.parametrize("name", names())
def test_what_is_built_in_can_be_run(name: str) -> None:
    found = load(name)
    Recipe(**found.recipe)
    if found.strategy is not None:
        make(found.strategy, density=0.05, **found.options)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch = 3", ["epoch: unknown field; did you mean 'epochs'?"]),
        ("zzz = 3", ["zzz: unknown field; expected one of epochs, "]),
        ('learning_rate = "fast"', ['learning_rate = "fast": expected a number']),
        ("nesterov = 1", ["nesterov = 1: expected true or false"]),
        ("cutout = 1.5", ["cutout = 1.5: expected a whole number"]),
        ("batch_size = true", ["batch_size = true: expected a whole number"]),
        ('precision = "fp8"', ['precision = "fp8": expected one of auto, fp32, bf16']),
        ('grad_clip = "no"', ['grad_clip = "no": expected a number, or nothing at all']),
        ("learning_rate = nan", ["learning_rate = NaN: expected a number"]),
        ("momentum = 2", ["momentum is 2.0, expected [0, 1)"]),
        ("strategy = 3", ["strategy = 3: expected a table, [strategy]"]),
        ("[strategy]\nuntil = 0.5", ["strategy.name missing: expected one of"]),
        ('[strategy]\nname = "cubik"', ['strategy.name = "cubik"', "did you mean 'cubic'?"]),
        ('[strategy]\nname = "cubic"\nuntill = 1', ["strategy.untill: unknown field", "'until'"]),
        ('[strategy]\nname = "cubic"\nsteps = 2.5', ["strategy.steps = 2.5: expected a whole"]),
        ('[strategy]\nname = "cubic"\nsteps = 0', ["0 steps"]),
        ("epochs = ", ["is not TOML"]),
    ],
)
def test_what_is_wrong_is_said_with_file_field_value_and_expectation(
    tmp_path: Path, text: str, says: list[str]
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load(path)
    told = f"{caught.value.message}\n{caught.value.hint}"
    assert str(path) in caught.value.message
    for each in says:
        assert each in told


def test_several_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(write(tmp_path, "epoch = 3\ncutout = 0.5\n"))
    assert len(caught.value.message.splitlines()) == 3


@pytest.mark.parametrize("name", ["rewnd", "no/such.toml", ".toml", "a\0.toml"])
def test_what_is_not_there(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(name)
    assert "rewind" in (caught.value.hint or "") or "syntax" in (caught.value.hint or "")


def test_a_folder_and_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        load(path)
    other = tmp_path / "y.toml"
    other.write_bytes(b"\xff\xfe\0")
    with pytest.raises(UsageError, match="not a text file"):
        load(other)


def test_every_field_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    for field in fields(Recipe):
        assert f"`{field.name}`" in page
    for name in names():
        assert f"`{name}`" in page
    assert all(f"`{name}`" in page for name in STRATEGIES)
