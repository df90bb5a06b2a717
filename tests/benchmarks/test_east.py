"""The EAST study: rows in the order in which they are wanted, each of which can be run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hwprune.sparsity import make
from hwprune.training import Recipe

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "accuracy"


@pytest.fixture
def east(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    for known in ("east", "study", "staged", "networks", "common"):
        sys.modules.pop(known, None)
    module = importlib.import_module("east")
    monkeypatch.setattr(sys.modules["common"], "RESULTS", tmp_path)
    return module


def test_rows_come_in_the_order_of_what_is_wanted(east: ModuleType) -> None:
    rows = east.rows(east.FULL)
    first = [(c["network"], c["data"], c["sparsity"], c["strategy"], s) for c, s in rows[:8]]
    assert first == [
        ("cifar-resnet34", "cifar10", sparsity, strategy, 0)
        for sparsity in (0.999, 0.9995, 0.99, 0.9999)
        for strategy in ("east", "rigl")
    ]
    kinds = [config["data"] for config, _ in rows]
    assert kinds == sorted(kinds)  # CIFAR-100 last
    assert len({repr(row) for row in rows}) == len(rows) == 4 * 3 * 4 * 6
    assert {config["network"] for config, _ in east.rows(east.SHORT)} == {"cifar-resnet20"}


def test_every_row_can_be_made_and_follows_the_protocol(east: ModuleType) -> None:
    for config, _ in east.rows(east.FULL):
        strategy = make(config["strategy"], density=1 - config["sparsity"], **config["options"])
        assert strategy.events[-1].budget_fraction == 1.0
        recipe = Recipe(epochs=config["epochs"], **config["recipe"])
        rates = [recipe.rate(at) for at in (0, 0.499, 0.5, 0.749, 0.75, 1)]
        assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
        assert (recipe.grad_clip, recipe.distillation_weight, recipe.epochs) == (1.0, 0.0, 250)


def test_cifar100_is_skipped_where_it_is_not(
    east: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(east.study, "run", lambda *given: ran.append(given))
    east.measure({"data": "cifar100"}, 0, tmp_path, None)
    assert not ran
    (tmp_path / "cifar-100-python").mkdir()
    east.measure({"data": "cifar100"}, 0, tmp_path, None)
    east.measure({"data": "cifar10"}, 0, tmp_path, None)
    assert len(ran) == 2


def test_what_was_not_run_is_shown_as_not_run(east: ModuleType) -> None:
    experiment = east.Experiment("nothing", ["python"])
    for scale in (east.FULL, east.SHORT):
        lines = east.table(experiment, scale).splitlines()[2:]
        assert len(lines) == len(east.networks(scale)) * 4 * 6
        assert all("not run" in line for line in lines)
    assert "| 86.99 | 88.5 |" in east.table(experiment, east.FULL)
