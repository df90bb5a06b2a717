"""What follows a layer that becomes one node with it: a bias, a residual, an activation.

Only what nothing else reads gives way, and a sum only where both addends are known to have the
same shape: broadcasting would be another meaning. The fused node stands where its last part stood,
and whatever it adds was made before that; so there is never a cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from hwprune.export.epilogue import FUSIBLE, Activation
from hwprune.export.graph import Graph, attributes
from hwprune.export.prunable import Readers, WeightUse
from hwprune.export.shapes import Shape, activation_shapes


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What follows a layer and is fused with it.

    Attributes:
        nodes: the nodes that give way, in order; the last one's output is the fused node's.
        bias: the tensor that is added first, one number per channel, empty without (a Linear's, or
            that of a layer with a gain; others of Conv and Gemm are inputs of theirs).
        gain: the tensor that the layer's output is multiplied by before that, empty where its
            weight is its own; see ``gains.py``.
        residual: the activation that is added, empty without.
        activation: what is applied to the sum.
        alpha: the slope of leaky_relu where it is not the default.
    """

    nodes: tuple[onnx.NodeProto, ...] = ()
    bias: str = ""
    gain: str = ""
    residual: str = ""
    activation: Activation = "none"
    alpha: float | None = None


NOTHING = Epilogue()


def find_epilogues(
    graph: Graph, uses: Iterable[WeightUse], *, fuse: bool = True
) -> Mapping[int, Epilogue]:
    """Return what is fused with each layer, by the identity of its node.

    Where both addends of a sum come from layers, the first addend's takes it, as onnxruntime fuses
    the dense network's: so that both round alike.

    Args:
        graph: the network.
        uses: its layers.
        fuse: False for the gains of shared weights alone.
    """
    finder = _Finder(graph, fuse=fuse)
    layers = [(use, *(finder.gain(use) or finder.bias(use))) for use in uses]
    layers.sort(key=lambda layer: finder.place(layer[2]))
    return {
        id(use.node): finder.epilogue(found, value) if fuse and use.kind in FUSIBLE else found
        for use, found, value in layers
    }


class _Finder:
    """The graph with what finding needs, and the sums that are already taken."""

    def __init__(self, graph: Graph, *, fuse: bool) -> None:
        self._graph, self._fuse = graph, fuse
        self._readers: Readers = graph.readers()
        self._outputs = graph.output_names()
        self._shapes: Mapping[str, Shape] = activation_shapes(graph) if fuse else {}
        self._taken: set[int] = set()
        self._gains = {gain.name: gain.bias for gain in graph.gains}

    def gain(self, use: WeightUse) -> tuple[Epilogue, str] | None:
        """Return a layer's gain and bias, where it has them, and the sum's name."""
        value = use.node.output[0]
        mul = self._reader(value) if self._gains else None
        name = "" if mul is None or mul.op_type != "Mul" else _other(mul, value)
        if mul is None or name not in self._gains:
            return None
        add = self._reader(mul.output[0])
        assert add is not None, name  # they were made together
        self._taken |= {id(mul), id(add)}
        return Epilogue((mul, add), bias=self._gains[name], gain=name), add.output[0]

    def bias(self, use: WeightUse) -> tuple[Epilogue, str]:
        """Return a layer's bias, where it is a node of its own, and the sum's name."""
        value = use.node.output[0]
        add = self._reader(value) if self._fuse and use.transpose is not None else None
        if add is None or use.transpose is None or add.op_type != "Add":
            return NOTHING, value
        other = _other(add, value)
        tensor = self._graph.tensors.get(other)
        channels = self._graph.tensors[use.transpose.input[0]].shape[0]
        if tensor is None or tensor.dtype != np.float32 or tensor.shape != (channels,):
            return NOTHING, value
        self._taken.add(id(add))
        return Epilogue((add,), bias=other), add.output[0]

    def place(self, value: str) -> int:
        """Return which input of its first reader a value is."""
        return next((slot for _, slot in self._readers.get(value, [])), 0)

    def epilogue(self, found: Epilogue, value: str) -> Epilogue:
        """Return what follows a value that a layer, with its bias, makes."""
        found, value = self._residual(found, value)
        found = self._activation(found, value)
        self._taken |= {id(node) for node in found.nodes}
        return found

    def _reader(self, value: str) -> onnx.NodeProto | None:
        """Return the only node that reads a value, once, and that no layer has taken yet."""
        readers = self._readers.get(value, [])
        if len(readers) != 1 or value in self._outputs or id(readers[0][0]) in self._taken:
            return None
        return readers[0][0]

    def _residual(self, found: Epilogue, value: str) -> tuple[Epilogue, str]:
        add = self._reader(value)
        if add is None or add.op_type != "Add":
            return found, value
        other = _other(add, value)
        shape = self._shapes.get(value)
        if other in self._graph.tensors or shape is None or shape != self._shapes.get(other):
            return found, value
        return replace(found, nodes=(*found.nodes, add), residual=other), add.output[0]

    def _activation(self, found: Epilogue, value: str) -> Epilogue:
        gated = self._gated(value)
        if gated:
            return replace(found, nodes=(*found.nodes, *gated), activation="silu")
        node = self._reader(value)
        name = None if node is None else self._name(node)
        if node is None or name is None:
            return found
        alpha = attributes(node).get("alpha") if name == "leaky_relu" else None
        return replace(found, nodes=(*found.nodes, node), activation=name, alpha=alpha)

    def _gated(self, value: str) -> tuple[onnx.NodeProto, ...]:
        """Return the Sigmoid and the Mul that read a value, where they are SiLU and all of it."""
        by_type = {node.op_type: node for node, _ in self._readers.get(value, [])}
        if len(self._readers.get(value, [])) != 2 or by_type.keys() != {"Sigmoid", "Mul"}:
            return ()
        sigmoid, mul = by_type["Sigmoid"], by_type["Mul"]
        if value in self._outputs or self._reader(sigmoid.output[0]) is not mul:
            return ()
        return () if id(sigmoid) in self._taken else (sigmoid, mul)

    def _name(self, node: onnx.NodeProto) -> Activation | None:
        plain: dict[str, Activation] = {
            "Relu": "relu", "HardSwish": "hard_swish", "LeakyRelu": "leaky_relu",
        }  # fmt: skip
        if node.op_type == "Clip":
            bounds = [self._graph.tensors.get(name) for name in node.input[1:]]
            known = [float(b.reshape(())) for b in bounds if b is not None and b.size == 1]
            return "relu6" if known == [0.0, 6.0] else None
        return plain.get(node.op_type)


def _other(add: onnx.NodeProto, value: str) -> str:
    names: list[str] = list(add.input)
    return names[1] if names[0] == value else names[0]
