from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench_record
import pytest
from bench_record import Row

from hwprune.errors import InputError

SETTING: dict[str, Any] = {"environment": {"python": "3.11"}, "command": "python bench.py"}


def row(budget: int, seed: int, accuracy: float | None = 0.9, **more: Any) -> dict[str, Any]:
    return {
        "config": {"budget": budget, "strategy": "cubic"},
        "seed": seed,
        "status": "run",
        "cost": {"epochs": 12, "seconds": 3.5},
        "accuracy": accuracy,
        **more,
    }


def test_rows_are_kept_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "budgets.json"
    assert bench_record.read(path) is None
    bench_record.update(path, row(64, 0, nonzeros=[1, 2]), **SETTING)
    bench_record.update(path, row(64, 1), **SETTING)
    bench_record.update(path, row(64, 0, 0.95), **SETTING)
    found = bench_record.read(path)
    assert found is not None
    assert [(each.seed, each.accuracy) for each in found.rows] == [(0, 0.95), (1, 0.9)]
    assert found.experiment == "budgets"
    assert [entry.name for entry in tmp_path.iterdir()] == ["budgets.json"]


def test_the_order_of_a_configuration_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "budgets.json"
    bench_record.update(path, row(64, 0), **SETTING)
    turned = {**row(64, 0, 0.5), "config": {"strategy": "cubic", "budget": 64}}
    found = bench_record.update(path, turned, **SETTING)
    assert len(found.rows) == 1
    assert found.row({"strategy": "cubic", "budget": 64}, 0) is not None
    assert found.row({"strategy": "cubic", "budget": 64}, 1) is None


def test_a_row_that_was_not_run(tmp_path: Path) -> None:
    path = tmp_path / "budgets.json"
    skipped = {**row(64, 0, None), "status": "not-run", "cost": None}
    found = bench_record.update(path, skipped, **SETTING)
    assert found.row(skipped["config"], 0) is None  # so that it is tried again
    bench_record.update(path, row(64, 0), **SETTING)
    found = bench_record.update(path, skipped, **SETTING)
    assert found.rows[0].status == "run"


def test_rows_that_were_not_run_leave_the_environment_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "budgets.json"
    skipped = {"status": "not-run", "cost": None}
    bench_record.update(path, row(64, 0), **SETTING)
    later = {"environment": {"python": "3.14"}, "command": "python bench.py"}
    both = [{**row(64, seed, None), **skipped} for seed in (0, 1)]
    found = bench_record.update(path, both, **later)
    assert [each.status for each in found.rows] == ["run", "not-run"]
    assert found.environment == {"python": "3.11"}
    found = bench_record.update(path, row(64, 1, hwprune="1.0"), **later)
    assert found.environment == {"python": "3.14"}
    assert [each.hwprune for each in found.rows] == [None, "1.0"]


WRITER = """
import sys
sys.path.insert(0, sys.argv[3])
import bench_record
for seed in range(25):
    row = {"config": {"writer": sys.argv[2]}, "seed": seed, "status": "run",
           "cost": {"epochs": 0, "seconds": 0}}
    bench_record.update(sys.argv[1], row, environment={}, command="")
"""


def test_two_processes_lose_none_of_each_others_rows(tmp_path: Path) -> None:
    path = tmp_path / "shared.json"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name, str(Path(bench_record.__file__).parent)]
        )
        for name in ("a", "b")
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    found = bench_record.read(path)
    assert found is not None
    assert len(found.rows) == 50
    assert [entry.name for entry in tmp_path.iterdir()] == ["shared.json"]


def test_own_measurements_survive(tmp_path: Path) -> None:
    path = tmp_path / "budgets.json"
    bench_record.update(path, row(64, 0, bytes=123, table={"a": [1.5, None]}), **SETTING)
    document = json.loads(path.read_text())
    assert list(document) == ["schema_version", "experiment", "rows", "environment", "command"]
    assert document["rows"][0]["bytes"] == 123
    assert document["rows"][0]["table"] == {"a": [1.5, None]}


@pytest.mark.parametrize(
    "change",
    [{"cost": None}, {"status": "done"}, {"accuracy": 91.0}, {"seed": "x"}, {"config": None}],
)
def test_bad_rows_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="valid row"):
        bench_record.update(tmp_path / "b.json", {**row(64, 0), **change}, **SETTING)
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 7}'])
def test_what_is_no_record_is_not_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(InputError, match="benchmark record"):
        bench_record.update(path, row(64, 0), **SETTING)
    assert path.read_text() == text


def test_the_stem_is_the_experiment(tmp_path: Path) -> None:
    bench_record.update(tmp_path / "a.json", Row.model_validate(row(1, 0)), **SETTING)
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    with pytest.raises(InputError, match="expected 'b'"):
        bench_record.read(tmp_path / "b.json")
