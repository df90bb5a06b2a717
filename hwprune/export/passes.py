"""Graph -> Graph: fold BN, drop what does nothing, strip defaults, shorten names.

Each pass is one function, changes nothing that it was given, and keeps the function that the graph
computes. ``slim`` is their sequence.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hwprune.export.gains import scalars_behind, separate_gains
from hwprune.export.graph import Fold, Graph, attributes, clone, rename, used_tensors

_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0}


def slim(graph: Graph, parameters: Collection[str]) -> Graph:
    """Run every pass that does not depend on the target, in order."""
    graph = fold_batchnorm(scalars_behind(drop_no_ops(graph), parameters))
    return share_constants(strip_defaults(separate_gains(graph, parameters)), parameters)


def drop_no_ops(graph: Graph) -> Graph:
    """Remove Identity and inference-time Dropout."""
    outputs = graph.output_names()
    alias: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        source = alias.get(node.input[0], node.input[0]) if node.input else ""
        if node.op_type in ("Identity", "Dropout") and node.output[0] not in outputs:
            alias[node.output[0]] = source
            continue
        copy = clone(node)
        for slot, name in enumerate(copy.input):
            copy.input[slot] = alias.get(name, name)
        nodes.append(copy)
    return replace(graph, nodes=tuple(nodes), tensors=used_tensors(nodes, outputs, graph.tensors))


def fold_batchnorm(graph: Graph) -> Graph:
    """Fold BatchNormalization into the convolution or linear layer before it.

    Requires that the layer's output goes to the BN alone and that its weight and bias are read by
    it alone; a BN that fails this (a pre-activation network) stays. For shared weights see
    ``gains.py``.
    """
    readers, outputs = graph.readers(), graph.output_names()
    producers = {node.output[0]: node for node in graph.nodes if node.output}
    tensors: dict[str, NDArray[Any]] = dict(graph.tensors)
    folded: dict[int, onnx.NodeProto] = {}
    removed: set[int] = set()
    folds = list(graph.folds)
    for norm in graph.nodes:
        layer = producers.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if layer is None or layer.op_type not in _CHANNEL_AXIS or layer.output[0] in outputs:
            continue
        given = attributes(layer)
        if attributes(norm).get("training_mode", 0):
            continue
        if layer.op_type == "Gemm" and not _is_linear(given):
            continue
        if layer.op_type == "ConvTranspose" and given.get("group", 1) != 1:
            continue
        parameters = [*layer.input[1:], *norm.input[1:]]
        if not all(name in tensors for name in parameters) or len(readers[layer.output[0]]) != 1:
            continue
        if any(len(readers[name]) != 1 for name in layer.input[1:]):
            continue
        gamma, beta, mean, variance = (tensors[name].astype(np.float64) for name in norm.input[1:5])
        epsilon = attributes(norm).get("epsilon", 1e-5)
        factor = gamma / np.sqrt(variance + epsilon)
        weight = tensors[layer.input[1]]
        along = [1] * weight.ndim
        along[_CHANNEL_AXIS[layer.op_type]] = -1
        bias = tensors[layer.input[2]].astype(np.float64) if len(layer.input) > 2 else 0.0
        copy = clone(layer)
        bias_name = layer.input[2] if len(layer.input) > 2 else f"{layer.input[1]}//bias"
        del copy.input[2:]
        copy.input.append(bias_name)
        copy.output[0] = norm.output[0]
        tensors[layer.input[1]] = (weight * factor.reshape(along)).astype(np.float32)
        tensors[bias_name] = ((bias - mean) * factor + beta).astype(np.float32)
        folded[id(layer)] = copy
        folds.append(
            Fold(layer.input[1], bias_name, tuple(norm.input[1:5]), factor.astype(np.float64),
                 _CHANNEL_AXIS[layer.op_type], (bias - mean) * factor, epsilon)
        )  # fmt: skip
        removed.add(id(norm))
    nodes = tuple(folded.get(id(node), node) for node in graph.nodes if id(node) not in removed)
    kept = used_tensors(nodes, outputs, tensors)
    return replace(graph, nodes=nodes, tensors=kept, folds=tuple(folds))


def _is_linear(gemm: Mapping[str, Any]) -> bool:
    """Return whether a Gemm is x @ transpose(w) + b."""
    scaled = gemm.get("alpha", 1.0) != 1.0 or gemm.get("beta", 1.0) != 1.0
    return gemm.get("transB", 0) == 1 and not gemm.get("transA", 0) and not scaled


def strip_defaults(graph: Graph) -> Graph:
    """Remove attributes that say what the operator's schema says, names, comments and metadata."""
    nodes = []
    for node in graph.nodes:
        copy = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
        copy.input.extend(node.input)
        outputs = list(node.output)
        while outputs and not outputs[-1]:
            outputs.pop()
        if node.op_type == "BatchNormalization" and not attributes(node).get("training_mode", 0):
            outputs = outputs[:1]
        copy.output.extend(outputs)
        for entry in node.attribute:
            if not _is_default(node, entry, graph):
                kept = copy.attribute.add()
                kept.CopyFrom(entry)
                kept.ClearField("doc_string")
        nodes.append(copy)
    return replace(graph, nodes=tuple(nodes))


_CONVOLUTIONS = ("Conv", "ConvTranspose")
_ONES, _ZEROS = ("strides", "dilations"), ("pads", "output_padding")


def _is_default(node: onnx.NodeProto, entry: onnx.AttributeProto, graph: Graph) -> bool:
    value = onnx.helper.get_attribute_value(entry)
    pools = ("MaxPool", "AveragePool")
    if node.op_type in _CONVOLUTIONS and entry.name == "kernel_shape":
        return len(node.input) > 1 and node.input[1] in graph.tensors
    if node.op_type in (*_CONVOLUTIONS, *pools):
        if entry.name in _ONES:
            return all(size == 1 for size in value)
        if entry.name in _ZEROS:
            return all(size == 0 for size in value)
    if node.op_type == "BatchNormalization" and entry.name in ("momentum", "training_mode"):
        return not attributes(node).get("training_mode", 0)
    schema = onnx.defs.get_schema(node.op_type, graph.opset, node.domain)
    known = schema.attributes.get(entry.name)
    if known is None or not known.default_value.name:
        return False
    return bool(onnx.helper.get_attribute_value(known.default_value) == value)


def share_constants(graph: Graph, parameters: Collection[str]) -> Graph:
    """Store equal small constants once.

    Parameters are left alone: whether two of them are equal changes as they are trained and pruned
    (two layers without a nonzero are), and the file's structure must not.
    """
    first: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    alias: dict[str, str] = {}
    own = {*parameters, *(fold.bias for fold in graph.folds)}
    for name, array in graph.tensors.items():
        # Passes put "//" into the name of what they make of parameters.
        if array.nbytes <= 1024 and name not in own and "//" not in name:
            key = (array.dtype.str, array.shape, array.tobytes())
            alias[name] = first.setdefault(key, name)
    nodes = [rename(node, alias) for node in graph.nodes]
    tensors = used_tensors(nodes, graph.output_names(), graph.tensors)
    return replace(graph, nodes=tuple(nodes), tensors=tensors)


_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def base36(number: int) -> str:
    """Return a non-negative number in base 36: the shortest names."""
    digits = ""
    while number or not digits:
        number, rest = divmod(number, 36)
        digits = _DIGITS[rest] + digits
    return digits


def short_names(graph: Graph, keep: set[str]) -> dict[str, str]:
    """Return short names for every inner value: activations ``_0``, tensors ``C0``.

    Inputs, outputs and the names in ``keep`` stay as they are, and nothing else is called like
    them. The capital keeps tensors apart from packed arrays, which open with a number in base 36.
    """
    fixed = keep | graph.interface_names() | {""}
    made = dict.fromkeys(name for node in graph.nodes for name in node.output)
    names: dict[str, str] = {}
    for prefix, old in (("C", graph.tensors), ("_", made)):
        numbered = (f"{prefix}{base36(count)}" for count in itertools.count())
        unused = (name for name in numbered if name not in fixed)
        names |= {name: next(unused) for name in old if name not in fixed and name not in names}
    return names
