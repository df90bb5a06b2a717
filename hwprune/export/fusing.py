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
        bias: the one-dimensional tensor that is added first, empty without (a Linear's; those of
            Conv and Gemm are inputs of theirs).
        residual: the activation that is added, empty without.
        activation: what is applied to the sum.
        alpha: the slope of leaky_relu where it is not the default.
    """

    nodes: tuple[onnx.NodeProto, ...] = ()
    bias: str = ""
    residual: str = ""
    activation: Activation = "none"
    alpha: float | None = None


NOTHING = Epilogue()


def find_epilogues(graph: Graph, uses: Iterable[WeightUse]) -> Mapping[int, Epilogue]:
    """Return what is fused with each layer, by the identity of its node.

    Where both addends of a sum come from layers, the later layer takes it: the other one's output
    is there by then.
    """
    finder = _Finder(graph)
    order = {id(node): number for number, node in enumerate(graph.nodes)}
    layers = [use for use in uses if use.kind in FUSIBLE]
    layers.sort(key=lambda use: -order[id(use.node)])
    return {id(use.node): finder.epilogue(use) for use in layers}


class _Finder:
    """The graph with what finding needs, and the sums that are already taken."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._readers: Readers = graph.readers()
        self._outputs = graph.output_names()
        self._shapes: Mapping[str, Shape] = activation_shapes(graph)
        self._taken: set[int] = set()

    def epilogue(self, use: WeightUse) -> Epilogue:
        found, value = NOTHING, use.node.output[0]
        if use.kind == "Linear":
            found, value = self._bias(found, value, use)
        found, value = self._residual(found, value)
        found, _ = self._activation(found, value)
        self._taken |= {id(node) for node in found.nodes}
        return found

    def _reader(self, value: str) -> onnx.NodeProto | None:
        """Return the only node that reads a value, once, and that no layer has taken yet."""
        readers = self._readers.get(value, [])
        if len(readers) != 1 or value in self._outputs or id(readers[0][0]) in self._taken:
            return None
        return readers[0][0]

    def _bias(self, found: Epilogue, value: str, use: WeightUse) -> tuple[Epilogue, str]:
        add = self._reader(value)
        if add is None or add.op_type != "Add":
            return found, value
        other = _other(add, value)
        tensor = self._graph.tensors.get(other)
        assert use.transpose is not None
        channels = self._graph.tensors[use.transpose.input[0]].shape[0]
        if tensor is None or tensor.dtype != np.float32 or tensor.shape != (channels,):
            return found, value
        return replace(found, nodes=(*found.nodes, add), bias=other), add.output[0]

    def _residual(self, found: Epilogue, value: str) -> tuple[Epilogue, str]:
        add = self._reader(value)
        if add is None or add.op_type != "Add":
            return found, value
        other = _other(add, value)
        shape = self._shapes.get(value)
        if other in self._graph.tensors or shape is None or shape != self._shapes.get(other):
            return found, value
        return replace(found, nodes=(*found.nodes, add), residual=other), add.output[0]

    def _activation(self, found: Epilogue, value: str) -> tuple[Epilogue, str]:
        readers = self._readers.get(value, [])
        if [node.op_type for node, _ in readers] in (["Sigmoid", "Mul"], ["Mul", "Sigmoid"]):
            sigmoid, mul = sorted((node for node, _ in readers), key=lambda n: n.op_type == "Mul")
            gate = self._reader(sigmoid.output[0])
            taken = {id(sigmoid), id(mul)} & self._taken
            if gate is mul and value not in self._outputs and not taken:
                nodes = (*found.nodes, sigmoid, mul)
                return replace(found, nodes=nodes, activation="silu"), mul.output[0]
            return found, value
        node = self._reader(value)
        name = None if node is None else self._name(node)
        if node is None or name is None:
            return found, value
        alpha = attributes(node).get("alpha") if name == "leaky_relu" else None
        fused = replace(found, nodes=(*found.nodes, node), activation=name, alpha=alpha)
        return fused, node.output[0]

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
