"""What an artifact must not be: altered in its operators, or dense again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from hwprune.export.artifact import ArtifactFile
from hwprune.export.body import DOMAIN
from hwprune.export.inlined import InlinedLayers, claim_of
from hwprune.export.operators import altered_functions

_PRODUCER = "hwprune"
# A dense tensor with this share of exact zeros was pruned. Smaller ones cannot show a pattern.
_ZEROS = 0.5
_SMALLEST = 64


def altered_bodies(model: onnx.ModelProto) -> list[str]:
    """Return the functions and inlined layers that are not, byte for byte, what hwprune writes.

    Both forms of a file are compared: functions by name, and inlined layers with the operator that
    their last node names.
    """
    return [*altered_functions(model), *_altered_expansions(model)]


def densified(artifact: ArtifactFile) -> str | None:
    """Return how a file shows that it was written sparse and is dense now, or None.

    Signs: it imports our operators without using them, as onnxruntime's optimised copies do; or it
    comes from hwprune and has dense tensors that are mostly exact zeros.
    """
    model = artifact.model
    imported = any(entry.domain == DOMAIN for entry in model.opset_import)
    if imported and not artifact.layers:
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


def _altered_expansions(model: onnx.ModelProto) -> list[str]:
    """Return the parameters whose inlined layer computes something else than its name says."""
    layers, altered = InlinedLayers(model), []
    for last in model.graph.node:
        claim = claim_of(last)
        if claim is None:
            continue
        found = layers.find(last)
        kind = "Conv" if claim.operator.kind == "Depthwise" else claim.operator.kind
        shape = None if claim.operator.codec == "dense" else claim.shape
        # Nothing is fused in the inlined form, so the claim has to be just what was found.
        if found is None or (found.operator, found.shape) != (
            replace(claim.operator, kind=kind),
            shape,
        ):
            altered.append(claim.parameter)
    return altered
