"""Every operator at both speeds of one file: they agree with each other and with float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import Layer, expected, make_layer, model_bytes

import hwprune
from hwprune.export.operators import OPERATORS, Operator
from hwprune.kernels import library

pytestmark = pytest.mark.skipif(library.path() is None, reason="the kernels are not built here")

CODECS = ["gap4", "gap8", "gap16", "cols8", "cols16", "bitmap", "rice"]
VALUE_TYPES = ["fp32", "fp16", "int8", "int4", "codebook16", "codebook256"]
ACTIVATIONS = ["none", "relu", "relu6", "hard_swish", "silu", "leaky_relu"]
DENSITIES = [0.0, 0.02, 0.2, 0.6, 1.0]
BATCHES = (1, 33, 0)
# Sessions take milliseconds; what is slow is the first import.
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def compare(layer: Layer, inputs: list[Any], rank: int, output_rank: int, threads: int = 1) -> None:
    """Run the file stock and with kernels on all inputs, in one session each."""
    data = model_bytes(layer, rank, output_rank)
    stock = hwprune.session(data, kernels=False, threads=threads)
    fast = hwprune.session(data, kernels="all", threads=threads)
    assert fast.hwprune.registered == (layer.operator.name,)
    for seed, shape in enumerate(inputs):
        generator = np.random.default_rng(seed)
        x = generator.standard_normal(shape).astype(np.float32)
        feeds = {"x": x}
        residual = None
        if layer.operator.residual:
            (first, _) = expected(layer, x, None)
            residual = generator.standard_normal(first.shape).astype(np.float32)
            feeds["r"] = residual
        right, tolerance = expected(layer, x, residual)
        (slow_y,) = stock.run(None, feeds)
        (fast_y,) = fast.run(None, feeds)
        assert fast_y.shape == slow_y.shape == right.shape
        assert fast_y.dtype == np.float32
        for y in (slow_y, fast_y):
            assert np.abs(y - right).max(initial=0) <= tolerance


@st.composite
def operators(draw: st.DrawFn, kind: str) -> Operator:
    fused = kind != "MatMul"
    return Operator(
        kind,
        draw(st.sampled_from(CODECS)),
        draw(st.sampled_from(VALUE_TYPES)),
        draw(st.booleans()) and fused,
        draw(st.booleans()) and fused,
        draw(st.sampled_from(ACTIVATIONS)) if fused else "none",
    )


@SETTINGS
@given(data=st.data())
def test_convolutions(data: st.DataObject) -> None:
    def several(values: list[int], size: int) -> list[int]:
        return data.draw(st.lists(st.sampled_from(values), min_size=size, max_size=size))

    axes = data.draw(st.sampled_from([1, 2, 2, 2, 3]))
    group = data.draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = (data.draw(st.integers(1, 5)) for _ in range(2))
    depthwise = data.draw(st.booleans()) and group > 1
    kernel = several([1, 2, 3, 5], axes) if axes < 3 else several([1, 2, 3], axes)
    layer = make_layer(
        data.draw(operators("Depthwise" if depthwise else "Conv")),
        (outputs * group, 1 if depthwise else inputs, *kernel),
        density=data.draw(st.sampled_from(DENSITIES)),
        seed=data.draw(st.integers(0, 99)),
        group=group,
        strides=several([1, 2, 3], axes),
        dilations=several([1, 1, 2], axes),
        pads=several([0, 1, 2], 2 * axes),
    )
    channels = group * layer.packed.shape[1]
    # Large enough for the kernel: onnxruntime refuses outputs of negative extent.
    sizes = [
        (size - 1) * dilation + 1 + data.draw(st.integers(0, 9))
        for size, dilation in zip(kernel, layer.attributes["dilations"], strict=True)
    ]
    shapes = [(batch, channels, *sizes) for batch in BATCHES]
    compare(layer, shapes, axes + 2, axes + 2, threads=data.draw(st.sampled_from([1, 2])))


@SETTINGS
@given(data=st.data())
def test_gemm(data: st.DataObject) -> None:
    features, outputs = (data.draw(st.sampled_from([1, 3, 16, 70])) for _ in range(2))
    transposed = data.draw(st.booleans())
    batch = data.draw(st.sampled_from(BATCHES))
    bias = data.draw(st.sampled_from([(outputs,), (1, outputs), (1,), (), (batch, 1)]))
    layer = make_layer(
        data.draw(operators("Gemm")),
        (outputs, features) if transposed else (features, outputs),
        density=data.draw(st.sampled_from(DENSITIES)),
        seed=data.draw(st.integers(0, 99)),
        bias_shape=(outputs,) if batch == 0 else bias,
        transB=int(transposed),
    )
    # A bias of as many rows as the batch fits that batch only.
    rows = [batch] if bias == (batch, 1) and batch > 1 else BATCHES
    compare(layer, [(count, features) for count in rows], 2, 2)


@SETTINGS
@given(data=st.data())
def test_linear(data: st.DataObject) -> None:
    features, outputs = (data.draw(st.sampled_from([1, 3, 16, 70])) for _ in range(2))
    leading = data.draw(st.sampled_from([(), (5,), (2, 3), (1, 1, 4)]))
    layer = make_layer(
        data.draw(operators("Linear")),
        (outputs, features),
        density=data.draw(st.sampled_from(DENSITIES)),
        seed=data.draw(st.integers(0, 99)),
    )
    shapes = [(batch, *leading, features) for batch in BATCHES]
    compare(layer, shapes, len(leading) + 2, len(leading) + 2, threads=2)


@pytest.mark.parametrize(
    ("x", "weight", "y_rank"),
    [
        ((4, 6), (6, 5), 2),
        ((2, 3, 4, 6), (6, 5), 4),
        ((6,), (6, 5), 1),
        ((4, 6), (6,), 1),
        ((6,), (6,), 0),
        ((2, 4, 6), (6,), 2),
        ((3, 4, 6), (3, 6, 5), 3),
        ((1, 4, 6), (3, 6, 5), 3),
        ((4, 6), (3, 6, 5), 3),
        ((6,), (3, 6, 5), 2),
        ((2, 1, 4, 6), (3, 6, 5), 4),
        ((5, 3, 0, 6), (3, 6, 5), 4),
        ((4, 6), (1, 6, 5), 3),
        ((2, 3, 4, 6), (2, 1, 6, 5), 4),
    ],
)
@pytest.mark.parametrize("value_type", ["fp32", "int8", "codebook16"])
def test_matmul(x: tuple[int, ...], weight: tuple[int, ...], y_rank: int, value_type: Any) -> None:
    layer = make_layer(Operator("MatMul", "gap8", value_type, False), weight, density=0.5, seed=1)
    compare(layer, [x], len(x), y_rank)


def test_a_convolution_over_four_axes_is_slow_but_right() -> None:
    operator = Operator("Conv", "gap8", "int8", True, True, "silu")
    layer = make_layer(
        operator, (4, 2, 2, 1, 2, 3), density=0.5, seed=2, group=2,
        strides=[1, 2, 1, 1], pads=[1, 0, 0, 1, 0, 1, 0, 1], dilations=[1, 1, 2, 1],
    )  # fmt: skip
    data = model_bytes(layer, 6, 6)
    x = np.random.default_rng(3).standard_normal((2, 4, 3, 4, 5, 4)).astype(np.float32)
    (shape, _) = expected(layer, x, None)
    residual = np.ones(shape.shape, np.float32)
    right, tolerance = expected(layer, x, residual)
    (y,) = hwprune.session(data, kernels="all").run(None, {"x": x, "r": residual})
    assert y.shape == right.shape
    assert np.abs(y - right).max() <= tolerance


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value_type", VALUE_TYPES)
def test_every_layout(codec: Any, value_type: Any) -> None:
    operator = Operator("Conv", codec, value_type, True)
    for density in DENSITIES:
        layer = make_layer(operator, (7, 4, 3, 3), density=density, seed=5, pads=[1, 1, 1, 1])
        compare(layer, [(2, 4, 6, 5)], 4, 4)


@pytest.mark.parametrize("kind", ["Conv", "Depthwise", "Gemm", "Linear"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_every_epilogue(kind: str, activation: Any, residual: bool) -> None:
    operator = Operator(kind, "bitmap", "int8", True, residual, activation)
    if kind == "Conv":
        layer = make_layer(operator, (6, 4, 1, 1), density=0.5, seed=6)
        compare(layer, [(3, 4, 9, 7)], 4, 4)
    elif kind == "Depthwise":
        layer = make_layer(operator, (6, 1, 3, 3), density=0.9, seed=6, group=3)
        compare(layer, [(3, 3, 9, 7)], 4, 4)
    else:
        options = {"transB": 1} if kind == "Gemm" else {}
        layer = make_layer(operator, (6, 40), density=0.5, seed=6, **options)
        compare(layer, [(33, 40)], 2, 2)


def test_a_residual_that_broadcasts() -> None:
    layer = make_layer(
        Operator("Conv", "gap8", "fp32", True, True), (6, 4, 1, 1), density=0.5, seed=7
    )
    data = model_bytes(layer, 4, 4)
    x = np.random.default_rng(8).standard_normal((2, 4, 3, 5)).astype(np.float32)
    stock = hwprune.session(data, kernels=False)
    fast = hwprune.session(data, kernels="all")
    for shape in [(1, 6, 1, 1), (2, 6, 1, 5), (1, 1, 1, 1)]:
        feeds = {"x": x, "r": np.random.default_rng(9).standard_normal(shape).astype(np.float32)}
        np.testing.assert_allclose(fast.run(None, feeds)[0], stock.run(None, feeds)[0], atol=1e-5)
    with pytest.raises(Exception, match="residual of shape"):
        fast.run(None, {"x": x, "r": np.zeros((3, 6, 3, 5), np.float32)})


def test_attributes_have_the_defaults_of_onnx() -> None:
    layer = make_layer(Operator("Conv", "gap8", "fp32", False), (6, 4, 3, 3), density=0.5, seed=7)
    assert not layer.attributes
    compare(layer, [(2, 4, 6, 5)], 4, 4)
    layer = make_layer(Operator("Gemm", "gap8", "fp32", False), (4, 6), density=0.5, seed=7)
    compare(layer, [(2, 4)], 2, 2)


@pytest.mark.parametrize("value_type", ["fp32", "fp16", "int8", "codebook256"])
@pytest.mark.parametrize(
    "shape", [(6, 1, 3, 3), (3, 1, 5, 5), (3, 1, 3, 5), (6, 1, 7), (3, 1, 1, 3, 3)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_layers_stored_dense(value_type: Any, shape: Any, stride: int) -> None:
    operator = Operator("Depthwise", "dense", value_type, True, True, "relu6")
    axes = len(shape) - 2
    pads = [size // 2 for size in shape[2:]]
    layer = make_layer(
        operator, shape, density=1, seed=6, group=3, strides=[stride] * axes, pads=2 * pads
    )
    for size in [(9, 12, 8), (20, 33, 7)]:
        compare(layer, [(batch, 3, *size[:axes]) for batch in BATCHES], axes + 2, axes + 2)


def test_other_layers_stored_dense_are_left_to_onnxruntime() -> None:
    layer = make_layer(Operator("Conv", "dense", "int8", True), (6, 4, 3, 3), density=1, seed=7)
    session = hwprune.session(model_bytes(layer, 4, 4))
    assert session.hwprune.registered == ()
    assert "no packed layer" in session.hwprune.reason


def test_the_library_knows_the_names_that_are_written() -> None:
    unknown = {name for name in OPERATORS if not library.knows(name)}
    without = "ConvTranspose", "Gather", "Weight"
    assert unknown == {name for name, operator in OPERATORS.items() if operator.kind in without}
