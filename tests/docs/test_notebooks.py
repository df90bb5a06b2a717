"""The notebooks of examples/ run from beginning to end, and hold no outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stripped(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("ipykernel", reason="make notebooks installs Jupyter")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.read(path, as_version=4)
    done = nbclient.NotebookClient(
        book, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [output for cell in done.cells for output in cell.get("outputs", ())]
    # What is compiled shows itself as a table, with its verdict.
    pages = [each["data"]["text/html"] for each in shown if "text/html" in each.get("data", {})]
    assert any("<table" in page and "fits" in page for page in pages)
    assert not any(each.output_type == "stream" and each.name == "stderr" for each in shown)
