"""Which packed layers onnxruntime's dense operators are faster for, and the model with them dense.

The file stays as it is: what changes is the model that a session is made of, in memory. A layer
that goes over is held dense by onnxruntime, and its packed arrays are not held at all.

Layers are not chosen one by one, since convolutions of onnxruntime keep activations in a layout of
their own (NCHWc): a tensor that goes from a kernel to one of these, or back, is brought from one
layout to the other. So the sum over all layers and all such changes is made small, by letting every
layer in turn take its better side until none changes, from all-dense and from all-kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwprune.errors import HwpruneError
from hwprune.kernels import library
from hwprune.kernels.costs import Problem, dense_cost, kernel_cost, reorder_cost

if TYPE_CHECKING:
    import onnx

# No layer of more than 22 microseconds with a smaller share of its weights was faster dense: see
# benchmarks/results/dense_or_sparse.json.
FEWEST_STORED = 0.2
# Nor is it worth a look at the whole model, and importing onnx, where such layers hold less than
# this of a file's weights: a first layer that was not pruned, beside others that were.
LEAST_PART = 0.1
# A kernel has to be cheaper by this factor: estimates err by about as much, and a file shall not be
# slower than its dense network.
MARGIN = 1.1
# Operators that onnxruntime runs in either layout.
_EITHER = {"Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Relu", "Sum"}
_DENSE, _KERNEL = True, False
# Ends of a connection that are no packed layer.
_END = {_DENSE: -1, _KERNEL: -2}


@dataclass(frozen=True, slots=True)
class Dense:
    """What goes over to onnxruntime's operators.

    Attributes:
        model: of the session, serialised.
        layers: names of their nodes.
        operators: those that no node of the model has any more.
        weight_bytes: of the decoded weights and biases.
    """

    model: bytes
    layers: tuple[str, ...]
    operators: frozenset[str]
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class _Link:
    """An activation between two layers, or between a layer and what has a fixed layout."""

    one: int
    other: int
    cost: float


def dense_layers(data: bytes, threads: int, inputs: Mapping[str, Sequence[int]]) -> Dense | None:
    """Return what is better left to onnxruntime; None where nothing is, or nothing is known.

    Args:
        data: the file.
        threads: of the session.
        inputs: shapes of the model's inputs; a first axis that is free counts as 1.
    """
    try:
        import google.protobuf.message
        import onnx

        from hwprune.export.densify import densify
        from hwprune.export.operators import OPERATORS, Operator
    except ImportError:  # a board with onnxruntime and NumPy alone: every layer runs its kernel
        return None

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        problems = layer_problems(model, inputs)
        chosen = _choose(model, problems, threads)
        if not chosen:
            return None

        def decode(packed: Any) -> Any:
            name = Operator("Conv", packed.codec, packed.value_type, False).name
            arrays = list(packed.arrays.values())
            dense = library.unpack(name, packed.shape, packed.count, arrays)
            if dense is None:
                raise HwpruneError(f"{packed.name}: malformed")
            return dense

        result = densify(model, chosen, decode)
    # What is wrong with a file is said by onnxruntime and the kernels.
    except (google.protobuf.message.DecodeError, HwpruneError, ValueError, TypeError, KeyError):
        return None
    nodes = [model.graph.node[place] for place in sorted(chosen)]
    before = {tensor.name for tensor in model.graph.initializer}
    made = [t for t in result.graph.initializer if t.name not in before]
    return Dense(
        result.SerializeToString(),
        tuple(node.name for node in nodes),
        frozenset(node.op_type for node in nodes)
        - {node.op_type for node in result.graph.node if node.op_type in OPERATORS},
        sum(len(tensor.raw_data) for tensor in made),
    )


def layer_problems(
    model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]
) -> dict[int, Problem]:
    """Return what packed nodes compute, by their places, where the shape of the input is known.

    Raises:
        VerificationError: the packed arrays of a node are not there.
    """
    from hwprune.export.artifact import packed_of
    from hwprune.export.densify import tensor_shapes
    from hwprune.export.operators import OPERATORS

    shapes = tensor_shapes(model, inputs)

    tensors = {entry.name: entry for entry in model.graph.initializer}
    found = {}
    for place, node in enumerate(model.graph.node):
        operator = OPERATORS.get(node.op_type)
        shape: Any = shapes.get(node.input[0]) if operator is not None else None
        if operator is None or shape is None or not all(isinstance(n, int) for n in shape):
            continue
        if operator.codec == "dense" and operator.kind != "Depthwise":
            continue  # onnxruntime's anyway
        packed = packed_of(node, tensors)
        lists = {a.name: tuple(a.ints) for a in node.attribute if a.ints}
        numbers = {a.name: a.i for a in node.attribute}
        nonzeros, residual = packed.nonzeros, operator.residual
        if operator.kind in ("Conv", "Depthwise") and len(packed.shape) > 2:
            axes = len(packed.shape) - 2
            group = numbers.get("group", 1)
            found[place] = Problem(
                inputs=packed.shape[1] * group,
                outputs=packed.shape[0],
                group=group,
                kernel=packed.shape[2:],
                strides=lists.get("strides", (1,) * axes),
                dilations=lists.get("dilations", (1,) * axes),
                pads=lists.get("pads", (0,) * 2 * axes),
                spatial=tuple(shape[2:]),
                batch=shape[0],
                nonzeros=nonzeros,
                residual=residual,
            )
        elif operator.kind in ("Gemm", "Linear", "MatMul") and len(packed.shape) == 2:
            rows = operator.kind == "Linear" or numbers.get("transB", 0)
            outputs, features = packed.shape if rows else packed.shape[::-1]
            found[place] = Problem(
                inputs=features, outputs=outputs, group=1, kernel=(1,), strides=(1,),
                dilations=(1,), pads=(0, 0), spatial=(1,), batch=math.prod(shape[:-1]),
                nonzeros=nonzeros, residual=residual,
            )  # fmt: skip
    return found


def _choose(model: onnx.ModelProto, problems: Mapping[int, Problem], threads: int) -> set[int]:
    """Return the places of the nodes to make dense."""
    costs: dict[int, dict[bool, float]] = {}
    for place, problem in problems.items():
        kernel = kernel_cost(problem, threads)
        if kernel is not None and problem.batch:
            costs[place] = {_DENSE: dense_cost(problem), _KERNEL: MARGIN * kernel}
    links = [link for link in _links(model, problems) if {link.one, link.other} & costs.keys()]
    return min(
        (_settled(costs, links, start) for start in (_KERNEL, _DENSE)),
        key=lambda dense: _total(costs, links, dense),
    )


def _total(costs: Mapping[int, dict[bool, float]], links: list[_Link], dense: set[int]) -> float:
    side = {place: place in dense for place in costs} | {end: s for s, end in _END.items()}
    changes = sum(
        link.cost for link in links if side.get(link.one, False) != side.get(link.other, False)
    )
    return changes + sum(costs[place][side[place]] for place in costs)


def _settled(costs: Mapping[int, dict[bool, float]], links: list[_Link], start: bool) -> set[int]:
    side = dict.fromkeys(costs, start) | {end: s for s, end in _END.items()}
    around: dict[int, list[tuple[int, float]]] = {place: [] for place in costs}
    for link in links:
        for one, other in ((link.one, link.other), (link.other, link.one)):
            if one in around:
                around[one].append((other, link.cost))
    for _ in costs:  # each round makes the sum smaller; it ends long before
        changed = False
        for place, cost in costs.items():
            each = {
                s: cost[s] + sum(c for o, c in around[place] if side.get(o, _KERNEL) != s)
                for s in (_KERNEL, _DENSE)
            }
            better = each[_DENSE] < each[_KERNEL]
            changed |= better != side[place]
            side[place] = better
        if not changed:
            break
    return {place for place in costs if side[place] == _DENSE}


def _links(model: onnx.ModelProto, problems: Mapping[int, Problem]) -> list[_Link]:
    """Return the activations that change their layout where their two ends differ."""
    nodes = model.graph.node
    makers = {name: place for place, node in enumerate(nodes) for name in node.output}

    def is_map(place: int) -> bool:
        return place in problems and len(problems[place].kernel) == 2

    def sources(name: str, seen: set[str]) -> set[int]:
        """Return the layers whose results come through operators without a layout of their own."""
        place = makers.get(name)
        if place is None or name in seen:
            return {_END[_KERNEL]} if place is None else set()
        seen.add(name)
        if is_map(place):
            return {place}
        node = nodes[place]
        if node.domain == "" and node.op_type in _EITHER:
            return {found for given in node.input if given for found in sources(given, seen)}
        standard = node.op_type == "Conv" or node.op_type.startswith("DenseConv")
        return {_END[_DENSE if standard else _KERNEL]}

    found = []
    for place, node in enumerate(nodes):
        either = node.domain == "" and node.op_type in _EITHER
        if is_map(place):
            problem = problems[place]
            size = problem.batch * problem.inputs * math.prod(problem.spatial)
            # A convolution of few channels reads either layout.
            if problem.inputs >= 8:
                one = place
                found += [
                    _Link(one, other, reorder_cost(size)) for other in sources(node.input[0], set())
                ]
        elif not either:
            standard = node.op_type == "Conv" or node.op_type.startswith("DenseConv")
            end = _END[_DENSE if standard else _KERNEL]
            for name in node.input:
                for other in sources(name, set()) if name in makers else ():
                    if other >= 0:
                        last = problems[other]
                        size = last.batch * last.outputs * last.positions
                        found.append(_Link(end, other, reorder_cost(size)))
    return found
