"""Scripts that nobody runs for months still find what they import from the library."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_imports_from_the_library_is_there(script: Path) -> None:
    absent = []
    for node in ast.walk(ast.parse(script.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("hwprune"):
            continue
        module = importlib.import_module(node.module or "")
        for each in node.names:
            below = f"{node.module}.{each.name}"
            if not hasattr(module, each.name) and importlib.util.find_spec(below) is None:
                absent.append(below)
    assert absent == []
