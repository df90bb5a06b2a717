"""The records in benchmarks/results: readable, and saying what code and docs say of them."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import pytest
from scipy import stats

from hwprune.compiler import DEFAULT_STRATEGY
from hwprune.report import bench_record
from hwprune.sparsity import make
from hwprune.steps.pruning import ONE_WAY_NOTE

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_record_is_readable_and_holds_a_measured_row(path: Path) -> None:
    record = bench_record.read(path)
    assert record is not None
    assert any(row.status == "run" for row in record.rows)


def screened() -> dict[str, list[tuple[float, dict[str, object]]]]:
    record = bench_record.read(RESULTS / "resnet20_defaults.json")
    assert record is not None
    arms: dict[str, list[tuple[float, dict[str, object]]]] = {}
    for row in record.rows:
        if row.status == "run" and row.model_extra:
            options = row.config["options"]
            assert isinstance(options, dict)
            arms.setdefault(str(row.config["strategy"]), []).append(
                (float(row.model_extra["validation_accuracy"]), dict(options))
            )
    return arms


def test_the_defaults_of_regrowth_are_those_that_the_screen_chose() -> None:
    _, options = max(screened()["bidirectional"], key=lambda arm: arm[0])
    chosen = make("bidirectional", density=0.05, **options)
    assert make("bidirectional", density=0.05) == chosen


@pytest.mark.parametrize("name", ["resnet20_budgets", "equal_cost", "regrowth_rules"])
def test_one_way_pruning_is_the_default_as_long_as_nothing_is_above_it(name: str) -> None:
    record = bench_record.read(RESULTS / f"{name}.json")
    assert record is not None
    cells: dict[str, dict[str, dict[int, float]]] = {}
    for row in record.rows:
        if row.status == "run" and row.accuracy is not None:
            rest = {key: row.config[key] for key in row.config.keys() - {"strategy", "options"}}
            how = json.dumps([row.config["strategy"], row.config["options"]], sort_keys=True)
            arms = cells.setdefault(json.dumps(rest, sort_keys=True), {})
            arms.setdefault(how, {})[row.seed] = row.accuracy
    compared = 0
    for arms in cells.values():
        ours = {how: found for how, found in arms.items() if DEFAULT_STRATEGY in how}
        theirs = {how: found for how, found in arms.items() if "bidirectional" in how}
        for mine, other in itertools.product(ours.values(), theirs.values()):
            seeds = sorted(mine.keys() & other.keys())
            if len(seeds) >= 3:
                ahead = [other[seed] - mine[seed] for seed in seeds]
                error = statistics.stdev(ahead) / len(ahead) ** 0.5
                reach = float(stats.t.ppf(0.975, len(ahead) - 1)) * error
                assert statistics.mean(ahead) - reach <= 0, (name, seeds)
                compared += 1
    assert compared
    assert "ahead or level" in ONE_WAY_NOTE
