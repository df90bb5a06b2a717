"""benchmarks/latency.py: its rows, its masks, engines that fail; that the page is the record."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
with pytest.MonkeyPatch.context() as patch:
    # Their folder is on the path while they are imported, as when one of them is run.
    patch.syspath_prepend(ROOT / "benchmarks")
    latency = importlib.import_module("latency")
    latency_plot = importlib.import_module("latency_plot")
    sparse_networks = importlib.import_module("sparse_networks")
    two_cores = importlib.import_module("two_cores")
    common = importlib.import_module("common")

DOCS = ROOT / "docs"
CONFIG = {"network": "resnet20", "sparsity": 0.9, "batch": 1, "threads": 1, "mask": "uniform"}


def test_rows_are_distinct_and_begin_with_one_thread() -> None:
    rows = latency.rows()
    assert len({tuple(row.items()) for row in rows}) == len(rows)
    assert {row["network"] for row in rows} == set(sparse_networks.NETWORKS)
    apart = {"values", "instructions"}
    plain = [row for row in rows if row["mask"] == "uniform" and not apart & row.keys()]
    assert rows[: len(plain)] == plain
    assert plain[0]["threads"] == 1
    assert [row["threads"] for row in plain] == sorted(row["threads"] for row in plain)
    assert {row["mask"] for row in rows} == {"uniform", "lamp", "planned"}


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.995])
def test_masks_are_uniform_but_for_first_and_depthwise_layers(sparsity: float) -> None:
    shapes = {"first": (8, 3, 3, 3), "wise": (16, 1, 3, 3), "point": (64, 32, 1, 1), "fc": (10, 64)}
    masks = sparse_networks.uniform_masks(shapes, sparsity, seed=1)
    assert {name: np.shape(masks[name]) for name in masks} == shapes
    assert masks["first"].all()
    assert masks["wise"].all()
    for name in ("point", "fc"):
        alive, size = int(masks[name].sum()), masks[name].size
        assert alive == round(size * (1 - sparsity))
    again = sparse_networks.uniform_masks(shapes, sparsity, seed=1)
    assert all(np.array_equal(masks[name], again[name]) for name in masks)


def test_an_engine_that_fails_says_why_and_stops_nothing(tmp_path: Path) -> None:
    missing = tmp_path / "missing.onnx"
    engine = latency.Engine("dense", sys.executable, "onnxruntime", missing, CONFIG)
    engine.run()
    found = engine.close()
    assert list(found) == ["error"]
    assert "missing.onnx" in found["error"]


def test_the_page_holds_the_table_of_the_record() -> None:
    experiment = common.Experiment("latency", [])
    page = (DOCS / "latency.md").read_text()
    assert latency.table(experiment) in page
    assert latency.planned_table(experiment) in page
    assert any(row.status == "run" for row in experiment.rows())
    cores = common.Experiment("two_cores", [])
    assert two_cores.table(cores) in (DOCS / "latency.md").read_text()
    assert any(row.status == "run" for row in cores.rows())


def test_the_plot_takes_measured_rows_only() -> None:
    experiment = common.Experiment("latency", [])
    found = latency_plot.series(experiment.rows())
    measured = [
        row
        for row in experiment.rows()
        if row.status == "run" and row.config["mask"] == "uniform" and "values" not in row.config
    ]
    assert sum(
        len(engines["kernels"]) for engines in found.values() if "kernels" in engines
    ) == sum("kernels" in (row.model_extra or {})["speedup"] for row in measured)


def test_a_row_says_what_sets_it_apart() -> None:
    assert latency.name_of(CONFIG) == "resnet20"
    assert latency.name_of({**CONFIG, "mask": "lamp"}) == "resnet20 (trained, LAMP masks)"
    assert latency.name_of({**CONFIG, "values": "int8"}) == "resnet20 (int8 values)"


def test_lamp_masks_keep_the_best_of_all_layers() -> None:
    small = np.array([[9.0, 0.1], [0.1, 0.1]], dtype=np.float32)
    large = np.arange(1, 9, dtype=np.float32).reshape(2, 4)
    masks = sparse_networks.lamp_masks({"small": small, "large": large}, 0.75)
    assert masks.nonzeros == 3
    assert np.argwhere(masks["small"]).tolist() == [[0, 0]]
    assert np.argwhere(masks["large"]).tolist() == [[1, 2], [1, 3]]
