"""The accuracy studies: rows that can be run, pairs that are pairs, tables that hide nothing."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hwprune.sparsity import make

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "accuracy"
STUDIES = ("equal_cost", "regrowth_rules", "resnet20_sparsity", "tuning")


def load(name: str, monkeypatch: pytest.MonkeyPatch, results: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    for known in (*STUDIES, "study", "common"):
        sys.modules.pop(known, None)
    module = importlib.import_module(name)
    monkeypatch.setattr(sys.modules["common"], "RESULTS", results)
    return module


@pytest.fixture(params=STUDIES)
def study(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> ModuleType:
    return load(request.param, monkeypatch, tmp_path)


def scales(module: ModuleType) -> list[dict[str, Any]]:
    shared = sys.modules["study"]
    return [shared.FULL, shared.SHORT]


def test_every_row_is_there_once_and_its_strategy_can_be_made(study: ModuleType) -> None:
    for scale in scales(study):
        rows = study.rows(scale)
        assert all(config["train_images"] == scale["train_images"] for config, _ in rows)
        seen: list[Any] = []
        for config, seed in rows:
            make(config["strategy"], density=0.05, **config["options"])
            assert (config, seed) not in seen
            seen.append((config, seed))


def test_rows_that_were_not_run_are_shown_as_not_run(study: ModuleType) -> None:
    shared = sys.modules["study"]
    experiment = shared.Experiment("nothing", ["python"])
    for scale in scales(study):
        lines = study.table(experiment, scale).splitlines()[2:]
        assert lines
        assert all("not run" in line for line in lines)


def test_a_difference_is_paired_by_seed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shared = load("study", monkeypatch, tmp_path)
    first = {0: 0.51, 1: 0.62, 2: 0.73, 9: 0.99}
    second = {0: 0.50, 1: 0.60, 2: 0.70, 7: 0.01}
    # Differences 1, 2, 3 points: mean 2, standard deviation 1, t(0.975, 2) = 4.303.
    assert shared.paired(first, second) == "+2.00 [-0.48, +4.48]"
    assert shared.paired({0: 0.5}, {0: 0.25}) == "+25.00 (one seed)"
    assert shared.paired({0: 0.5}, {1: 0.25}) == ""
    assert shared.spread([0.5, 0.52]) == "51.00 ± 1.41"
