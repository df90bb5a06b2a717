"""Packed layers made dense again, in memory: for layers that are faster so.

What comes out is what the dense network is, with the weights that the file holds: onnxruntime
treats such a layer as any other, in its own layouts and with its own fusions. Never imports torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from hwprune.encoding import unpack
from hwprune.errors import VerificationError
from hwprune.export.artifact import packed_of
from hwprune.export.body import DOMAIN
from hwprune.export.graph import Graph
from hwprune.export.operators import OPERATORS, Operator, expand
from hwprune.export.shapes import Shape, activation_shapes
from hwprune.ir import Packed


def densify(
    model: onnx.ModelProto,
    nodes: Collection[int],
    decode: Callable[[Packed], NDArray[np.float32]] = unpack,
) -> onnx.ModelProto:
    """Return the model with standard operators for some of its packed nodes.

    Args:
        model: with functions; not changed.
        nodes: places in ``model.graph.node``, of nodes of domain ``hwprune``.
        decode: makes a weight of its packed arrays.

    Raises:
        VerificationError: the packed arrays of such a node are broken.
    """
    made: dict[str, onnx.TensorProto] = {}

    def decoded(name: str, source: Packed | onnx.TensorProto) -> None:
        dense = decode(source) if isinstance(source, Packed) else numpy_helper.to_array(source)
        made[name] = numpy_helper.from_array(dense.astype(np.float32, copy=False), name)

    rest = _rewritten(model, nodes, decoded)
    read = {name for node in rest for name in node.input}
    result = onnx.ModelProto()
    _copy_but(model, result, ("graph", "functions"))
    _copy_but(model.graph, result.graph, ("node", "initializer"))
    result.graph.node.extend(rest)
    result.graph.initializer.extend(t for t in model.graph.initializer if t.name in read)
    result.graph.initializer.extend(made.values())
    packed_left = any(node.domain == DOMAIN for node in rest)
    result.functions.extend(f for f in model.functions if packed_left or f.domain != DOMAIN)
    return result


def tensor_shapes(
    model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]
) -> Mapping[str, Shape]:
    """Return the shapes of a packed model's activations, as ``activation_shapes``.

    Args:
        model: with functions; not changed.
        inputs: shapes of its inputs, in place of those it states. A first axis that is free
            counts as 1.

    Raises:
        VerificationError: the packed arrays of a node are not there.
    """
    tensors: dict[str, NDArray[Any]] = {}

    def typed(name: str, source: Packed | onnx.TensorProto) -> None:
        shape = source.shape if isinstance(source, Packed) else tuple(source.dims)
        tensors[name] = np.broadcast_to(np.float32(0), shape)  # no memory behind it

    packed = [i for i, node in enumerate(model.graph.node) if node.op_type in OPERATORS]
    nodes = _rewritten(model, packed, typed)
    read = {name for node in nodes for name in node.input}
    stored = {t.name: t for t in model.graph.initializer}
    tensors |= {n: numpy_helper.to_array(t) for n, t in stored.items() if n in read}
    given = []
    for entry in model.graph.input:
        if entry.name in stored:
            continue
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(entry)
        dims = copy.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
        for dim, size in zip(dims, inputs.get(entry.name, ()), strict=False):
            dim.dim_value = size
        given.append(copy)
    opset = _opset(model)
    outputs = []
    for entry in model.graph.output:  # what is stated for another batch would contradict this one
        kind = entry.type.tensor_type.elem_type
        outputs.append(onnx.helper.make_tensor_value_info(entry.name, kind, None))
    return activation_shapes(Graph(tuple(nodes), tuple(given), tuple(outputs), tensors, opset))


def _opset(model: onnx.ModelProto) -> int:
    return next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 0)


def _rewritten(
    model: onnx.ModelProto,
    places: Collection[int],
    add: Callable[[str, Packed | onnx.TensorProto], None],
) -> list[onnx.NodeProto]:
    """Return all nodes, some of them rewritten; ``add`` learns what tensors these need."""
    tensors = {entry.name: entry for entry in model.graph.initializer}
    names, opset = _Names(model.graph), _opset(model)
    made: dict[tuple[Any, ...], str] = {}

    def tensor(key: tuple[Any, ...], source: Packed | onnx.TensorProto) -> str:
        if key not in made:  # what several nodes read is decoded once
            made[key] = names.fresh()
            add(made[key], source)
        return made[key]

    rest: list[onnx.NodeProto] = []
    for place, node in enumerate(model.graph.node):
        if place not in places:
            rest.append(node)
            continue
        operator = OPERATORS[node.op_type]
        roles = dict(zip(operator.input_roles, node.input, strict=False))
        packed = packed_of(node, tensors)
        stored = (*(roles[role] for role in packed.arrays), packed.shape)
        roles["values"] = tensor(stored, packed)
        if operator.bias:
            if roles["bias"] not in tensors:
                raise VerificationError(f"the bias of layer {node.name!r} is not stored")
            roles["bias"] = tensor((roles["bias"],), tensors[roles["bias"]])
        rest += _standard(node, operator, roles, opset, names)
    return rest


class _Names:
    """Names that the graph does not have yet."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken = {name for node in graph.node for name in (*node.input, *node.output)}
        self._taken |= {node.name for node in graph.node}
        self._numbers = itertools.count()

    def fresh(self) -> str:
        return next(n for i in self._numbers if (n := f"dense_{i}") not in self._taken)


def _standard(
    node: onnx.NodeProto, operator: Operator, roles: dict[str, str], opset: int, names: _Names
) -> list[onnx.NodeProto]:
    """Return what a node stands for, over a weight and a bias that are dense float32."""
    plain = replace(operator, codec="dense", value_type="fp32")
    dense = onnx.NodeProto(op_type=plain.name, domain=DOMAIN)
    dense.input.extend(roles[role] for role in plain.input_roles)
    dense.output.extend(node.output)
    dense.attribute.extend(a for a in node.attribute if a.name in plain.attributes)
    nodes = expand(dense, f"{names.fresh()}_", opset)
    nodes[0].name = node.name
    return nodes


def _copy_but(source: Any, target: Any, left_out: Collection[str]) -> None:
    """Copy a message's fields without those that are large."""
    for field, value in source.ListFields():
        if field.name in left_out:
            continue
        if isinstance(value, (str, bytes, int)):
            setattr(target, field.name, value)
        else:
            getattr(target, field.name).MergeFrom(value)
