"""What a node does to channels: what it knows of them, needs of them, and is without some of them.

One class per way of reading channels; ``RULES`` says which operator reads how. An operator that is
not there, or a use of one that is not understood, reads whole what it reads, and so all channels of
that stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from hwprune.export.channels import ChannelAxis, ChannelInput, Channels, Flags, Units
from hwprune.export.graph import Graph, attributes, input_names, message_of, output_name
from hwprune.export.removal import NodeChange
from hwprune.ir import Masks, along_axis

# (channels,) what a channel holds everywhere and for every input; NaN where that varies.
Values: TypeAlias = NDArray[np.float32]
Tensors: TypeAlias = Mapping[str, NDArray[Any]]
# Affine in what varies: where two very different numbers make no difference, none does.
_AFFINE = ("Mul", "BatchNormalization")
_FAR = 1e6


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a network, and what is kept of those that are pruned."""

    tensors: Tensors
    masks: Masks

    def kept(self, name: str) -> Flags:
        """Return which elements of a tensor are not zero."""
        return self.masks[name] if name in self.masks.by_name else self.tensors[name] != 0

    def kept_by_channels(self, name: str) -> Flags:
        """Return, by a weight's first two axes, whether anything is kept."""
        kept = self.kept(name)
        return np.asarray(kept.any(axis=tuple(range(2, kept.ndim)))) if kept.ndim > 2 else kept

    def summed(self, name: str, where: Any) -> NDArray[np.float64]:
        """Return a part of a weight, zero where it is pruned, summed over all but two axes."""
        part = self.tensors[name][where]
        if name in self.masks.by_name:
            part = np.where(self.masks[name][where], part, 0)
        return np.asarray(part.sum(axis=tuple(range(2, part.ndim)), dtype=np.float64))


@dataclass(frozen=True, slots=True)
class ChannelOp:
    """A node that treats channels in a way that is understood.

    Attributes:
        node: the node.
        inputs: the activations whose channels it reads.
    """

    node: ir.Node
    inputs: tuple[ChannelInput, ...]

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return what is known of the output's channels, given what is known of the inputs'."""
        raise NotImplementedError

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return per input the channels that a needed channel of the output depends on."""
        raise NotImplementedError

    def change(self, keeps: Callable[[Units], Flags]) -> NodeChange | None:
        """Return what the node says over the channels that are left; None where tensors say all."""
        return None


@dataclass(frozen=True, slots=True)
class Layer(ChannelOp):
    """A layer, in groups, of which every output channel may read every input channel of its group.

    Of more than one group, all channels of a group stay or none.

    Attributes:
        weight: the name of its weight; the first two axes count channels.
        rows: the axis of these that counts output channels; the other one counts input channels.
        bias: what it adds to each output channel, empty without.
        padded: a constant input does not make a constant output: it may have zeros around it.
        groups: how many there are.
    """

    weight: str
    rows: int
    bias: str
    padded: bool
    groups: int = 1

    def reads(self, weights: Weights) -> Flags:
        """Return (groups, rows, columns) whether an output channel reads an input channel."""
        either = weights.kept_by_channels(self.weight)
        either = either.T if self.rows else either
        return either.reshape(self.groups, -1, either.shape[1])

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return the bias and what constant inputs add to it, where a row reads nothing else."""
        varies = np.isnan(known[0]) | ((known[0] != 0) & self.padded)
        value = self.carried(weights, known[0], ~varies & (known[0] != 0))
        value += weights.tensors[self.bias].reshape(-1) if self.bias else 0
        reads, where = self.reads(weights), varies.reshape(self.groups, 1, -1)
        value[np.logical_or.reduce(reads, axis=2, where=where).reshape(-1)] = np.nan
        return value.astype(np.float32)

    def carried(self, weights: Weights, known: Values, columns: Flags) -> NDArray[np.float64]:
        """Return (rows,) what these constant input channels add to each output channel."""
        columns = columns.reshape(self.groups, -1)
        held = np.where(columns, known.reshape(columns.shape), 0)
        some = np.flatnonzero(columns.any(axis=0))
        summed = weights.summed(self.weight, (some,) if self.rows else (slice(None), some))
        summed = summed.T if self.rows else summed
        grouped = summed.reshape(self.groups, len(summed) // self.groups, some.size)
        return np.asarray((grouped @ held[:, some, None]).reshape(-1), np.float64)

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return the channels that a needed row reads."""
        where = needed.reshape(self.groups, -1, 1)
        return [np.logical_or.reduce(self.reads(weights), axis=1, where=where).reshape(-1)]

    def useful(self, needed: Flags, telling: Flags) -> Flags:
        """Return, by the weight's first two axes, which connections may change anything.

        Args:
            needed: (rows,) which output channels anything depends on.
            telling: (columns,) which input channels hold anything but zero.
        """
        both = needed.reshape(self.groups, -1, 1) & telling.reshape(self.groups, 1, -1)
        two: Flags = both.reshape(len(needed), -1)
        return two.T if self.rows else two

    def change(self, keeps: Callable[[Units], Flags]) -> NodeChange | None:
        """Return the number of groups that are left."""
        if self.groups == 1:
            return None
        left = keeps(self.inputs[0].units).reshape(self.groups, -1)
        return NodeChange(groups=int(left[:, 0].sum()))


@dataclass(frozen=True, slots=True)
class Each(ChannelOp):
    """A node that computes each channel of its output from the same channel of its inputs.

    Attributes:
        axes: where the channels of each input lie.
        adds: a constant added to an input is added to the output, and nothing else happens.
    """

    axes: tuple[ChannelAxis, ...]
    adds: bool = False

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return what running the node makes of channels that hold one number each."""
        tensors = weights.tensors
        varies = np.logical_or.reduce([np.isnan(values) for values in known])
        if varies.all() and self.node.op_type not in _AFFINE:
            return np.full(varies.shape, np.nan, np.float32)
        message = message_of(self.node)

        def run(filler: float) -> Values:
            """Run the node on activations that have channels and no other size."""
            feeds = {name: tensors[name] for name in input_names(self.node) if name in tensors}
            for source, axis, values in zip(self.inputs, self.axes, known, strict=True):
                filled = np.nan_to_num(values, nan=filler)
                feeds[source.name] = along_axis(filled, axis.at, axis.rank)
            with np.errstate(all="ignore"):
                (found,) = ReferenceEvaluator(message).run(None, feeds)
            found = np.moveaxis(np.asarray(found, np.float32), self.axes[0].at, 0)
            each = found.reshape(varies.size, -1)
            # A tensor with sizes beside the channels gives a channel several numbers.
            return np.where((each == each[:, :1]).all(axis=1), each[:, 0], np.float32(np.nan))

        first = run(0.0)
        if self.node.op_type in _AFFINE:
            varies = varies & (first != run(_FAR))
        return np.where(varies, np.float32(np.nan), first)

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return the output's channels."""
        return [needed] * len(self.inputs)


@dataclass(frozen=True, slots=True)
class Moved(ChannelOp):
    """A node whose channels are those of its inputs: pooled, moved, joined, repeated, padded.

    Attributes:
        origins: (out,) the place of each channel among those of all inputs, one after the other;
            behind the last of them, it is padding.
        adds: a constant added to an input is added to the output, and nothing else happens.
        only: of constant channels only those of this value stay so, beside padding; None for all.
        padding: what channels of padding hold.
        numbers: of its second input, where these may have to change.
        counts: of which of them: (place, units that it counts, times).
    """

    origins: Units
    adds: bool = True
    only: float | None = None
    padding: float = 0.0
    numbers: tuple[int, ...] = ()
    counts: tuple[tuple[int, Units, int], ...] = ()

    @property
    def starts(self) -> list[int]:
        """Return where each input's channels begin."""
        sizes = [source.units.size for source in self.inputs[:-1]]
        return [0, *(int(end) for end in np.cumsum(sizes))]

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return the inputs'."""
        every = np.concatenate(known)
        if self.only is not None:
            every = np.where(every == self.only, every, np.nan)
        places = np.minimum(self.origins, every.size)
        return np.append(every, self.padding)[places].astype(np.float32)

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return the channels that a needed one is."""
        read = np.zeros(self.starts[-1] + self.inputs[-1].units.size, np.bool_)
        origins = self.origins[needed]
        read[origins[origins < read.size]] = True
        return np.split(read, self.starts[1:])

    def change(self, keeps: Callable[[Units], Flags]) -> NodeChange | None:
        """Return the numbers with what is left."""
        if not self.counts:
            return None
        numbers = list(self.numbers)
        for place, units, times in self.counts:
            numbers[place] = int(keeps(units).sum()) * times
        return NodeChange(numbers=tuple(numbers))


Rule: TypeAlias = Callable[[ir.Node, Channels], ChannelOp | None]


def channel_ops_of(graph: Graph) -> tuple[Channels, dict[ir.Node, ChannelOp]]:
    """Return the channels of a network, and what its nodes do to them; not of what reads whole."""
    channels = Channels.of(graph)
    ops: dict[ir.Node, ChannelOp] = {}
    for node in graph.nodes:
        outputs = [value for value in node.outputs if value.name]
        rule = RULES.get(node.op_type) if len(outputs) == 1 and node.domain == "" else None
        op = rule(node, channels) if rule is not None else None
        if op is not None:
            ops[node] = op
        elif not _is_transposed_weight(node, channels):
            channels.read_whole(node)
    if len(list(graph.structure.all_nodes())) > len(graph.nodes):  # inner graphs read anything
        channels.whole |= channels.axes.keys() | channels.tensor_units.keys()
    return channels, ops


def _is_transposed_weight(node: ir.Node, channels: Channels) -> bool:
    """Return whether a node transposes a matrix; its readers then read the tensor."""
    tensor = channels.tensor(input_names(node)[0]) if node.op_type == "Transpose" else None
    if tensor is None or tensor.ndim != 2 or output_name(node) in channels.whole:
        return False
    if list(attributes(node).get("perm", [1, 0])) != [1, 0]:
        return False
    channels.transposed[output_name(node)] = input_names(node)[0]
    return True


# -- layers ---------------------------------------------------------------------------------------


def _made(node: ir.Node, channels: Channels, at: int, units: Units, rank: int) -> None:
    channels.axes[output_name(node)] = ChannelAxis(at, units, rank)


def _bias(node: ir.Node, channels: Channels, rows: int) -> str | None:
    """Return the name of a layer's bias, empty without; None where it is not one per row."""
    name = [*input_names(node), "", ""][2]
    tensor = channels.tensor(name)
    if not name:
        return ""
    return name if tensor is not None and tensor.shape == (rows,) else None


def _conv(node: ir.Node, channels: Channels) -> ChannelOp | None:
    given, name = attributes(node), input_names(node)[1]
    weight = channels.tensor(name)
    if weight is None or weight.ndim < 3:
        return None
    transposed, groups = node.op_type == "ConvTranspose", int(given.get("group", 1))
    rows = weight.shape[1 if transposed else 0]
    bias = _bias(node, channels, rows)
    if bias is None or (transposed and groups > 1):
        return None
    padded = (
        transposed
        or any(given.get("pads", ()))
        or given.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    )
    columns = weight.shape[0 if transposed else 1]
    source, units = channels.read(input_names(node)[0], 1, columns * groups), channels.fresh(rows)
    channels.lies_along(name, 1 if transposed else 0, units)
    if bias:
        channels.lies_along(bias, 0, units)
    _made(node, channels, 1, units, weight.ndim)
    if groups == 1:
        channels.lies_along(name, 0 if transposed else 1, source.units)
        return Layer(node, (source,), name, int(transposed), bias, padded)
    for group in zip(units.reshape(groups, -1), source.units.reshape(groups, -1), strict=True):
        together = np.concatenate(group)
        channels.join(together[1:], np.full(together.size - 1, together[0]))
    return Layer(node, (source,), name, 0, bias, padded, groups)


def _gemm(node: ir.Node, channels: Channels) -> ChannelOp | None:
    given, name = attributes(node), input_names(node)[1]
    weight = channels.tensor(name)
    plain = given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0
    if weight is None or weight.ndim != 2 or given.get("transA", 0) or not plain:
        return None
    return _product(node, channels, name, 0 if given.get("transB", 0) else 1, 2)


def _matmul(node: ir.Node, channels: Channels) -> ChannelOp | None:
    source, name = input_names(node)
    shape, transposed = channels.shapes.get(source), channels.transposed.get(name)
    name = transposed or name
    weight = channels.tensor(name)
    if weight is None or weight.ndim != 2 or shape is None or len(shape) < 2:
        return None
    rows = 1 if transposed is None else 0
    return _product(node, channels, name, rows, len(shape))


def _product(
    node: ir.Node, channels: Channels, name: str, rows: int, rank: int
) -> ChannelOp | None:
    weight = channels.graph.tensors[name]
    bias = _bias(node, channels, weight.shape[rows])
    if bias is None:
        return None
    source = channels.read(input_names(node)[0], rank - 1, weight.shape[1 - rows])
    units = channels.fresh(weight.shape[rows])
    channels.lies_along(name, rows, units)
    channels.lies_along(name, 1 - rows, source.units)
    if bias:
        channels.lies_along(bias, 0, units)
    _made(node, channels, rank - 1, units, rank)
    return Layer(node, (source,), name, rows, bias, padded=False)


# -- what treats each channel by itself -----------------------------------------------------------


def _elementwise(node: ir.Node, channels: Channels) -> ChannelOp | None:
    names = [name for name in input_names(node) if name and channels.tensor(name) is None]
    axes = [axis for axis in map(channels.axes.get, names) if axis is not None]
    if not axes or len(axes) < len(names):
        return None
    first = axes[0]
    if any((a.at, a.units.size, a.rank) != (first.at, first.units.size, first.rank) for a in axes):
        return None
    along: list[tuple[str, int]] = []
    for name in input_names(node):
        tensor = channels.tensor(name)
        if tensor is None:
            continue
        at = first.at - (first.rank - tensor.ndim)  # shapes are aligned at their ends
        if tensor.ndim > first.rank or (at >= 0 and tensor.shape[at] not in (1, first.units.size)):
            return None
        if at >= 0 and tensor.shape[at] == first.units.size:
            along.append((name, at))
    for name, at in along:
        channels.lies_along(name, at, first.units)
    for other in axes[1:]:
        channels.join(first.units, other.units)
    _made(node, channels, first.at, first.units, first.rank)
    inputs = (ChannelInput(n, axis.units, True) for n, axis in zip(names, axes, strict=True))
    return Each(node, tuple(inputs), tuple(axes), adds=node.op_type == "Add")


def _batchnorm(node: ir.Node, channels: Channels) -> ChannelOp | None:
    axis = channels.axis_of(node)
    if axis is None or axis.at != 1 or attributes(node).get("training_mode", 0):
        return None
    tensors = [channels.tensor(name) for name in input_names(node)[1:]]
    if any(tensor is None or tensor.shape != axis.units.shape for tensor in tensors):
        return None
    for name in input_names(node)[1:]:
        channels.lies_along(name, 0, axis.units)
    _made(node, channels, 1, axis.units, axis.rank)
    return Each(node, (channels.source(node),), (axis,))


def _moved(node: ir.Node, channels: Channels, at: int, rank: int, **how: Any) -> ChannelOp:
    """Return the op of a node after which the same channels lie along another axis."""
    source = channels.source(node)
    _made(node, channels, at, source.units, rank)
    return Moved(node, (source,), np.arange(source.units.size), **how)


def _pool(node: ir.Node, channels: Channels) -> ChannelOp | None:
    axis, given = channels.axis_of(node), attributes(node)
    if axis is None or axis.at != 1:
        return None
    around = any(given.get("pads", ())) or given.get("auto_pad", "NOTSET") != "NOTSET"
    around = around or bool(given.get("ceil_mode", 0))
    zeros = node.op_type == "AveragePool" and around and bool(given.get("count_include_pad", 0))
    return _moved(node, channels, 1, axis.rank, only=0.0 if zeros else None, adds=not zeros)


def _axis_kept(node: ir.Node, channels: Channels) -> ChannelOp | None:
    """Return the op of a node that only moves axes, or changes others than that of channels."""
    axis = channels.axis_of(node)
    if axis is None:
        return None
    at, rank, given = axis.at, axis.rank, attributes(node)
    if node.op_type in _AXES_SLOT:
        axes = given.get(
            "axes", channels.numbers([*input_names(node), "", "", ""][_AXES_SLOT[node.op_type]])
        )
        if axes is None or (node.op_type.startswith("Reduce") and not axes):
            return None
        new = node.op_type == "Unsqueeze"
        axes = {int(place) % (rank + len(axes) * new) for place in axes}
        if new:
            rank += len(axes)
            at = [place for place in range(rank) if place not in axes][at]
        elif at in axes:
            return None
        elif node.op_type == "Squeeze" or not given.get("keepdims", 1):
            at, rank = at - sum(place < at for place in axes), rank - len(axes)
    elif node.op_type == "Transpose":
        at = list(given.get("perm", range(rank)[::-1])).index(at)
    return _moved(node, channels, at, rank)


# The input that holds the axes, where they are not an attribute.
_AXES_SLOT = {
    "ReduceMean": 1, "ReduceMax": 1, "ReduceMin": 1, "Squeeze": 1, "Unsqueeze": 1, "Slice": 3,
}  # fmt: skip


# -- what changes how many there are --------------------------------------------------------------


def _concat(node: ir.Node, channels: Channels) -> ChannelOp | None:
    found = [channels.axes.get(name) for name in input_names(node)]
    known = [axis for axis in found if axis is not None]
    if not known:
        return None
    at, rank = known[0].at, known[0].rank
    if attributes(node)["axis"] % rank != at:
        return None
    sources = []
    for name in input_names(node):
        shape = channels.shapes.get(name)
        size = None if shape is None or len(shape) != rank else shape[at]
        if not isinstance(size, int) or channels.tensor(name) is not None:
            return None
        sources.append(channels.read(name, at, size))
    units = np.concatenate([source.units for source in sources])
    _made(node, channels, at, units, rank)
    return Moved(node, tuple(sources), np.arange(units.size))


def _flatten(node: ir.Node, channels: Channels) -> ChannelOp | None:
    """Return the op of a Flatten or Reshape that keeps the batch and the order of channels."""
    axis = channels.axis_of(node)
    before, after = _sizes(channels, input_names(node)[0]), _sizes(channels, output_name(node))
    if axis is None or axis.at != 1 or not before or not after:
        return None
    each = math.prod(before[1:])
    run = each if len(after) == 1 else 1
    if after[0] != axis.units.size * run or math.prod(after[1:]) * run != each:
        return None
    numbers: list[int] = []
    if node.op_type == "Reshape":
        numbers = channels.numbers(input_names(node)[1]) or []
        if len(numbers) != len(after) + 1 or numbers[1] not in (-1, after[0]):
            return None
    elif attributes(node).get("axis", 1) != 1:
        return None
    _made(node, channels, 1, np.repeat(axis.units, run), len(after) + 1)
    counts = () if -1 in numbers[1:2] or not numbers else ((1, axis.units, run),)
    origins = np.repeat(np.arange(axis.units.size), run)
    how: dict[str, Any] = {"adds": False, "numbers": tuple(numbers), "counts": counts}
    return Moved(node, (channels.source(node),), origins, **how)


def _sizes(channels: Channels, name: str) -> list[int]:
    """Return an activation's sizes after the batch; none where they are not all known."""
    sizes = channels.shapes.get(name, ())[1:]
    known = [size for size in sizes if isinstance(size, int)]
    return known if len(known) == len(sizes) else []


def _pad(node: ir.Node, channels: Channels) -> ChannelOp | None:
    axis = channels.axis_of(node)
    names = [*input_names(node), "", "", ""]
    pads = channels.numbers(names[1])
    if axis is None or pads is None or len(pads) != 2 * axis.rank or min(pads) < 0:
        return None
    if attributes(node).get("mode", "constant") != "constant" or len(node.inputs) > 3:
        return None
    value = channels.tensor(names[2]) if names[2] else np.zeros(1)
    if value is None:
        return None
    number, last = float(value.reshape(-1)[0]), axis.at + axis.rank
    spatial = any(pads[: axis.at] + pads[axis.at + 1 : last] + pads[last + 1 :])
    if not pads[axis.at] and not pads[last]:
        return _moved(node, channels, axis.at, axis.rank, only=number, adds=False)
    before, after = channels.fresh(pads[axis.at]), channels.fresh(pads[last])
    _made(node, channels, axis.at, np.concatenate([before, axis.units, after]), axis.rank)
    count = axis.units.size
    origins = np.full(before.size + count + after.size, count)
    origins[before.size : before.size + count] = np.arange(count)
    how: dict[str, Any] = {"adds": False, "only": number if spatial else None, "padding": number}
    counts = ((axis.at, before, 1), (last, after, 1))
    source = channels.source(node)
    return Moved(node, (source,), origins, numbers=tuple(pads), counts=counts, **how)


_ELEMENTWISE = (
    "Abs", "Add", "Cast", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid",
    "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow",
    "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Tanh",
    "ThresholdedRelu",
)  # fmt: skip

RULES: dict[str, Rule] = {
    "Conv": _conv, "ConvTranspose": _conv, "Gemm": _gemm, "MatMul": _matmul,
    "BatchNormalization": _batchnorm, **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "MaxPool": _pool, "AveragePool": _pool, "GlobalAveragePool": _pool, "GlobalMaxPool": _pool,
    **dict.fromkeys((*_AXES_SLOT, "Identity", "Dropout", "Transpose"), _axis_kept),
    "Concat": _concat, "Flatten": _flatten,
    "Reshape": _flatten, "Pad": _pad,
}  # fmt: skip
