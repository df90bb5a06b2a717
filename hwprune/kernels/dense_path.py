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
from mmap import mmap

from hwprune.kernels.costs import Problem, dense_cost, kernel_cost, reorder_cost
from hwprune.kernels.dense_model import densify
from hwprune.kernels.model_file import DOMAIN, ModelFile, Node, read_model, stored_values
from hwprune.kernels.shapes import activation_shapes, packed_kind, weight_shape

# Kernels were faster for every layer with a smaller share of its weights: see
# benchmarks/results/dense_or_sparse.json.
FEWEST_STORED = 0.3
# Nor is it worth rewriting the model where such layers hold less than this of a file's weights: a
# first layer that was not pruned, beside others that were.
LEAST_PART = 0.1
# And of the time of all layers that may be faster dense, this part has to be saved: rewriting the
# model makes the session later, and its weights dense.
LEAST_GAIN = 0.05
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


def dense_layers(
    data: bytes | mmap, threads: int, inputs: Mapping[str, Sequence[int]]
) -> Dense | None:
    """Return what is better left to onnxruntime; None where nothing is, or nothing is known.

    Args:
        data: the file.
        threads: of the session.
        inputs: shapes of the model's inputs; a first axis that is free counts as 1.
    """
    try:
        model = read_model(data)
        chosen = set[int]()
        if _dense_part(model) >= LEAST_PART:
            chosen = _choose(model, layer_problems(model, inputs), threads)
        if not chosen:
            return None
        result = densify(model, chosen)
    # What is wrong with a file is said by onnxruntime and the kernels.
    except (ValueError, LookupError, ArithmeticError):
        return None
    left = {node.operator for place, node in enumerate(model.nodes) if place not in chosen}
    nodes = [model.nodes[place] for place in sorted(chosen)]
    return Dense(
        result.data,
        tuple(node.name for node in nodes),
        frozenset(node.operator for node in nodes) - left,
        result.weight_bytes,
    )


def _dense_part(model: ModelFile) -> float:
    """Return the share of a file's packed weights in layers that may be faster dense."""
    dense = whole = 0
    for node in model.nodes:
        weight = weight_shape(node, model.tensors)
        if node.domain != DOMAIN or weight is None:
            continue
        stored = stored_values(node, model.tensors)
        whole += stored
        standard = node.operator.startswith("Dense") or packed_kind(node) == "Depthwise"
        if not standard and stored >= FEWEST_STORED * math.prod(weight):
            dense += stored
    return dense / whole if whole else 0


def layer_problems(model: ModelFile, inputs: Mapping[str, Sequence[int]]) -> dict[int, Problem]:
    """Return what packed nodes compute, by their places, where the shape of the input is known."""
    shapes = activation_shapes(model, inputs)
    found = {}
    for place, node in enumerate(model.nodes):
        if node.domain != DOMAIN or len(node.inputs) < 2:
            continue
        shape, weight = shapes.get(node.inputs[0]), weight_shape(node, model.tensors)
        kind = packed_kind(node)
        if shape is None or weight is None:
            continue
        if node.operator.startswith("Dense") and kind != "Depthwise":
            continue  # onnxruntime's anyway
        nonzeros = stored_values(node, model.tensors)
        residual = "Add" in node.operator
        if kind in ("Conv", "Depthwise") and 2 < len(weight) == len(shape):
            axes = len(weight) - 2
            group = node.number("group", 1)
            ones = (1,) * axes
            found[place] = Problem(
                inputs=weight[1] * group,
                outputs=weight[0],
                group=group,
                kernel=weight[2:],
                strides=node.ints("strides", ones),
                dilations=node.ints("dilations", ones),
                pads=node.ints("pads", (0,) * 2 * axes),
                spatial=shape[2:],
                batch=shape[0],
                nonzeros=nonzeros,
                residual=residual,
            )
        elif kind in ("Gemm", "Linear", "MatMul") and len(weight) == 2:
            rows = kind == "Linear" or node.number("transB", 0)
            outputs, features = weight if rows else weight[::-1]
            found[place] = Problem(
                inputs=features, outputs=outputs, group=1, kernel=(1,), strides=(1,),
                dilations=(1,), pads=(0, 0), spatial=(1,), batch=math.prod(shape[:-1]),
                nonzeros=nonzeros, residual=residual,
            )  # fmt: skip
    return found


def _choose(model: ModelFile, problems: Mapping[int, Problem], threads: int) -> set[int]:
    """Return the places of the nodes to make dense."""
    costs: dict[int, dict[bool, float]] = {}
    for place, problem in problems.items():
        if not problem.batch or problem.nonzeros < FEWEST_STORED * problem.weights:
            continue
        kernel = kernel_cost(problem, threads)
        if kernel is not None:
            costs[place] = {_DENSE: dense_cost(problem), _KERNEL: MARGIN * kernel}
    links = [link for link in _links(model, problems) if {link.one, link.other} & costs.keys()]
    best = min(
        (_settled(costs, links, start) for start in (_KERNEL, _DENSE)),
        key=lambda dense: _total(costs, links, dense),
    )
    most = (1 - LEAST_GAIN) * _total(costs, links, set())
    return best if _total(costs, links, best) <= most else set()


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


def _links(model: ModelFile, problems: Mapping[int, Problem]) -> list[_Link]:
    """Return the activations that change their layout where their two ends differ."""
    nodes = model.nodes
    makers = {name: place for place, node in enumerate(nodes) for name in node.outputs}

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
        if node.domain == "" and node.operator in _EITHER:
            return {found for given in node.inputs if given for found in sources(given, seen)}
        return {_END[_DENSE if _is_standard(node) else _KERNEL]}

    found = []
    for place, node in enumerate(nodes):
        either = node.domain == "" and node.operator in _EITHER
        if is_map(place):
            problem = problems[place]
            size = problem.batch * problem.inputs * math.prod(problem.spatial)
            # A convolution of few channels reads either layout.
            if problem.inputs >= 8:
                one = place
                found += [
                    _Link(one, other, reorder_cost(size))
                    for other in sources(node.inputs[0], set())
                ]
        elif not either:
            end = _END[_DENSE if _is_standard(node) else _KERNEL]
            for name in node.inputs:
                for other in sources(name, set()) if name in makers else ():
                    if other >= 0:
                        last = problems[other]
                        size = last.batch * last.outputs * last.positions
                        found.append(_Link(end, other, reorder_cost(size)))
    return found


def _is_standard(node: Node) -> bool:
    """Return whether it is a convolution that onnxruntime does."""
    return node.operator == "Conv" or node.operator.startswith("DenseConv")
