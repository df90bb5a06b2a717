"""docs/interop.md shows what benchmarks/interop.py recorded."""

from __future__ import annotations

from pathlib import Path

import interop
from common import Experiment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "interop.md"


def test_the_page_holds_the_records_table() -> None:
    experiment = Experiment("interop", [])
    assert {(row.config["program"], row.config["form"]) for row in experiment.rows()} == {
        (row["program"], row["form"]) for row in interop.ROWS
    }
    assert interop.table(experiment) in PAGE.read_text(encoding="utf-8")
