"""The network that the export passes read and change: ONNX IR nodes over named NumPy tensors.

Nodes and values are onnx_ir's, which know who makes and who reads a value. What the tensors hold
lies beside them, by name, as NumPy views: a graph of 138 million parameters costs no second copy of
them until a pass changes a tensor, and other weights need no other structure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper
from onnx_ir.passes.common import ShapeInferencePass

# Sizes, or names of sizes that are only known to be equal where the names are.
Shape = tuple[int | str, ...]
# Shapes, axes and slices are computed with; weights only have shapes.
_MOST_VALUES = 64


@dataclass(frozen=True, slots=True)
class Fold:
    """A BN that was folded into the layer before it, so that it can be undone for a comparison.

    Attributes:
        weight: the layer's weight.
        bias: the layer's bias in the graph.
        norm: the BN's scale, shift, mean and variance.
        factor: (channels,) what the weight was multiplied by.
        channel_axis: the axis of the weight that ``factor`` lies along.
        shift: (channels,) what the bias is beside the BN's own shift.
        epsilon: what the BN adds to the variance.
    """

    weight: str
    bias: str
    norm: tuple[str, ...]
    factor: NDArray[np.float64]
    channel_axis: int
    shift: NDArray[np.float64]
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class Gain:
    """What one layer does to the channels of a weight that it shares: a factor and a bias each.

    Attributes:
        weight: the shared weight.
        name: the tensor of factors in the graph, (channels, 1, ...).
        bias: the tensor of biases, likewise.
        norm: the BN's scale, shift, mean and variance.
        scalar: the parameter that the layer multiplies the weight by, empty without.
        epsilon: what the BN adds to the variance.
    """

    weight: str
    name: str
    bias: str
    norm: tuple[str, ...]
    scalar: str = ""
    epsilon: float = 1e-5

    def scalar_of(self, tensors: Mapping[str, NDArray[Any]]) -> float:
        """Return what the weight is multiplied by."""
        return float(tensors[self.scalar].reshape(())) if self.scalar else 1.0


@dataclass(slots=True)
class Graph:
    """A network of standard ONNX operators. Passes change it; whoever shares it copies it first.

    Attributes:
        structure: nodes in topological order and the values between them; the tensors are its
            initializers, without numbers.
        tensors: what initializers hold; parameters under their state-dict keys.
        folds: the BNs that were folded.
        gains: the BNs behind layers that share their weights; see ``per_use_scale.py``.
    """

    structure: ir.Graph
    tensors: dict[str, NDArray[Any]]
    folds: tuple[Fold, ...] = ()
    gains: tuple[Gain, ...] = ()

    @classmethod
    def of(
        cls,
        nodes: Iterable[onnx.NodeProto],
        inputs: Iterable[onnx.ValueInfoProto],
        outputs: Iterable[onnx.ValueInfoProto],
        tensors: Mapping[str, NDArray[Any]],
        opset: int,
    ) -> Graph:
        """Return a network that is given as ONNX's own messages."""
        known = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for name, a in tensors.items()
        ]
        made = helper.make_graph(list(nodes), "g", [*inputs, *known], list(outputs))
        structure: ir.Graph = ir.serde.deserialize_graph(made)
        structure.opset_imports[""] = opset
        graph = cls(structure, dict(tensors))
        graph.hold([value for value in structure.inputs if value.name in tensors])
        return graph

    @property
    def nodes(self) -> list[ir.Node]:
        """Return the nodes in topological order."""
        return list(self.structure)

    @property
    def opset(self) -> int:
        """Return the version of the standard operators."""
        return self.structure.opset_imports[""]

    def output_names(self) -> set[str]:
        """Return the names of the graph's outputs."""
        return {name_of(output) for output in self.structure.outputs}

    def fixed_names(self) -> set[str]:
        """Return the names of the graph's inputs and outputs, and of what inner graphs make."""
        inner = [node for node in self.structure.all_nodes() if node.graph is not self.structure]
        values = [value for node in inner for value in (*node.outputs, *_owner(node).inputs)]
        interface = (*self.structure.inputs, *self.structure.outputs)
        return {name_of(value) for value in (*interface, *values)}

    def copy(self) -> Graph:
        """Return a network that may be changed; the tensors' numbers are shared."""
        return Graph(self.structure.clone(), dict(self.tensors), self.folds, self.gains)

    def hold(self, values: Iterable[ir.Value]) -> None:
        """Let inputs of the structure be tensors of the network instead."""
        for value in list(values):
            self.structure.inputs.remove(value)
            self.structure.initializers.add(value)

    def tensor(self, value: ir.Value | None) -> NDArray[Any] | None:
        """Return what a value holds, None where it is no tensor of the network."""
        return None if value is None else self.tensors.get(name_of(value))

    def add_tensor(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Return a tensor's value, made where the network has none of this name."""
        self.tensors[name] = array
        if name not in self.structure.initializers:
            self.structure.initializers.add(ir.Value(name=name))
        return self.structure.initializers[name]

    def drop_unread(self) -> None:
        """Drop the tensors that nothing reads; the others come in the order of their first use."""
        names = [name for node in self.nodes for name in read_names(node)]
        order = dict.fromkeys([*names, *(name_of(output) for output in self.structure.outputs)])
        self.tensors = {name: self.tensors[name] for name in order if name in self.tensors}
        for name in [*self.structure.initializers.keys()]:
            if name not in order:
                del self.structure.initializers[name]


def name_of(value: ir.Value) -> str:
    """Return a value's name; every value of a network has one."""
    assert value.name is not None
    return value.name


def value_in(node: ir.Node, slot: int) -> ir.Value:
    """Return an input that the operator cannot do without."""
    value = node.inputs[slot]
    assert value is not None
    return value


def optional_input(node: ir.Node, slot: int) -> ir.Value | None:
    """Return an input, None where the node is without it."""
    return node.inputs[slot] if len(node.inputs) > slot else None


def input_names(node: ir.Node) -> list[str]:
    """Return the names of a node's inputs, empty for those that it is without."""
    return ["" if value is None else name_of(value) for value in node.inputs]


def read_names(node: ir.Node) -> list[str]:
    """Return the names of a node's inputs, and of all that the graphs inside it read or return."""
    inner = [
        name
        for graph in _graphs_of(node)
        for names in (*map(read_names, graph), [name_of(output) for output in graph.outputs])
        for name in names
    ]
    return input_names(node) + inner


def _owner(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def _graphs_of(node: ir.Node) -> list[ir.Graph]:
    return [
        graph
        for entry in node.attributes.values()
        if entry.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for graph in ([entry.value] if entry.type == ir.AttributeType.GRAPH else entry.value)
    ]


def output_name(node: ir.Node) -> str:
    """Return the name of a node's first output."""
    return name_of(node.outputs[0])


def attributes(node: ir.Node) -> dict[str, Any]:
    """Return a node's attributes as Python values."""
    return {name: entry.value for name, entry in node.attributes.items()}


def is_linear(gemm: Mapping[str, Any]) -> bool:
    """Return whether a Gemm with these attributes is x @ transpose(w) + b."""
    scaled = gemm.get("alpha", 1.0) != 1.0 or gemm.get("beta", 1.0) != 1.0
    return gemm.get("transB", 0) == 1 and not gemm.get("transA", 0) and not scaled


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the node that reads a value, where it is one that does so once and nothing else."""
    readers = [node for node, _ in value.uses()]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def other_input(node: ir.Node, value: ir.Value) -> ir.Value:
    """Return the second operand of a node whose first, or second, is ``value``."""
    return value_in(node, 1 if node.inputs[0] is value else 0)


def message_of(node: ir.Node, names: Mapping[str, str] | None = None) -> onnx.NodeProto:
    """Return a node as it is written: without a name, inputs and outputs under other names."""
    made: onnx.NodeProto = ir.to_proto(node)
    for field_name in ("name", "doc_string", "metadata_props"):
        made.ClearField(field_name)
    _rename(made, names or {})
    return made


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    for slots in (node.input, node.output):
        for slot, name in enumerate(slots):
            slots[slot] = names.get(name, name)
    for entry in node.attribute:
        for graph in (entry.g, *entry.graphs):
            for inner in graph.node:
                _rename(inner, names)
            for output in graph.output:  # one of the network's own
                output.name = names.get(output.name, output.name)


def activation_shapes(graph: Graph) -> Mapping[str, Shape]:
    """Return the shape of every activation whose every size is known or has a name.

    Two sizes of one name are equal in every run: the batch, or what inference derived from it.
    """
    structure = graph.structure.clone()
    outer, inner = {*structure.inputs, *structure.outputs}, structure.all_nodes()
    made = [value for node in inner for value in node.outputs if value not in outer]
    for value in made:
        value.shape = value.type = None
    for name, value in [*structure.initializers.items()]:
        array = graph.tensors[name]
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        if array.size <= _MOST_VALUES and array.dtype.kind == "i":
            value.const_value = ir.tensor(array)
        else:
            del structure.initializers[name]
            structure.inputs.append(value)
    for domain in {node.domain for node in structure.all_nodes()} - {""}:
        structure.opset_imports.setdefault(domain, 1)
    ShapeInferencePass(check_type=False, strict_mode=False)(ir.Model(structure, ir_version=8))
    shapes: dict[str, Shape] = {}
    for value in (*outer, *made):
        sizes = [size if isinstance(size, int) else size.value for size in value.shape or ()]
        known = [size for size in sizes if size is not None]
        if value.shape is not None and len(known) == len(sizes):
            shapes[name_of(value)] = tuple(known)
    return shapes
