"""The records in benchmarks/results: readable, and saying what code and docs say of them."""

from __future__ import annotations

from pathlib import Path

import bench_record
import pytest

from hwprune.sparsity import make

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
    # The record has its name of then.
    chosen = make("bidirectional-single", density=0.05, **options)
    assert make("bidirectional-single", density=0.05) == chosen
