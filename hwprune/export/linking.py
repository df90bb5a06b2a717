"""Which operator reads channels in which way: a network's nodes, one after the other, as links.

``RULES`` has one entry per operator. An operator that is not there, or a use of one that is not
understood, reads whole what it reads, and so all channels of that stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import onnx

from hwprune.export.channels import Axis, Channels, Source, Units
from hwprune.export.graph import Graph, attributes
from hwprune.export.links import Each, Flattened, Grouped, Joined, Layer, Link, Padded

Rule: TypeAlias = Callable[[onnx.NodeProto, Channels], Link | None]


def link_nodes(graph: Graph) -> tuple[Channels, list[Link | None]]:
    """Return the channels of a network, and a link per node; None for what reads whole."""
    channels = Channels.of(graph)
    links: list[Link | None] = []
    for node in graph.nodes:
        outputs = [name for name in node.output if name]
        rule = RULES.get(node.op_type) if len(outputs) == 1 and node.domain == "" else None
        link = rule(node, channels) if rule is not None else None
        links.append(link)
        if link is None and not _is_transposed_weight(node, channels):
            channels.read_whole(node)
    if any(entry.HasField("g") or entry.graphs for node in graph.nodes for entry in node.attribute):
        channels.whole |= channels.axes.keys() | channels.cuts.keys()  # inner graphs read anything
    return channels, links


def _is_transposed_weight(node: onnx.NodeProto, channels: Channels) -> bool:
    """Return whether a node transposes a matrix; its readers then read the tensor."""
    tensor = channels.tensor(node.input[0]) if node.op_type == "Transpose" else None
    if tensor is None or tensor.ndim != 2 or node.output[0] in channels.whole:
        return False
    if list(attributes(node).get("perm", [1, 0])) != [1, 0]:
        return False
    channels.transposed[node.output[0]] = node.input[0]
    return True


# -- layers ---------------------------------------------------------------------------------------


def _made(node: onnx.NodeProto, channels: Channels, at: int, units: Units, rank: int) -> None:
    channels.axes[node.output[0]] = Axis(at, units, rank)


def _bias(node: onnx.NodeProto, channels: Channels, rows: int) -> str | None:
    """Return the name of a layer's bias, empty without; None where it is not one per row."""
    name = node.input[2] if len(node.input) > 2 else ""
    tensor = channels.tensor(name)
    if not name:
        return ""
    return name if tensor is not None and tensor.shape == (rows,) else None


def _conv(node: onnx.NodeProto, channels: Channels) -> Link | None:
    given, weight = attributes(node), channels.tensor(node.input[1])
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
        or given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    )
    columns = weight.shape[0 if transposed else 1]
    source, units = channels.source(node.input[0], 1, columns * groups), channels.fresh(rows)
    channels.cut(node.input[1], 1 if transposed else 0, units)
    if bias:
        channels.cut(bias, 0, units)
    _made(node, channels, 1, units, weight.ndim)
    if groups == 1:
        channels.cut(node.input[1], 0 if transposed else 1, source.units)
        return Layer(node, (source,), node.input[1], int(transposed), bias, padded)
    for group in zip(units.reshape(groups, -1), source.units.reshape(groups, -1), strict=True):
        together = np.concatenate(group)
        channels.join(together[1:], np.full(together.size - 1, together[0]))
    return Grouped(node, (source,), node.input[1], bias, padded, groups)


def _gemm(node: onnx.NodeProto, channels: Channels) -> Link | None:
    given, weight = attributes(node), channels.tensor(node.input[1])
    plain = given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0
    if weight is None or weight.ndim != 2 or given.get("transA", 0) or not plain:
        return None
    return _product(node, channels, node.input[1], 0 if given.get("transB", 0) else 1, 2)


def _matmul(node: onnx.NodeProto, channels: Channels) -> Link | None:
    shape = channels.shapes.get(node.input[0])
    transposed = channels.transposed.get(node.input[1])
    weight = channels.tensor(transposed or node.input[1])
    if weight is None or weight.ndim != 2 or shape is None or len(shape) < 2:
        return None
    rows = 1 if transposed is None else 0
    return _product(node, channels, transposed or node.input[1], rows, len(shape))


def _product(
    node: onnx.NodeProto, channels: Channels, name: str, rows: int, rank: int
) -> Link | None:
    weight = channels.graph.tensors[name]
    bias = _bias(node, channels, weight.shape[rows])
    if bias is None:
        return None
    source = channels.source(node.input[0], rank - 1, weight.shape[1 - rows])
    units = channels.fresh(weight.shape[rows])
    channels.cut(name, rows, units)
    channels.cut(name, 1 - rows, source.units)
    if bias:
        channels.cut(bias, 0, units)
    _made(node, channels, rank - 1, units, rank)
    return Layer(node, (source,), name, rows, bias, padded=False)


# -- what treats each channel by itself -----------------------------------------------------------


def _elementwise(node: onnx.NodeProto, channels: Channels) -> Link | None:
    names = [name for name in node.input if name and channels.tensor(name) is None]
    found = [channels.axes.get(name) for name in names]
    axes = [axis for axis in found if axis is not None]
    if not axes or len(axes) < len(found):
        return None
    first = axes[0]
    if any((a.at, a.units.size, a.rank) != (first.at, first.units.size, first.rank) for a in axes):
        return None
    count = first.units.size
    along: list[tuple[str, int]] = []
    for name in node.input:
        tensor = channels.tensor(name)
        if tensor is None:
            continue
        at = first.at - (first.rank - tensor.ndim)  # shapes are aligned at their ends
        if tensor.ndim > first.rank or (at >= 0 and tensor.shape[at] not in (1, count)):
            return None
        if at >= 0 and tensor.shape[at] == count:
            along.append((name, at))
    for name, at in along:
        channels.cut(name, at, first.units)
    for other in axes[1:]:
        channels.join(first.units, other.units)
    _made(node, channels, first.at, first.units, first.rank)
    return _each(node, names, axes, adds=node.op_type == "Add")


def _each(
    node: onnx.NodeProto,
    names: Sequence[str],
    axes: Sequence[Axis],
    *,
    carries: bool = False,
    only: float | None = None,
    adds: bool = False,
) -> Each:
    sources = [Source(name, axis.units, True) for name, axis in zip(names, axes, strict=True)]
    return Each(node, tuple(sources), tuple(axes), carries, only, adds)


def _batchnorm(node: onnx.NodeProto, channels: Channels) -> Link | None:
    axis = channels.axes.get(node.input[0])
    if axis is None or axis.at != 1 or attributes(node).get("training_mode", 0):
        return None
    tensors = [channels.tensor(name) for name in node.input[1:]]
    if any(tensor is None or tensor.shape != axis.units.shape for tensor in tensors):
        return None
    for name in node.input[1:]:
        channels.cut(name, 0, axis.units)
    _made(node, channels, 1, axis.units, axis.rank)
    return _each(node, node.input[:1], [axis])


def _moved(
    node: onnx.NodeProto,
    channels: Channels,
    at: int,
    rank: int,
    *,
    only: float | None = None,
    adds: bool = True,
) -> Link:
    """Return the link of a node after which the same channels lie along another axis."""
    axis = channels.axes[node.input[0]]
    _made(node, channels, at, axis.units, rank)
    return _each(node, node.input[:1], [axis], carries=True, only=only, adds=adds)


def _pool(node: onnx.NodeProto, channels: Channels) -> Link | None:
    axis, given = channels.axes.get(node.input[0]), attributes(node)
    if axis is None or axis.at != 1:
        return None
    around = any(given.get("pads", ())) or given.get("auto_pad", b"NOTSET") != b"NOTSET"
    around = around or bool(given.get("ceil_mode", 0))
    zeros = node.op_type == "AveragePool" and around and bool(given.get("count_include_pad", 0))
    return _moved(node, channels, 1, axis.rank, only=0.0 if zeros else None, adds=not zeros)


def _axes(node: onnx.NodeProto, channels: Channels, slot: int, rank: int) -> list[int] | None:
    """Return the axes that a node is given as an attribute or an input, counted from the first."""
    given = attributes(node).get("axes")
    if given is None and len(node.input) > slot and node.input[slot]:
        given = channels.numbers(node.input[slot])
    return None if given is None else [int(axis) % rank for axis in given]


def _reduce(node: onnx.NodeProto, channels: Channels) -> Link | None:
    axis = channels.axes.get(node.input[0])
    axes = None if axis is None else _axes(node, channels, 1, axis.rank)
    if axis is None or not axes or axis.at in axes:
        return None
    if attributes(node).get("keepdims", 1):
        return _moved(node, channels, axis.at, axis.rank)
    before = sum(removed < axis.at for removed in axes)
    return _moved(node, channels, axis.at - before, axis.rank - len(axes))


def _squeeze(node: onnx.NodeProto, channels: Channels) -> Link | None:
    axis = channels.axes.get(node.input[0])
    axes = None if axis is None else _axes(node, channels, 1, axis.rank)
    if axis is None or axes is None or axis.at in axes:
        return None
    before = sum(removed < axis.at for removed in axes)
    return _moved(node, channels, axis.at - before, axis.rank - len(axes))


def _unsqueeze(node: onnx.NodeProto, channels: Channels) -> Link | None:
    axis = channels.axes.get(node.input[0])
    given = attributes(node).get("axes") or channels.numbers(node.input[1])
    if axis is None or given is None:
        return None
    rank = axis.rank + len(given)
    new = {int(place) % rank for place in given}
    return _moved(node, channels, [p for p in range(rank) if p not in new][axis.at], rank)


def _transpose(node: onnx.NodeProto, channels: Channels) -> Link | None:
    axis = channels.axes.get(node.input[0])
    if axis is None:
        return None
    order = list(attributes(node).get("perm", range(axis.rank)[::-1]))
    return _moved(node, channels, order.index(axis.at), axis.rank)


def _slice(node: onnx.NodeProto, channels: Channels) -> Link | None:
    axis = channels.axes.get(node.input[0])
    axes = None if axis is None else _axes(node, channels, 3, axis.rank)
    if axis is None or axes is None or axis.at in axes:
        return None
    return _moved(node, channels, axis.at, axis.rank)


def _same(node: onnx.NodeProto, channels: Channels) -> Link | None:
    axis = channels.axes.get(node.input[0])
    return None if axis is None else _moved(node, channels, axis.at, axis.rank)


# -- what changes how many there are --------------------------------------------------------------


def _concat(node: onnx.NodeProto, channels: Channels) -> Link | None:
    found = [channels.axes.get(name) for name in node.input]
    known = [axis for axis in found if axis is not None]
    if not known:
        return None
    at, rank = known[0].at, known[0].rank
    if attributes(node)["axis"] % rank != at:
        return None
    sources = []
    for name in node.input:
        shape = channels.shapes.get(name)
        size = None if shape is None or len(shape) != rank else shape[at]
        if not isinstance(size, int) or channels.tensor(name) is not None:
            return None
        sources.append(channels.source(name, at, size))
    _made(node, channels, at, np.concatenate([source.units for source in sources]), rank)
    return Joined(node, tuple(sources))


def _flatten(node: onnx.NodeProto, channels: Channels) -> Link | None:
    """Return the link of a Flatten or Reshape that keeps the batch and the order of channels."""
    axis = channels.axes.get(node.input[0])
    before, after = _sizes(channels, node.input[0]), _sizes(channels, node.output[0])
    if axis is None or axis.at != 1 or not before or not after:
        return None
    each = math.prod(before[1:])
    run = each if len(after) == 1 else 1
    if after[0] != axis.units.size * run or math.prod(after[1:]) * run != each:
        return None
    target = None
    if node.op_type == "Reshape":
        numbers = channels.numbers(node.input[1])
        if numbers is None or len(numbers) != len(after) + 1 or numbers[1] not in (-1, after[0]):
            return None
        target = tuple(numbers)
    elif attributes(node).get("axis", 1) != 1:
        return None
    _made(node, channels, 1, np.repeat(axis.units, run), len(after) + 1)
    return Flattened(node, (Source(node.input[0], axis.units, True),), run, target)


def _sizes(channels: Channels, name: str) -> list[int]:
    """Return an activation's sizes after the batch; none where they are not all known."""
    sizes = channels.shapes.get(name, ())[1:]
    known = [size for size in sizes if isinstance(size, int)]
    return known if len(known) == len(sizes) else []


def _pad(node: onnx.NodeProto, channels: Channels) -> Link | None:
    axis = channels.axes.get(node.input[0])
    pads = channels.numbers(node.input[1]) if len(node.input) > 1 else None
    if axis is None or pads is None or len(pads) != 2 * axis.rank or min(pads) < 0:
        return None
    if attributes(node).get("mode", b"constant") != b"constant" or len(node.input) > 3:
        return None
    value = channels.tensor(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if value is None:
        return None
    number, last = float(value.reshape(-1)[0]), axis.at + axis.rank
    spatial = any(pads[: axis.at] + pads[axis.at + 1 : last] + pads[last + 1 :])
    if not pads[axis.at] and not pads[last]:
        return _moved(node, channels, axis.at, axis.rank, only=number, adds=False)
    before, after = channels.fresh(pads[axis.at]), channels.fresh(pads[last])
    source = Source(node.input[0], axis.units, True)
    _made(node, channels, axis.at, np.concatenate([before, axis.units, after]), axis.rank)
    return Padded(node, (source,), before, after, number, spatial, tuple(pads), axis.at)


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
    "ReduceMean": _reduce, "ReduceMax": _reduce, "ReduceMin": _reduce,
    "Identity": _same, "Dropout": _same, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Transpose": _transpose, "Slice": _slice, "Concat": _concat, "Flatten": _flatten,
    "Reshape": _flatten, "Pad": _pad,
}  # fmt: skip
