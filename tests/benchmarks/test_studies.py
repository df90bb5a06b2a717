"""The accuracy studies: rows that can be run, pairs that are pairs, tables that hide nothing."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import bench_record
import pytest

from hwprune.sparsity import auto, make

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "accuracy"
STUDIES = ("resnet20_sparsity",)


def load(name: str, monkeypatch: pytest.MonkeyPatch, results: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    for known in (*STUDIES, "history", "shrink_exchange", "study", "common"):
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


@pytest.mark.parametrize("name", ["resnet20_budgets", "equal_cost", "regrowth_rules"])
def test_one_dip_is_not_above_one_way_pruning_as_its_report_says(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = load("study", monkeypatch, tmp_path)
    record = bench_record.read(RESULTS / f"{name}.json")
    assert record is not None
    cells: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    for row in record.rows:
        if row.status == "run" and row.accuracy is not None:
            rest = {key: row.config[key] for key in row.config.keys() - {"strategy", "options"}}
            arm = str(row.config["strategy"]), json.dumps(row.config["options"], sort_keys=True)
            arms = cells.setdefault(json.dumps(rest, sort_keys=True), {})
            arms.setdefault(arm, {})[row.seed] = row.accuracy
    compared = 0
    for arms in cells.values():
        ours = [found for (strategy, _), found in arms.items() if strategy == "cubic"]
        theirs = [found for (strategy, _), found in arms.items() if "bidirectional" in strategy]
        for mine, other in itertools.product(ours, theirs):
            ahead = shared.differences(other, mine)
            if len(ahead) >= 3:
                assert shared.interval(ahead)[0] <= 0, name
                compared += 1
    assert compared
    assert "ahead or level" in make("bidirectional-single", density=0.1).notes[0]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("equal_cost", "| 98 % | bidirectional | defaults | "),
        ("regrowth_rules", "| 97 % | bidirectional | depth 0.5, "),
        ("tuning", "| 97 % | cyclic | amplitude 0.1, "),
        ("resnet20_defaults", "| 40 KiB | cubic | exchange 0.3 | "),
    ],
)
def test_records_of_removed_strategies_are_still_shown(
    name: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = load("history", monkeypatch, RESULTS)
    shown = history.table(sys.modules["study"].Experiment(name, ["python"]))
    assert f"\n{line}" in shown
    if name == "equal_cost":  # as docs/results.md has it
        assert "| 67.27 ± 0.42 | 5 | +0.11 [-0.86, +1.07] |" in shown


def test_the_arms_of_the_exchange_study_cost_the_same_and_differ_in_one_thing_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = load("shrink_exchange", monkeypatch, tmp_path)
    cubic, shrink, exchange, random, _ = (
        make(arm["strategy"], density=0.02, **arm["options"]) for arm in study.ARMS.values()
    )
    plain = [replace(event, shrink=0.0) for event in shrink.events]
    assert plain == list(cubic.events)
    assert exchange.events[: len(shrink.events)] == shrink.events
    assert [e.score for e in random.events if e.action == "regrow"] == ["random"] * 30
    assert [
        replace(e, score="signal-to-noise") if e.action == "regrow" else e for e in random.events
    ] == list(exchange.events)
    lines = study.table(
        sys.modules["study"].Experiment("nothing", ["python"]), "mlp", study.SMALL, (0.98,)
    )
    assert all("not run" in line for line in lines.splitlines()[2:])


def test_what_auto_takes_is_what_the_record_has_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    study = load("shrink_exchange", monkeypatch, RESULTS)
    shared = sys.modules["study"]
    experiment = shared.Experiment("shrink_exchange", ["python"])

    def ahead(network: str, arm: str, other: str, sparsity: float) -> list[float]:
        found, beside = (
            shared.by_seed(
                experiment,
                study.cell(network, name, sparsity, study.SMALL),
                "validation_accuracy",  # test data decide nothing
            )
            for name in (arm, other)
        )
        return list(shared.differences(found, beside))

    for kind, network in (("fully connected", "mlp"), ("convolutional", "cnn")):
        clear = {
            sparsity: all(
                shared.interval(ahead(network, arm, other, sparsity))[0] > 0
                for arm, other in (
                    (study.SHRINK, study.CUBIC),
                    (study.EXCHANGE, study.SHRINK),
                    (study.EXCHANGE, study.CUBIC),
                    (study.EXCHANGE, study.DEFAULTS),
                )
            )
            for sparsity in study.RECORDED[network]
        }
        assert min(each for each, is_clear in clear.items() if is_clear) == auto.EXCHANGE_FROM[kind]
        assert all(clear[each] for each in clear if each >= auto.EXCHANGE_FROM[kind])
    small = [row for row in experiment.rows() if row.config["network"].startswith("fashion-")]
    steps = {(row.model_extra or {})["steps"] for row in small if row.status == "run"}
    assert min(steps) == auto.LEAST_STEPS
