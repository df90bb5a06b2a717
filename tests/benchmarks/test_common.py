"""benchmarks/common.py: a record says which hwprune was measured; rows whose state is refused."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest

from hwprune.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / "benchmarks")
    common = importlib.import_module("common")
    compiling = importlib.import_module("compiling")


def test_a_record_says_which_hwprune_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "build", lambda: "7.0 (checkout abc)")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    common.Experiment("b", ["c"]).add({"size": 1}, 0, 1.0, 0)
    record = common.bench_record.read(tmp_path / "b.json")
    assert record.environment["hwprune"] == "7.0 (checkout abc)"
    (row,) = record.rows
    assert row.hwprune == "7.0 (checkout abc)"
    assert row.environment["numpy"] == record.environment["numpy"] is not None


def test_a_build_is_the_version_and_in_a_checkout_the_commit() -> None:
    built = common.build()
    version = common._toml.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert built.split(" ")[0] == version
    commit = common._git(ROOT, "rev-parse", "--short", "HEAD")
    assert commit is None or not (ROOT / ".git").exists() or f"checkout {commit}" in built


def test_without_git_a_build_is_told_by_its_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "_git", lambda *_: None)
    built = common.build()
    assert "(code " in built
    assert common.build() == built
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == "common.py")
    )
    assert common.build() != built


class Refusing:
    """Rows 0, 1 and 2, of which 1 has a state that is refused for as long as it is there."""

    def __init__(self, results: Path) -> None:
        self.experiment = common.Experiment("refusing", ["python"])
        self.experiment.path = results / "refusing.json"
        self.rows: list[tuple[dict[str, Any], int]] = [({"row": row}, 0) for row in range(3)]
        self.state = self.experiment.state_path(*self.rows[1])
        self.state.parent.mkdir(parents=True)
        self.state.write_bytes(b"of other code")

    def run(self, config: dict[str, Any], seed: int) -> None:
        if self.experiment.kept(config, seed):
            raise CheckpointError("the state is of other code")
        self.experiment.add(config, seed, 1.0, 0)

    def measure(self, *, restart: bool) -> int:
        arguments = argparse.Namespace(table=False, rows=None, restart=restart)
        code: int = common.measure_rows(
            arguments, self.experiment, self.rows, self.run, lambda _: ""
        )
        return code

    def measured(self) -> list[bool]:
        return [self.experiment.done(*row) for row in self.rows]


def test_a_refused_state_keeps_no_other_row_from_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = Refusing(tmp_path)
    assert rows.state.is_relative_to(tmp_path)  # a trial's state lies beside its record
    assert rows.measure(restart=False) == 1
    assert rows.measured() == [True, False, True]
    told = capsys.readouterr().err
    assert "row 1" in told
    assert "--restart" in told
    assert str(rows.state) in told
    assert rows.measure(restart=True) == 0
    assert rows.measured() == [True, True, True]
    assert not rows.state.exists()


def test_the_seconds_of_a_resumed_compilation_are_those_of_its_training_at_least() -> None:
    trajectory = [{"seconds": 10.0}, {"seconds": 90.0}]
    report = {"seconds": 40.0, "accuracy": {"trajectory": trajectory}, "notes": ["trained in fp32 on cpu"]}  # fmt: skip # noqa: E501
    assert compiling.seconds_of(report) == 90.0
    assert compiling.seconds_of({**report, "seconds": 120.0}) == 120.0
    assert compiling.precision_of(report) == "fp32"
    assert compiling.precision_of({"notes": []}) is None
