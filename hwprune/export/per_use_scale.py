"""A weight that several layers share: what each of them does to its channels, kept apart from it.

BN folds into the weight before it, but a shared weight belongs to no single BN. So each layer that
uses it keeps a *gain*: its BN's factor, times the scalar that the layer multiplies the weight by,
one number per output channel; and a bias. In the graph these are a Mul and an Add behind the layer.
Where stored values have a scale per channel (int8, int4) they vanish in the layer's node: the gain
goes into a scale of its own, beside the same values and index, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from hwprune.encoding.values import holds_scales
from hwprune.export.graph import (
    Gain,
    Graph,
    attributes,
    input_names,
    is_linear,
    message_of,
    name_of,
    only_reader,
    optional_input,
    other_input,
    output_name,
    value_in,
)
from hwprune.ir import along_axis


def scalars_behind(graph: Graph, parameters: Collection[str]) -> None:
    """Multiply the outputs of layers by a scalar, where they multiply their weight by it.

    Then all layers that share the weight read it itself. A bias is added after the product.

    Args:
        graph: the network.
        parameters: the tensors that are parameters or buffers.
    """
    for product in graph.nodes:
        found = _scaled_weight(product, graph, parameters)
        scaled = product.outputs[0]
        if found is None or scaled.is_graph_output():
            continue
        if not all(_passes_on(reader, slot) for reader, slot in scaled.uses()):
            continue
        weight, scalar = found
        readers = [reader for reader, _ in scaled.uses()]
        turned = [reader for reader in readers if reader.op_type == "Transpose"]
        readers += [reader for node in turned for reader, _ in node.outputs[0].uses()]
        scaled.replace_all_uses_with(weight)
        graph.structure.remove(product, safe=True)
        for layer in graph.nodes:
            if layer in readers and layer not in turned:
                _multiply_behind(graph, layer, scalar)


def _multiply_behind(graph: Graph, layer: ir.Node, scalar: ir.Value) -> None:
    """Multiply a layer's sum by a scalar before its bias is added."""
    output, bias = layer.outputs[0], optional_input(layer, 2)
    name = name_of(output)
    layer.resize_inputs(2)
    output.name = f"{name}//sum"
    nodes = [ir.node("Mul", [output, scalar])]
    if bias is not None:
        nodes[0].outputs[0].name = f"{name}//product"
        array = graph.tensor(bias)
        if array is not None:
            shaped = _behind_channels(layer, graph, array)
            bias = graph.add_tensor(f"{name_of(bias)}//{name}", shaped)
        nodes.append(ir.node("Add", [nodes[0].outputs[0], bias]))
    _insert_behind(graph, output, nodes, name)


def _insert_behind(graph: Graph, value: ir.Value, nodes: list[ir.Node], name: str) -> None:
    """Let what reads a value read the last of the nodes that read it now, under this name."""
    maker, last = value.producer(), nodes[-1].outputs[0]
    assert maker is not None
    for reader, slot in value.uses():
        if reader not in nodes:
            reader.replace_input_with(slot, last)
    for place, entry in enumerate(graph.structure.outputs):
        if entry is value:
            graph.structure.outputs[place] = last
    last.name, last.type, last.shape = name, value.type, value.shape
    graph.structure.insert_after(maker, nodes)


def separate_gains(graph: Graph, parameters: Collection[str]) -> None:
    """Replace the BN behind every layer that shares its weight by a gain and a bias.

    Only where each of the weight's layers has one, whose scale and shift are parameters of its
    own; else they stay.

    Args:
        graph: the network, other BN folded.
        parameters: the tensors that are parameters or buffers.
    """
    for weight in [name for name in parameters if name in graph.tensors]:
        uses = graph.structure.initializers[weight].uses()
        chains = [_chain(node, slot, graph) for node, slot in uses]
        known = [chain for chain in chains if chain is not None]
        if len(uses) < 2 or len(known) < len(uses):
            continue
        if all(_has_own_parameters(chain[-1], graph, parameters) for chain in known):
            for layer, *between, norm in known:
                scalar = other_input(between[0], layer.outputs[0]) if between else None
                _replace_norm(graph, weight, layer, scalar, norm)
                if between:
                    graph.structure.remove(between, safe=True)


def _replace_norm(
    graph: Graph, weight: str, layer: ir.Node, scalar: ir.Value | None, norm: ir.Node
) -> None:
    name, epsilon = output_name(norm), attributes(norm).get("epsilon", 1e-5)
    gain = Gain(
        weight, f"{name}//gain", f"{name}//bias", tuple(input_names(norm)[1:5]),
        "" if scalar is None else name_of(scalar), epsilon,
    )  # fmt: skip
    scale, shift, mean, variance = (graph.tensors[n].astype(np.float64) for n in gain.norm)
    factor = scale / np.sqrt(variance + epsilon)
    made = {gain.name: factor * gain.scalar_of(graph.tensors), gain.bias: shift - mean * factor}
    values = [
        graph.add_tensor(key, _behind_channels(layer, graph, array.astype(np.float32)))
        for key, array in made.items()
    ]
    mul = ir.node("Mul", [layer.outputs[0], values[0]])
    mul.outputs[0].name = f"{name}//product"
    add = ir.node("Add", [mul.outputs[0], values[1]])
    ir.convenience.replace_nodes_and_values(
        graph.structure, norm, [norm], [mul, add], [norm.outputs[0]], [add.outputs[0]]
    )
    graph.gains += (gain,)


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


def norm_for(
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


def nodes_behind(
    nodes: tuple[ir.Node, ...],
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
    known = {input_names(nodes[0])[0]: source}
    made: list[onnx.NodeProto] = []
    stored: dict[str, NDArray[Any]] = {}
    for place, node in enumerate(nodes):
        for name in input_names(node):
            if name in tensors and name not in names and name not in known:
                known[name] = f"{prefix}t{len(stored)}"
                stored[known[name]] = tensors[name]
        if place < len(nodes) - 1:
            known[output_name(node)] = f"{prefix}p{place}"
        made.append(message_of(node, {**names, **known}))
    return made, stored


# -- pieces ---------------------------------------------------------------------------------------


def _is_layer(node: ir.Node) -> bool:
    """Return whether a factor on a node's weight is one on its output, before the bias."""
    given = attributes(node)
    if node.op_type == "ConvTranspose":
        return bool(given.get("group", 1) == 1)
    return is_linear(given) if node.op_type == "Gemm" else node.op_type == "Conv"


def _passes_on(node: ir.Node, slot: int) -> bool:
    """Return whether a factor on what a node reads there is one on what layers give."""
    if node.op_type == "Transpose":
        turned = node.outputs[0]
        return not turned.is_graph_output() and all(
            (reader.op_type, at) == ("MatMul", 1) for reader, at in turned.uses()
        )
    return slot == 1 and (node.op_type == "MatMul" or _is_layer(node))


def _behind_channels(layer: ir.Node, graph: Graph, numbers: NDArray[Any]) -> NDArray[Any]:
    """Return one number per output channel, shaped to broadcast over what a layer gives."""
    weight = graph.tensor(value_in(layer, 1))
    trailing = 0 if layer.op_type == "Gemm" or weight is None else weight.ndim - 2
    return along_axis(numbers.reshape(-1), 0, 1 + trailing)


def _scaled_weight(
    node: ir.Node, graph: Graph, parameters: Collection[str]
) -> tuple[ir.Value, ir.Value] | None:
    """Return the weight and the scalar that a node multiplies, None for another node."""
    if node.op_type != "Mul":
        return None
    for slot in (0, 1):
        weight, scalar = value_in(node, slot), value_in(node, 1 - slot)
        matrix, number = graph.tensor(weight), graph.tensor(scalar)
        if weight.name not in parameters or matrix is None or number is None:
            continue
        if number.size == 1 and matrix.ndim > 1:
            return (weight, scalar) if number.ndim <= 1 else None
    return None


def _chain(layer: ir.Node, slot: int, graph: Graph) -> list[ir.Node] | None:
    """Return a layer, the product with a scalar where there is one, and the BN behind."""
    if slot != 1 or not _is_layer(layer) or optional_input(layer, 2) is not None:
        return None
    chain = [layer]
    while True:
        value = chain[-1].outputs[0]
        node = only_reader(value)
        if node is None:
            return None
        if node.op_type == "BatchNormalization" and node.inputs[0] is value:
            training = attributes(node).get("training_mode", 0)
            return None if training else [*chain, node]
        scalar = graph.tensor(other_input(node, value)) if node.op_type == "Mul" else None
        if len(chain) > 1 or scalar is None or scalar.size != 1:
            return None
        chain.append(node)


def _has_own_parameters(norm: ir.Node, graph: Graph, parameters: Collection[str]) -> bool:
    """Return whether a BN's tensors are known, its scale and shift parameters that it alone reads.

    (What a file's float16 makes of gain and bias is undone in these two for the comparison.)
    """
    if any(graph.tensor(value) is None for value in norm.inputs[1:5]):
        return False
    return all(
        value is not None and value.name in parameters and len(value.uses()) == 1
        for value in norm.inputs[1:3]
    )
