"""Lowering a graph to an older opset, one visible rule per operator.

An operator whose schema did not change between the two opsets needs no rule. One whose schema
changed and that has no rule here is refused by name, before any training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from hwprune.errors import ExportError
from hwprune.export.graph import Graph, attributes, clone, used_tensors

Tensors = dict[str, NDArray[Any]]
Rule = Callable[[onnx.NodeProto, Tensors], onnx.NodeProto | None]

LOWEST_OPSET = (
    13  # below it, Squeeze, Split and friends take other inputs, and function bodies change
)


def lower(graph: Graph, opset: int) -> Graph:
    """Return the graph at ``opset``.

    Raises:
        ExportError: an operator cannot be expressed there; names the operator and its output.
    """
    if opset >= graph.opset:
        return graph
    if opset < LOWEST_OPSET:
        raise ExportError(
            f"the target asks for opset {opset}; hwprune writes {LOWEST_OPSET} to {graph.opset}",
            hint="use a newer onnxruntime on the device, or another target",
        )
    tensors = dict(graph.tensors)
    nodes = []
    for node in graph.nodes:
        lowered: onnx.NodeProto | None = node
        if node.domain == "" and _changed(node.op_type, graph.opset, opset):
            rule = RULES.get(node.op_type)
            lowered = rule(node, tensors) if rule else None
        if lowered is None:
            raise ExportError(
                f"{node.op_type} (layer {node.output[0]!r}) cannot be expressed at opset {opset}",
                hint=f"choose a target with opset {graph.opset}, or replace the layer",
            )
        nodes.append(lowered)
    kept = used_tensors(nodes, graph.output_names(), tensors)
    return replace(graph, nodes=tuple(nodes), tensors=kept, opset=opset)


def _changed(operator: str, newer: int, older: int) -> bool:
    if not onnx.defs.has(operator, max_inclusive_version=older, domain=""):
        return True
    schemas = [onnx.defs.get_schema(operator, version, "") for version in (newer, older)]
    return schemas[0].since_version != schemas[1].since_version


def _same(node: onnx.NodeProto, tensors: Tensors) -> onnx.NodeProto | None:
    """The newer schema only adds types or attributes that we do not use."""
    return node


def _axes_to_attribute(node: onnx.NodeProto, tensors: Tensors) -> onnx.NodeProto | None:
    """Reduce*: axes moved from an attribute to an input at opset 18."""
    given = attributes(node)
    copy = clone(node)
    del copy.input[1:], copy.attribute[:]
    if len(node.input) > 1 and node.input[1]:
        axes = tensors.get(node.input[1])
        if axes is None:
            return None
        if axes.size == 0 and given.get("noop_with_empty_axes", 0):
            return None
        if axes.size:
            copy.attribute.append(helper.make_attribute("axes", [int(a) for a in axes.reshape(-1)]))
    copy.attribute.append(helper.make_attribute("keepdims", given.get("keepdims", 1)))
    return copy


def _pad(node: onnx.NodeProto, tensors: Tensors) -> onnx.NodeProto | None:
    """Pad: the axes input came at opset 18; only the form without it can be lowered."""
    if len(node.input) > 3 and node.input[3]:
        return None
    return node if attributes(node).get("mode", b"constant") != b"wrap" else None


def _split(node: onnx.NodeProto, tensors: Tensors) -> onnx.NodeProto | None:
    """Split: num_outputs came at opset 18; with given sizes it is not needed."""
    copy = clone(node)
    kept = [entry for entry in node.attribute if entry.name != "num_outputs"]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    return copy if len(node.input) > 1 and node.input[1] else None


def _pool(node: onnx.NodeProto, tensors: Tensors) -> onnx.NodeProto | None:
    """AveragePool: dilations came at opset 19."""
    dilations = attributes(node).get("dilations", [1])
    return node if all(size == 1 for size in dilations) else None


def _resize(node: onnx.NodeProto, tensors: Tensors) -> onnx.NodeProto | None:
    """Resize: antialias, axes and keep_aspect_ratio_policy came at opset 18."""
    new = {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"}
    given = attributes(node)
    if "axes" in given or any(given.get(name, value) != value for name, value in new.items()):
        return None
    copy = clone(node)
    kept = [entry for entry in node.attribute if entry.name not in new]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    return copy


def _shape(node: onnx.NodeProto, tensors: Tensors) -> onnx.NodeProto | None:
    """Shape: start and end came at opset 15."""
    return None if node.attribute else node


def _scatter(node: onnx.NodeProto, tensors: Tensors) -> onnx.NodeProto | None:
    """Scatter*: reduction came at opset 16 and grew at 18."""
    if attributes(node).get("reduction", b"none") != b"none":
        return None
    copy = clone(node)
    kept = [entry for entry in node.attribute if entry.name != "reduction"]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    return copy


def _batchnorm(node: onnx.NodeProto, tensors: Tensors) -> onnx.NodeProto | None:
    """BatchNormalization: training_mode came at opset 14."""
    if attributes(node).get("training_mode", 0):
        return None
    copy = clone(node)
    kept = [entry for entry in node.attribute if entry.name != "training_mode"]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    return copy


def _reshape(node: onnx.NodeProto, tensors: Tensors) -> onnx.NodeProto | None:
    """Reshape: allowzero came at opset 14; it matters only where the shape holds a zero."""
    if not attributes(node).get("allowzero", 0):
        return node
    shape = tensors.get(node.input[1])
    if shape is None or bool(np.any(shape == 0)):
        return None
    copy = clone(node)
    del copy.attribute[:]
    return copy


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
            "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare",
        ),
        _axes_to_attribute,
    ),
    **dict.fromkeys(
        (
            "Add", "Sub", "Mul", "Div", "Relu", "Identity", "Less", "LessOrEqual", "Greater",
            "GreaterOrEqual", "Where", "LeakyRelu", "PRelu", "Pow", "CumSum", "Clip", "Min", "Max",
            "Cast",
        ),
        _same,
    ),
    **dict.fromkeys(("ScatterElements", "ScatterND"), _scatter),
    "BatchNormalization": _batchnorm,
    "Shape": _shape,
    "Pad": _pad,
    "Split": _split,
    "AveragePool": _pool,
    "Resize": _resize,
    "Reshape": _reshape,
}  # fmt: skip
