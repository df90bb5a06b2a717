"""Lowering a graph to an older opset, one visible rule per operator; see docs/lowering.md.

An operator whose schema did not change between the two opsets needs no rule. One whose schema
changed and that has no rule here is refused by name, before any training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

    def several(
        self, count: int, operator: str, *inputs: ir.Value | None, **given: Any
    ) -> list[ir.Value]:
        """Return the outputs of a new node that has some."""
        made = ir.node(operator, list(inputs), given, num_outputs=count)
        for number, output in enumerate(made.outputs):
            output.name = f"{output_name(self.node)}//{len(self.nodes)}.{number}"
        self.nodes.append(made)
        return list(made.outputs)

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


# One that is known, or computed as a float32 of no axis.
Number: TypeAlias = "float | ir.Value"
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


def _layer_normalization(ops: Ops, node: ir.Node) -> list[ir.Value]:
    """It came at opset 17: mean, difference, variance, scale, shift."""
    given, scale = attributes(node), value_in(node, 1)
    axis = given.get("axis", -1)
    if axis >= 0:  # what is normalised has the scale's axes
        axis = -ops.known(1).ndim
    source, axes = value_in(node, 0), list(range(axis, 0))
    mean = ops("ReduceMean", source, axes=axes)
    difference = ops("Sub", source, mean)
    variance = ops("ReduceMean", ops("Mul", difference, difference), axes=axes)
    epsilon = ops.constant(np.array(given.get("epsilon", 1e-5), np.float32))
    deviation = ops("Sqrt", ops("Add", variance, epsilon))
    scaled = ops("Mul", ops("Div", difference, deviation), scale)
    bias = optional_input(node, 2)
    found = [scaled if bias is None else ops("Add", scaled, bias)]
    if len(node.outputs) > 1:
        found += [mean, ops("Reciprocal", deviation)]
    return found[: len(node.outputs)]


def _window(ops: Ops, node: ir.Node) -> ir.Value:
    """They came at opset 17: cosines of the numbers from 0 to a size."""
    given, size, float32 = attributes(node), value_in(node, 0), int(ir.DataType.FLOAT)
    size = ops("Cast", size, to=int(ir.DataType.INT64))
    numbers = ops("Range", ops.constant(np.array(0)), size, ops.constant(np.array(1)))
    if not given.get("periodic", 1):
        size = ops("Sub", size, ops.constant(np.array(1)))
    turn = ops("Div", ops("Cast", numbers, to=float32), ops("Cast", size, to=float32))
    shares = {
        "HannWindow": (0.5, -0.5), "HammingWindow": (25 / 46, -21 / 46),
        "BlackmanWindow": (0.42, -0.5, 0.08),
    }[node.op_type]  # fmt: skip
    total = ops.constant(np.array(shares[0], np.float32))
    for times, share in enumerate(shares[1:], start=1):
        angle = ops("Mul", turn, ops.constant(np.array(2 * np.pi * times, np.float32)))
        wave = ops("Mul", ops("Cos", angle), ops.constant(np.array(share, np.float32)))
        total = ops("Add", total, wave)
    return ops("Cast", total, to=given.get("output_datatype", float32))


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


def _recurrent(ops: Ops, node: ir.Node) -> list[ir.Value] | None:
    """The batch may come first from opset 14 on: what goes in and comes out is transposed."""
    given = attributes(node)
    if not given.pop("layout", 0):
        node.attributes.pop("layout", None)
        return None
    inputs = [*node.inputs]
    for slot in {0, 5, 6} & {*range(len(inputs))}:
        if (value := inputs[slot]) is not None:
            inputs[slot] = ops("Transpose", value, perm=[1, 0, 2])
    whole, *last = ops.several(len(node.outputs), node.op_type, *inputs, **given)
    return [
        ops("Transpose", whole, perm=[2, 0, 1, 3]),
        *(ops("Transpose", state, perm=[1, 0, 2]) for state in last),
    ]


# What a place holds on which nothing falls, and how all that falls on one is put together.
_SCATTERED: dict[str, tuple[str, str, float]] = {
    "add": ("ReduceSum", "Add", 0), "mul": ("ReduceProd", "Mul", 1),
    "max": ("ReduceMax", "Max", -np.inf), "min": ("ReduceMin", "Min", np.inf),
}  # fmt: skip


def _scatter(ops: Ops, node: ir.Node) -> ir.Value | None:
    """Reductions came at opset 16 (add, mul) and 18 (min, max): each place looks for its own."""
    given, data, index = attributes(node), value_in(node, 0), value_in(node, 1)
    kind, updates = given.get("reduction", "none"), value_in(node, 2)
    if kind == "none" and ops.opset < 16:
        node.attributes.pop("reduction", None)
    if kind == "none" or (ops.opset >= 16 and kind in ("add", "mul")):
        return None
    shape, rank = data.shape, len(ops.sizes(data))
    all_sizes = ops("Shape", data)
    if node.op_type == "ScatterND":
        *many, parts = [size or 0 for size in ops.sizes(index)]
        sizes = [size or 0 for size in ops.sizes(data)]
        flat, rows = [-1, int(np.prod(sizes[parts:]))], [-1, int(np.prod(sizes[parts:]))]
        if 0 in flat:  # what each place holds varies: then how many there are must not
            flat, rows = [int(np.prod(sizes[:parts])), -1], [int(np.prod(many)), -1]
        if 0 in (*sizes[1:parts], *flat, *rows, parts):
            raise CannotLowerError("it reduces, and sizes vary")
        lengths = ops("Slice", all_sizes, ops.constant([0]), ops.constant([parts]))
        strides = [int(np.prod(sizes[at:parts])) for at in range(1, parts + 1)]
        places = ops("Mul", _counted(ops, index, lengths), ops.constant(strides))
        places = ops("ReduceSum", places, ops.constant([-1]), keepdims=0)
        places = ops("Reshape", places, ops.constant([1, -1]))
        table = ops("Reshape", data, ops.constant(flat))
        updates = ops("Reshape", updates, ops.constant(rows))
        axis, rank = 0, 2
    else:
        axis, table = given.get("axis", 0) % rank, data
        others = [at for at in range(rank) if at != axis]
        places = _counted(ops, index, ops("Gather", all_sizes, ops.constant([axis])))
        if shape is None or index.shape is None or any(shape[a] != index.shape[a] for a in others):
            # Where indices may cover a part of the other axes, the rest falls nowhere.
            rest = ops("Sub", all_sizes, ops("Shape", index))
            rest = ops("Mul", rest, ops.constant([int(at != axis) for at in range(rank)]))
            pads = ops("Concat", ops.constant([0] * rank), rest, axis=0)
            places = ops("Pad", places, pads, ops.constant(np.array(-1)))
            updates = ops("Pad", updates, pads)
        places = ops("Transpose", places, perm=[*others, axis])
    # (..., place, ..., update): which updates fall on a place
    order = [at for at in range(rank) if at != axis] + [axis]
    falls = ops("Unsqueeze", places, ops.constant([axis]))
    values = ops("Unsqueeze", ops("Transpose", updates, perm=order), ops.constant([axis]))
    count = ops("Gather", ops("Shape", table), ops.constant(np.array(axis)))
    here = ops("Range", ops.constant(np.array(0)), count, ops.constant(np.array(1)))
    here = ops("Reshape", here, ops.constant([-1, *[1] * (rank - axis)]))
    reduce, join, nothing = _SCATTERED[kind]
    held = ops.graph.tensor(data)
    dtype = data.dtype.numpy() if data.dtype is not None else None if held is None else held.dtype
    if dtype is None or dtype.kind != "f":
        raise CannotLowerError("it reduces what is not known to be floats")
    neutral = ops.constant(np.array(nothing, dtype))
    values = ops("Where", ops("Equal", falls, here), values, neutral)
    if reduce == "ReduceSum":
        found = ops(reduce, values, ops.constant([-1]), keepdims=0)
    else:
        found = ops(reduce, values, axes=[-1], keepdims=0)
    joined = ops(join, table, found)
    return joined if table is data else ops("Reshape", joined, all_sizes)


def _counted(ops: Ops, index: ir.Value, sizes: ir.Value) -> ir.Value:
    """Return whole numbers as int64, those below 0 counted from the end."""
    whole = ops("Cast", index, to=int(ir.DataType.INT64))
    return ops("Where", ops("Less", whole, ops.constant([0])), ops("Add", whole, sizes), whole)


def _bitwise(ops: Ops, node: ir.Node) -> ir.Value:
    """They came at opset 18: bit by bit, each half of what is longer than 32 bits."""
    dtype = value_in(node, 0).dtype
    if dtype is None or dtype.numpy().kind not in "iu":
        raise CannotLowerError("the type of its whole numbers is not known")
    long = int(ir.DataType.INT64)
    bits, signed = 8 * dtype.numpy().itemsize, dtype.numpy().kind == "i"
    half = min(bits, 32)
    given = [ops("Cast", value, to=long) for value in node.inputs if value is not None]
    powers = ops.constant([1 << n for n in range(half)])
    two, whole = (ops.constant(np.array(n, np.int64)) for n in (2, 1 << half))
    parts = []
    for part in range(-(-bits // 32)):
        digits = []
        for value in given:
            low = ops("Mod", value, whole)
            if part:
                low = ops("Mod", ops("Div", ops("Sub", value, low), whole), whole)
            each = ops("Div", ops("Unsqueeze", low, ops.constant([-1])), powers)
            digits.append(ops("Mod", each, two))
        if node.op_type == "BitwiseNot":
            found = ops("Sub", ops.constant([1]), digits[0])
        elif node.op_type == "BitwiseAnd":
            found = ops("Mul", *digits)
        else:
            found = ops("Add", *digits)
            found = (
                ops("Min", found, ops.constant([1])) if node.op_type == "BitwiseOr"
                else ops("Mod", found, two)
            )  # fmt: skip
        parts.append(ops("ReduceSum", ops("Mul", found, powers), ops.constant([-1]), keepdims=0))
    if signed or bits == 64:  # the highest bit counts below 0
        below = ops("Less", parts[-1], ops.constant(np.array(1 << half - 1, np.int64)))
        parts[-1] = ops("Where", below, parts[-1], ops("Sub", parts[-1], whole))
    total = parts[0] if len(parts) == 1 else ops("Add", parts[0], ops("Mul", parts[1], whole))
    return ops("Cast", total, to=int(dtype))


def _reshape(ops: Ops, node: ir.Node) -> None:
    """Allowzero came at opset 14; it matters only where the shape holds a zero: for no element."""
    shape = ops.graph.tensor(optional_input(node, 1))
    if attributes(node).get("allowzero", 0) and shape is not None and np.any(shape == 0):
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
    """It came at opset 14: zero where a mask says so, a fixed one where sizes are."""
    source, upper = value_in(node, 0), attributes(node).get("upper", 1)
    rows, columns = ops.sizes(source)[-2:]
    if source.dtype is None:
        raise CannotLowerError("the type of what it cuts is not known")
    nothing = ops.constant(np.zeros((), source.dtype.numpy()))
    given = optional_input(node, 1)
    offset = np.zeros((), np.int64) if given is None else ops.graph.tensor(given)
    if rows is not None and columns is not None and offset is not None:
        made, ones = np.triu if upper else np.tril, np.ones((rows, columns), np.bool_)
        kept = ops.constant(made(ones, int(offset.reshape(()))))
        return ops("Where", kept, source, nothing)
    zero, one = ops.constant(np.array(0)), ops.constant(np.array(1))
    row, column = (
        ops("Range", zero, ops("Gather", ops("Shape", source), ops.constant(np.array(at))), one)
        for at in (-2, -1)
    )
    row = ops("Unsqueeze", row, ops.constant([1]))
    if given is not None:
        row = ops("Add", row, ops("Reshape", given, ops.constant([1, 1])))
    pair = (row, column) if upper else (column, row)
    return ops("Where", ops("LessOrEqual", *pair), source, nothing)


def _grid_sample(ops: Ops, node: ir.Node) -> ir.Value:
    """It came at opset 16: the places around each, gathered and weighted."""
    given, source, grid = attributes(node), value_in(node, 0), value_in(node, 1)
    mode, padding = given.get("mode", "bilinear"), given.get("padding_mode", "zeros")
    aligned, sizes = given.get("align_corners", 0), ops.sizes(source)
    if len(sizes) != 4 or sizes[1] is None:
        raise CannotLowerError("it looks up in three dimensions, or its channels vary")

    def calculate(operator: str, one: Number, other: Number) -> Number:
        if isinstance(one, ir.Value) or isinstance(other, ir.Value):
            return ops(operator, number(one), number(other))
        return one + other if operator == "Add" else one * other

    def number(value: Number) -> ir.Value:
        return value if isinstance(value, ir.Value) else ops.constant(np.array(value, np.float32))

    def length(axis: int) -> Number:
        if (size := sizes[axis]) is not None:
            return float(size)
        found = ops("Gather", ops("Shape", source), ops.constant(np.array(axis)))
        return ops("Cast", found, to=int(ir.DataType.FLOAT))

    def reflected(at: ir.Value, size: Number) -> ir.Value:
        """Return places as often reflected at the ends as it takes."""
        low = number(0 if aligned else -0.5)
        span = number(calculate("Add", size, -1) if aligned else size)
        span = ops("Max", span, number(1e-6))  # of one place, to which all come back
        away = ops("Abs", ops("Sub", at, low))
        turns = ops("Floor", ops("Div", away, span))
        rest = ops("Sub", away, ops("Mul", turns, span))
        odd = ops("Sub", turns, ops("Mul", ops("Floor", ops("Mul", turns, number(0.5))), number(2)))
        back = ops("Mul", odd, ops("Sub", span, ops("Mul", rest, number(2))))
        return ops("Add", low, ops("Add", rest, back))

    def corners(axis: int, size: Number) -> list[tuple[ir.Value, ir.Value]]:
        """Return the places on an axis, as whole numbers that exist, with their weights."""
        first, end = number(0), number(calculate("Add", size, -1))
        scale = calculate("Mul", calculate("Add", size, -1) if aligned else size, 0.5)
        unit = ops("Reshape", ops("Gather", grid, ops.constant(np.array(axis)), axis=3), flat)
        middle = number(calculate("Mul", calculate("Add", size, -1), 0.5))
        at = ops("Add", ops("Mul", unit, number(scale)), middle)
        if mode != "bicubic" and padding != "zeros":
            at = ops("Clip", reflected(at, size) if padding == "reflection" else at, first, end)
        places = [(ops("Round", at), number(1))]
        if mode != "nearest":
            low = ops("Floor", at)
            part = ops("Sub", at, low)
            rest = ops("Sub", number(1), part)
            places = [(low, rest), (ops("Add", low, number(1)), part)]
            if mode == "bicubic":
                shares = _cubic(ops, part), _cubic(ops, rest)
                weights = shares[0][1], shares[0][0], shares[1][0], shares[1][1]
                places = [
                    (ops("Add", low, number(step)), weight)
                    for step, weight in zip((-1, 0, 1, 2), weights, strict=True)
                ]
        found = []
        for place, weight in places:
            if mode == "bicubic" and padding == "reflection":
                place = ops("Round", reflected(place, size))
            inside = ops("Clip", place, first, end)
            if mode != "bicubic" or padding == "zeros":
                there = ops("Cast", ops("Equal", inside, place), to=int(ir.DataType.FLOAT))
                weight = ops("Mul", weight, there)
            found.append((inside, weight))
        return found

    flat = ops.constant([0, 1, -1])
    table = ops("Reshape", source, ops.constant([0, 0, -1]))
    total = None
    rows, width = corners(1, length(2)), length(3)
    for column, share in corners(0, width):
        for row, other in rows:
            index = ops("Cast", ops("Add", ops("Mul", row, number(width)), column), to=7)
            index = ops("Expand", index, ops.constant([1, sizes[1], 1]))
            value = ops("GatherElements", table, index, axis=2)
            value = ops("Mul", value, ops("Mul", share, other))
            total = value if total is None else ops("Add", total, value)
    across = ops("Slice", ops("Shape", grid), ops.constant([1]), ops.constant([3]))
    return ops("Reshape", total, ops("Concat", ops.constant([0, 0]), across, axis=0))


def _cubic(ops: Ops, part: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return the weights of the places that lie ``part`` (0..1) and 1 + ``part`` away."""

    def polynomial(*factors: float) -> ir.Value:
        total = ops.constant(np.array(factors[0], np.float32))
        for each in factors[1:]:
            total = ops("Add", ops("Mul", total, part), ops.constant(np.array(each, np.float32)))
        return total

    # Of cubic convolution with a = -3/4, as torch and ONNX have it.
    return polynomial(1.25, -2.25, 0, 1), polynomial(-0.75, 1.5, -0.75, 0)


def _resize(ops: Ops, node: ir.Node) -> ir.Value | None:
    """What came at opset 18: sizes of some axes, kept proportions, and no aliasing."""
    given, source = attributes(node), value_in(node, 0)
    sizes, rank = ops.sizes(source), len(ops.sizes(source))
    axes = [axis % rank for axis in given.get("axes", range(rank))]
    wanted: list[int | None] | None = None
    if (size_input := optional_input(node, 3)) is not None:
        held = ops.graph.tensor(size_input)
        if held is None:
            made = ops.sizes(node.outputs[0])
            wanted = [made[axis] for axis in axes]
        else:
            wanted = held.tolist()
        if (policy := given.get("keep_aspect_ratio_policy", "stretch")) != "stretch":
            there = [sizes[axis] for axis in axes]
            if None in there or held is None:
                raise CannotLowerError(f"its keep_aspect_ratio_policy is {policy}, and sizes vary")
            pick = np.min if policy == "not_larger" else np.max
            wanted = [int(size * pick(held / there) + 0.5) for size in there if size is not None]
        if held is not None and (policy != "stretch" or len(axes) < rank):
            every, known = ops("Shape", source), dict(zip(axes, wanted, strict=True))
            parts = [
                ops.constant([size]) if (size := known.get(axis)) is not None
                else ops("Gather", every, ops.constant([axis]))
                for axis in range(rank)
            ]  # fmt: skip
            node.replace_input_with(3, ops("Concat", *parts, axis=0))
        elif len(axes) < rank:
            raise CannotLowerError("its sizes are computed, for some of its axes")
    elif len(axes) < rank:
        scales = np.ones(rank, np.float32)
        scales[axes] = ops.known(2)
        node.replace_input_with(2, ops.constant(scales))
    if given.get("antialias", 0):
        ends = dict(zip(axes, wanted, strict=True)) if wanted is not None else None
        return _antialiased(ops, node, ends)
    if ops.nodes:
        owner = node.graph
        assert isinstance(owner, ir.Graph)
        owner.insert_before(node, ops.nodes)
    for name in ("antialias", "axes", "keep_aspect_ratio_policy"):
        node.attributes.pop(name, None)
    return None


def _antialiased(ops: Ops, node: ir.Node, wanted: dict[int, int | None] | None) -> ir.Value:
    """Return a product along each axis: what share of each new place every old one has."""
    given, found = attributes(node), value_in(node, 0)
    sizes, rank = ops.sizes(found), len(ops.sizes(found))
    scales = None if wanted is not None else ops.known(2)
    for axis, size in enumerate(sizes):
        if scales is not None:
            scale = float(scales[axis])
            made = None if size is None else int(size * scale)
        else:
            assert wanted is not None
            made = wanted.get(axis, size)
            scale = 1.0 if size is None or made is None else made / size
        # Two sizes that nobody knows may differ, but for those of a batch.
        if made == size and scale == 1 and (size is not None or scales is not None or axis == 0):
            continue
        if size is None or made is None or axis < rank - 2:
            raise CannotLowerError("it has no aliasing, and sizes vary or are not the last two")
        shares = ops.constant(_shares(size, made, scale, given))
        found = (
            ops("MatMul", shares, found)
            if axis == rank - 2
            else ops("MatMul", found, ops("Transpose", shares, perm=[1, 0]))
        )
    return found if ops.nodes else ops("Identity", found)


def _shares(size: int, made: int, scale: float, given: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return (made, size): an axis is scaled by Pillow's filters, as in onnxruntime."""
    mode, way = given.get("mode"), given.get("coordinate_transformation_mode", "half_pixel")
    if mode not in ("linear", "cubic") or way not in ("half_pixel", "pytorch_half_pixel"):
        raise CannotLowerError(f"it has no aliasing, its mode is {mode} and its places are {way}")
    wider = max(1 / scale, 1.0)
    centres = ((np.arange(made) + 0.5) / scale)[:, None]
    reach = (1 if mode == "linear" else 2) * wider
    # What lies outside counts as the edge does, unless it is left out.
    beyond = 0 if given.get("exclude_outside", 0) else int(np.ceil(reach)) + 1
    old = np.arange(-beyond, size + beyond)
    away = np.abs(old - centres + 0.5) / wider
    if mode == "linear":
        weights = np.maximum(1 - away, 0)
    else:
        a = given.get("cubic_coeff_a", -0.75)
        near = ((a + 2) * away - (a + 3)) * away**2 + 1
        weights = np.where(away < 1, near, ((a * away - 5 * a) * away + 8 * a) * away - 4 * a)
    inside = (old >= np.floor(centres - reach + 0.5)) & (old < np.floor(centres + reach + 0.5))
    weights = np.where(inside & (away < 2), weights, 0)
    shares = np.zeros((made, size))
    np.add.at(shares.T, old.clip(0, size - 1), weights.T)
    normal: NDArray[np.float32] = (shares / shares.sum(1, keepdims=True)).astype(np.float32)
    return normal


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
    size, parts, onesided = sizes[axis], sizes[-1], given.get("onesided", 0)
    length = size if optional_input(node, 1) is None else int(ops.known(1).reshape(()))
    if size is None or parts is None or length is None:
        raise CannotLowerError("its length varies")
    kept = length // 2 + 1 if onesided and not inverse else length
    entry = np.arange(size)[:, None]
    angle = entry * np.arange(kept) % length * (2 * np.pi / length)
    turn = np.exp((1j if inverse else -1j) * angle) / (length if inverse else 1)
    # What is shorter than the length goes on with zeros, what is longer ends there. Of half a
    # spectrum each entry but the ends stands for its conjugate, too, and what comes out is real.
    back = bool(onesided and inverse)
    turn *= entry < (length // 2 + 1 if back else length)
    turn *= np.where((entry == 0) | (2 * entry == length), 1, 2) if back else 1
    # (entry, real or imaginary, frequency, real or imaginary)
    matrix = np.stack([np.stack([z.real, z.imag], -1) for z in (turn, 1j * turn)], 1)[:, :parts]
    matrix = matrix[..., : 1 if back else 2]
    order = [n for n in range(rank - 1) if n != axis % rank] + [axis % rank, rank - 1]
    leading = [0] * (rank - 2)
    rows = ops("Reshape", ops("Transpose", source, perm=order), ops.constant([*leading, -1]))
    product = ops("MatMul", rows, ops.constant(matrix.reshape(size * parts, -1).astype(np.float32)))
    both = ops("Reshape", product, ops.constant([*leading, kept, 1 if back else 2]))
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
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
    **dict.fromkeys(("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"), _bitwise),
    **dict.fromkeys(("HannWindow", "HammingWindow", "BlackmanWindow"), _window),
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
    "Resize": _resize,
    "RoiAlign": _roi_align,
    "Shape": _shape,
    "Split": _split,
    "Trilu": _trilu,
}  # fmt: skip
