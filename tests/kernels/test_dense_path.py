"""Layers that are too dense to gain from a kernel run onnxruntime's own operators."""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Layer, expected, make_layer, model_of

import hwprune
from hwprune import kernels
from hwprune.encoding import unpack
from hwprune.export.operators import Operator
from hwprune.kernels import dense_path, library
from hwprune.kernels.costs import Problem, dense_cost, kernel_cost
from hwprune.kernels.dense_model import densify
from hwprune.kernels.model_file import read_model, stored_values
from hwprune.kernels.shapes import activation_shapes

ROOT = Path(__file__).resolve().parents[2]
needs_kernels = pytest.mark.skipif(library.path() is None, reason="the kernels are not built here")
CODECS = ["gap4", "gap8", "gap16", "cols8", "cols16", "bitmap", "rice"]
VALUE_TYPES = ["fp32", "fp16", "int8", "int4", "codebook16", "codebook256"]
ACTIVATIONS = ["none", "relu", "relu6", "hard_swish", "silu", "leaky_relu"]


def conv(density: float, *, codec: Any = "bitmap", value_type: Any = "int8") -> Layer:
    operator = Operator("Conv", codec, value_type, True, False, "relu")
    return make_layer(operator, (64, 64, 3, 3), density=density, seed=1, pads=[1, 1, 1, 1])


def model(layer: Layer, size: int = 8, channels: int = 64, **changes: Any) -> onnx.ModelProto:
    """The layer's model with only the batch free."""
    made = model_of(layer, 4, 4, **changes)
    for dim, extent in zip(
        made.graph.input[0].type.tensor_type.shape.dim[1:], (channels, size, size), strict=True
    ):
        dim.dim_value = extent
    return made


def data(layer: Layer, **options: Any) -> bytes:
    return bytes(model(layer, **options).SerializeToString())


def images(batch: int, channels: int = 64, size: int = 8) -> Any:
    x = np.random.default_rng(batch).standard_normal((batch, channels, size, size))
    return x.astype(np.float32)


# -- which side ----------------------------------------------------------------------------------


@needs_kernels
def test_a_dense_layer_is_left_to_onnxruntime(tmp_path: Path) -> None:
    layer = conv(0.95)
    path = tmp_path / "model.onnx"
    path.write_bytes(data(layer))
    gc.collect()
    before = kernels.resident_bytes()
    session = hwprune.session(path, threads=1)
    assert session.hwprune.dense == ("layer",)
    assert session.hwprune.registered == ()
    assert "faster" in session.hwprune.reason
    assert session.hwprune.dense_bytes == 4 * (64 * 64 * 9 + 64)
    assert kernels.resident_bytes() == before
    # It is the dense network: to the bit what the file is without kernels.
    stock = hwprune.session(path, threads=1, kernels=False)
    for batch in (0, 1, 33):
        (y,) = session.run(None, {"x": images(batch)})
        np.testing.assert_array_equal(y, stock.run(None, {"x": images(batch)})[0])
    assert path.read_bytes() == data(layer)
    every = hwprune.session(path, threads=1, kernels="all")
    assert every.hwprune == kernels.Speed((layer.operator.name,), None)
    assert kernels.resident_bytes() > before


@needs_kernels
@pytest.mark.parametrize(("density", "sides"), [(0.1, "() 1"), (0.95, "('layer',) 0")])
def test_no_session_imports_onnx(tmp_path: Path, density: float, sides: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data(conv(density)))
    code = (
        f"import sys, hwprune; s = hwprune.session({str(path)!r}, threads=1)\n"
        "print(s.hwprune.dense, len(s.hwprune.registered), 'onnx' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split("\n")[0] == f"{sides} False"


@needs_kernels
def test_a_map_of_unknown_size_is_left_to_the_kernel_unless_it_is_given() -> None:
    free = model_of(conv(0.95), 4, 4).SerializeToString()
    assert hwprune.session(free).hwprune.dense == ()
    shaped = hwprune.session(free, input_shapes={"x": (1, 64, 8, 8)})
    assert shaped.hwprune.dense == ("layer",)
    assert shaped.run(None, {"x": images(3, size=5)})[0].shape == (3, 64, 5, 5)


@needs_kernels
def test_both_kinds_of_layer_in_one_session() -> None:
    dense, sparse = conv(0.95), conv(0.05, codec="gap8")
    joined = model(dense)
    other = model(sparse)
    for tensor in other.graph.initializer:
        tensor.name = f"s_{tensor.name}"
    node = other.graph.node[0]
    node.name = "sparse"
    node.input[:] = ["y", *(f"s_{name}" for name in node.input[1:])]
    node.output[:] = ["z"]
    joined.graph.node.append(node)
    joined.graph.initializer.extend(other.graph.initializer)
    known = {function.name for function in joined.functions}
    joined.functions.extend(f for f in other.functions if f.name not in known)
    joined.graph.output[0].name = "z"
    session = hwprune.session(joined.SerializeToString(), threads=1)
    assert session.hwprune.dense == ("layer",)
    assert session.hwprune.registered == (sparse.operator.name,)
    for batch in (0, 1, 33):
        (y,) = session.run(None, {"x": images(batch)})
        first, tolerance = expected(dense, images(batch), None)
        right, more = expected(sparse, first.astype(np.float32), None)
        assert np.abs(y - right).max(initial=0) <= more + 10 * tolerance


@needs_kernels
def test_malformed_arrays_are_refused_however_dense_they_are() -> None:
    layer = conv(0.95)
    with pytest.raises(Exception, match="4607 bytes for 36864 bits"):
        hwprune.session(data(layer, index=layer.packed.arrays["index"][:-1]))


@needs_kernels
def test_the_session_keeps_no_second_copy_of_dense_weights() -> None:
    source = data(conv(0.95))
    session = hwprune.session(source)
    assert session.hwprune.dense
    assert session._model_bytes is source
    session.set_providers(["CPUExecutionProvider"])  # makes the session anew
    assert session.run(None, {"x": images(1)})[0].shape == (1, 64, 8, 8)


# -- the estimates -------------------------------------------------------------------------------


def problem(density: float, **changes: Any) -> Problem:
    values = {
        "inputs": 64, "outputs": 64, "group": 1, "kernel": (3, 3), "strides": (1, 1),
        "dilations": (1, 1), "pads": (1, 1, 1, 1), "spatial": (16, 16), "batch": 1,
        "nonzeros": round(density * 64 * 64 * 9), "residual": False,
    }  # fmt: skip
    return Problem(**(values | changes))


@needs_kernels
@pytest.mark.parametrize("batch", [1, 64])
def test_kernels_gain_when_sparse_and_lose_when_dense(batch: int) -> None:
    costs = [kernel_cost(problem(d, batch=batch), 1) for d in (0.05, 0.2, 0.5, 1.0)]
    assert costs == sorted(costs)
    dense = dense_cost(problem(0.05, batch=batch))
    assert dense == dense_cost(problem(1.0, batch=batch))
    assert costs[1] < dense < costs[-1]


@needs_kernels
def test_what_is_not_estimated_is_said() -> None:
    assert kernel_cost(problem(0.5, spatial=(0, 4)), 1) is None
    four = problem(
        0.5, kernel=(1,) * 4, strides=(1,) * 4, dilations=(1,) * 4, pads=(0,) * 8,
        spatial=(4,) * 4,
    )  # fmt: skip
    assert kernel_cost(four, 1) is None
    assert library.estimate((64, 63, 2, 1, 1, 1, 1, 0, 0, 4), 10, 1, 1) < 0


def test_a_small_gain_is_not_worth_two_changes_of_layout() -> None:
    costs = {
        0: {True: 10.0, False: 30.0},
        1: {True: 10.0, False: 9.0},
        2: {True: 10.0, False: 30.0},
    }
    links = [dense_path._Link(0, 1, 2.0), dense_path._Link(1, 2, 2.0)]
    assert dense_path._settled(costs, links, start=False) == {0, 1, 2}
    assert dense_path._settled(costs, [], start=True) == {0, 2}
    assert dense_path._total(costs, links, {0, 2}) == 10 + 9 + 10 + 4


@needs_kernels
def test_a_file_is_not_rewritten_for_next_to_nothing() -> None:
    made = read_model(data(conv(0.95)))
    problems = dense_path.layer_problems(made, {})
    assert dense_path._choose(made, problems, 1) == {0}
    (only,) = problems.values()
    nonzeros = next(
        n
        for n in range(0, only.weights, 64)
        if dense_path.MARGIN * kernel_cost(replace(only, nonzeros=n), 1) > 1.02 * dense_cost(only)
    )
    assert dense_path._choose(made, {0: replace(only, nonzeros=nonzeros)}, 1) == set()


def test_layouts_change_where_a_kernel_meets_an_operator_with_its_own() -> None:
    made = read_model(data(conv(0.5)))
    found = dense_path._links(made, dense_path.layer_problems(made, {}))
    # From the graph's input and to nothing that would read another layout.
    assert [(link.one, link.other) for link in found] == [(0, -2)]


# -- reading and rewriting -----------------------------------------------------------------------


def test_files_are_read_as_onnx_reads_them() -> None:
    for value_type in ("int8", "int4"):
        layer = conv(0.4, value_type=value_type)
        read, right = read_model(data(layer)), model(layer)
        (node,), (same,) = read.nodes, right.graph.node
        assert (node.name, node.operator, node.domain) == (same.name, same.op_type, same.domain)
        assert (node.inputs, node.outputs) == (tuple(same.input), tuple(same.output))
        assert node.ints("pads") == (1, 1, 1, 1)
        assert node.ints("shape") == layer.packed.shape
        assert stored_values(node, read.tensors) == layer.packed.nonzeros
        assert read.tensors.keys() == {tensor.name for tensor in right.graph.initializer}
        for tensor in right.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            np.testing.assert_array_equal(read.tensors[tensor.name].array(), array)
        function = read.function(node.operator)
        assert function is not None
        assert [n.operator for n in function.nodes][-2:] == ["Conv", "Relu"]


@needs_kernels
@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_files_are_left_to_onnxruntime(draw: st.DataObject) -> None:
    whole = bytearray(data(conv(0.9)))
    for _ in range(draw.draw(st.integers(0, 4))):
        whole[draw.draw(st.integers(0, len(whole) - 1))] = draw.draw(st.integers(0, 255))
    found = dense_path.dense_layers(bytes(whole[: draw.draw(st.integers(0, len(whole)))]), 1, {})
    assert found is None or found.layers


@needs_kernels
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value_type", VALUE_TYPES)
def test_both_decoders_agree(codec: Any, value_type: Any) -> None:
    operator = Operator("Conv", codec, value_type, False)
    packed = make_layer(operator, (6, 5, 3, 2), density=0.6, seed=3).packed
    arrays = list(packed.arrays.values())
    decoded = library.unpack(operator.name, packed.shape, packed.count, arrays)
    np.testing.assert_array_equal(decoded, unpack(packed))
    assert library.unpack(operator.name, (6, 5, 3), packed.count, arrays) is None
    assert library.unpack(operator.name, (2**31, 2**31), packed.count, arrays) is None
    assert library.unpack(operator.name, packed.shape, packed.count, arrays[:-1]) is None


@pytest.mark.parametrize("kind", ["Conv", "Gemm", "Linear", "MatMul"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value_type", ["fp32", "int8"])
def test_densified_layers_are_what_the_functions_are(
    kind: str, activation: Any, value_type: Any
) -> None:
    fused = kind != "MatMul"
    if not fused and activation != "none":
        pytest.skip("MatMul has no activation")
    operator = Operator(kind, "gap8", value_type, fused, fused, activation)
    shape = (8, 4, 3, 3) if kind == "Conv" else (8, 16)
    options = {"strides": [2, 1]} if kind == "Conv" else {"transB": 1} if kind == "Gemm" else {}
    layer = make_layer(operator, shape, density=0.6, seed=6, **options)
    rank = 4 if kind == "Conv" else 2
    before = model_of(layer, rank, rank)
    made = densify(read_model(before.SerializeToString()), [0])
    after = onnx.load_from_string(made.data)
    onnx.checker.check_model(after)
    assert not any(node.domain for node in after.graph.node)
    assert not after.functions
    weights = int(np.prod(shape)) + (shape[0] if fused else 0)
    assert made.weight_bytes == 4 * weights
    features = 8 if kind == "MatMul" else 16
    x = np.random.default_rng(0).standard_normal((5, 4, 9, 7) if rank == 4 else (5, features))
    feeds = {"x": x.astype(np.float32)}
    if fused:
        feeds["r"] = expected(layer, feeds["x"], None)[0].astype(np.float32)
    results = [
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, feeds)[0]
        for m in (before, after)
    ]
    np.testing.assert_array_equal(*results)


def test_shapes_are_inferred_through_packed_layers() -> None:
    made = read_model(data(conv(0.5)))
    assert activation_shapes(made, {})["y"] == (1, 64, 8, 8)
    assert activation_shapes(made, {"x": (7, 64, 5, 9)})["y"] == (7, 64, 5, 9)
