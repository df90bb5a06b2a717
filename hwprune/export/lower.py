"""Lowering a graph to an older opset, one visible rule per operator; see docs/lowering.md.

An operator whose schema did not change between the two opsets needs no rule. One whose schema
changed and that has no rule here is refused by name, before any training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from hwprune.errors import ExportError
from hwprune.export.graph import Graph, attributes, optional_input, output_name, value_in

# Below it, Squeeze, Split and friends take other inputs, and function bodies change.
LOWEST_OPSET = 13
# Slice stops at the end of an axis when it is asked to go further.
_END = np.iinfo(np.int64).max


class CannotLowerError(Exception):
    """What a node does cannot be said at the older opset; the message says why."""


@dataclass(slots=True)
class Ops:
    """Makes the nodes that take the place of one, in order.

    Attributes:
        graph: the network.
        node: the node.
        opset: the older opset.
        nodes: what was made.
    """

    graph: Graph
    node: ir.Node
    opset: int
    nodes: list[ir.Node] = field(default_factory=list)

    def __call__(self, operator: str, *inputs: ir.Value | None, **given: Any) -> ir.Value:
        """Return the output of a new node."""
        made = ir.node(operator, list(inputs), given)
        made.outputs[0].name = f"{output_name(self.node)}//{len(self.nodes)}"
        self.nodes.append(made)
        return made.outputs[0]

    def constant(self, array: NDArray[Any] | Sequence[int]) -> ir.Value:
        """Return a new tensor; a sequence becomes one of int64."""
        held = array if isinstance(array, np.ndarray) else np.array(array, np.int64)
        name = f"{output_name(self.node)}//c{len(self.graph.tensors)}"
        return self.graph.add_tensor(name, held)

    def known(self, slot: int) -> NDArray[Any]:
        """Return what an input holds.

        Raises:
            CannotLowerError: it is computed.
        """
        found = self.graph.tensor(optional_input(self.node, slot))
        if found is None:
            raise CannotLowerError(f"its input {slot} is computed")
        return found

    def sizes(self, value: ir.Value) -> list[int | None]:
        """Return an activation's sizes, None for one that is not fixed.

        Raises:
            CannotLowerError: not even how many there are is known.
        """
        if value.shape is None:
            raise CannotLowerError("the shape of what it reads is not known")
        return [size if isinstance(size, int) else None for size in value.shape]

    def without(self, **neutral: Any) -> None:
        """Take attributes off the node that the older operator lacks.

        Raises:
            CannotLowerError: one of them asks for something.
        """
        for name, value in neutral.items():
            entry = self.node.attributes.get(name)
            if entry is not None and entry.value != value:
                raise CannotLowerError(f"its {name} is {entry.value}")
            self.node.attributes.pop(name, None)


# Changes the node, or returns what takes the place of its outputs.
Rule: TypeAlias = Callable[[Ops, ir.Node], "ir.Value | list[ir.Value] | None"]


def lower(graph: Graph, opset: int) -> None:
    """Bring a graph to an older opset; nothing happens where it is not older.

    Raises:
        ExportError: an operator cannot be expressed there; names the operator and its output.
    """
    if opset >= graph.opset:
        return
    if opset < LOWEST_OPSET:
        raise ExportError(
            f"the target asks for opset {opset}; hwprune writes {LOWEST_OPSET} to {graph.opset}",
            hint="use a newer onnxruntime on the device, or another target",
        )
    for node in [*graph.structure.all_nodes()]:
        if node.domain == "" and _changed(node.op_type, graph.opset, opset):
            _lower_node(graph, node, opset)
    graph.structure.opset_imports[""] = opset
    graph.drop_unread()


def _lower_node(graph: Graph, node: ir.Node, opset: int) -> None:
    ops = Ops(graph, node, opset)
    try:
        if node.op_type not in RULES:
            raise CannotLowerError("it has no exact form there")
        found = RULES[node.op_type](ops, node)
    except CannotLowerError as error:
        raise ExportError(
            f"{node.op_type} (layer {output_name(node)!r}) cannot be expressed at opset {opset}: "
            f"{error}",
            hint=f"choose a target with opset {graph.opset}, or replace the layer",
        ) from None
    if found is None:
        return
    values = found if isinstance(found, list) else [found]
    owner = node.graph
    assert isinstance(owner, ir.Graph)
    ir.convenience.replace_nodes_and_values(
        owner, node, [node], ops.nodes, node.outputs[: len(values)], values
    )


def _changed(operator: str, newer: int, older: int) -> bool:
    if not onnx.defs.has(operator, max_inclusive_version=older, domain=""):
        return True
    schemas = [onnx.defs.get_schema(operator, version, "") for version in (newer, older)]
    return schemas[0].since_version != schemas[1].since_version


def _same(ops: Ops, node: ir.Node) -> None:
    """The newer schema only allows more types."""


def _without(**neutral: Any) -> Rule:
    """Return the rule for attributes that came later and are not used."""

    def rule(ops: Ops, node: ir.Node) -> None:
        ops.without(**neutral)

    return rule


def _reduce(ops: Ops, node: ir.Node) -> None:
    """Axes moved from an attribute to an input at opset 18."""
    noop = node.attributes.pop("noop_with_empty_axes", None)
    keepdims = node.attributes.pop("keepdims", ir.AttrInt64("keepdims", 1))
    axes = [] if optional_input(node, 1) is None else ops.known(1).reshape(-1).tolist()
    if axes:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    elif noop is not None and noop.as_int():
        raise CannotLowerError("it reduces nothing")
    node.attributes["keepdims"] = keepdims
    node.resize_inputs(1)


def _pad(ops: Ops, node: ir.Node) -> ir.Value | None:
    """The axes input came at opset 18: the other axes get no padding."""
    if optional_input(node, 3) is not None:
        sizes, given = ops.sizes(value_in(node, 0)), ops.known(1).reshape(2, -1)
        pads = np.zeros((2, len(sizes)), np.int64)
        pads[:, ops.known(3)] = given
        node.replace_input_with(1, ops.constant(pads.reshape(-1)))
        node.resize_inputs(3)
    return _wrap(ops, node) if attributes(node).get("mode") == "wrap" else None


def _wrap(ops: Ops, node: ir.Node) -> ir.Value:
    """Padding that wraps around came at opset 19: the ends are joined to it, axis by axis."""
    pads, found = ops.known(1), value_in(node, 0)
    if np.any(pads < 0):
        raise CannotLowerError("it cuts as well as it wraps around")
    for axis, (before, after) in enumerate(pads.reshape(2, -1).T.tolist()):
        ends = [(-before, _END)] * bool(before) + [(0, after)] * bool(after)
        pieces = [
            ops("Slice", found, *(ops.constant([number]) for number in (*end, axis)))
            for end in ends
        ]
        if pieces:
            found = ops(
                "Concat", *pieces[: bool(before)], found, *pieces[bool(before) :], axis=axis
            )
    return found if ops.nodes else ops("Identity", found)


def _layer_normalization(ops: Ops, node: ir.Node) -> ir.Value:
    """It came at opset 17: mean, difference, variance, scale, shift."""
    given, scale = attributes(node), value_in(node, 1)
    if len(node.outputs) > 1 and any(value.name for value in node.outputs[1:]):
        raise CannotLowerError("it gives its mean or deviation too")
    axis = given.get("axis", -1)
    if axis >= 0:  # what is normalised has the scale's axes
        axis = -ops.known(1).ndim
    source, axes = value_in(node, 0), list(range(axis, 0))
    difference = ops("Sub", source, ops("ReduceMean", source, axes=axes))
    variance = ops("ReduceMean", ops("Mul", difference, difference), axes=axes)
    epsilon = ops.constant(np.array(given.get("epsilon", 1e-5), np.float32))
    normal = ops("Div", difference, ops("Sqrt", ops("Add", variance, epsilon)))
    scaled = ops("Mul", normal, scale)
    bias = optional_input(node, 2)
    return scaled if bias is None else ops("Add", scaled, bias)


def _split(ops: Ops, node: ir.Node) -> None:
    """num_outputs came at opset 18: the sizes are written, or computed where they vary."""
    count = node.attributes.pop("num_outputs", None)
    if optional_input(node, 1) is not None or count is None:
        return
    source, parts = value_in(node, 0), count.as_int()
    axis = attributes(node).get("axis", 0)
    size = None if source.shape is None else source.shape[axis]
    node.resize_inputs(2)
    if isinstance(size, int):
        each = -(-size // parts)
        sizes = ops.constant([each] * (parts - 1) + [size - each * (parts - 1)])
        node.replace_input_with(1, sizes)
        return
    whole = ops("Gather", ops("Shape", source), ops.constant([axis]))
    more, by = (ops.constant([number]) for number in (parts - 1, parts))
    each_value = ops("Div", ops("Add", whole, more), by)
    last = ops("Sub", whole, ops("Mul", each_value, more))
    node.replace_input_with(1, ops("Concat", *[each_value] * (parts - 1), last, axis=0))
    owner = node.graph
    assert isinstance(owner, ir.Graph)
    owner.insert_before(node, ops.nodes)


def _shape(ops: Ops, node: ir.Node) -> ir.Value | None:
    """Start and end came at opset 15: a Slice of all sizes."""
    given = attributes(node)
    if not given:
        return None
    limits = [ops.constant([given.get("start", 0)]), ops.constant([given.get("end", _END)])]
    return ops("Slice", ops("Shape", value_in(node, 0)), *limits)


def _scatter(ops: Ops, node: ir.Node) -> None:
    """Reductions came at opset 16 (add, mul) and 18 (min, max)."""
    if ops.opset < 16 or attributes(node).get("reduction", "none") not in ("none", "add", "mul"):
        ops.without(reduction="none")


def _reshape(ops: Ops, node: ir.Node) -> None:
    """Allowzero came at opset 14; it matters only where the shape holds a zero."""
    if attributes(node).get("allowzero", 0) and np.any(ops.known(1) == 0):
        raise CannotLowerError("it makes something of no element")
    node.attributes.pop("allowzero", None)


def _roi_align(ops: Ops, node: ir.Node) -> None:
    """Half pixels came at opset 16, as the default; before it there was the other mode alone."""
    if attributes(node).get("coordinate_transformation_mode") != "output_half_pixel":
        raise CannotLowerError("its boxes are aligned by half a pixel")
    del node.attributes["coordinate_transformation_mode"]


def _mish(ops: Ops, node: ir.Node) -> ir.Value:
    """It came at opset 18: x * tanh(softplus(x))."""
    source = value_in(node, 0)
    return ops("Mul", source, ops("Tanh", ops("Softplus", source)))


def _hard_swish(ops: Ops, node: ir.Node) -> ir.Value:
    """It came at opset 14: x * hardsigmoid(x)."""
    source = value_in(node, 0)
    return ops("Mul", source, ops("HardSigmoid", source, alpha=1 / 6, beta=0.5))


def _cast_like(ops: Ops, node: ir.Node) -> ir.Value:
    """It came at opset 15: a Cast to a type that is known."""
    like = value_in(node, 1)
    held = ops.graph.tensor(like)
    kind = like.dtype if held is None else ir.DataType.from_numpy(held.dtype)
    if kind is None:
        raise CannotLowerError("the type that it casts to is not known")
    return ops("Cast", value_in(node, 0), to=int(kind))


def _trilu(ops: Ops, node: ir.Node) -> ir.Value:
    """It came at opset 14: zero where a fixed mask says so."""
    source = value_in(node, 0)
    rows, columns = ops.sizes(source)[-2:]
    if rows is None or columns is None or source.dtype is None:
        raise CannotLowerError("the sizes of its matrix are not fixed")
    offset = int(ops.known(1).reshape(())) if optional_input(node, 1) is not None else 0
    ones = np.ones((rows, columns), np.bool_)
    kept = np.triu(ones, offset) if attributes(node).get("upper", 1) else np.tril(ones, offset)
    nothing = np.zeros((), source.dtype.numpy())
    return ops("Where", ops.constant(kept), source, ops.constant(nothing))


def _grid_sample(ops: Ops, node: ir.Node) -> ir.Value:
    """It came at opset 16: the corners around each place, gathered and weighted."""
    given, source, grid = attributes(node), value_in(node, 0), value_in(node, 1)
    mode, padding = given.get("mode", "bilinear"), given.get("padding_mode", "zeros")
    sizes = ops.sizes(source)
    if mode == "bicubic" or padding == "reflection" or len(sizes) != 4 or None in sizes[1:]:
        raise CannotLowerError(f"{mode} with {padding} padding needs more, or its sizes vary")

    def number(value: float) -> ir.Value:
        return ops.constant(np.array(value, np.float32))

    def corners(axis: int, size: int) -> list[tuple[ir.Value, ir.Value]]:
        """Return the places on an axis, as whole numbers that exist, with their weights."""
        last, end = number(0), number(size - 1)
        scale = number((size - 1 if given.get("align_corners", 0) else size) / 2)
        unit = ops("Reshape", ops("Gather", grid, ops.constant(np.array(axis)), axis=3), flat)
        at = ops("Add", ops("Mul", unit, scale), number((size - 1) / 2))
        if padding == "border":
            at = ops("Clip", at, last, end)
        places = [(ops("Round", at), number(1))]
        if mode == "bilinear":
            low = ops("Floor", at)
            part = ops("Sub", at, low)
            places = [(low, ops("Sub", number(1), part)), (ops("Add", low, number(1)), part)]
        found = []
        for place, weight in places:
            inside = ops("Clip", place, last, end)
            there = ops("Cast", ops("Equal", inside, place), to=int(ir.DataType.FLOAT))
            found.append((inside, ops("Mul", weight, there)))
        return found

    channels, height, width = (size or 0 for size in sizes[1:])
    flat = ops.constant([0, 1, -1])
    table = ops("Reshape", source, ops.constant([0, 0, -1]))
    total = None
    rows = corners(1, height)
    for column, share in corners(0, width):
        for row, other in rows:
            index = ops("Cast", ops("Add", ops("Mul", row, number(width)), column), to=7)
            index = ops("Expand", index, ops.constant([1, channels, 1]))
            value = ops("GatherElements", table, index, axis=2)
            value = ops("Mul", value, ops("Mul", share, other))
            total = value if total is None else ops("Add", total, value)
    across = ops("Slice", ops("Shape", grid), ops.constant([1]), ops.constant([3]))
    return ops("Reshape", total, ops("Concat", ops.constant([0, 0]), across, axis=0))


def _col2im(ops: Ops, node: ir.Node) -> ir.Value:
    """It came at opset 18: a transposed convolution that puts each entry where it belongs."""
    given, source = attributes(node), value_in(node, 0)
    image, block = ops.known(1), ops.known(2)
    rank, places, entries = len(image), int(np.prod(block)), ops.sizes(source)[1]
    if entries is None:
        raise CannotLowerError("its channels vary")
    strides, dilations = (np.array(given.get(k, [1] * rank)) for k in ("strides", "dilations"))
    pads = np.array(given.get("pads", [0] * 2 * rank))
    room = image + pads[:rank] + pads[rank:] - dilations * (block - 1) - 1
    weight = np.tile(np.eye(places, dtype=np.float32), (entries // places, 1))
    return ops(
        "ConvTranspose",
        ops("Reshape", source, ops.constant([0, 0, *(room // strides + 1)])),
        ops.constant(weight.reshape(entries, 1, *block)),
        group=entries // places, strides=strides.tolist(), dilations=dilations.tolist(),
        pads=pads.tolist(), output_padding=(room % strides).tolist(),
    )  # fmt: skip


def _dft(ops: Ops, node: ir.Node) -> ir.Value:
    """It came at opset 17: a product with cosines and sines."""
    given, source = attributes(node), value_in(node, 0)
    sizes, axis = ops.sizes(source), given.get("axis", 1)
    rank, inverse = len(sizes), given.get("inverse", 0)
    size, parts = sizes[axis], sizes[-1]
    length = size if optional_input(node, 1) is None else int(ops.known(1).reshape(()))
    if size is None or parts is None or length != size or (inverse and given.get("onesided", 0)):
        raise CannotLowerError("its length varies or is not that of its axis")
    kept = size // 2 + 1 if given.get("onesided", 0) else size
    angle = np.outer(np.arange(size), np.arange(kept)) % size * (2 * np.pi / size)
    turn = np.exp((1j if inverse else -1j) * angle) / (size if inverse else 1)
    # (entry, real or imaginary, frequency, real or imaginary)
    matrix = np.stack([np.stack([z.real, z.imag], -1) for z in (turn, 1j * turn)], 1)[:, :parts]
    order = [n for n in range(rank - 1) if n != axis % rank] + [axis % rank, rank - 1]
    leading = [0] * (rank - 2)
    rows = ops("Reshape", ops("Transpose", source, perm=order), ops.constant([*leading, -1]))
    product = ops("MatMul", rows, ops.constant(matrix.reshape(size * parts, -1).astype(np.float32)))
    both = ops("Reshape", product, ops.constant([*leading, kept, 2]))
    return ops("Transpose", both, perm=np.argsort(order).tolist())


def _stft(ops: Ops, node: ir.Node) -> ir.Value:
    """It came at opset 17: a convolution with cosines and sines under the window."""
    signal, step = value_in(node, 0), int(ops.known(1).reshape(()))
    window = None if optional_input(node, 2) is None else ops.known(2)
    size = len(window) if window is not None else int(ops.known(3).reshape(()))
    if len(ops.sizes(signal)) == 3 and ops.sizes(signal)[2] != 1:
        raise CannotLowerError("its signal is complex")
    kept = size // 2 + 1 if attributes(node).get("onesided", 1) else size
    angle = np.outer(np.arange(kept), np.arange(size)) % size * (-2 * np.pi / size)
    waves = np.stack([np.cos(angle), np.sin(angle)], 1) * (1 if window is None else window)
    filters = ops.constant(waves.reshape(2 * kept, 1, size).astype(np.float32))
    rows = ops("Reshape", signal, ops.constant([0, 1, -1]))
    frames = ops("Transpose", ops("Conv", rows, filters, strides=[step]), perm=[0, 2, 1])
    return ops("Reshape", frames, ops.constant([0, 0, kept, 2]))


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
            "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare",
        ),
        _reduce,
    ),
    **dict.fromkeys(
        (
            "Add", "Sub", "Mul", "Div", "Relu", "Identity", "LessOrEqual", "GreaterOrEqual",
            "Where", "LeakyRelu", "PRelu", "Pow", "CumSum", "If", "Loop", "Scan",
        ),
        _same,
    ),
    **dict.fromkeys(("ScatterElements", "ScatterND"), _scatter),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _without(layout=0)),
    "BatchNormalization": _without(training_mode=0),
    "CastLike": _cast_like,
    "Col2Im": _col2im,
    "DFT": _dft,
    "GridSample": _grid_sample,
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_normalization,
    "Mish": _mish,
    "Pad": _pad,
    "Reshape": _reshape,
    "STFT": _stft,
    "Resize": _without(antialias=0, keep_aspect_ratio_policy="stretch", axes=None),
    "RoiAlign": _roi_align,
    "Shape": _shape,
    "Split": _split,
    "Trilu": _trilu,
}  # fmt: skip
