"""From an fp32 ONNX network to one of int8 tensors: which layer becomes which, and its scales.

``read_layers`` takes the structure, and refuses what has no integer form, before any training.
``quantize`` gives every tensor a scale by the ranges that ``calibrate.py`` found. Scales are free
but for these, which are met from the last layer to the first:

- what max pooling, reshaping and joining read and make has one scale;
- the operands of an addition have 64ths of the sum's scale, as onnxruntime divides them;
- what an average reads has few bits, and what it makes a scale at which no average is near a tie.

A tensor of which two things are asked is converted in between, by a convolution of 1x1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from hwprune.errors import ExportError
from hwprune.firmware.calibrate import Range, add_ratio, average_scale, few_bits, starting_scale
from hwprune.firmware.fixed_point import LEAST_SCALE, MAX_SPREAD, settled_average, settled_scales
from hwprune.firmware.network import (
    ADD_DENOMINATOR,
    LARGEST_FLOAT,
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
)

# A bias takes at most so many steps: the scale of an empty channel would otherwise be too small.
MAX_BIAS_STEPS = 1 << 22
UNBOUNDED: Range = (-math.inf, math.inf)

# What is asked for most, and what to use in its place.
NEAREST = {
    "HardSwish": "Relu or Relu6", "Sigmoid": "Relu or Relu6", "Tanh": "Relu or Relu6",
    "LeakyRelu": "Relu", "PRelu": "Relu", "Elu": "Relu", "Gelu": "Relu",
    "HardSigmoid": "Relu6", "Selu": "Relu", "Softplus": "Relu", "Mish": "Relu",
    "ConvTranspose": "Resize outside of the network, and Conv", "LayerNormalization": "BatchNorm",
    "InstanceNormalization": "BatchNorm", "GroupNormalization": "BatchNorm",
    "Mul": "Add, or Conv for a constant", "MatMul": "Linear over a flat tensor", "Resize": "Conv",
    "LSTM": "Conv1d", "GRU": "Conv1d", "RNN": "Conv1d", "Gather": "Conv", "Transpose": "Conv1d",
    "GlobalMaxPool": "MaxPool or AdaptiveAvgPool2d(1)", "ReduceMax": "MaxPool",
    "ReduceSum": "AdaptiveAvgPool2d(1)", "Split": "two Conv", "Slice": "Conv",
    "Pad": "Conv's padding",
}  # fmt: skip
KNOWN = "Conv, Gemm, Relu, Relu6, Add, Concat, MaxPool, AveragePool, Flatten and Softmax"


@dataclass(frozen=True, slots=True, eq=False)
class FloatLayer:
    """A layer before it has scales.

    Attributes:
        kind: the class of what it becomes.
        name: for people; also that of the tensor that it makes.
        inputs: the names of the tensors that it reads.
        shape: of what it makes, without the batch.
        options: further arguments of ``kind``.
        weight: (out, in, ...), of a convolution or a matrix product.
        bias: (out,), likewise.
        activation: what its values are clamped to.
    """

    kind: type[Any]
    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None
    activation: Range = UNBOUNDED


@dataclass(frozen=True, slots=True)
class FloatNetwork:
    """A network of fp32 whose layers all have an integer form.

    Attributes:
        name: a short name for files.
        input: the name of its input.
        shape: of that, without the batch.
        layers: in an order in which they can be computed.
        outputs: the names of the tensors that are wanted.
        values: the name in the ONNX graph of each tensor.
    """

    name: str
    input: str
    shape: tuple[int, ...]
    layers: tuple[FloatLayer, ...]
    outputs: tuple[str, ...]
    values: Mapping[str, str]


# -- structure ------------------------------------------------------------------------------------


def read_layers(model: onnx.ModelProto, name: str) -> FloatNetwork:
    """Return the layers of an fp32 network in which constants are folded.

    Args:
        model: with a batch of any size and all other sizes known; initializers under the names of
            parameters.
        name: a short name for files.

    Raises:
        ExportError: what has no integer form: the operator, the layer, and what to use instead.
    """
    known = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        info.name: [d.dim_value for d in info.type.tensor_type.shape.dim]
        for info in (*known.input, *known.value_info, *known.output)
    }
    return _Reader(model, name, shapes).network()


class _Reader:
    """Takes a graph apart, node by node."""

    def __init__(
        self, model: onnx.ModelProto, name: str, shapes: Mapping[str, Sequence[int]]
    ) -> None:
        self.graph, self.name, self.shapes = model.graph, name, shapes
        self.constants = {each.name: numpy_helper.to_array(each) for each in self.graph.initializer}
        self.tensor_of: dict[str, str] = {}  # by the value's name in the graph
        self.layers: dict[str, FloatLayer] = {}
        self.values: dict[str, str] = {}
        self.reads: dict[str, int] = {}
        for value in (v for node in self.graph.node for v in node.input):
            self.reads[value] = self.reads.get(value, 0) + 1
        for output in self.graph.output:
            self.reads[output.name] = self.reads.get(output.name, 0) + 1
        self.sliced: dict[str, tuple[str, int]] = {}  # value: what it was cut from, rows that stay

    def network(self) -> FloatNetwork:
        inputs = [each for each in self.graph.input if each.name not in self.constants]
        if len(inputs) != 1:
            raise ExportError(
                f"the network takes {len(inputs)} inputs; firmware is made for one",
                hint="join them into one tensor, or leave the firmware out: --target of a board",
            )
        shape = tuple(self.shapes[inputs[0].name][1:])
        if not 1 <= len(shape) <= 3 or 0 in shape:
            sizes = "x".join(str(size or "?") for size in shape)
            raise ExportError(
                f"the input is N x {sizes}; firmware needs fixed sizes: N x C x H x W, N x C x L "
                "or N x C",
                hint="give the sizes with --input, such as x:Nx3x32x32",
            )
        first = inputs[0].name
        self.tensor_of[first] = self.values[first] = first
        for node in self.graph.node:
            self.node(node)
        outputs = tuple(self.tensor_of[output.name] for output in self.graph.output)
        self._softmax_is_last()
        layers = tuple(self.layers.values())
        return FloatNetwork(self.name, first, shape, layers, outputs, self.values)

    def node(self, node: onnx.NodeProto) -> None:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        method = _OPERATORS.get(node.op_type)
        if method is None or node.domain:
            raise self.refusal(node)
        method(self, node, attributes)

    def refusal(self, node: onnx.NodeProto, why: str = "has no integer form") -> ExportError:
        before = next((self.tensor_of[v] for v in node.input if v in self.tensor_of), None)
        weight = next((v for v in node.input if v in self.constants), None)
        place = f" behind {before!r}" if before else f" with {weight!r}" if weight else ""
        instead = NEAREST.get(node.op_type)
        return ExportError(
            f"firmware: {node.op_type}{place} {why}; firmware has {KNOWN}",
            hint=f"use {instead} instead" if instead else "change the layer, or choose a board",
        )

    # -- what layers are made of ------------------------------------------------------------------

    def make(
        self, kind: type[Any], node: onnx.NodeProto, name: str, inputs: Sequence[str],
        *, shape: tuple[int, ...] | None = None, **rest: Any,
    ) -> FloatLayer:  # fmt: skip
        """Add a layer that makes the node's output."""
        value = node.output[0]
        if shape is None:
            shape = tuple(self.shapes.get(value, (0, 0))[1:])
        if not 1 <= len(shape) <= 3 or 0 in shape:
            raise self.refusal(node, f"makes N x {shape}, where firmware knows up to three sizes")
        name = self._unique(name)
        layer = FloatLayer(kind, name, tuple(inputs), shape, **rest)
        self.layers[name] = layer
        self.tensor_of[value], self.values[name] = name, value
        return layer

    def _unique(self, name: str) -> str:
        taken = {*self.layers, *self.tensor_of.values()}
        names = (f"{name}_{place}" if place > 1 else name for place in range(1, len(taken) + 2))
        return next(each for each in names if each not in taken)

    def read(self, node: onnx.NodeProto, slot: int = 0) -> str:
        """Return the tensor that a node reads."""
        tensor = self.tensor_of.get(node.input[slot])
        if tensor is None:
            raise self.refusal(node, "reads a constant, or a slice of a tensor")
        return tensor

    def constant(self, node: onnx.NodeProto, slot: int) -> NDArray[Any] | None:
        return self.constants.get(node.input[slot]) if len(node.input) > slot else None

    def rank(self, tensor: str) -> int:
        layer = self.layers.get(tensor)
        return len(self.shapes[tensor]) - 1 if layer is None else len(layer.shape)

    def layer_name(self, node: onnx.NodeProto, slot: int = 1) -> str:
        return str(node.input[slot]).removesuffix(".weight")

    def alias(self, node: onnx.NodeProto, tensor: str) -> None:
        self.tensor_of[node.output[0]] = tensor

    # -- operators --------------------------------------------------------------------------------

    def _conv(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        weight, bias = self.constant(node, 1), self.constant(node, 2)
        if weight is None or weight.ndim not in (3, 4) or "auto_pad" in attributes:
            raise self.refusal(node, "has no constant weight in one or two dimensions")
        rank = weight.ndim - 2
        options = {
            "strides": _pair(attributes.get("strides"), rank),
            "pads": _quad(attributes.get("pads"), rank),
            "dilations": _pair(attributes.get("dilations"), rank),
            "groups": int(attributes.get("group", 1)),
        }
        weight = weight if rank == 2 else weight[:, :, None]
        self._weighted(Conv2d, node, weight, bias, options)

    def _gemm(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        weight, bias = self.constant(node, 1), self.constant(node, 2)
        scaled = attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0
        if weight is None or attributes.get("transA", 0) or scaled:
            raise self.refusal(node, "is no matrix product with a constant")
        self._weighted(Linear, node, weight if attributes.get("transB", 0) else weight.T, bias, {})

    def _matmul(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        weight = self.constant(node, 1)
        if weight is None or weight.ndim != 2 or self.rank(self.read(node)) != 1:
            raise self.refusal(node, "is no matrix product of a flat tensor with a constant")
        self._weighted(Linear, node, weight.T, None, {})

    def _weighted(
        self, kind: type[Any], node: onnx.NodeProto, weight: NDArray[Any],
        bias: NDArray[Any] | None, options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        x, outputs = self.read(node), len(weight)
        if kind is Linear and self.rank(x) != 1:
            raise self.refusal(node, "reads a tensor that is not flat")
        zeros = np.zeros(outputs, np.float32)
        bias = zeros if bias is None else np.asarray(bias, np.float32).reshape(-1) + zeros
        weight = np.asarray(weight, np.float32)
        self.make(kind, node, self.layer_name(node), [x], options=options, weight=weight, bias=bias)

    def _per_channel(
        self, node: onnx.NodeProto, gain: NDArray[Any] | float, shift: NDArray[Any] | float
    ) -> None:
        """Multiply channels and add to them: a depthwise convolution of 1x1."""
        x = self.read(node, 0 if node.input[0] in self.tensor_of else 1)
        channels = self.shape_of(x)[0]
        if self.rank(x) == 1:
            raise self.refusal(node, "works on a flat tensor")
        try:
            factors, shifts = (
                np.broadcast_to(np.asarray(each, np.float32).reshape(-1), (channels,)).copy()
                for each in (gain, shift)
            )
        except ValueError:
            raise self.refusal(node, "has more than a constant a channel") from None
        weight, options = factors.reshape(-1, 1, 1, 1), {"groups": channels}
        name = f"{node.op_type.lower()}_{x}"
        self.make(
            Conv2d, node, name, [x], shape=self.shape_of(x), options=options, weight=weight,
            bias=shifts,
        )  # fmt: skip

    def shape_of(self, tensor: str) -> tuple[int, ...]:
        layer = self.layers.get(tensor)
        return tuple(self.shapes[tensor][1:]) if layer is None else layer.shape

    def _batchnormalization(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        scale, shift, mean, variance = (self.constants[name] for name in node.input[1:5])
        gain = scale / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        self._per_channel(node, gain, shift - mean * gain)

    def _mul(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        self._per_channel(node, self._other_constant(node), 0.0)

    def _div(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        divisor = self.constant(node, 1)
        if divisor is None:
            raise self.refusal(node)
        self._per_channel(node, 1 / divisor, 0.0)

    def _sub(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        subtrahend = self.constant(node, 1)
        if subtrahend is None:
            raise self.refusal(node)
        self._per_channel(node, 1.0, -subtrahend)

    def _other_constant(self, node: onnx.NodeProto) -> NDArray[Any]:
        found = [self.constants[name] for name in node.input if name in self.constants]
        if len(found) != 1:
            raise self.refusal(node)
        return found[0]

    def _add(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        if any(name in self.constants for name in node.input):
            self._add_constant(node, self._other_constant(node))
            return
        operands = self.read(node, 0), self.read(node, 1)
        if len({self.shape_of(tensor) for tensor in operands}) > 1:
            raise self.refusal(node, "adds tensors of two shapes")
        self.make(Add, node, "add", operands, shape=self.shape_of(operands[0]))

    def _add_constant(self, node: onnx.NodeProto, shift: NDArray[Any]) -> None:
        x = self.read(node, 0 if node.input[0] in self.tensor_of else 1)
        before = self.layers.get(x)
        bias = None if before is None or not self._ends_in(node, x) else before.bias
        if before is None or bias is None or shift.size not in (1, len(bias)):
            self._per_channel(node, 1.0, shift)
        else:
            bias = np.asarray(bias + shift.reshape(-1), np.float32)
            self._replace(node, replace(before, bias=bias))

    def _ends_in(self, node: onnx.NodeProto, tensor: str) -> bool:
        """Return whether a node is all that reads a tensor, and what it does can join it."""
        alone = self.reads[self.values[tensor]] == 1
        return alone and self.layers[tensor].activation == UNBOUNDED

    def _replace(self, node: onnx.NodeProto, layer: FloatLayer) -> None:
        """Let a layer make the node's output."""
        self.layers[layer.name] = layer
        self.alias(node, layer.name)
        self.values[layer.name] = node.output[0]

    def _relu(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        self._clamp(node, (0.0, math.inf))

    def _clip(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        low, high = (
            (unbounded if bound is None or not bound.size else float(bound.reshape(())))
            for bound, unbounded in zip(
                (self.constant(node, 1), self.constant(node, 2)), UNBOUNDED, strict=True
            )
        )
        self._clamp(node, (low, high))

    def _clamp(self, node: onnx.NodeProto, bounds: Range) -> None:
        x = self.read(node)
        layer = self.layers.get(x)
        if layer is not None and layer.kind in (Conv2d, Linear, Add) and self._ends_in(node, x):
            self._replace(node, replace(layer, activation=bounds))
            return
        self._per_channel(node, 1.0, 0.0)
        made = self.layers[self.tensor_of[node.output[0]]]
        self.layers[made.name] = replace(made, activation=bounds)

    def _maxpool(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        if len(node.output) > 1 or any(size > 1 for size in attributes.get("dilations", ())):
            raise self.refusal(node, "with indices or dilations has no integer form")
        self._pool(MaxPool, node, attributes)

    def _averagepool(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        self._pool(
            AveragePool, node, attributes, count_pads=bool(attributes.get("count_include_pad", 0))
        )

    def _pool(
        self, kind: type[Any], node: onnx.NodeProto, attributes: Mapping[str, Any], **more: Any
    ) -> None:
        rank = len(attributes["kernel_shape"])
        if rank > 2 or "auto_pad" in attributes or attributes.get("ceil_mode", 0):
            raise self.refusal(node, "in three dimensions, or rounding sizes up, has no form here")
        options = {
            "kernel": _pair(attributes["kernel_shape"], rank),
            "strides": _pair(attributes.get("strides"), rank),
            "pads": _quad(attributes.get("pads"), rank),
        }
        self.make(kind, node, "pool", [self.read(node)], options=options | more)

    def _globalaveragepool(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        self._average_of_all(node, self.read(node), None)

    def _reducemean(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        axes = self.constant(node, 1)
        given = attributes.get("axes") if axes is None else axes.tolist()
        source, rows = self.sliced.get(node.input[0], (node.input[0], None))
        tensor = self.tensor_of.get(source)
        rank = 0 if tensor is None else self.rank(tensor)
        if (
            tensor is None
            or given is None
            or {a % (rank + 1) for a in given} != {*range(2, rank + 1)}
        ):
            raise self.refusal(
                node, "over other axes than all of height and width has no form here"
            )
        self._average_of_all(node, tensor, rows)

    def _average_of_all(self, node: onnx.NodeProto, x: str, rows: int | None) -> None:
        """Average the first ``rows`` rows of each channel, None for all; drop the axes if asked."""
        channels, *size = self.shape_of(x)
        whole, flat = (channels, *(1 for _ in size)), tuple(self.shapes[node.output[0]][1:])
        if rows is None or self._crop(x, rows):
            self.make(GlobalAveragePool, node, "pool", [x], shape=whole)
        else:
            one_window = {"kernel": (rows, size[1]), "strides": tuple(size)}
            self.make(AveragePool, node, "pool", [x], shape=whole, options=one_window)
        if flat != whole:
            pooled = self.tensor_of[node.output[0]]
            self.make(Reshape, node, "flat", [pooled], shape=flat)

    def _crop(self, tensor: str, rows: int) -> bool:
        """Let convolutions make a tensor's first rows alone, where nothing reads the others."""
        layer = self.layers.get(tensor)
        if layer is None or layer.kind is not Conv2d or self.reads[self.values[tensor]] > 1:
            return False
        if layer.weight is None or len(layer.shape) != 3:
            return False
        height, options = self.shape_of(layer.inputs[0])[1], layer.options
        stride, dilation = (options.get(key, (1, 1))[0] for key in ("strides", "dilations"))
        top, left, _, right = options.get("pads", (0, 0, 0, 0))
        read = (rows - 1) * stride + (layer.weight.shape[2] - 1) * dilation + 1 - top
        # Rows that are left over would make another row, unless they are not made either.
        if height - read >= stride and not (read > 0 and self._crop(layer.inputs[0], read)):
            return False
        pads = (top, left, max(0, read - height), right)
        self.layers[tensor] = replace(
            layer, shape=(layer.shape[0], rows, layer.shape[2]), options={**options, "pads": pads}
        )
        return True

    def _slice(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        """Note a cut of the last rows, where an average follows: it reads fewer rows."""
        parts = [self.constant(node, slot) for slot in range(1, 5)]
        x = self.read(node)
        if any(part is not None and part.size != 1 for part in parts) or self.rank(x) != 3:
            raise self.refusal(node)
        start, end, axis, step = (1 if part is None else int(part.reshape(())) for part in parts)
        height = self.shape_of(x)[1]
        end = min(end if end >= 0 else end + height, height)
        if start != 0 or step != 1 or axis not in (2, -2) or end < 1:
            raise self.refusal(node)
        self.sliced[node.output[0]] = node.input[0], end

    def _flatten(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        if attributes.get("axis", 1) != 1:
            raise self.refusal(node, "from another axis than the first has no integer form")
        shape = self.shape_of(self.read(node))
        self.make(Reshape, node, "flat", [self.read(node)], shape=(math.prod(shape),))

    def _reshape(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        x, wanted = self.read(node), self.constant(node, 1)
        shape = tuple(self.shapes.get(node.output[0], (0, 0))[1:])
        if wanted is not None and 0 in shape:  # the batch's own size is not known to be one factor
            rest = [int(size) for size in wanted[1:]]
            total = math.prod(self.shape_of(x))
            known = math.prod(size for size in rest if size > 0)
            shape = tuple(total // known if size == -1 else size for size in rest)
        if math.prod(shape) != math.prod(self.shape_of(x)):
            raise self.refusal(node, f"to N x {shape} mixes samples")
        self.make(Reshape, node, "reshape", [x], shape=shape)

    def _identity(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        self.alias(node, self.read(node))

    def _concat(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        inputs = [self.read(node, slot) for slot in range(len(node.input))]
        rank = self.rank(inputs[0])
        if attributes["axis"] % (rank + 1) != 1:
            raise self.refusal(node, "along another axis than the channels has no integer form")
        channels = sum(self.shape_of(tensor)[0] for tensor in inputs)
        self.make(Concat, node, "concat", inputs, shape=(channels, *self.shape_of(inputs[0])[1:]))

    def _softmax(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        x = self.read(node)
        if self.rank(x) != 1:
            raise self.refusal(node, "over a tensor that is not flat has no integer form")
        self.make(Softmax, node, "softmax", [x], shape=self.shape_of(x))

    def _softmax_is_last(self) -> None:
        read = {name for layer in self.layers.values() for name in layer.inputs}
        for layer in self.layers.values():
            if layer.kind is Softmax and layer.name in read:
                raise ExportError(
                    f"firmware: {layer.name!r} is a Softmax inside of the network (attention); "
                    "firmware has one behind the last layer only",
                    hint="choose a board as the target",
                )


_OPERATORS: Mapping[str, Callable[[_Reader, onnx.NodeProto, Mapping[str, Any]], None]] = {
    "Conv": _Reader._conv, "Gemm": _Reader._gemm, "MatMul": _Reader._matmul,
    "BatchNormalization": _Reader._batchnormalization, "Add": _Reader._add, "Sub": _Reader._sub,
    "Mul": _Reader._mul, "Div": _Reader._div, "Relu": _Reader._relu, "Clip": _Reader._clip,
    "MaxPool": _Reader._maxpool, "AveragePool": _Reader._averagepool,
    "GlobalAveragePool": _Reader._globalaveragepool, "ReduceMean": _Reader._reducemean,
    "Slice": _Reader._slice, "Flatten": _Reader._flatten, "Reshape": _Reader._reshape,
    "Squeeze": _Reader._reshape, "Unsqueeze": _Reader._reshape, "Identity": _Reader._identity,
    "Dropout": _Reader._identity, "Concat": _Reader._concat, "Softmax": _Reader._softmax,
}  # fmt: skip


def _pair(sizes: Sequence[int] | None, rank: int) -> tuple[int, int]:
    """Return a pair for rows and columns; of one axis, one row."""
    rows, columns = (1, 1) if sizes is None else (1,) * (2 - rank) + tuple(map(int, sizes))
    return rows, columns


def _quad(pads: Sequence[int] | None, rank: int) -> tuple[int, int, int, int]:
    if pads is None:
        return (0, 0, 0, 0)
    top, left, bottom, right = map(int, pads if rank == 2 else (0, pads[0], 0, pads[1]))
    return top, left, bottom, right


# -- scales ---------------------------------------------------------------------------------------


def quantize(network: FloatNetwork, ranges: Mapping[str, Range]) -> IntegerNetwork:
    """Return the network with int8 tensors and weights.

    Args:
        network: what ``read_layers`` returned.
        ranges: the least and the largest value of each tensor by its name.

    Raises:
        HwpruneError: an accumulator could pass 2^31, which only weights that are no numbers bring
            about.
    """
    scales = _Scales(network, ranges)
    layers = scales.settled()
    tensors = scales.tensors()
    made = tuple(_integer_layer(layer, tensors) for layer in layers)
    result = IntegerNetwork(network.name, tensors, network.input, network.outputs, made)
    result.validate()
    return result


def in_fp32(network: FloatNetwork) -> IntegerNetwork:
    """Return the network with int8 weights and activations of fp32, which nothing calibrates."""
    shapes = {network.input: network.shape} | {each.name: each.shape for each in network.layers}
    tensors = {
        name: QuantizedTensor(name, shape, np.float32(1), 0) for name, shape in shapes.items()
    }
    layers: list[IntegerLayer] = []
    for layer in network.layers:
        arguments: dict[str, Any] = {**layer.options}
        if layer.kind in (Conv2d, Linear, Add):
            low, high = np.clip(layer.activation, -LARGEST_FLOAT, LARGEST_FLOAT).tolist()
            arguments["clamp"] = low, high
        if layer.kind is Add:
            arguments["ratios"] = ADD_DENOMINATOR, ADD_DENOMINATOR
        if layer.weight is not None and layer.bias is not None:
            largest = np.abs(layer.weight).reshape(len(layer.weight), -1).max(1)
            scale = np.where(largest > 0, largest / np.float32(127), 1).astype(np.float32)
            scale = np.maximum(scale, np.finfo(np.float32).tiny)
            steps = layer.weight / scale.reshape(-1, *(1,) * (layer.weight.ndim - 1))
            weight = np.clip(np.rint(steps), -127, 127).astype(np.int8)
            arguments |= {"weight": weight, "weight_scale": scale, "bias": layer.bias}
        layers.append(layer.kind(layer.name, layer.inputs, layer.name, **arguments))
    made = IntegerNetwork(
        network.name, tensors, network.input, network.outputs, tuple(layers), "fp32"
    )
    made.validate()
    return made


class _Scales:
    """Scales of groups of tensors that share one, settled from the last layer to the first."""

    def __init__(self, network: FloatNetwork, ranges: Mapping[str, Range]) -> None:
        self.network = network
        self.shapes = {network.input: network.shape}
        self.shapes |= {layer.name: layer.shape for layer in network.layers}
        self.group = {name: name for name in self.shapes}
        for layer in network.layers:
            if layer.kind in (MaxPool, Reshape, Concat):
                for name in layer.inputs:
                    self._join(name, layer.name)
        self.range: dict[str, Range] = {}
        for name in self.shapes:
            low, high = ranges[name]
            least, most = self.range.get(self.of(name), (0.0, 0.0))
            self.range[self.of(name)] = min(low, least), max(high, most)
        self.scale = {name: starting_scale(found) for name, found in self.range.items()}
        self.is_fixed: set[str] = set()
        self.source: dict[str, str] = {}  # by the name of what a tensor was converted to

    def of(self, name: str) -> str:
        while self.group[name] != name:
            name = self.group[name]
        return name

    def _join(self, name: str, other: str) -> None:
        self.group[self.of(name)] = self.of(other)

    def fix(self, name: str, scale: np.float32) -> None:
        self.scale[self.of(name)] = scale
        self.is_fixed.add(self.of(name))

    def settled(self) -> list[FloatLayer]:
        """Return the layers, with conversions where one scale would not do."""
        settled: list[FloatLayer] = []
        for layer in reversed(self.network.layers):
            settled += reversed([*self._settle(layer)])
        settled.reverse()
        return settled

    def _settle(self, layer: FloatLayer) -> Iterator[FloatLayer]:
        """Yield a layer behind what it needs."""
        made = self.of(layer.name)
        if layer.kind is Softmax:
            self.fix(layer.name, SOFTMAX_SCALE)
        elif layer.kind is Add:
            if made not in self.is_fixed:  # of 12 bits, so that any 64ths of it are exact
                self.fix(layer.name, few_bits(self.scale[made], 16))
            inputs, ratios = [], []
            for name in layer.inputs:
                fixed = self.scale[self.of(name)] if self.of(name) in self.is_fixed else None
                ratio, scale = add_ratio(self.scale[self.of(name)], self.scale[made], fixed)
                if scale is None:  # its scale is settled, and no 64ths of this one
                    ratio, scale = add_ratio(self.scale[self.of(name)], self.scale[made], None)
                    assert scale is not None
                    conversion = self._converted(name, scale)
                    yield conversion
                    inputs.append(conversion.name)
                else:
                    self.fix(name, scale)
                    inputs.append(name)
                ratios.append(ratio)
            options = {"ratios": tuple(ratios)}
            layer = replace(layer, inputs=tuple(inputs), options=options)
        elif layer.kind is AveragePool:
            yield from self._average(layer)
            return
        elif layer.kind is GlobalAveragePool:
            x, y = self._tensor(layer.inputs[0]), self._tensor(layer.name)
            yield from self._rescaled(layer, settled_average(x, y))
            return
        yield layer

    def _average(self, layer: FloatLayer) -> Iterator[FloatLayer]:
        name = layer.inputs[0]
        counts = _window_counts(layer, self.shapes[name])
        wanted = few_bits(self.scale[self.of(name)], max(counts))
        if self.of(name) in self.is_fixed and self.scale[self.of(name)] != wanted:
            conversion = self._converted(name, wanted)
            yield conversion
            layer = replace(layer, inputs=(conversion.name,))
        else:
            self.fix(name, wanted)
        made = self.scale[self.of(layer.name)]
        scale = average_scale(wanted, self._zero_point(layer.inputs[0]), made, counts)
        yield from self._rescaled(layer, scale)

    def _rescaled(self, layer: FloatLayer, scale: np.float32) -> Iterator[FloatLayer]:
        """Yield an average of this scale, and what converts it where another one is wanted."""
        if self.of(layer.name) in self.is_fixed and scale != self.scale[self.of(layer.name)]:
            pooled = f"{layer.name}_pooled"
            self.shapes[pooled], self.group[pooled] = layer.shape, pooled
            self.range[pooled] = self.range[self.of(layer.name)]
            self.fix(pooled, scale)
            yield replace(layer, name=pooled)
            yield replace(_conversion(pooled, layer.shape), name=layer.name)
            return
        self.fix(layer.name, scale)
        yield layer

    def _converted(self, name: str, scale: np.float32) -> FloatLayer:
        """Return a layer that gives a tensor another scale."""
        layer = _conversion(name, self.shapes[name])
        count = sum(each.startswith(layer.name) for each in self.shapes)
        layer = replace(layer, name=f"{layer.name}{count or ''}")
        self.shapes[layer.name], self.group[layer.name] = layer.shape, layer.name
        self.range[layer.name] = self.range[self.of(name)]
        self.fix(layer.name, scale)
        return layer

    def _zero_point(self, name: str) -> int:
        group = self.of(name)
        if self.scale[group] == SOFTMAX_SCALE:
            return -128
        low, _ = self.range[group]
        return int(np.clip(round(-128 - low / float(self.scale[group])), -128, 127))

    def _tensor(self, name: str) -> QuantizedTensor:
        scale = self.scale[self.of(name)]
        return QuantizedTensor(name, self.shapes[name], scale, self._zero_point(name))

    def tensors(self) -> dict[str, QuantizedTensor]:
        return {name: self._tensor(name) for name in self.shapes}


def _conversion(name: str, shape: tuple[int, ...]) -> FloatLayer:
    ones, zeros = np.ones((shape[0], 1, 1, 1), np.float32), np.zeros(shape[0], np.float32)
    options = {"groups": shape[0]}
    return FloatLayer(Conv2d, f"{name}_converted", (name,), shape, options, ones, zeros)


def _window_counts(layer: FloatLayer, shape: tuple[int, ...]) -> list[int]:
    """Return how many elements the windows of an average have."""
    (rows, columns), strides = layer.options["kernel"], layer.options["strides"]
    top, left, bottom, right = layer.options.get("pads", (0, 0, 0, 0))
    if layer.options.get("count_pads"):
        return [rows * columns]
    height, width = (1, shape[1]) if len(shape) == 2 else shape[1:]
    inside = np.pad(np.ones((height, width), int), ((top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(inside, (rows, columns))
    return sorted({*windows[:: strides[0], :: strides[1]].sum((2, 3)).ravel().tolist()})


def _integer_layer(layer: FloatLayer, tensors: Mapping[str, QuantizedTensor]) -> IntegerLayer:
    x, y = tensors[layer.inputs[0]], tensors[layer.name]
    arguments: dict[str, Any] = {**layer.options}
    if layer.kind in (Conv2d, Linear, Add):
        low, high = (
            int(
                np.clip(
                    np.rint(np.clip(bound / float(y.scale), -512, 512)) + y.zero_point, -128, 127
                )
            )
            for bound in layer.activation
        )
        clamp = arguments["clamp"] = (min(low, 126), max(high, min(low, 126) + 1))
    if layer.weight is not None and layer.bias is not None:
        weight, scale, bias = _weights(layer.weight, layer.bias, x.scale, y.scale)
        scale = settled_scales(weight, bias, scale, x, y, clamp)
        arguments |= {"weight": weight, "weight_scale": scale, "bias": bias}
    made: IntegerLayer = layer.kind(layer.name, layer.inputs, layer.name, **arguments)
    return made


def _weights(
    weight: NDArray[np.float32], bias: NDArray[np.float32], x: np.float32, y: np.float32
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
    """Return int8 weights, a scale for each channel that its bias fits too, and int32 biases."""
    largest = np.abs(weight).reshape(len(weight), -1).max(1).astype(np.float64)
    needed = np.abs(bias.astype(np.float64)) / (float(x) * MAX_BIAS_STEPS)
    scale = np.maximum(largest / 127, needed)
    # A channel without weights or bias: any scale does.
    scale = np.where(scale > 0, scale, float(y) / (256 * float(x)))
    # A step of a weight that is far below one of what is made would be for nothing.
    least = max(LEAST_SCALE * float(y) / float(x), MAX_SPREAD * float(scale.max(initial=0)))
    scale = np.maximum(scale, least).astype(np.float32)
    each = scale.reshape(-1, *(1,) * (weight.ndim - 1))
    steps = np.clip(np.rint(weight / each), -127, 127).astype(np.int8)
    biases = np.rint(bias / (float(x) * scale.astype(np.float64))).astype(np.int32)
    return steps, scale, biases
