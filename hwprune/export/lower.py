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
# A node in place of the newer one, or several, the last of which has its output; None refuses.
Lowered = onnx.NodeProto | list[onnx.NodeProto] | None
Rule = Callable[[onnx.NodeProto, Tensors], Lowered]

LOWEST_OPSET = (
    13  # below it, Squeeze, Split and friends take other inputs, and function bodies change
)


# Slice stops at the end of an axis when it is asked to go further.
_END = np.iinfo(np.int64).max


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
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        lowered: Lowered = node
        if node.domain == "" and _changed(node.op_type, graph.opset, opset):
            rule = RULES.get(node.op_type)
            lowered = rule(node, tensors) if rule else None
        if lowered is None:
            raise ExportError(
                f"{node.op_type} (layer {node.output[0]!r}) cannot be expressed at opset {opset}",
                hint=f"choose a target with opset {graph.opset}, or replace the layer",
            )
        nodes += lowered if isinstance(lowered, list) else [lowered]
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


def _pad(node: onnx.NodeProto, tensors: Tensors) -> Lowered:
    """Pad: the axes input came at opset 18; only the form without it can be lowered."""
    if len(node.input) > 3 and node.input[3]:
        return None
    return _wrap(node, tensors) if attributes(node).get("mode") == b"wrap" else node


def _wrap(node: onnx.NodeProto, tensors: Tensors) -> Lowered:
    """Pad that wraps around came at opset 19: join the tensor's ends to it, axis by axis."""
    pads = tensors.get(node.input[1])
    if pads is None or bool(np.any(pads < 0)):
        return None
    rank = pads.size // 2
    padded = [axis for axis in range(rank) if pads[axis] or pads[axis + rank]]
    output, source = node.output[0], node.input[0]
    nodes = []
    for axis in padded:
        before, after = int(pads[axis]), int(pads[axis + rank])
        ends = {"before": (-before, _END), "after": (0, after)}
        names: dict[str, list[str]] = {"before": [], "after": []}
        for side, (start, end) in ends.items():
            if not (before if side == "before" else after):
                continue
            piece = f"{output}//{axis}{side}"
            limits = {f"{piece}/start": start, f"{piece}/end": end, f"{piece}/axis": axis}
            tensors |= {name: np.array([value], np.int64) for name, value in limits.items()}
            nodes.append(helper.make_node("Slice", [source, *limits], [piece]))
            names[side].append(piece)
        pieces = [*names["before"], source, *names["after"]]
        source = output if axis == padded[-1] else f"{output}//{axis}"
        nodes.append(helper.make_node("Concat", pieces, [source], axis=axis))
    return nodes or [helper.make_node("Identity", [source], [output])]


def _layer_normalization(node: onnx.NodeProto, tensors: Tensors) -> Lowered:
    """LayerNormalization came at opset 17: mean, difference, variance, scale, shift."""
    given = attributes(node)
    axis, scale = given.get("axis", -1), tensors.get(node.input[1])
    if axis >= 0 and scale is not None:  # what is normalised has the scale's axes
        axis = -scale.ndim
    if axis >= 0 or any(node.output[1:]):
        return None
    source, output = node.input[0], node.output[0]
    axes = list(range(axis, 0))
    names = {
        what: f"{output}//{what}"
        for what in ("mean", "difference", "square", "variance", "shifted", "deviation", "normal")
    }
    epsilon = f"{output}//epsilon"
    tensors[epsilon] = np.array(given.get("epsilon", 1e-5), np.float32)
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    scaled = f"{output}//scaled" if bias else output
    steps = [
        ("ReduceMean", [source], names["mean"]),
        ("Sub", [source, names["mean"]], names["difference"]),
        ("Mul", [names["difference"], names["difference"]], names["square"]),
        ("ReduceMean", [names["square"]], names["variance"]),
        ("Add", [names["variance"], epsilon], names["shifted"]),
        ("Sqrt", [names["shifted"]], names["deviation"]),
        ("Div", [names["difference"], names["deviation"]], names["normal"]),
        ("Mul", [names["normal"], node.input[1]], scaled),
        *([("Add", [scaled, bias], output)] if bias else []),
    ]
    nodes = [helper.make_node(operator, inputs, [made]) for operator, inputs, made in steps]
    for node in nodes:
        if node.op_type == "ReduceMean":
            node.attribute.append(helper.make_attribute("axes", axes))
    return nodes


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
    "LayerNormalization": _layer_normalization,
    "Pad": _pad,
    "Split": _split,
    "AveragePool": _pool,
    "Resize": _resize,
    "Reshape": _reshape,
}  # fmt: skip
