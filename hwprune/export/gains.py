"""A weight that several layers share: what each of them does to its channels, kept apart from it.

BN folds into the weight before it, but a shared weight belongs to no single BN. So each layer that
uses it keeps a *gain*: its BN's factor, times the scalar that the layer multiplies the weight by,
one number per output channel; and a bias. In the graph these are a Mul and an Add behind the layer.
Where stored values have a scale per channel (int8, int4) they vanish in the layer's node: the gain
goes into a scale of its own, beside the same values and index, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from hwprune.encoding.values import holds_scales
from hwprune.export.graph import Gain, Graph, attributes, clone, rename, used_tensors


def scalars_behind(graph: Graph, parameters: Collection[str]) -> Graph:
    """Multiply the outputs of layers by a scalar, where they multiply their weight by it.

    Then all layers that share the weight read it itself. A bias is added after the product.

    Args:
        graph: the network.
        parameters: the tensors that are parameters or buffers.
    """
    readers, outputs = graph.readers(), graph.output_names()
    scaled: dict[str, tuple[str, str]] = {}
    for node in graph.nodes:
        found = _scaled_weight(node, graph, parameters)
        if found is None or node.output[0] in outputs:
            continue
        uses = readers[node.output[0]]
        if all(_passes_on(reader, slot, readers, outputs) for reader, slot in uses):
            scaled[node.output[0]] = found
    nodes: list[onnx.NodeProto] = []
    tensors: dict[str, NDArray[Any]] = dict(graph.tensors)
    for node in graph.nodes:
        if node.output and node.output[0] in scaled:
            continue
        if node.op_type == "Transpose" and node.input[0] in scaled:
            weight, scalar = scaled[node.input[0]]
            scaled[node.output[0]] = (node.output[0], scalar)
            nodes.append(rename(node, {node.input[0]: weight}))
            continue
        if len(node.input) < 2 or node.input[1] not in scaled:
            nodes.append(node)
            continue
        weight, scalar = scaled[node.input[1]]
        layer, output = clone(node), node.output[0]
        bias = layer.input[2] if len(layer.input) > 2 else ""
        del layer.input[2:]
        layer.input[1], layer.output[0] = weight, f"{output}//sum"
        product = f"{output}//product" if bias else output
        nodes += [layer, helper.make_node("Mul", [layer.output[0], scalar], [product])]
        if bias and bias in tensors:
            rank = _trailing(node, tensors[weight])
            tensors[f"{bias}//{output}"] = tensors[bias].reshape(-1, *[1] * rank)
            bias = f"{bias}//{output}"
        if bias:
            nodes.append(helper.make_node("Add", [product, bias], [output]))
    return replace(graph, nodes=tuple(nodes), tensors=used_tensors(nodes, outputs, tensors))


def separate_gains(graph: Graph, parameters: Collection[str]) -> Graph:
    """Replace the BN behind every layer that shares its weight by a gain and a bias.

    Only where each of the weight's layers has one, whose scale and shift are parameters of its
    own; else they stay.

    Args:
        graph: the network, other BN folded.
        parameters: the tensors that are parameters or buffers.
    """
    readers, outputs = graph.readers(), graph.output_names()
    gains: dict[int, Gain] = {}
    values: dict[str, NDArray[Any]] = {}
    replaced: dict[int, list[onnx.NodeProto]] = {}
    for weight in [name for name in parameters if name in graph.tensors]:
        uses = readers.get(weight, [])
        chains = [_chain(node, slot, graph.tensors, readers, outputs) for node, slot in uses]
        known = [chain for chain in chains if chain is not None]
        if len(uses) < 2 or len(known) < len(uses):
            continue
        if not all(_own(chain[-1], graph, parameters, readers) for chain in known):
            continue
        for layer, *between, norm in known:
            scalar = _other(between[0], layer.output[0]) if between else ""
            gain, made = _gain(graph, weight, layer, scalar, norm)
            rank = _trailing(layer, graph.tensors[weight])
            values[gain.name] = made[0].reshape(-1, *[1] * rank).astype(np.float32)
            values[gain.bias] = made[1].reshape(-1, *[1] * rank).astype(np.float32)
            gains[id(layer)] = gain
            replaced |= {id(node): [] for node in between}
            product = f"{norm.output[0]}//product"
            replaced[id(norm)] = [
                helper.make_node("Mul", [layer.output[0], gain.name], [product]),
                helper.make_node("Add", [product, gain.bias], [norm.output[0]]),
            ]
    nodes = [made for node in graph.nodes for made in replaced.get(id(node), [node])]
    tensors = used_tensors(nodes, outputs, {**graph.tensors, **values})
    return replace(graph, nodes=tuple(nodes), tensors=tensors, gains=tuple(gains.values()))


def own_scale(scale: NDArray[Any], gain: NDArray[Any]) -> NDArray[Any]:
    """Return the scale that one use of a shared weight stores: the weight's, times its gain.

    Args:
        scale: of the weight, shaped to broadcast over it.
        gain: (channels, 1, ...) of the use.

    Returns:
        float16 where its range holds the products well, else float32; in the shape of ``scale``.
    """
    wide = scale.astype(np.float64) * gain.astype(np.float64).reshape(scale.shape)
    return wide.astype(np.float16 if holds_scales(np.abs(wide[wide != 0])) else np.float32)


def stored_gain(
    own: NDArray[Any], scale: NDArray[Any], gain: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the gain that a stored scale of one use stands for, in the shape of ``gain``."""
    ratio = own.astype(np.float64) / scale.astype(np.float64)
    return ratio.reshape(gain.shape).astype(np.float32)


def undone(
    gain: Gain,
    factor: NDArray[np.float32],
    bias: NDArray[np.float32],
    raw: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[np.float32]]:
    """Return the scale and shift of a BN that make a torch module compute a gain and a bias.

    Args:
        gain: says which BN.
        factor: (channels, ...) the gain that is wanted.
        bias: (channels, ...) the bias that is wanted.
        raw: the network's tensors by name.
    """
    scale, shift, mean, variance = (raw[name].astype(np.float64) for name in gain.norm)
    wanted, scalar = factor.reshape(-1).astype(np.float64), gain.scalar_of(raw)
    if scalar:
        scale = wanted / scalar * np.sqrt(variance + gain.epsilon)
    norm = scale / np.sqrt(variance + gain.epsilon)
    shift = bias.reshape(-1).astype(np.float64) - norm * -mean
    return {gain.norm[0]: scale.astype(np.float32), gain.norm[1]: shift.astype(np.float32)}


def following(
    nodes: Iterable[onnx.NodeProto],
    source: str,
    names: Mapping[str, str],
    prefix: str,
    tensors: Mapping[str, NDArray[Any]],
) -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
    """Return what follows a layer whose values have no scale, as nodes of its own, and its tensors.

    Args:
        nodes: gain, bias and what else follows, in order.
        source: the layer's output, as it is called in the file.
        names: names in the file, also of the last node's output and of tensors that are stored.
        prefix: of the names that are made here.
        tensors: of the network.
    """
    nodes = list(nodes)
    known = {nodes[0].input[0]: source}
    made: list[onnx.NodeProto] = []
    stored: dict[str, NDArray[Any]] = {}
    for place, node in enumerate(nodes):
        for name in node.input:
            if name in tensors and name not in names and name not in known:
                known[name] = f"{prefix}t{len(stored)}"
                stored[known[name]] = tensors[name]
        if place < len(nodes) - 1:
            known[node.output[0]] = f"{prefix}p{place}"
        made.append(rename(node, {**names, **known}))
    return made, stored


# -- pieces ---------------------------------------------------------------------------------------


def _is_layer(node: onnx.NodeProto) -> bool:
    """Return whether a factor on a node's weight is one on its output, before the bias."""
    given = attributes(node)
    if node.op_type == "ConvTranspose":
        return bool(given.get("group", 1) == 1)
    if node.op_type == "Gemm":
        scaled = given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0
        return given.get("transB", 0) == 1 and not given.get("transA", 0) and not scaled
    return node.op_type == "Conv"


def _passes_on(
    node: onnx.NodeProto,
    slot: int,
    readers: Mapping[str, list[tuple[onnx.NodeProto, int]]],
    outputs: set[str],
) -> bool:
    """Return whether a factor on what a node reads there is one on what layers give."""
    if node.op_type == "Transpose":
        turned = readers.get(node.output[0], [])
        return node.output[0] not in outputs and all(
            (reader.op_type, at) == ("MatMul", 1) for reader, at in turned
        )
    return slot == 1 and (node.op_type == "MatMul" or _is_layer(node))


def _trailing(layer: onnx.NodeProto, weight: NDArray[Any]) -> int:
    """Return how many axes follow the channels in a layer's output."""
    return 0 if layer.op_type == "Gemm" else weight.ndim - 2


def _scaled_weight(
    node: onnx.NodeProto, graph: Graph, parameters: Collection[str]
) -> tuple[str, str] | None:
    """Return the weight and the scalar that a node multiplies, None for another node."""
    if node.op_type != "Mul":
        return None
    for weight, scalar in (tuple(node.input), tuple(node.input)[::-1]):
        known = weight in parameters and weight in graph.tensors and scalar in graph.tensors
        if known and graph.tensors[scalar].size == 1 and graph.tensors[weight].ndim > 1:
            return (weight, scalar) if graph.tensors[scalar].ndim <= 1 else None
    return None


def _other(node: onnx.NodeProto, value: str) -> str:
    names: list[str] = list(node.input)
    return names[1] if names[0] == value else names[0]


def _chain(
    layer: onnx.NodeProto,
    slot: int,
    tensors: Mapping[str, NDArray[Any]],
    readers: Mapping[str, list[tuple[onnx.NodeProto, int]]],
    outputs: set[str],
) -> list[onnx.NodeProto] | None:
    """Return a layer, the product with a scalar where there is one, and the BN behind."""
    if slot != 1 or not _is_layer(layer) or (len(layer.input) > 2 and layer.input[2]):
        return None
    chain = [layer]
    while True:
        value = chain[-1].output[0]
        if len(readers.get(value, [])) != 1 or value in outputs:
            return None
        ((node, at),) = readers[value]
        if node.op_type == "BatchNormalization" and at == 0:
            training = attributes(node).get("training_mode", 0)
            return None if training else [*chain, node]
        scalar = _other(node, value) if node.op_type == "Mul" else ""
        if len(chain) > 1 or scalar not in tensors or tensors[scalar].size != 1:
            return None
        chain.append(node)


def _own(
    norm: onnx.NodeProto,
    graph: Graph,
    parameters: Collection[str],
    readers: Mapping[str, list[tuple[onnx.NodeProto, int]]],
) -> bool:
    """Return whether a BN's tensors are known, its scale and shift parameters that it alone reads.

    (What a file's float16 makes of gain and bias is undone in these two for the comparison.)
    """
    if any(name not in graph.tensors for name in norm.input[1:5]):
        return False
    return all(name in parameters and len(readers[name]) == 1 for name in norm.input[1:3])


def _gain(
    graph: Graph, weight: str, layer: onnx.NodeProto, scalar: str, norm: onnx.NodeProto
) -> tuple[Gain, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    epsilon = attributes(norm).get("epsilon", 1e-5)
    name = norm.output[0]
    gain = Gain(weight, f"{name}//gain", f"{name}//bias", tuple(norm.input[1:5]), scalar, epsilon)
    scale, shift, mean, variance = (graph.tensors[n].astype(np.float64) for n in gain.norm)
    factor = scale / np.sqrt(variance + epsilon)
    return gain, (factor * gain.scalar_of(graph.tensors), shift - mean * factor)
