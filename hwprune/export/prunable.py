"""Which parameters may be pruned: decided by what reads them in the exported graph."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hwprune.errors import ExportError
from hwprune.export.graph import Graph, attributes, is_linear, value_in
from hwprune.ir import PrunableTensor, SkippedTensor

# The inputs that are a layer's weights, where these are decoded before it.
_WEIGHT_SLOTS = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "Einsum": range(9),
    "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "Gather": (0,), "GatherND": (0,),
}  # fmt: skip
# What only arranges a tensor's elements anew, as torch's export of LSTM does with its gates.
_ARRANGING = (
    "Concat", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WeightUse:
    """One node that uses a tensor as its weight.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul; of kind ``Weight`` any layer.
        kind: the operator kind of ``operators.py`` (``Linear`` where the weight is transposed
            first, ``Depthwise`` where the groups of a Conv have one input channel each, ``Weight``
            where it is decoded for all that reads it otherwise: one such use, the first).
        channel_axis: the axis of the stored weight that counts output channels.
        transpose: the Transpose between weight and MatMul, where there is one.
        lookups: of kind ``Weight``, where nothing but Gather reads the rows of the tensor as it is,
            all of these.
    """

    node: ir.Node
    kind: str
    channel_axis: int
    transpose: ir.Node | None = None
    lookups: tuple[ir.Node, ...] = ()


def weight_uses(graph: Graph, name: str) -> list[WeightUse] | str:
    """Return the nodes that use a tensor as their weight, or why it must stay dense."""
    value, array = graph.structure.initializers[name], graph.tensors[name]
    if array.ndim < 2:
        return "fewer than two axes (bias, scale or statistic)"
    if array.dtype != np.float32:
        return f"its type is {array.dtype}"
    if value.is_graph_output():
        return "it is an output of the network"
    uses: list[WeightUse] = []
    others: list[ir.Node] = []
    for node, slot in value.uses():
        own = _layers(node, slot, array.shape) if node.graph is graph.structure else []
        uses += own
        found = [] if own else _weight_readers(graph, node, slot)
        if isinstance(found, str):
            return found
        others += found
    if len({use.channel_axis for use in uses}) > 1:
        return "shared by layers that disagree on its output channels"
    if others:
        # A table, and a stack of matrices, has a scale per column: fewer than rows. ONNX's own
        # weights of a recurrent layer are (directions, gates, inputs).
        rows = others[0].op_type in ("LSTM", "GRU", "RNN") or array.ndim == 2
        axis = array.ndim - (2 if rows and "Gather" not in others[0].op_type else 1)
        axis = uses[0].channel_axis if uses else axis
        direct = {node for node, slot in value.uses() if slot == 0}
        by_row = all(
            node.op_type == "Gather" and node in direct and not attributes(node).get("axis", 0)
            for node in others
        )
        lookups = tuple(others) if by_row else ()
        uses.insert(0, WeightUse(others[0], "Weight", axis, lookups=lookups))
    return uses or "nothing reads it"


def _layers(node: ir.Node, slot: int, shape: tuple[int, ...]) -> list[WeightUse]:
    """Return the layers at one use of a tensor; a Transpose stands for its readers."""
    given = attributes(node)
    same = given.get("auto_pad", "NOTSET").startswith("SAME")
    if node.op_type == "Conv" and slot == 1 and not same:
        one_each = given.get("group", 1) > 1 and shape[1] == 1
        return [WeightUse(node, "Depthwise" if one_each else "Conv", 0)]
    if node.op_type == "ConvTranspose" and slot == 1:
        return [WeightUse(node, "ConvTranspose", 1)]
    if node.op_type == "Gemm" and slot == 1 and is_linear({**given, "transB": 1}):
        return [WeightUse(node, "Gemm", 0 if given.get("transB", 0) else 1)]
    if node.op_type == "MatMul" and slot == 1 and len(shape) == 2:
        return [WeightUse(node, "MatMul", 1)]
    if node.op_type == "Transpose" and list(given.get("perm", [1, 0])) == [1, 0]:
        turned = node.outputs[0]
        matrices = all((reader.op_type, at) == ("MatMul", 1) for reader, at in turned.uses())
        if matrices and not turned.is_graph_output():
            return [WeightUse(reader, "Linear", 0, node) for reader, _ in turned.uses()]
    return []


def _weight_readers(graph: Graph, node: ir.Node, slot: int) -> list[ir.Node] | str:
    """Return the layers that read a tensor, arranged anew or as it is; or what reads it else."""
    layer = node.graph is graph.structure and slot in _WEIGHT_SLOTS.get(node.op_type, ())
    # A lookup at fixed places (position biases) is no layer.
    if layer and ("Gather" not in node.op_type or not _is_fixed(graph, value_in(node, 1))):
        return [node]
    if node.graph is not graph.structure or not _is_fixed(graph, node.outputs[0]):
        return f"read by {node.op_type}, not as the weight of a layer"
    readers: list[ir.Node] = []
    for output in node.outputs:
        for reader, at in output.uses():
            found = _weight_readers(graph, reader, at)
            if isinstance(found, str):
                return found
            readers += found
        if output.is_graph_output():
            return "it is an output of the network"
    return readers


def _is_fixed(graph: Graph, value: ir.Value) -> bool:
    """Return whether a value is a tensor of the network, or some of these arranged anew."""
    maker = value.producer()
    if maker is None:
        return value.name in graph.tensors
    given = [entry for entry in maker.inputs if entry is not None]
    return maker.op_type in _ARRANGING and all(_is_fixed(graph, entry) for entry in given)


def find_prunable(
    raw: Mapping[str, NDArray[Any]],
    graph: Graph,
    parameters: Sequence[str],
    fixed: Container[str] = (),
) -> tuple[tuple[PrunableTensor, ...], tuple[SkippedTensor, ...]]:
    """Sort a network's parameters into prunable ones and those that stay dense, with reasons.

    Args:
        raw: what the parameters hold in the network as it was traced.
        graph: the network after the passes: what is missing there was folded.
        parameters: the tensors that are parameters or buffers.
        fixed: those of them that stay as they are: buffers such as filters, and what is frozen.

    Raises:
        ExportError: nothing can be pruned.
    """
    prunable, skipped = [], []
    for key in parameters:
        array = raw[key]
        if key not in graph.tensors:
            skipped.append(SkippedTensor(key, array.shape, 0, "folded into the layer before it"))
            continue
        uses = weight_uses(graph, key)
        if key in fixed and not isinstance(uses, str):
            uses = "not trained: a buffer, or frozen"
        if isinstance(uses, str):
            skipped.append(SkippedTensor(key, array.shape, array.nbytes, uses))
        else:
            operators = tuple(use.node.op_type for use in uses)
            prunable.append(PrunableTensor(key, array.shape, uses[0].channel_axis, operators))
    if not prunable:
        listed = "; ".join(f"{tensor.name}: {tensor.reason}" for tensor in skipped[:5])
        raise ExportError(
            f"no parameter of this network can be pruned ({len(skipped)} stay dense: {listed})",
            hint="a parameter is prunable as the weight of a convolution, product, lookup or "
            "recurrent layer: Conv, ConvTranspose, Gemm, MatMul, Einsum, Gather, LSTM, GRU, RNN",
        )
    return tuple(prunable), tuple(skipped)
