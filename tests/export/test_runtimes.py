"""The same files in older onnxruntimes, each in its own virtual environment (make runtimes)."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from export_cases import CASES, Case, random_masks, relative_error, run
from lowering_cases import KEPT, feed, file_of, lowered_copy

from hwprune.encoding import unpack
from hwprune.export.template import Template, Written
from hwprune.ir import ValueType
from hwprune.verify import kernels_unavailable_reason

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = sorted((ROOT / "build" / "runtimes").glob("*/bin/python"))
# The first one that folds functions while it loads a file, and has the kernels' ABI.
FOLDS_FUNCTIONS = (1, 17)


def version_of(python: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in python.parts[-3].split(".")[:2])


@pytest.fixture(params=RUNTIMES, ids=lambda python: python.parts[-3])
def python(request: pytest.FixtureRequest) -> Path:
    """Return the interpreter of an older runtime; pytest skips where none was installed."""
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("value_type", ["fp32", "int8", "int4"])
def test_an_older_runtime_gives_the_dense_files_output(
    python: Path, tmp_path: Path, value_type: ValueType
) -> None:
    inline = version_of(python) < FOLDS_FUNCTIONS
    case = CASES["zoo"]()
    # Opset 15 is what the oldest runtime of a profile reads.
    template = case.template(15 if inline else 18, inline=inline)
    written = template.write_sparse(random_masks(template, 0.2), value_type)
    feeds = case.feeds(5)
    np.savez(tmp_path / "feeds.npz", **feeds)  # type: ignore[arg-type]
    (tmp_path / "sparse.onnx").write_bytes(written.data)
    (tmp_path / "dense.onnx").write_bytes(dense_of(template, written))
    kernels = [] if inline or kernels_unavailable_reason() else ["kernels"]
    ran = subprocess.run(
        [str(python), str(Path(__file__).with_name("runtime_worker.py")), str(tmp_path), *kernels],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(python.parts[-3])
    stock = np.load(tmp_path / "sparse.npy")
    assert np.array_equal(stock, np.load(tmp_path / "dense.npy"))
    expected = case.run_torch(feeds, case.decoded(template, written))
    assert relative_error(stock, expected) <= 1e-5
    assert relative_error(stock, run(written.data, feeds)) <= 1e-5
    if kernels:
        fast = np.load(tmp_path / "sparse.kernels.npy")
        assert relative_error(fast, stock) <= 1e-5
        assert np.array_equal(fast.argmax(1), stock.argmax(1))


def test_every_lowering_runs_in_a_runtime_of_that_age(python: Path, tmp_path: Path) -> None:
    for number, graph in enumerate(graph for graphs in KEPT.values() for graph in graphs):
        (tmp_path / f"{number}.onnx").write_bytes(file_of(lowered_copy(graph, 15)))
        np.savez(tmp_path / f"{number}.npz", x=feed(graph))
    ran = subprocess.run(
        [str(python), str(Path(__file__).with_name("runtime_worker.py")), str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    files = sorted(tmp_path.glob("*.onnx"))
    assert len(files) > 60
    for path in files:
        expected = run(path.read_bytes(), dict(np.load(path.with_suffix(".npz"))))
        found = np.load(path.with_suffix(".npy"))
        assert found.dtype == expected.dtype
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_a_runtime_without_the_kernels_abi_is_refused_in_words(tmp_path: Path) -> None:
    # 1.11 stands for the Jetson Nano's, and needs a Python that is older than hwprune's.
    old = [python for python in RUNTIMES if (1, 15) <= version_of(python) < FOLDS_FUNCTIONS]
    if not old or kernels_unavailable_reason():
        pytest.skip("needs an onnxruntime before 1.17 (make runtimes) and the kernels")
    case: Case = CASES["zoo"]()
    template = case.template()
    written = template.write_sparse(random_masks(template, 0.2), "fp32")
    path = tmp_path / "sparse.onnx"
    path.write_bytes(written.data)
    ran = subprocess.run(
        [str(old[0]), "-c", f"import hwprune; hwprune.session({str(path)!r})"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "kernels need onnxruntime 1.17 or newer" in ran.stderr.splitlines()[-1]


def dense_of(template: Template, written: Written) -> bytes:
    """Return the dense file that holds the decoded weights."""
    graph = template.graph
    decoded = {name: unpack(packed) for name, packed in written.packed.items()}
    tensors = {**graph.tensors, **decoded, **written.biases}
    merged = replace(graph, tensors=tensors)
    dense = Template(merged, template.prunable, 8, template.inline, template.codecs)
    return dense.write_dense().data
