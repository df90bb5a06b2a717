"""Packed layers made dense again, in memory: for layers that are faster so.

What comes out is what the dense network is, with the weights that the file holds: onnxruntime
treats such a layer as any other, in its own layouts and with its own fusions. A layer becomes the
nodes of the function that the file itself carries for it, without those that decode its weight.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.kernels import library
from hwprune.kernels import model_file as onnx_file
from hwprune.kernels.model_file import DOMAIN, Function, ModelFile, Node
from hwprune.kernels.shapes import weight_shape
from hwprune.kernels.wire import Pieces, fields, written, written_number

# The standard operators that a weight can be the second input of.
_LAYERS = ("Conv", "Gemm", "MatMul")
_FLOAT = 1
# onnxruntime takes no larger message.
_MOST_BYTES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class DenseModel:
    """A model with dense layers in place of packed ones.

    Attributes:
        data: serialised.
        weight_bytes: of what these layers read, in fp32.
    """

    data: bytes
    weight_bytes: int


def densify(model: ModelFile, places: Collection[int]) -> DenseModel:
    """Return the model with standard operators for some of its packed nodes.

    Args:
        model: of the file; not changed.
        places: in ``model.nodes``, of nodes of domain ``hwprune``.

    Raises:
        ValueError: the packed arrays of such a node are broken, or the result is too large.
    """
    dense = _Rewriting(model)
    rewritten = {place: dense.layer(model.nodes[place]) for place in places}
    left = [node for place, node in enumerate(model.nodes) if place not in rewritten]
    read = {name for node in left for name in node.inputs} | dense.read
    packed_left = any(node.domain == DOMAIN for node in left)
    pieces: Pieces = []
    for field, value in fields(model.data):
        if field == onnx_file.MODEL_GRAPH and not isinstance(value, int):
            pieces += written(field, *_graph(value, rewritten, read), *dense.tensors)
        elif field != onnx_file.MODEL_FUNCTIONS or packed_left:
            pieces += _again(field, value)
    if sum(len(piece) for piece in pieces) > _MOST_BYTES:
        raise ValueError("more than onnxruntime reads from memory")
    return DenseModel(b"".join(pieces), dense.weight_bytes)


def _graph(
    graph: memoryview, rewritten: dict[int, Pieces], read: set[str]
) -> Iterator[bytes | memoryview]:
    """Yield the fields of a graph with some nodes rewritten, without tensors that nothing reads."""
    place = 0
    for field, value in fields(graph):
        if field == onnx_file.GRAPH_NODE:
            yield from rewritten[place] if place in rewritten else _again(field, value)
            place += 1
        elif field == onnx_file.GRAPH_INITIALIZER and not isinstance(value, int):
            if onnx_file.read_tensor(value)[0] in read:
                yield from _again(field, value)
        else:
            yield from _again(field, value)


def _again(field: int, value: int | memoryview) -> Pieces:
    if isinstance(value, int):
        return [written_number(field, value)]
    return written(field, value)


class _Rewriting:
    """Nodes and tensors that take the place of packed layers."""

    def __init__(self, model: ModelFile) -> None:
        self.tensors: Pieces = []
        self.read: set[str] = set()
        self.weight_bytes = 0
        self._model = model
        self._functions: dict[str, Function | None] = {}
        self._taken = {name for n in model.nodes for name in (n.name, *n.inputs, *n.outputs)}
        self._taken |= model.tensors.keys() | model.inputs.keys()
        self._made: dict[tuple[Any, ...], str] = {}

    def layer(self, node: Node) -> Pieces:
        """Return the fields of a graph that a packed node becomes."""
        if node.operator not in self._functions:
            self._functions[node.operator] = self._model.function(node.operator)
        function = self._functions[node.operator]
        if function is None or len(function.inputs) != len(node.inputs):
            raise ValueError(f"{node.name}: no function that takes its inputs")
        makers = {name: inner for inner in function.nodes for name in inner.outputs}
        layer = next((n for n in function.nodes if n.operator in _LAYERS), None)
        if layer is None or len(layer.inputs) < 2:
            raise ValueError(f"{node.name}: its function is no layer")
        weight = layer.inputs[1]
        if weight in makers and makers[weight].operator == "Transpose":  # of a linear layer
            weight = makers[weight].inputs[0]
        needed, todo = set[str](), [*function.outputs]
        while todo:
            name = todo.pop()
            if name != weight and name in makers and name not in needed:
                needed.add(name)
                todo += makers[name].inputs
        names = dict(zip(function.inputs, node.inputs, strict=True))
        names |= dict(zip(function.outputs, node.outputs, strict=True))
        names[weight] = self._weight(node, function)
        for inner in function.nodes:
            for name in inner.outputs if needed.intersection(inner.outputs) else ():
                names.setdefault(name, self._fresh())
        pieces: Pieces = []
        for inner in function.nodes:
            if needed.intersection(inner.outputs):
                title = node.name if inner is layer else ""
                message = _node(inner, node, names, title)
                pieces += written(onnx_file.GRAPH_NODE, *message)
                self.read.update(names.get(name, "") for name in inner.inputs)
        for role, name in zip(function.inputs, node.inputs, strict=True):
            if role == "b" and name in self._model.tensors and (name,) not in self._made:
                self._made[name,] = name
                self.weight_bytes += 4 * self._model.tensors[name].size
        return pieces

    def _weight(self, node: Node, function: Function) -> str:
        """Return the name of a node's dense weight; what several nodes read is decoded once."""
        stored = [
            name
            for role, name in zip(function.inputs, node.inputs, strict=True)
            if role not in ("x", "b", "r")
        ]
        shape = weight_shape(node, self._model.tensors)
        key = (*stored, shape)
        if key not in self._made:
            if shape is None or not set(stored) <= self._model.tensors.keys():
                raise ValueError(f"{node.name}: its packed arrays are not stored")
            arrays = [self._model.tensors[name].array() for name in stored]
            count = node.number("count", -1)
            dense = library.unpack(node.operator, shape, None if count < 0 else count, arrays)
            if dense is None:
                raise ValueError(f"{node.name}: its packed arrays are malformed")
            self._made[key] = self._fresh()
            self.weight_bytes += dense.nbytes
            tensor = _tensor(self._made[key], dense)
            self.tensors += written(onnx_file.GRAPH_INITIALIZER, *tensor)
        return self._made[key]

    def _fresh(self) -> str:
        name = f"d{len(self._taken)}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _node(inner: Node, outer: Node, names: dict[str, str], title: str) -> Pieces:
    """Return a node of a function's body, with the names and attributes of the graph."""
    pieces: Pieces = []
    for name in inner.inputs:
        pieces += written(onnx_file.NODE_INPUT, names.get(name, "").encode())
    for name in inner.outputs:
        pieces += written(onnx_file.NODE_OUTPUT, names[name].encode())
    if title:
        pieces += written(onnx_file.NODE_NAME, title.encode())
    pieces += written(onnx_file.NODE_OPERATOR, inner.operator.encode())
    for name, attribute in inner.attributes.items():
        given = attribute if not attribute.reference else outer.attributes.get(attribute.reference)
        if given is None:
            continue  # the standard operator's default
        if attribute.reference and attribute.reference != name:
            raise ValueError(f"{inner.operator}: attribute {name} of another name")
        pieces += written(onnx_file.NODE_ATTRIBUTE, given.message)
    return pieces


def _tensor(name: str, array: NDArray[np.float32]) -> Pieces:
    pieces: Pieces = [written_number(onnx_file.TENSOR_DIMS, size) for size in array.shape]
    pieces.append(written_number(onnx_file.TENSOR_TYPE, _FLOAT))
    pieces += written(onnx_file.TENSOR_NAME, name.encode())
    pieces += written(onnx_file.TENSOR_DATA, array.reshape(-1).data.cast("B"))
    return pieces
