"""What an integer network computes, to the bit: the rule that C, ONNX and emulated boards follow.

All roundings are to the nearest, ties to even (RNE); f32 is rounding to single precision; sat
saturates to the layer's clamp, which is -128 to 127 without a ReLU. They are those of onnxruntime's
QLinear operators: rounding half up instead differs wherever a value lies near k + 1/2.

    convolution, linear     sat(zy + RNE(f32(f32(acc) * s))),  s = f32(f32(sx * sw) / sy)
    global average          the same with s = f32(sx / f32(sy * n))
    average of a window     sat(RNE(f32(f32(f32(acc) * s) + zy))),  s as above
    addition                sat(RNE((ma (a - za) + mb (b - zb) + 64 zy) / 64)),  exact in integers
    softmax                 RNE(f32(f32(e * 255) / sum of e)) - 128,  e from a table by max - x

Where activations are fp32, each product and sum is rounded, in the order of a filter's columns:

    convolution, linear     f32(acc * sw),  acc from f32(bias / sw) on;  averages the same

``acc`` is the int32 sum of ``weight * (x - zx)`` and the bias. Where the zero point is inside a
rounding an odd one decides ties otherwise. Onnxruntime's average of a window and its addition are
these formulas only for scales that ``calibrate.py`` chooses so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.firmware.memory_plan import convolution_of
from hwprune.firmware.network import (
    ADD_DENOMINATOR,
    FULL_RANGE,
    Add,
    AveragePool,
    Clamp,
    Concat,
    Conv2d,
    GlobalAveragePool,
    Int8Array,
    IntegerLayer,
    IntegerNetwork,
    Linear,
    MaxPool,
    Pair,
    Quad,
    QuantizedTensor,
    Reshape,
    Softmax,
    pool_multiplier,
    window_output,
)

# Sums of int8 products are whole numbers far below 2^53, and matrix products of float64 are fast.
Exact = NDArray[np.float64]


def run(network: IntegerNetwork, x: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Compute every tensor of a network.

    Args:
        network: a valid one.
        x: (n, *shape of the input).

    Returns:
        Each tensor by its name, the input included: (n, *shape).
    """
    if network.activations == "fp32":
        return dict(_run_float(network, x))
    assert x.dtype == np.int8
    values = {network.input: x}
    for layer in network.layers:
        inputs = [values[name] for name in layer.inputs]
        made = _compute(network, layer, inputs)
        values[layer.output] = made.reshape(len(x), *network.tensors[layer.output].shape)
    return values


def quantize(x: NDArray[Any], tensor: QuantizedTensor) -> Int8Array:
    """Return real values as a tensor holds them: sat(RNE(x / scale) + zero point)."""
    steps = np.rint(np.asarray(x, np.float32) / tensor.scale).astype(np.float64)
    return _saturated(steps + tensor.zero_point)


def dequantize(q: Int8Array, tensor: QuantizedTensor) -> NDArray[np.float32]:
    """Return the real values that a tensor stands for."""
    return np.asarray((q.astype(np.float32) - tensor.zero_point) * tensor.scale, np.float32)


def softmax_table(scale: np.float32, length: int) -> NDArray[np.float32]:
    """Return e^(-i scale) for the i steps below the largest of ``length`` inputs: (256,).

    All are multiplied by what keeps their sum within single precision, as onnxruntime does.
    """
    headroom = float(np.log(np.finfo(np.float32).max / np.float32(length))) - 5
    shift = max(0.0, headroom) / float(scale)
    return np.asarray(
        [math.exp((shift - below) * float(scale)) for below in range(256)], dtype=np.float32
    )


def _compute(network: IntegerNetwork, layer: IntegerLayer, inputs: list[Int8Array]) -> Int8Array:
    q, x, y = inputs[0], network.tensors[layer.inputs[0]], network.tensors[layer.output]
    if isinstance(layer, Conv2d):
        image = _image(q, x) - x.zero_point
        return requantize(
            _channels(layer.bias) + _convolution(layer, image),
            _channels(network.multipliers(layer)), y.zero_point, layer.clamp,
        )  # fmt: skip
    if isinstance(layer, Linear):
        product = (q.astype(np.float64) - x.zero_point) @ layer.weight.T.astype(np.float64)
        scale = network.multipliers(layer)
        return requantize(layer.bias + product, scale, y.zero_point, layer.clamp)
    if isinstance(layer, Add):
        steps = np.zeros(q.shape)
        for name, operand, ratio in zip(layer.inputs, inputs, layer.ratios, strict=True):
            steps += ratio * (operand.astype(np.float64) - network.tensors[name].zero_point)
        return _saturated(np.rint(steps / ADD_DENOMINATOR + y.zero_point), layer.clamp)
    if isinstance(layer, GlobalAveragePool):
        total = (_image(q, x) - x.zero_point).sum((2, 3))
        return requantize(total, network.multipliers(layer), y.zero_point)
    if isinstance(layer, MaxPool):
        # Of padding no value is the largest: -128 is the least, and some pixel is in the window.
        windows = _windows(_image(q, x), layer.kernel, layer.strides, layer.pads, pad=-128)
        return _saturated(windows.max((-2, -1)))
    if isinstance(layer, AveragePool):
        return _average(layer, _image(q, x), x, y)
    if isinstance(layer, Softmax):
        return _softmax(q, x, y)
    return np.concatenate(inputs, axis=1) if isinstance(layer, Concat) else q


def requantize(acc: Exact, scale: Any, zero_point: int, clamp: Clamp = FULL_RANGE) -> Int8Array:
    """Return accumulators as steps of the output, saturated."""
    steps = np.rint(acc.astype(np.float32) * np.asarray(scale, np.float32)).astype(np.float64)
    return _saturated(steps + zero_point, clamp)


def _saturated(steps: Exact, clamp: Clamp = FULL_RANGE) -> Int8Array:
    return np.clip(steps, *clamp).astype(np.int8)


def _image(q: Int8Array, tensor: QuantizedTensor) -> Exact:
    """Return a batch of tensors as images: (n, C, H, W)."""
    return q.reshape(len(q), *tensor.chw).astype(np.float64)


def _channels(numbers: NDArray[Any]) -> NDArray[Any]:
    return numbers.reshape(-1, 1, 1)


def _windows(
    image: NDArray[Any],
    kernel: Pair,
    strides: Pair,
    pads: Quad,
    dilations: Pair = (1, 1),
    pad: float = 0,
) -> NDArray[Any]:
    """Return (n, C, rows out, columns out, kernel rows, kernel columns), a view."""
    top, left, bottom, right = pads
    padded = np.pad(image, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=pad)
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    rows, columns = slice(None, None, strides[0]), slice(None, None, strides[1])
    result: NDArray[Any] = views[:, :, rows, columns, :: dilations[0], :: dilations[1]]
    return result


def _convolution(layer: Conv2d, image: Exact) -> Exact:
    """Return the sums without bias: (n, out, rows, columns)."""
    outputs, per_group, *kernel = layer.weight.shape
    windows = _windows(image, (kernel[0], kernel[1]), layer.strides, layer.pads, layer.dilations)
    count, _, rows, columns = windows.shape[:4]
    grouped = (layer.groups, outputs // layer.groups, per_group)
    sums = np.zeros((count, layer.groups, grouped[1], rows * columns))
    weight = layer.weight.astype(np.float64).reshape(*grouped, *kernel)
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            pixels = windows[..., row, column].reshape(count, layer.groups, per_group, -1)
            sums += weight[..., row, column] @ pixels
    return sums.reshape(count, outputs, rows, columns)


def _average(layer: AveragePool, image: Exact, x: QuantizedTensor, y: QuantizedTensor) -> Int8Array:
    shape = layer.kernel, layer.strides, layer.pads
    sums = _windows(image - x.zero_point, *shape).sum((-2, -1))
    counts = np.full(window_output(x.chw[1:], *shape, (1, 1)), math.prod(layer.kernel))
    if not layer.count_pads:
        counts = _windows(np.ones((1, 1, *x.chw[1:])), *shape).sum((-2, -1))[0, 0].astype(int)
    scales = np.vectorize(lambda count: pool_multiplier(x, y, count), otypes=[np.float32])(counts)
    steps = sums.astype(np.float32) * scales + np.float32(y.zero_point)
    return _saturated(np.rint(steps).astype(np.float64))


def _softmax(q: Int8Array, x: QuantizedTensor, y: QuantizedTensor) -> Int8Array:
    table = softmax_table(x.scale, q.shape[1])
    below = q.max(1, keepdims=True).astype(np.int64) - q
    powers = table[below]
    total = np.zeros((len(q), 1), np.float32)
    for column in range(q.shape[1]):  # in order: each sum is rounded
        total += powers[:, column : column + 1]
    steps = np.rint(powers * np.float32(255) / total).astype(np.float64)
    return _saturated(steps + y.zero_point)


# -- activations of fp32 --------------------------------------------------------------------------

Floats = NDArray[np.float32]
# e^x by a power of 2 and a polynomial of what is left: runtime/hwp_layers.c has the same.
_LOG2_E, _LN2_HIGH, _LN2_LOW = (np.float32(x) for x in (1.44269504, 0.693359375, -2.12194440e-4))
_FACTORIALS = (720, 120, 24, 6, 2, 1, 1)
LEAST_POWER = -87


def float_bias(layer: Conv2d | Linear) -> Floats:
    """Return the biases of fp32 in steps of a filter's weights: what its sum begins with."""
    return np.asarray(layer.bias / layer.weight_scale + np.float32(0), np.float32)


def _run_float(network: IntegerNetwork, x: Floats) -> Iterator[tuple[str, Floats]]:
    assert x.dtype == np.float32
    values, sources = {network.input: x}, {network.input: network.input}
    yield network.input, x
    for layer in network.layers:
        inputs = [values[name] for name in layer.inputs]
        source = network.tensors[sources[layer.inputs[0]]]
        images = [image.reshape(len(x), *network.tensors[name].chw) for name, image in
                  zip(layer.inputs, inputs, strict=True)]  # fmt: skip
        if isinstance(layer, Linear):
            images = [inputs[0].reshape(len(x), *source.chw)]
        made = _compute_float(layer, images, source)
        tensor = network.tensors[layer.output]
        same = isinstance(layer, Reshape) and network.moves_nothing(layer, source.name)
        sources[layer.output] = source.name if same else tensor.name
        values[layer.output] = made.reshape(len(x), *tensor.shape)
        yield layer.output, values[layer.output]


def _compute_float(layer: IntegerLayer, images: list[Floats], source: QuantizedTensor) -> Floats:
    x = images[0]
    if isinstance(layer, (Conv2d, Linear)):
        return _clamped(_float_convolution(layer, x, source), layer.clamp)
    if isinstance(layer, Add):
        return _clamped(images[0] + images[1], layer.clamp)
    if isinstance(layer, MaxPool):
        shape = layer.kernel, layer.strides, layer.pads
        largest: Floats = _windows(x, *shape, pad=-np.inf).max((-2, -1))
        return largest
    if isinstance(layer, AveragePool):
        shape = layer.kernel, layer.strides, layer.pads
        windows, counts = _windows(x, *shape), _windows(np.ones_like(x[:1, :1]), *shape)
        inside = np.full_like(counts[..., 0, 0], math.prod(layer.kernel))
        if not layer.count_pads:
            inside = counts.sum((-2, -1))
        total = _summed(windows.reshape(*windows.shape[:4], -1))
        return _product(total, np.float32(1) / inside)
    if isinstance(layer, GlobalAveragePool):
        flat = x.reshape(*x.shape[:2], 1, 1, -1)
        return _product(_summed(flat), np.float32(1) / np.float32(flat.shape[-1]))
    if isinstance(layer, Softmax):
        powers = _powers_of_e(x - x.max(1, keepdims=True))
        return powers / _summed(np.moveaxis(powers, 1, -1))[:, None]
    return np.concatenate(images, axis=1) if isinstance(layer, Concat) else x


def _summed(values: NDArray[Any]) -> Floats:
    """Return sums over the last axis, in order: each is rounded."""
    total = np.zeros(values.shape[:-1], np.float32)
    for place in range(values.shape[-1]):
        total += values[..., place]
    return total


def _product(values: Floats, factor: Any) -> Floats:
    made: Floats = values * factor
    return made


def _clamped(values: Floats, clamp: Clamp) -> Floats:
    low, high = np.float32(clamp[0]), np.float32(clamp[1])
    clamped: Floats = np.where(values < low, low, np.where(values > high, high, values))
    return clamped


def _float_convolution(layer: Conv2d | Linear, image: Floats, source: QuantizedTensor) -> Floats:
    """Sum in the order in which taps lie: kernel rows, channels, kernel columns."""
    conv = convolution_of(layer, source)
    outputs, per_group, rows, columns = conv.weight.shape
    windows = _windows(image, (rows, columns), conv.strides, conv.pads, conv.dilations)
    count, _, height, width = windows.shape[:4]
    grouped = (conv.groups, outputs // conv.groups, per_group)
    weight = conv.weight.astype(np.float32).reshape(*grouped, rows, columns)
    sums = np.zeros((count, *grouped[:2], height, width), np.float32)
    sums += float_bias(conv).reshape(*grouped[:2], 1, 1)
    for row in range(rows):
        for channel in range(per_group):
            for column in range(columns):
                factors = weight[:, :, channel, row, column]
                if factors.any():
                    pixels = windows[..., row, column].reshape(count, -1, per_group, height, width)
                    sums += factors[:, :, None, None] * pixels[:, :, channel, None]
    return _product(sums.reshape(count, outputs, height, width), _channels(conv.weight_scale))


def _powers_of_e(x: Floats) -> Floats:
    twos = np.rint(x * _LOG2_E).astype(np.float32)
    rest = x - twos * _LN2_HIGH - twos * _LN2_LOW
    total = np.full_like(x, np.float32(1) / np.float32(_FACTORIALS[0]))
    for factorial in _FACTORIALS[1:]:
        total = total * rest + np.float32(1) / np.float32(factorial)
    powers = np.ldexp(total, twos.astype(np.int32)).astype(np.float32)
    made: Floats = np.where(x < LEAST_POWER, np.float32(0), powers)
    return made
