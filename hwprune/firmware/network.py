"""A network of int8 weights: what firmware, its reference and its ONNX form are made from.

A tensor's real value is ``scale * (q - zero_point)``. Weights are int8 with one scale for each
output channel and no zero point; biases are int32 in units of ``input scale * weight scale``. What
a layer computes to the bit is said by ``reference.py``.

Where activations are fp32, tensors have the scale 1 and no zero point, biases and clamps are real
values, and an addition has no ratios.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import HwpruneError

Int8Array = NDArray[np.int8]
Pair = tuple[int, int]
Quad = tuple[int, int, int, int]
Clamp = tuple[float, float]
Activations = Literal["int8", "fp32"]

FULL_RANGE = (-128, 127)
LARGEST_FLOAT = float(np.finfo(np.float32).max)
UNCLAMPED = (-LARGEST_FLOAT, LARGEST_FLOAT)  # of fp32
# Scales of the operands of an addition are these parts of the sum's scale.
ADD_DENOMINATOR = 64
MAX_ADD_RATIO = 4095  # then every product and sum of the formula is exact in single precision
# Of what softmax makes: onnxruntime multiplies by the whole part of its inverse, which shall be 255
# (of 1/256 the largest probability would be 256 steps, which wraps around in an int8).
SOFTMAX_SCALE = np.nextafter(np.float32(1 / 255), np.float32(0))
# An accumulator and all its partial sums stay below: what |x - zero point| and |x + 128| can add.
MAX_STEP = 510


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """What lies between two layers.

    Attributes:
        name: its name, unique in the network.
        shape: without the batch: (C, H, W), (C, L) or (C,).
        scale: what one step is worth.
        zero_point: the value that stands for zero, -128 to 127.
    """

    name: str
    shape: tuple[int, ...]
    scale: np.float32
    zero_point: int

    @property
    def chw(self) -> tuple[int, int, int]:
        """Return channels, rows and columns: (C, L) is one row, (C,) is one pixel."""
        channels, *rest = self.shape
        height, width = ([1] * (2 - len(rest)) + rest)[:2]
        return channels, height, width

    @property
    def size(self) -> int:
        """Return the number of elements, which is that of bytes."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Conv2d:
    """A convolution of any kind; one along (C, L) has a kernel of one row.

    Attributes:
        name: of the layer, for people.
        inputs: the name of its input.
        output: the name of what it makes.
        weight: (out, in / groups, kernel rows, kernel columns), zeros included.
        weight_scale: (out,) what one step of a channel's weights is worth.
        bias: (out,) in steps of the accumulator.
        strides: along rows and columns, as are the other pairs.
        pads: top, left, bottom, right, of the input's zero point.
        dilations: the distance of two weights of the kernel.
        groups: the number of groups; that of the input's channels for a depthwise one.
        clamp: the least and the largest value of the output: a ReLU.
    """

    name: str
    inputs: tuple[str]
    output: str
    weight: Int8Array
    weight_scale: NDArray[np.float32]
    bias: NDArray[Any]
    strides: Pair = (1, 1)
    pads: Quad = (0, 0, 0, 0)
    dilations: Pair = (1, 1)
    groups: int = 1
    clamp: Clamp = (-128, 127)


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A matrix product: (in,) to (out,). Attributes as those of ``Conv2d``; weight: (out, in)."""

    name: str
    inputs: tuple[str]
    output: str
    weight: Int8Array
    weight_scale: NDArray[np.float32]
    bias: NDArray[Any]
    clamp: Clamp = (-128, 127)


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """The sum of two tensors of one shape.

    Attributes:
        ratios: the scales of both operands in 64ths of the sum's scale, exactly.
    """

    name: str
    inputs: tuple[str, str]
    output: str
    ratios: Pair
    clamp: Clamp = (-128, 127)


@dataclass(frozen=True, slots=True, eq=False)
class MaxPool:
    """The largest value of each window; padding never is. Scale and zero point stay."""

    name: str
    inputs: tuple[str]
    output: str
    kernel: Pair
    strides: Pair
    pads: Quad = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class AveragePool:
    """The average of each window.

    Attributes:
        count_pads: whether padding counts, as zeros; else a window at the edge is smaller.
    """

    name: str
    inputs: tuple[str]
    output: str
    kernel: Pair
    strides: Pair
    pads: Quad = (0, 0, 0, 0)
    count_pads: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class GlobalAveragePool:
    """The average of each channel: (C, H, W) to (C, 1, 1), (C, L) to (C, 1)."""

    name: str
    inputs: tuple[str]
    output: str


@dataclass(frozen=True, slots=True, eq=False)
class Softmax:
    """Softmax over (C,), as the last layer: of ``SOFTMAX_SCALE``, with the zero point -128."""

    name: str
    inputs: tuple[str]
    output: str


@dataclass(frozen=True, slots=True, eq=False)
class Reshape:
    """The same elements, in row-major order of (C, H, W), in another shape; Flatten is one."""

    name: str
    inputs: tuple[str]
    output: str


@dataclass(frozen=True, slots=True, eq=False)
class Concat:
    """Channels of several tensors one after the other; all have the output's scale."""

    name: str
    inputs: tuple[str, ...]
    output: str


Weighted = Conv2d | Linear
Pool = MaxPool | AveragePool
IntegerLayer = Weighted | Add | Pool | GlobalAveragePool | Softmax | Reshape | Concat


@dataclass(frozen=True, slots=True, eq=False)
class IntegerNetwork:
    """A network of int8 tensors.

    Attributes:
        name: a short name for files.
        tensors: every tensor by its name.
        input: the name of the tensor that is given.
        outputs: the names of those that are wanted.
        layers: in an order in which they can be computed.
        activations: what tensors hold.
    """

    name: str
    tensors: Mapping[str, QuantizedTensor]
    input: str
    outputs: tuple[str, ...]
    layers: tuple[IntegerLayer, ...]
    activations: Activations = "int8"

    @property
    def element_bytes(self) -> int:
        """Return what an element of a tensor takes."""
        return 1 if self.activations == "int8" else 4

    def moves_nothing(self, layer: Reshape, source: str) -> bool:
        """Whether readers can read the source: it has that shape, or they are linear layers."""
        if self.tensors[layer.output].chw == self.tensors[source].chw:
            return True
        readers = [other for other in self.layers if layer.output in other.inputs]
        wanted = layer.output in self.outputs
        return not wanted and all(isinstance(reader, Linear) for reader in readers)

    def validate(self) -> None:
        """Hold the network against what the other files of this room rely on.

        Raises:
            HwpruneError: names the layer, and what was expected of it. A network that was lowered
                is right; another one is a defect of its maker.
        """
        known = {self.input}
        for layer in self.layers:
            missing = [name for name in layer.inputs if name not in known]
            _expect(not missing, layer, f"reads {missing}, which nothing has made yet")
            _expect(layer.output not in known, layer, f"makes {layer.output!r} a second time")
            _expect(
                layer.output in self.tensors, layer, f"makes {layer.output!r}, of no known shape"
            )
            known.add(layer.output)
            inputs = [self.tensors[name] for name in layer.inputs]
            output = self.tensors[layer.output]
            _check_layer(layer, inputs, output, is_int8=self.activations == "int8")
        for name, tensor in self.tensors.items():
            fine = np.isfinite(tensor.scale) and tensor.scale > 0
            if name != tensor.name or not fine or not -128 <= tensor.zero_point <= 127:
                raise HwpruneError(f"{name}: scale {tensor.scale}, zero point {tensor.zero_point}")
        if not self.outputs or not set(self.outputs) <= known:
            raise HwpruneError(f"the outputs {self.outputs} are not what the layers make")

    def multipliers(self, layer: Weighted | GlobalAveragePool) -> NDArray[np.float32]:
        """Return what an accumulator is multiplied by: one for each output channel, or one."""
        x, y = self.tensors[layer.inputs[0]], self.tensors[layer.output]
        if isinstance(layer, GlobalAveragePool):
            return np.asarray([pool_multiplier(x, y, x.chw[1] * x.chw[2])])
        return np.asarray(x.scale * layer.weight_scale / y.scale, np.float32)

    def macs(self, layer: Weighted) -> int:
        """Return the multiply-accumulates of a layer, those with zeros included."""
        _, height, width = self.tensors[layer.output].chw
        return layer.weight.size * height * width


def pool_multiplier(x: QuantizedTensor, y: QuantizedTensor, count: int) -> np.float32:
    """Return what the sum of ``count`` elements is multiplied by to be their average."""
    multiplier: np.float32 = x.scale / (y.scale * np.float32(count))
    return multiplier


def is_add_ratio(operand: np.float32, total: np.float32, ratio: int) -> bool:
    """Return whether an operand's scale is so many 64ths of a sum's, as onnxruntime divides."""
    exact = np.float32(operand / total) == np.float32(ratio / ADD_DENOMINATOR)
    return bool(exact) and 0 < ratio <= MAX_ADD_RATIO


def window_output(size: Pair, kernel: Pair, strides: Pair, pads: Quad, dilations: Pair) -> Pair:
    """Return rows and columns that windows of a kernel make of an image of this size."""
    rows, columns = (
        (size[i] + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1
        for i in range(2)
    )
    return rows, columns


def accumulator_bound(weight: Int8Array, bias: NDArray[np.int32]) -> int:
    """Return a bound of every accumulator and partial sum of a layer, in whatever order."""
    steps = np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(1) * MAX_STEP
    return int((steps + np.abs(bias.astype(np.int64))).max(initial=0))


def _expect(met: bool, layer: IntegerLayer, what: str) -> None:
    if not met:
        raise HwpruneError(f"{type(layer).__name__} {layer.name!r} {what}")


def _check_layer(
    layer: IntegerLayer, inputs: list[QuantizedTensor], output: QuantizedTensor, *, is_int8: bool
) -> None:
    x = inputs[0]
    channels, height, width = x.chw
    made = output.shape
    if isinstance(layer, (Conv2d, Linear)):
        made = _weighted_output(layer, x, is_int8=is_int8)
    elif isinstance(layer, Add):
        made = x.shape
        _expect(inputs[1].shape == x.shape, layer, f"adds {inputs[1].shape} to {x.shape}")
        for tensor, ratio in zip(inputs, layer.ratios, strict=True):
            exact = is_add_ratio(tensor.scale, output.scale, ratio)
            _expect(exact, layer, f"adds {tensor.name!r} as {ratio}/64, which is not its scale's")
    elif isinstance(layer, (MaxPool, AveragePool)):
        size = window_output((height, width), layer.kernel, layer.strides, layer.pads, (1, 1))
        made = (channels, *size)[: len(x.shape)] if len(x.shape) == 3 else (channels, size[1])
        inside = all(pad < layer.kernel[i % 2] for i, pad in enumerate(layer.pads))
        _expect(inside, layer, f"has windows of {layer.kernel} inside pads of {layer.pads}")
    elif isinstance(layer, GlobalAveragePool):
        made = (channels,) + (1,) * (len(x.shape) - 1)
    elif isinstance(layer, Softmax):
        made = (channels,)
        probable = output.scale == SOFTMAX_SCALE and output.zero_point == -128
        _expect(probable or not is_int8, layer, f"has the scale {output.scale}")
    elif isinstance(layer, Concat):
        made = (sum(tensor.shape[0] for tensor in inputs), *x.shape[1:])
        alike = all(tensor.shape[1:] == x.shape[1:] for tensor in inputs)
        _expect(alike, layer, "joins different sizes")
    else:
        _expect(x.size == output.size, layer, f"makes {output.shape} of {x.shape}")
    _expect(made == output.shape, layer, f"makes {made}, where {output.shape} was promised")
    if isinstance(layer, (MaxPool, Reshape, Concat)):
        same = all((t.scale, t.zero_point) == (output.scale, output.zero_point) for t in inputs)
        _expect(same, layer, "changes the scale")
    if isinstance(layer, (Conv2d, Linear, Add)):
        low, high = layer.clamp
        fine = low < high and (not is_int8 or -128 <= low < high <= 127)
        _expect(fine, layer, f"clamps to {layer.clamp}")


def _weighted_output(layer: Weighted, x: QuantizedTensor, *, is_int8: bool) -> tuple[int, ...]:
    """Check weights and accumulators; return the shape of what they make."""
    weight, outputs = layer.weight, len(layer.weight)
    types = weight.dtype, layer.weight_scale.dtype, layer.bias.dtype
    biases = np.dtype(np.int32 if is_int8 else np.float32)
    expected = np.dtype(np.int8), np.dtype(np.float32), biases
    _expect(types == expected, layer, f"has the types {types}")
    lengths = layer.weight_scale.shape, layer.bias.shape
    _expect(lengths == ((outputs,),) * 2, layer, f"has scales and biases of {lengths}")
    fine = np.isfinite(layer.weight_scale) & (layer.weight_scale > 0)
    _expect(bool(fine.all()), layer, "has a weight scale that is not a positive number")
    bound = accumulator_bound(weight, layer.bias) if is_int8 else 0
    _expect(bound < 1 << 31, layer, f"may sum up to {bound:,}, beyond int32")
    if isinstance(layer, Linear):
        _expect(x.shape == weight.shape[1:], layer, f"multiplies {weight.shape} by {x.shape}")
        return (outputs,)
    channels, height, width = x.chw
    groups, kernel = layer.groups, (weight.shape[2], weight.shape[3])
    grouped = groups > 0 and outputs % groups == 0 and channels == weight.shape[1] * groups
    _expect(grouped, layer, f"has weights {weight.shape} in {groups} groups over {x.shape}")
    size = window_output((height, width), kernel, layer.strides, layer.pads, layer.dilations)
    _expect(min(size) > 0, layer, f"makes {size} pixels")
    return (outputs, *size) if len(x.shape) == 3 else (outputs, size[1])
