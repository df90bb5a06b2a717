"""Random integer networks of each kind of layer, for whoever computes, writes or compiles them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hwprune.firmware.fixed_point import settled_average, settled_scales
from hwprune.firmware.network import (
    SOFTMAX_SCALE,
    Add,
    AveragePool,
    Concat,
    Conv2d,
    GlobalAveragePool,
    IntegerLayer,
    IntegerNetwork,
    Linear,
    MaxPool,
    QuantizedTensor,
    Reshape,
    Softmax,
    window_output,
)

Shape = tuple[int, ...]


def tensor(rng: np.random.Generator, name: str, shape: Shape, scale: float = 0) -> QuantizedTensor:
    scale = scale or float(rng.uniform(0.01, 0.1))
    return QuantizedTensor(name, shape, np.float32(scale), int(rng.integers(-128, 128)))


def short_scale(rng: np.random.Generator, bits: int = 12) -> float:
    """A scale whose mantissa has few bits."""
    fraction, exponent = math.frexp(rng.uniform(0.01, 0.1))
    return math.ldexp(round(fraction * (1 << bits)) / (1 << bits), exponent)


def weights(rng: np.random.Generator, shape: Shape, density: float = 0.5) -> np.ndarray:
    kept = rng.random(shape) < density
    return np.where(kept, rng.integers(-127, 128, shape), 0).astype(np.int8)


def fitting(rng: np.random.Generator, weight: np.ndarray, x: QuantizedTensor) -> tuple:
    """Return weight scales, a bias and an output scale whose accumulators use the whole range."""
    scales = rng.uniform(0.001, 0.02, len(weight)).astype(np.float32)
    bias = rng.integers(-5000, 5000, len(weight)).astype(np.int32)
    spread = 70.0 * np.sqrt((weight.astype(float) ** 2).reshape(len(weight), -1).sum(1)) + 2000
    step = float(x.scale) * float((scales * spread).max()) / 60
    return scales, bias, step


def network(
    layers: list[IntegerLayer], tensors: list[QuantizedTensor], outputs: tuple[str, ...] = (),
    settle: bool = True,
) -> IntegerNetwork:  # fmt: skip
    """Put a network together; its scales are settled where chips shall compute with them."""
    known = {t.name: t for t in tensors}
    settled = []
    for layer in layers:
        if settle and isinstance(layer, (Conv2d, Linear)):
            x, y = known[layer.inputs[0]], known[layer.output]
            scale = settled_scales(layer.weight, layer.bias, layer.weight_scale, x, y, layer.clamp)
            layer = replace(layer, weight_scale=scale)
        settled.append(layer)
    made = IntegerNetwork(
        "random", known, tensors[0].name, outputs or (layers[-1].output,), tuple(settled)
    )
    made.validate()
    return made


def conv(
    rng: np.random.Generator, x: QuantizedTensor, y: str, outputs: int, *, kernel: tuple[int, int],
    strides: tuple[int, int] = (1, 1), pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1), groups: int = 1, density: float = 0.5,
    clamp: tuple[int, int] = (-128, 127), scale: float = 0,
) -> tuple[Conv2d, QuantizedTensor]:  # fmt: skip
    channels, height, width = x.chw
    weight = weights(rng, (outputs, channels // groups, *kernel), density)
    scales, bias, step = fitting(rng, weight, x)
    size = window_output((height, width), kernel, strides, pads, dilations)
    shape = (outputs, *size) if len(x.shape) == 3 else (outputs, size[1])
    layer = Conv2d(
        y, (x.name,), y, weight, scales, bias, strides, pads, dilations, groups, clamp
    )  # fmt: skip
    return layer, tensor(rng, y, shape, scale or step)


def linear(
    rng: np.random.Generator, x: QuantizedTensor, y: str, outputs: int
) -> tuple[Linear, QuantizedTensor]:
    weight = weights(rng, (outputs, x.size))
    scales, bias, step = fitting(rng, weight, x)
    return Linear(y, (x.name,), y, weight, scales, bias), tensor(rng, y, (outputs,), step)


def averaged(
    rng: np.random.Generator, x: QuantizedTensor, name: str, part: float
) -> QuantizedTensor:
    """What a global average makes, with a scale that is about so large a part of the input's."""
    y = tensor(rng, name, (x.shape[0], 1, 1), float(x.scale) * part)
    return replace(y, scale=settled_average(x, y))


def random_conv(rng: np.random.Generator) -> IntegerNetwork:
    groups = int(rng.choice([1, 1, 1, 2]))
    channels, outputs = groups * int(rng.integers(1, 9)), groups * int(rng.integers(1, 9))
    x = tensor(rng, "x", (channels, int(rng.integers(1, 14)), int(rng.integers(1, 14))))
    kernel = (int(rng.integers(1, 5)), int(rng.integers(1, 5)))
    dilations = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    pads = tuple(int(rng.integers(0, reach[i % 2] + 1)) for i in range(4))
    if any(x.shape[i + 1] + pads[i] + pads[i + 2] <= reach[i] for i in range(2)):
        pads = (reach[0], reach[1], reach[0], reach[1])
    strides = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    clamp = [(-128, 127), (-60, 127), (-128, 90)][int(rng.integers(3))]
    layer, y = conv(
        rng, x, "y", outputs, kernel=kernel, strides=strides, pads=pads, dilations=dilations,
        groups=groups, density=float(rng.choice([0.05, 0.3, 1.0])), clamp=clamp,
    )  # fmt: skip
    return network([layer], [x, y])


def random_depthwise(rng: np.random.Generator) -> IntegerNetwork:
    channels = int(rng.integers(2, 17))
    x = tensor(rng, "x", (channels, int(rng.integers(3, 14)), int(rng.integers(3, 14))))
    layer, y = conv(
        rng, x, "y", channels * int(rng.integers(1, 3)), kernel=(3, 3), pads=(1, 1, 1, 1),
        strides=(int(rng.integers(1, 3)),) * 2, groups=channels, density=0.8,
    )  # fmt: skip
    return network([layer], [x, y])


def random_conv1d(rng: np.random.Generator) -> IntegerNetwork:
    x = tensor(rng, "x", (int(rng.integers(1, 9)), int(rng.integers(8, 40))))
    layer, y = conv(
        rng, x, "y", 6, kernel=(1, int(rng.integers(1, 6))), strides=(1, int(rng.integers(1, 4))),
        pads=(0, int(rng.integers(0, 3)), 0, int(rng.integers(0, 3))),
    )  # fmt: skip
    return network([layer], [x, y])


def random_linear(rng: np.random.Generator) -> IntegerNetwork:
    x = tensor(rng, "x", (int(rng.integers(1, 200)),))
    layer, y = linear(rng, x, "y", int(rng.integers(1, 40)))
    return network([layer], [x, y])


def random_flattened(rng: np.random.Generator) -> IntegerNetwork:
    x = tensor(rng, "x", (3, 4, 5))
    flat = QuantizedTensor("flat", (60,), x.scale, x.zero_point)
    layer, y = linear(rng, flat, "y", 7)
    return network([Reshape("flat", ("x",), "flat"), layer], [x, flat, y])


def random_add(rng: np.random.Generator) -> IntegerNetwork:
    y = tensor(rng, "y", (4, 32, 64), short_scale(rng))
    ratios = (int(rng.integers(1, 100)), int(rng.integers(1, 100)))
    x = tensor(rng, "x", y.shape, float(y.scale) * ratios[0] / 64)
    twice = int(rng.integers(2)) == 0
    if twice:
        ratios = (ratios[0], ratios[0])
        return network([Add("y", ("x", "x"), "y", ratios)], [x, y])
    other, z = conv(rng, x, "z", 4, kernel=(1, 1), scale=float(y.scale) * ratios[1] / 64, density=1)
    clamp = [(-128, 127), (-20, 127)][int(rng.integers(2))]
    return network([other, Add("y", ("x", "z"), "y", ratios, clamp)], [x, z, y])


def _window(rng: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int], tuple]:
    kernel = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    pads = tuple(int(rng.integers(0, kernel[i % 2])) for i in range(4))
    return kernel, (int(rng.integers(1, 3)), int(rng.integers(1, 3))), pads


def random_max_pool(rng: np.random.Generator) -> IntegerNetwork:
    x = tensor(rng, "x", (3, int(rng.integers(4, 12)), int(rng.integers(4, 12))))
    kernel, strides, pads = _window(rng)
    size = window_output(x.chw[1:], kernel, strides, pads, (1, 1))
    y = QuantizedTensor("y", (3, *size), x.scale, x.zero_point)
    return network([MaxPool("y", ("x",), "y", kernel, strides, pads)], [x, y])


def random_average_pool(rng: np.random.Generator) -> IntegerNetwork:
    """The sums of the scale's few bits are exact in single precision."""
    x = tensor(rng, "x", (16, int(rng.integers(4, 12)), int(rng.integers(4, 12))), short_scale(rng))
    kernel, strides, pads = _window(rng)
    size = window_output(x.chw[1:], kernel, strides, pads, (1, 1))
    y = tensor(rng, "y", (16, *size), float(x.scale) * rng.uniform(0.5, 1))
    layer = AveragePool("y", ("x",), "y", kernel, strides, pads, bool(rng.integers(2)))
    return network([layer], [x, y])


def random_global_pool(rng: np.random.Generator) -> IntegerNetwork:
    x = tensor(rng, "x", (64, int(rng.integers(1, 26)), int(rng.integers(1, 9))))
    y = averaged(rng, x, "y", rng.uniform(0.1, 1))
    return network([GlobalAveragePool("y", ("x",), "y")], [x, y])


def random_softmax(rng: np.random.Generator) -> IntegerNetwork:
    x = tensor(rng, "x", (int(rng.integers(2, 20)),), float(rng.uniform(0.01, 0.3)))
    y = QuantizedTensor("y", x.shape, SOFTMAX_SCALE, -128)
    return network([Softmax("y", ("x",), "y")], [x, y])


def random_concat(rng: np.random.Generator) -> IntegerNetwork:
    x = tensor(rng, "x", (3, 6, 5))
    layer, made = conv(rng, x, "z", 4, kernel=(1, 1), scale=float(x.scale))
    z = QuantizedTensor("z", made.shape, x.scale, x.zero_point)
    y = QuantizedTensor("y", (10, 6, 5), x.scale, x.zero_point)
    return network([layer, Concat("y", ("x", "z", "x"), "y")], [x, z, y])


def random_residual(rng: np.random.Generator) -> IntegerNetwork:
    """A small residual network: what firmware is for."""
    y_scale, ratios = short_scale(rng), (70, 50)
    x = tensor(rng, "x", (3, 12, 10))
    stem, a = conv(rng, x, "a", 8, kernel=(3, 3), pads=(1, 1, 1, 1), scale=y_scale * ratios[0] / 64)
    body, b = conv(rng, a, "b", 8, kernel=(3, 3), pads=(1, 1, 1, 1), density=0.1)
    back, c = conv(rng, b, "c", 8, kernel=(3, 3), pads=(1, 1, 1, 1), scale=y_scale * ratios[1] / 64)
    total = tensor(rng, "d", (8, 12, 10), y_scale)
    down, e = conv(rng, total, "e", 12, kernel=(3, 3), strides=(2, 2), pads=(0, 0, 1, 1))
    pooled = averaged(rng, e, "g", 0.5)
    flat = QuantizedTensor("f", (12,), pooled.scale, pooled.zero_point)
    head, out = linear(rng, flat, "y", 10)
    layers = [
        stem, body, back, Add("d", ("a", "c"), "d", ratios), down,
        GlobalAveragePool("g", ("e",), "g"), Reshape("f", ("g",), "f"), head,
    ]  # fmt: skip
    return network(layers, [x, a, b, c, total, e, pooled, flat, out])


KINDS: dict[str, Callable[[np.random.Generator], IntegerNetwork]] = {
    "conv": random_conv,
    "depthwise": random_depthwise,
    "conv1d": random_conv1d,
    "linear": random_linear,
    "flattened": random_flattened,
    "add": random_add,
    "max_pool": random_max_pool,
    "average_pool": random_average_pool,
    "global_pool": random_global_pool,
    "softmax": random_softmax,
    "concat": random_concat,
    "residual": random_residual,
}


def random_input(rng: np.random.Generator, made: IntegerNetwork, samples: int = 3) -> np.ndarray:
    shape = (samples, *made.tensors[made.input].shape)
    return rng.integers(-128, 128, shape).astype(np.int8)
