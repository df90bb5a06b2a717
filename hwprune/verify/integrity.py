"""What an artifact must not be: altered in its operators, or dense again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hwprune.encoding.values import NIBBLE_TYPES
from hwprune.export.artifact import ArtifactFile
from hwprune.export.body import DOMAIN
from hwprune.export.operators import (
    OPERATOR_ATTRIBUTES,
    OPERATORS,
    altered_functions,
    count_name,
    expand,
    serialised,
)

_PRODUCER = "hwprune"
# A dense tensor with this share of exact zeros was pruned. Smaller ones cannot show a pattern.
_ZEROS = 0.5
_SMALLEST = 64


def altered_bodies(model: onnx.ModelProto) -> list[str]:
    """Return the functions and inlined layers that are not, byte for byte, what hwprune writes.

    Both forms of a file are compared: functions by name, and inlined layers with a fresh expansion
    of the operator that their last node names.
    """
    return [*altered_functions(model), *_altered_expansions(model)]


def densified(artifact: ArtifactFile) -> str | None:
    """Return how a file shows that it was written sparse and is dense now, or None.

    Signs: it imports our operators without using them, as onnxruntime's optimised copies do; or it
    comes from hwprune and has dense tensors that are mostly exact zeros.
    """
    model = artifact.model
    imported = any(entry.domain == DOMAIN for entry in model.opset_import)
    if imported and not artifact.layers and not artifact.inlined_elsewhere:
        return "it imports hwprune's operators, and none of its layers is packed"
    if artifact.metadata.get("producer_name") != _PRODUCER:
        return None
    tensors = [*model.graph.initializer, *_constants(model.graph.node)]
    pruned = [tensor.name for tensor in tensors if _mostly_zero(tensor)]
    if not pruned:
        return None
    listed = ", ".join(pruned[:3]) + (" ..." if len(pruned) > 3 else "")
    count = f"{len(pruned)} dense tensor{'s' if len(pruned) > 1 else ''}"
    return f"hwprune wrote it, and {count} ({listed}) hold mostly zeros, unpacked"


def _mostly_zero(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
        return False
    if len(tensor.dims) < 2 or int(np.prod(tensor.dims)) < _SMALLEST:
        return False
    array = numpy_helper.to_array(tensor)
    return bool(np.count_nonzero(array) < (1 - _ZEROS) * array.size)


def _constants(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield attribute.t


# -- the inlined form -------------------------------------------------------------------------


def _altered_expansions(model: onnx.ModelProto) -> list[str]:
    opset = next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 0)
    makers = {output: node for node in model.graph.node for output in node.output}
    altered = []
    for last in model.graph.node:
        parts = last.name.split("|")
        if last.domain or len(parts) != 4 or parts[1] not in OPERATORS:
            continue
        if not _is_expansion(last, parts, makers, opset):
            altered.append(parts[0])
    return altered


def _is_expansion(
    last: onnx.NodeProto, parts: Sequence[str], makers: dict[str, onnx.NodeProto], opset: int
) -> bool:
    """Return whether the nodes before ``last`` are those that its name promises."""
    operator, key = OPERATORS[parts[1]], parts[3]
    if operator.fused:  # nothing is fused in the inlined form
        return False
    shape = [int(size) for size in parts[2].split("x") if size.isdigit()]
    prefix = _prefix(last, key)
    kept: dict[str, Any] = {
        entry.name: helper.get_attribute_value(entry)
        for entry in last.attribute
        if entry.name in OPERATOR_ATTRIBUTES[operator.kind]
    }
    if operator.codec != "dense":
        kept["shape"] = shape
    if operator.value_type in NIBBLE_TYPES:
        counter = makers.get(count_name(prefix))
        kept["count"] = helper.get_node_attr_value(counter, "value_int") if counter else -1
    stored = {
        "input": last.input[0], "values": f"{key}v", "index": f"{key}i", "scale": f"{key}s",
        "codebook": f"{key}c",
    }  # fmt: skip
    if operator.bias:
        if len(last.input) < 3:
            return False
        cast = makers.get(last.input[2])
        own = last.input[2].startswith(prefix) and cast is not None and cast.input
        stored["bias"] = cast.input[0] if own and cast is not None else last.input[2]
    node = helper.make_node(
        operator.name,
        [stored[role] for role in operator.input_roles],
        list(last.output),
        domain=DOMAIN,
        **kept,
    )
    expected = expand(node, prefix, opset)
    expected[-1].name = last.name
    return all(
        (found := makers.get(wanted.output[0])) is not None and _same(found, wanted)
        for wanted in expected
    )


def _prefix(last: onnx.NodeProto, key: str) -> str:
    """Return what the names inside an expansion start with, such as ``3_0_``."""
    for name in last.input[1:]:
        start, _, rest = name.partition("_")
        place, separator, _ = rest.partition("_")
        if start == key and separator and place.isdigit():
            return f"{key}_{place}_"
    return f"{key}_0_"  # nothing is decoded: no inner names


def _same(found: onnx.NodeProto, wanted: onnx.NodeProto) -> bool:
    return serialised(found) == serialised(wanted)
