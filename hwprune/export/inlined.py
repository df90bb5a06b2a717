"""Packed layers among standard operators, found by what is computed and not by names.

hwprune's inlined form, onnx.inliner and tools that rename or merge graphs leave the same operators
with the same constants. Whoever folds or changes one of them leaves no layer that is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from hwprune.encoding import CODECS, VALUE_DTYPES
from hwprune.export.body import DOMAIN
from hwprune.export.operators import OPERATORS, Operator, expand, serialised
from hwprune.ir import CodecName, ValueType

_KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What the body of a node ends in that only decodes a weight.
_DECODED = "Identity"
# Stands in a reference for what each layer says itself: its shape, and how many values there are.
_OWN = -987_654_321
_LARGEST_CONSTANT = 64


@dataclass(frozen=True, slots=True)
class Claim:
    """What the last node of an inlined layer is named: ``parameter|operator|shape|key``."""

    parameter: str
    operator: Operator
    shape: tuple[int, ...]


def claim_of(node: onnx.NodeProto) -> Claim | None:
    """Return what a node's name says, None where it is not such a name."""
    parts = node.name.rsplit("|", 3)
    if node.domain or len(parts) != 4 or parts[1] not in OPERATORS:
        return None
    shape = tuple(int(size) for size in parts[2].split("x") if size.isdigit())
    return Claim(parts[0], OPERATORS[parts[1]], shape)


@dataclass(slots=True)
class FoundLayer:
    """A layer as its nodes compute it.

    Attributes:
        operator: the operator that stands for them.
        roles: the names of its packed arrays by role.
        shape: of the weight; None where it is stored dense.
        count: how many values are stored, where the codec does not say.
    """

    operator: Operator
    roles: dict[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    count: int | None = None


class InlinedLayers:
    """The packed layers of a graph whose functions were inlined."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Index a model's nodes and tensors."""
        self.makers = {output: node for node in model.graph.node for output in node.output}
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.ours = any(entry.domain == DOMAIN for entry in model.opset_import)

    def find(self, node: onnx.NodeProto) -> FoundLayer | None:
        """Return the packed layer that a node is the last of, None where it is not one."""
        layer = node.op_type in _KINDS and len(node.input) > 1
        if node.domain or not (layer or (node.op_type == _DECODED and node.input)):
            return None
        bias = layer and len(node.input) > 2 and bool(node.input[2])
        if bias and not self._is_stored(node.input[2]):
            return None
        claim, weight = claim_of(node), node.input[layer]
        turn = self.makers.get(weight)
        starts = [(node.op_type, weight)] if layer else [("Weight", weight), ("Gather", weight)]
        if node.op_type == "MatMul" and turn is not None and turn.op_type == "Transpose":
            starts.append(("Linear", turn.input[0]))
        for codec, value_type in _stored_forms():
            # Dense weights of other programs may be cast and scaled, too.
            if codec == "dense" and (claim is None and (not self.ours or value_type == "fp32")):
                continue
            for kind, start in starts:
                if kind == "Gather" and codec != "dense":
                    continue
                reference, last = _reference(codec, value_type, looked_up=kind == "Gather")
                found = FoundLayer(Operator(kind, codec, value_type, bias))
                if self._same(reference, last, start, found, {}) and self._typed(found, claim):
                    return found
        return None

    def _is_stored(self, name: str) -> bool:
        maker = self.makers.get(name)
        cast = maker is not None and maker.op_type == "Cast"
        return name in self.tensors or (cast and maker.input[0] in self.tensors)  # type: ignore[union-attr]

    def _typed(self, found: FoundLayer, claim: Claim | None) -> bool:
        """Return whether the arrays have their types, by which some forms alone differ.

        Of a layer that has its name, arrays that are gone are for the reader to miss.
        """
        if not all(name in self.tensors for name in found.roles.values()):
            return claim is not None
        if found.operator.kind == "Gather" and len(self.tensors[found.roles["values"]].dims) < 2:
            return False  # no rows: the lookup in a codebook
        types = {
            "values": VALUE_DTYPES[found.operator.value_type],
            "index": CODECS[found.operator.codec].index_dtype,
        }
        return all(
            self.tensors[found.roles[role]].data_type == helper.np_dtype_to_tensor_dtype(kind)
            for role, kind in types.items()
            if kind is not None
        )

    def _same(
        self,
        reference: Mapping[str, onnx.NodeProto],
        wanted: str,
        name: str,
        found: FoundLayer,
        seen: dict[str, str],
    ) -> bool:
        """Return whether a value is computed as ``wanted`` is; arrays and sizes go into found."""
        if wanted in seen:
            return seen[wanted] == name
        seen[wanted] = name
        like = reference.get(wanted)
        if wanted == "input":  # the rows that are looked up
            return True
        if like is None:  # a packed array
            found.roles[wanted] = name
            return name not in self.makers
        node = self.makers.get(name)
        if like.op_type == "Constant":
            return self._same_constant(_constant(like), name, found)
        if node is None or node.domain or node.op_type != like.op_type:
            return False
        attributes = [
            {entry.name: serialised(entry) for entry in each.attribute} for each in (node, like)
        ]
        return (
            attributes[0] == attributes[1]
            and len(node.input) == len(like.input)
            and all(
                self._same(reference, inner, given, found, seen)
                for inner, given in zip(like.input, node.input, strict=True)
            )
        )

    def _same_constant(self, wanted: NDArray[Any], name: str, found: FoundLayer) -> bool:
        node, tensor = self.makers.get(name), self.tensors.get(name)
        try:
            if node is not None and node.op_type == "Constant":
                given = _constant(node)
            elif tensor is not None and np.prod(tensor.dims, dtype=object) <= _LARGEST_CONSTANT:
                given = numpy_helper.to_array(tensor)
            else:
                return False
        except (ValueError, TypeError, KeyError):  # a damaged tensor
            return False
        if wanted.dtype == np.int64 and np.all(wanted == _OWN):
            if given.dtype != np.int64 or given.ndim != wanted.ndim:
                return False
            if given.ndim:
                found.shape = tuple(int(size) for size in given)
            else:
                found.count = int(given)
            return True
        return wanted.dtype == given.dtype and np.array_equal(wanted, given)


def _constant(node: onnx.NodeProto) -> NDArray[Any]:
    entry = node.attribute[0] if node.attribute else onnx.AttributeProto()
    if entry.type == onnx.AttributeProto.TENSOR:
        return numpy_helper.to_array(entry.t)
    floats = entry.type in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS)
    plain = entry.type in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS) or floats
    value = helper.get_attribute_value(entry) if plain else []
    return np.array(value, np.float32 if floats else np.int64)


@cache
def _stored_forms() -> list[tuple[CodecName, ValueType]]:
    return list(dict.fromkeys((each.codec, each.value_type) for each in OPERATORS.values()))


@cache
def _reference(
    codec: CodecName, value_type: ValueType, *, looked_up: bool
) -> tuple[dict[str, onnx.NodeProto], str]:
    """Return the nodes that decode a weight, by their output, and the name of the weight."""
    operator = Operator("Gather" if looked_up else "Weight", codec, value_type, False)
    node = helper.make_node(
        operator.name, list(operator.input_roles), ["y"], domain=DOMAIN, shape=[_OWN], count=_OWN
    )
    nodes = expand(node, "_", 18)
    return {each.output[0]: each for each in nodes}, nodes[-1].input[0]
