"""Fp32 networks become integer ones of nearly the same outputs, or are refused by name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from float_networks import NETWORKS, Builder, first_rows, samples_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_qlinear import differing, run_onnx

from hwprune.errors import DataError, ExportError
from hwprune.firmware import reference
from hwprune.firmware.calibrate import (
    METHODS,
    Histogram,
    add_ratio,
    average_scale,
    few_bits,
    histograms,
)
from hwprune.firmware.lower import quantize, read_layers
from hwprune.firmware.network import (
    AveragePool,
    Conv2d,
    GlobalAveragePool,
    IntegerNetwork,
    QuantizedTensor,
    is_add_ratio,
)


def lowered(model: onnx.ModelProto, method: Any = "minmax") -> IntegerNetwork:
    network = read_layers(model, "n")
    found = histograms(model, network.values, [samples_of(model)])
    return quantize(network, {name: each.range(method) for name, each in found.items()})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_nearly_those_in_fp32(name: str, method: str) -> None:
    model = NETWORKS[name]()
    made = lowered(model, method)
    x = samples_of(model, 16, seed=2)
    values = reference.run(made, reference.quantize(x, made.tensors[made.input]))
    expected = run_onnx(model, x)
    for output, real in zip(made.outputs, expected.values(), strict=True):
        found = reference.dequantize(values[output], made.tensors[output])
        assert np.abs(found - real).mean() < 0.03 * (real.max() - real.min())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_is_that_of_onnxruntime(name: str) -> None:
    made = lowered(NETWORKS[name]())
    x = np.random.default_rng(3).integers(-128, 128, (16, *made.tensors[made.input].shape))
    assert set(differing(made, x.astype(np.int8)).values()) == {0}


def test_layers_have_the_names_of_their_weights_and_take_what_follows_them() -> None:
    network = read_layers(NETWORKS["plain"](), "n")
    assert [(layer.kind.__name__, layer.name) for layer in network.layers] == [
        ("Conv2d", "stem"), ("Conv2d", "depthwise"), ("Conv2d", "wide"), ("Conv2d", "grouped"),
        ("GlobalAveragePool", "pool"), ("Reshape", "flat"), ("Linear", "head"),
        ("Softmax", "softmax"),
    ]  # fmt: skip
    bounds = {layer.name: layer.activation for layer in network.layers}
    assert bounds["stem"] == (0, math.inf)
    assert bounds["wide"] == (0, 6)
    assert bounds["grouped"] == (-math.inf, math.inf)


def test_a_relu_saturates_and_needs_no_clamp_of_its_own() -> None:
    made = lowered(NETWORKS["plain"]())
    assert made.tensors["stem"].zero_point == -128
    stem = made.layers[0]
    assert isinstance(stem, Conv2d)
    assert stem.clamp == (-128, 127)


def test_tensors_of_which_two_scales_are_asked_are_converted() -> None:
    made = lowered(NETWORKS["entangled"]())
    assert any(layer.name.endswith("_converted") for layer in made.layers)
    plain = lowered(NETWORKS["residual"]())
    assert not any(layer.name.endswith("_converted") for layer in plain.layers)


def test_rows_that_no_average_reads_are_not_made() -> None:
    made = lowered(NETWORKS["cut_average"]())
    assert [made.tensors[name].shape for name in ("a", "b", "pointwise")] == [
        (6, 9, 5), (6, 8, 5), (6, 8, 5),
    ]  # fmt: skip
    assert isinstance(made.layers[3], GlobalAveragePool)


@pytest.mark.parametrize(
    ("rows", "stride", "cut"),
    [(9, 1, True), (8, 1, True), (7, 1, False), (1, 1, False), (8, 2, False), (3, 3, False)],
)
def test_a_cut_of_rows_leaves_the_others_as_they_were(rows: int, stride: int, cut: bool) -> None:
    b = Builder(2, 9 * stride, 5)
    x = b.conv("x", "a", 6, 2, 3, 3, pads=(1, 1, 1, 1), strides=(stride, 1))
    model = first_rows(b, b.conv(x, "b", 6, 6, 3, 1, pads=(2, 0, 0, 0)), rows)
    made = lowered(model)
    # The input has rows that a shorter window would not read: it is given as a whole.
    assert made.tensors["b"].shape == (6, rows if cut else 9, 5)
    assert isinstance(made.layers[2], GlobalAveragePool if cut else AveragePool)
    x = samples_of(model, 8, seed=2)
    values = reference.run(made, reference.quantize(x, made.tensors["x"]))
    (output,), (expected,) = made.outputs, run_onnx(model, x).values()
    found = reference.dequantize(values[output], made.tensors[output])
    assert np.abs(found - expected).mean() < 0.03 * np.ptp(expected)


def test_an_average_of_the_first_rows_of_another_layer_is_one_window() -> None:
    made = lowered(NETWORKS["cut_pool"]())
    pool = next(layer for layer in made.layers if isinstance(layer, AveragePool))
    assert (pool.kernel, pool.strides) == ((8, 5), (9, 5))


def test_the_bias_of_an_empty_channel_fits() -> None:
    b = Builder(2, 4, 4)
    y = b.conv("x", "conv", 3, 2, 1, 1)
    b.constants["conv.weight"][0] = 0
    b.constants["conv.weight"][1] = 0
    b.constants["conv.bias"][:] = [1000, 0, -0.001]
    model = b.model(y)
    made = lowered(model)
    values = reference.run(made, reference.quantize(samples_of(model), made.tensors["x"]))
    real = reference.dequantize(values["conv"], made.tensors["conv"])
    step = float(made.tensors["conv"].scale)
    assert np.abs(real[:, 0] - 1000).max() <= step
    assert np.abs(real[:, 1]).max() <= step


def unary(operator: str, **attributes: Any) -> onnx.ModelProto:
    b = Builder(4, 6, 6)
    return b.model(b.node(operator, b.conv("x", "block.conv", 4, 4, 1, 1), **attributes))


def attention() -> onnx.ModelProto:
    b = Builder(8)
    x = b.node("Softmax", b.linear("x", "q", 8, 8), axis=-1)
    return b.model(b.linear(x, "v", 8, 8))


def two_inputs() -> onnx.ModelProto:
    model = unary("Relu")
    model.graph.input.append(onnx.helper.make_tensor_value_info("z", 1, ["N", 3]))
    return model


def of_free_size() -> onnx.ModelProto:
    b = Builder(4, 6, 6)
    b.shape = (4, "H", 6)  # type: ignore[assignment]
    return b.model(b.conv("x", "a", 4, 4, 1, 1))


def product() -> onnx.ModelProto:
    b = Builder(4, 6, 6)
    return b.model(b.node("Mul", b.conv("x", "gate", 4, 4, 1, 1), "x"))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (unary("HardSwish"), ["HardSwish", "'block.conv'", "Relu or Relu6"]),
        (unary("Sigmoid"), ["Sigmoid", "'block.conv'", "Relu"]),
        (unary("LeakyRelu", alpha=0.1), ["LeakyRelu", "'block.conv'", "use Relu instead"]),
        (unary("Erf"), ["Erf", "'block.conv'", "firmware has Conv"]),
        (unary("GlobalMaxPool"), ["GlobalMaxPool", "MaxPool or AdaptiveAvgPool2d"]),
        (unary("MaxPool", kernel_shape=[2, 2], ceil_mode=1), ["MaxPool", "rounding sizes up"]),
        (unary("ReduceMean", keepdims=0, axes=[3]), ["ReduceMean", "other axes"]),
        (unary("Unique"), ["Unique"]),
        (product(), ["Mul", "'gate'"]),
        (attention(), ["Softmax inside", "'softmax'"]),
        (two_inputs(), ["2 inputs"]),
        (of_free_size(), ["N x 4x?x6", "--input"]),
    ],
)
def test_what_has_no_integer_form_is_refused_by_name(
    model: onnx.ModelProto, said: list[str]
) -> None:
    with pytest.raises(ExportError) as caught:
        read_layers(model, "n")
    for part in said:
        assert part in f"{caught.value.message}; {caught.value.hint}"


# -- calibration ----------------------------------------------------------------------------------


def test_samples_that_are_all_alike_calibrate_nothing() -> None:
    model = NETWORKS["plain"]()
    network = read_layers(model, "n")
    alike = np.ones((4, 3, 12, 10), np.float32)
    with pytest.raises(DataError, match="the same"):
        histograms(model, network.values, [alike, alike])
    broken = samples_of(model)
    broken[3, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        histograms(model, network.values, [broken])


def test_ranges_leave_out_what_is_rare() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(100_000), [40.0]])
    counts = np.histogram(values, 4096, (values.min(), 40))[0]
    found = Histogram(float(values.min()), 40.0, counts)
    widths = {method: np.ptp(found.range(method)) for method in METHODS}
    assert widths["minmax"] > 40
    assert widths["percentile"] < 10
    assert widths["mse"] < widths["minmax"]
    for method in METHODS:
        low, high = Histogram(2.0, 3.0, counts).range(method)
        assert low <= 0 < high


positive = st.floats(2.0**-13, 10, width=32)


@settings(deadline=None)
@given(positive, positive)
def test_operands_of_a_sum_get_exact_64ths_that_are_not_smaller(
    operand: float, total: float
) -> None:
    for made in np.float32(total), few_bits(np.float32(total), 16):
        wanted = np.float32(min(operand, made * 50))
        ratio, scale = add_ratio(wanted, made, None)
        assert scale is not None
        assert is_add_ratio(scale, made, ratio)
        assert scale >= wanted * (1 - 1e-6)
    assert scale <= wanted * 1.0001 + made / 64  # of a sum's scale of 12 bits, the next 64th


@settings(deadline=None, max_examples=30)
@given(positive, st.integers(-128, 127), st.sampled_from([1, 2, 3, 4, 9, 49, 120]))
def test_averages_at_the_scale_that_was_found_are_those_of_onnxruntime(
    scale: float, zero: int, count: int
) -> None:
    step = few_bits(np.float32(scale), count)
    assert scale <= step <= scale * (1 + 2.0 ** -(15 - math.ceil(math.log2(count))))
    y_scale = average_scale(step, zero, step, [count])
    assert step <= y_scale < step * 1.07
    x = QuantizedTensor("x", (1, 512, count), step, zero)
    y = QuantizedTensor("y", (1, 512, 1), y_scale, 3)
    layer = AveragePool("y", ("x",), "y", (1, count), (1, count))
    made = IntegerNetwork("n", {"x": x, "y": y}, "x", ("y",), (layer,))
    made.validate()
    values = np.random.default_rng(0).integers(-128, 128, (4, 1, 512, count)).astype(np.int8)
    assert differing(made, values) == {"y": 0}
