"""What follows a layer that becomes one node with it: a bias, a residual, an activation.

Only what nothing else reads gives way, and a sum only where both addends are known to have the
same shape: broadcasting would be another meaning. The fused node stands where its last part stood,
and whatever it adds was made before that; so there is never a cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from hwprune.export.graph import (
    Graph,
    Shape,
    activation_shapes,
    attributes,
    name_of,
    only_reader,
    other_input,
)
from hwprune.export.operators import FUSIBLE, Activation
from hwprune.export.prunable import WeightUse


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What follows a layer and is fused with it.

    Attributes:
        nodes: the nodes that give way, in order; the last one's output is the fused node's.
        bias: the tensor that is added first, one number per channel, empty without (a Linear's, or
            that of a layer with a gain; others of Conv and Gemm are inputs of theirs).
        gain: the tensor that the layer's output is multiplied by before that, empty where its
            weight is its own; see ``per_use_scale.py``.
        residual: the activation that is added, empty without.
        activation: what is applied to the sum.
        alpha: the slope of leaky_relu where it is not the default.
    """

    nodes: tuple[ir.Node, ...] = ()
    bias: str = ""
    gain: str = ""
    residual: str = ""
    activation: Activation = "none"
    alpha: float | None = None


NOTHING = Epilogue()


def find_epilogues(
    graph: Graph, uses: Iterable[WeightUse], *, fuse: bool = True
) -> Mapping[ir.Node, Epilogue]:
    """Return what is fused with each layer, by its node.

    Where both addends of a sum come from layers, the first addend's takes it, as onnxruntime fuses
    the dense network's: so that both round alike.

    Args:
        graph: the network.
        uses: its layers.
        fuse: False for the gains of shared weights alone.
    """
    finder = _Finder(graph, fuse=fuse)
    layers = []
    for use in uses:
        found = finder.gain(use) or finder.bias(use)
        value = (use.node, *found.nodes)[-1].outputs[0]
        slot = next((slot for _, slot in value.uses()), 0)
        layers.append((slot, use, found, value))
    layers.sort(key=lambda layer: layer[0])
    return {
        use.node: finder.epilogue(found, value) if fuse and use.kind in FUSIBLE else found
        for _, use, found, value in layers
    }


class _Finder:
    """The graph with what finding needs, and the nodes that are already taken."""

    def __init__(self, graph: Graph, *, fuse: bool) -> None:
        self._graph, self._fuse = graph, fuse
        self._shapes: Mapping[str, Shape] = activation_shapes(graph) if fuse else {}
        self._taken: set[ir.Node] = set()
        self._gains = {gain.name: gain.bias for gain in graph.gains}

    def gain(self, use: WeightUse) -> Epilogue | None:
        """Return a layer's gain and bias, where it has them."""
        value = use.node.outputs[0]
        mul = self._reader(value) if self._gains else None
        name = "" if mul is None or mul.op_type != "Mul" else name_of(other_input(mul, value))
        if mul is None or name not in self._gains:
            return None
        add = self._reader(mul.outputs[0])
        assert add is not None, name  # they were made together
        self._taken |= {mul, add}
        return Epilogue((mul, add), bias=self._gains[name], gain=name)

    def bias(self, use: WeightUse) -> Epilogue:
        """Return a layer's bias, where it is a node of its own."""
        value = use.node.outputs[0]
        add = self._reader(value) if self._fuse and use.transpose is not None else None
        if add is None or use.transpose is None or add.op_type != "Add":
            return NOTHING
        other = other_input(add, value)
        tensor, weight = self._graph.tensor(other), self._graph.tensor(use.transpose.inputs[0])
        if tensor is None or weight is None or tensor.dtype != np.float32:
            return NOTHING
        if tensor.shape != weight.shape[:1]:
            return NOTHING
        self._taken.add(add)
        return Epilogue((add,), bias=name_of(other))

    def epilogue(self, found: Epilogue, value: ir.Value) -> Epilogue:
        """Return what follows a value that a layer, with its bias, makes."""
        add = self._reader(value)
        other = other_input(add, value) if add is not None and add.op_type == "Add" else None
        if add is not None and other is not None and self._same_shape(value, other):
            found = replace(found, nodes=(*found.nodes, add), residual=name_of(other))
            value = add.outputs[0]
        found = self._activation(found, value)
        self._taken.update(found.nodes)
        return found

    def _reader(self, value: ir.Value) -> ir.Node | None:
        """Return the only node that reads a value, once, and that no layer has taken yet."""
        reader = only_reader(value)
        return None if reader in self._taken else reader

    def _same_shape(self, value: ir.Value, other: ir.Value) -> bool:
        shape = self._shapes.get(name_of(value))
        known = shape is not None and shape == self._shapes.get(name_of(other))
        return known and self._graph.tensor(other) is None

    def _activation(self, found: Epilogue, value: ir.Value) -> Epilogue:
        gated = self._gated(value)
        if gated:
            return replace(found, nodes=(*found.nodes, *gated), activation="silu")
        node = self._reader(value)
        name = None if node is None else self._name(node)
        if node is None or name is None:
            return found
        alpha = attributes(node).get("alpha") if name == "leaky_relu" else None
        return replace(found, nodes=(*found.nodes, node), activation=name, alpha=alpha)

    def _gated(self, value: ir.Value) -> tuple[ir.Node, ...]:
        """Return the Sigmoid and the Mul that read a value, where they are SiLU and all of it."""
        by_type = {node.op_type: node for node, _ in value.uses()}
        if len(value.uses()) != 2 or by_type.keys() != {"Sigmoid", "Mul"}:
            return ()
        sigmoid, mul = by_type["Sigmoid"], by_type["Mul"]
        if value.is_graph_output() or self._reader(sigmoid.outputs[0]) is not mul:
            return ()
        return () if sigmoid in self._taken else (sigmoid, mul)

    def _name(self, node: ir.Node) -> Activation | None:
        plain: dict[str, Activation] = {
            "Relu": "relu", "HardSwish": "hard_swish", "LeakyRelu": "leaky_relu",
        }  # fmt: skip
        if node.op_type == "Clip":
            bounds = [self._graph.tensor(value) for value in node.inputs[1:]]
            known = [float(b.reshape(())) for b in bounds if b is not None and b.size == 1]
            return "relu6" if known == [0.0, 6.0] else None
        return plain.get(node.op_type)
