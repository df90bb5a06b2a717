"""The pieces that function bodies are written with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

DOMAIN = "hwprune"
DOMAIN_VERSION = 1


def refer(node: onnx.NodeProto, attribute: str, kind: int, parameter: str) -> None:
    """Let a node's attribute take its value from the function's parameter of the given name."""
    entry = node.attribute.add()
    entry.name, entry.ref_attr_name, entry.type = attribute, parameter, kind


def make_node(
    operator: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any
) -> onnx.NodeProto:
    """Return a node with one output."""
    return helper.make_node(operator, inputs, [output], domain=domain or None, **attributes)


def int32_constant(output: str, value: int | list[int]) -> onnx.NodeProto:
    """Return a Constant node of type int32."""
    return make_node(
        "Constant", [], output, value=numpy_helper.from_array(np.array(value, np.int32))
    )


def make_function(
    name: str, inputs: list[str], output: str, nodes: list[onnx.NodeProto], opset: int,
    attributes: Iterable[str],
) -> onnx.FunctionProto:  # fmt: skip
    """Return a function of domain ``hwprune`` with one output; it imports what its nodes need."""
    imports = [helper.make_opsetid("", opset)]
    if any(node.domain == DOMAIN for node in nodes):
        imports.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    return helper.make_function(
        DOMAIN, name, inputs, [output], nodes, imports, attributes=list(attributes)
    )
