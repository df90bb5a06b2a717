"""What slims a network: fold BN, drop what does nothing, strip defaults, shorten names.

Each pass is one function that changes the graph it is given and keeps the function that the graph
computes. ``slim`` is their sequence.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection

import numpy as np
import onnx
import onnx_ir as ir

from hwprune.export.graph import (
    Fold,
    Graph,
    attributes,
    input_names,
    is_linear,
    name_of,
    only_reader,
    optional_input,
    value_in,
)
from hwprune.export.operators import ATTRIBUTE_DEFAULTS, LISTS
from hwprune.export.per_use_scale import scalars_behind, separate_gains
from hwprune.ir import along_axis

_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0}


def slim(graph: Graph, parameters: Collection[str]) -> None:
    """Run every pass that does not depend on the target, in order."""
    drop_no_ops(graph)
    scalars_behind(graph, parameters)
    fold_batchnorm(graph)
    separate_gains(graph, parameters)
    strip_defaults(graph)
    share_constants(graph, parameters)
    graph.drop_unread()


def drop_no_ops(graph: Graph) -> None:
    """Remove Identity and inference-time Dropout."""
    for node in graph.nodes:
        if node.op_type in ("Identity", "Dropout") and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(value_in(node, 0))
            graph.structure.remove(node, safe=True)


def fold_batchnorm(graph: Graph) -> None:
    """Fold BatchNormalization into the convolution or linear layer before it.

    Requires that the layer's output goes to the BN alone and that its weight and bias are read by
    it alone; a BN that fails this (a pre-activation network) stays. For shared weights see
    ``per_use_scale.py``.
    """
    for norm in graph.nodes:
        layer = _folds_into(norm, graph)
        if layer is None:
            continue
        weight_name, *biases = input_names(layer)[1:]
        names = tuple(input_names(norm)[1:5])
        gamma, beta, mean, variance = (graph.tensors[name].astype(np.float64) for name in names)
        epsilon = attributes(norm).get("epsilon", 1e-5)
        factor, axis = gamma / np.sqrt(variance + epsilon), _CHANNEL_AXIS[layer.op_type]
        weight = graph.tensors[weight_name]
        bias = graph.tensors[biases[0]].astype(np.float64) if biases else 0.0
        shift = (bias - mean) * factor
        bias_name = biases[0] if biases else f"{weight_name}//bias"
        folded = (weight * along_axis(factor, axis, weight.ndim)).astype(np.float32)
        graph.add_tensor(weight_name, folded)
        value = graph.add_tensor(bias_name, (shift + beta).astype(np.float32))
        layer.resize_inputs(3)
        layer.replace_input_with(2, value)
        ir.convenience.replace_nodes_and_values(
            graph.structure, norm, [norm], [], [norm.outputs[0]], [layer.outputs[0]]
        )
        graph.folds += (Fold(weight_name, bias_name, names, factor, axis, shift, epsilon),)


def _folds_into(norm: ir.Node, graph: Graph) -> ir.Node | None:
    """Return the layer that a BN may be folded into."""
    if norm.op_type != "BatchNormalization" or attributes(norm).get("training_mode", 0):
        return None
    value = value_in(norm, 0)
    layer = value.producer()
    if layer is None or layer.op_type not in _CHANNEL_AXIS or only_reader(value) is not norm:
        return None
    given = attributes(layer)
    if layer.op_type == "Gemm" and not is_linear(given):
        return None
    if layer.op_type == "ConvTranspose" and given.get("group", 1) != 1:
        return None
    own = layer.inputs[1:]
    known = all(graph.tensor(value) is not None for value in (*own, *norm.inputs[1:]))
    alone = known and all(value is not None and len(value.uses()) == 1 for value in own)
    return layer if alone else None


def strip_defaults(graph: Graph) -> None:
    """Remove attributes that say what the operator's schema says, and outputs nobody reads."""
    for node in graph.nodes:
        if node.op_type == "BatchNormalization" and not attributes(node).get("training_mode", 0):
            node.resize_outputs(1)
        for entry in [*node.attributes.values()]:
            if _is_default(node, entry, graph):
                del node.attributes[entry.name]


_CONVOLUTIONS = ("Conv", "ConvTranspose")


def _is_default(node: ir.Node, entry: ir.Attr, graph: Graph) -> bool:
    if node.op_type in _CONVOLUTIONS and entry.name == "kernel_shape":
        return graph.tensor(optional_input(node, 1)) is not None
    if node.op_type in (*_CONVOLUTIONS, "MaxPool", "AveragePool") and entry.name in LISTS:
        return all(size == ATTRIBUTE_DEFAULTS[entry.name] for size in entry.as_ints())
    if node.op_type == "BatchNormalization" and entry.name in ("momentum", "training_mode"):
        return not attributes(node).get("training_mode", 0)
    schema = onnx.defs.get_schema(node.op_type, graph.opset, node.domain)
    known = schema.attributes.get(entry.name)
    if known is None or not known.default_value.name:
        return False
    return bool(ir.serde.deserialize_attribute(known.default_value).value == entry.value)


def share_constants(graph: Graph, parameters: Collection[str]) -> None:
    """Store equal small constants once.

    Parameters are left alone: whether two of them are equal changes as they are trained and pruned
    (two layers without a nonzero are), and the file's structure must not.
    """
    first: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
    own = {*parameters, *(fold.bias for fold in graph.folds)}
    values = graph.structure.initializers
    for name, array in graph.tensors.items():
        # Passes put "//" into the name of what they make of parameters.
        if array.nbytes <= 1024 and name not in own and "//" not in name and name in values:
            kept = first.setdefault((array.dtype.str, array.shape, array.tobytes()), values[name])
            if kept is not values[name] and not values[name].is_graph_output():
                values[name].replace_all_uses_with(kept)


_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def base36(number: int) -> str:
    """Return a non-negative number in base 36: the shortest names."""
    digits = ""
    while number or not digits:
        number, rest = divmod(number, 36)
        digits = _DIGITS[rest] + digits
    return digits


def short_names(
    nodes: Collection[ir.Node], tensors: Collection[str], fixed: Collection[str]
) -> dict[str, str]:
    """Return short names for every inner value: activations ``_0``, tensors ``C0``.

    The names in ``fixed`` (inputs and outputs) stay as they are, and nothing else is called like
    them. The capital keeps tensors apart from packed arrays, which open with a number in base 36.
    """
    taken = {*fixed, ""}
    made = dict.fromkeys(name_of(value) for node in nodes for value in node.outputs)
    names: dict[str, str] = {}
    for prefix, old in (("C", tensors), ("_", made)):
        numbered = (f"{prefix}{base36(count)}" for count in itertools.count())
        unused = (name for name in numbered if name not in taken)
        names |= {name: next(unused) for name in old if name not in taken and name not in names}
    return names
