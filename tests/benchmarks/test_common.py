"""benchmarks/common.py: a record says which hwprune was measured."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / "benchmarks")
    common = importlib.import_module("common")


def test_a_record_says_which_hwprune_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "build", lambda: "7.0 (checkout abc)")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    common.Experiment("b", ["c"]).add({"size": 1}, 0, 1.0, 0)
    record = common.bench_record.read(tmp_path / "b.json")
    assert record.environment["hwprune"] == "7.0 (checkout abc)"


def test_a_build_is_the_version_and_in_a_checkout_the_commit() -> None:
    built = common.build()
    version = common._toml.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert built.split(" ")[0] == version
    commit = common._git(ROOT, "rev-parse", "--short", "HEAD")
    assert commit is None or not (ROOT / ".git").exists() or f"checkout {commit}" in built
