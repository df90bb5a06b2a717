"""An ONNX file as far as a session has to know it: without onnx, and without copying weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.kernels.wire import Value, fields, numbers

DOMAIN = "hwprune"
# Field numbers of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
MODEL_GRAPH, MODEL_FUNCTIONS = 7, 25
GRAPH_NODE, GRAPH_INITIALIZER, _GRAPH_INPUT = 1, 5, 11
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OPERATOR, NODE_ATTRIBUTE, NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_INTS, _ATTRIBUTE_REFERENCE = 1, 3, 8, 21
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_DATA = 1, 2, 8, 9
_FUNCTION_NAME, _FUNCTION_INPUT, _FUNCTION_OUTPUT, _FUNCTION_NODE, _FUNCTION_DOMAIN = 1, 4, 5, 7, 10
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE, _SHAPE_DIM, _DIM_VALUE = 1, 2, 1, 2, 1, 1
# onnx.TensorProto.DataType, of what packed layers and shapes are stored as.
_DTYPES = {1: "f4", 2: "u1", 3: "i1", 4: "u2", 6: "i4", 7: "i8", 10: "f2"}


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of a node.

    Attributes:
        message: all of it, as the file has it.
        ints: its whole numbers, one or many.
        reference: the parameter of the function around it that it takes its value from, or empty.
    """

    message: memoryview
    ints: tuple[int, ...]
    reference: str


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a graph or of a function."""

    name: str
    domain: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]

    def ints(self, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return an attribute's whole numbers; the default where the node does not have it."""
        found = self.attributes.get(name)
        return default if found is None else found.ints

    def number(self, name: str, default: int) -> int:
        """Return an attribute that is one whole number."""
        return next(iter(self.ints(name)), default)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A stored tensor. ``data`` is None where it is not stored as plain bytes."""

    dims: tuple[int, ...]
    element: int
    data: memoryview | None

    @property
    def size(self) -> int:
        """Return how many elements it has."""
        return math.prod(self.dims)

    def array(self) -> NDArray[Any]:
        """Return its elements, in the file's own memory.

        Raises:
            ValueError: they are not stored as bytes, of another type, or not as many.
        """
        if self.data is None or self.element not in _DTYPES:
            raise ValueError("a tensor that is not stored as plain bytes")
        return np.frombuffer(self.data, f"<{_DTYPES[self.element]}").reshape(self.dims)


@dataclass(frozen=True, slots=True)
class Function:
    """What an operator of a file stands for."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a file holds.

    Attributes:
        data: of the whole file.
        nodes: of its graph, in order.
        tensors: its initializers.
        inputs: the shapes of its inputs; None for an axis without a fixed size.
    """

    data: memoryview
    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    inputs: Mapping[str, tuple[int | None, ...]]

    def function(self, operator: str) -> Function | None:
        """Return what an operator of domain ``hwprune`` stands for.

        Raises:
            ValueError: the file is damaged.
        """
        for field, message in _messages(self.data):
            if field != MODEL_FUNCTIONS:
                continue
            texts = _texts(message, _FUNCTION_NAME, _FUNCTION_DOMAIN)
            if texts[_FUNCTION_NAME] == [operator] and texts[_FUNCTION_DOMAIN] == [DOMAIN]:
                ends = _texts(message, _FUNCTION_INPUT, _FUNCTION_OUTPUT)
                return Function(
                    tuple(ends[_FUNCTION_INPUT]),
                    tuple(ends[_FUNCTION_OUTPUT]),
                    tuple(_node(part) for f, part in _messages(message) if f == _FUNCTION_NODE),
                )
        return None


def read_model(data: bytes | mmap) -> ModelFile:
    """Read a file's graph.

    Raises:
        ValueError: it is damaged, or no ONNX model.
    """
    view = memoryview(data)
    nodes, tensors, inputs = [], dict[str, Tensor](), {}
    for field, message in _messages(view):
        if field != MODEL_GRAPH:
            continue
        for part, inner in _messages(message):
            if part == GRAPH_NODE:
                nodes.append(_node(inner))
            elif part == GRAPH_INITIALIZER:
                name, tensor = read_tensor(inner)
                tensors[name] = tensor
            elif part == _GRAPH_INPUT:
                name, shape = _input(inner)
                inputs[name] = shape
    given = {name: shape for name, shape in inputs.items() if name not in tensors}
    return ModelFile(view, tuple(nodes), tensors, given)


def stored_values(node: Node, tensors: Mapping[str, Tensor]) -> int:
    """Return how many weights a packed node stores; where two share a byte, it says so itself."""
    values = tensors.get(node.inputs[1])
    return node.number("count", 0 if values is None else values.size)


def _messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    for field, value in fields(data):
        if not isinstance(value, int):
            yield field, value


def _text(value: Value) -> str:
    if isinstance(value, int):
        raise ValueError("a number in place of a text")
    return str(value, "utf-8")  # UnicodeDecodeError is a ValueError


def _texts(message: memoryview, *wanted: int) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {field: [] for field in wanted}
    for field, value in _messages(message):
        if field in found:
            found[field].append(_text(value))
    return found


def _node(message: memoryview) -> Node:
    texts = {NODE_NAME: "", NODE_OPERATOR: "", NODE_DOMAIN: ""}
    ends: dict[int, list[str]] = {NODE_INPUT: [], NODE_OUTPUT: []}
    attributes = {}
    for field, value in _messages(message):
        if field in ends:
            ends[field].append(_text(value))
        elif field in texts:
            texts[field] = _text(value)
        elif field == NODE_ATTRIBUTE:
            name, attribute = _attribute(value)
            attributes[name] = attribute
    name, operator, domain = texts.values()
    return Node(
        name, domain, operator, tuple(ends[NODE_INPUT]), tuple(ends[NODE_OUTPUT]), attributes
    )


def _attribute(message: memoryview) -> tuple[str, Attribute]:
    name, reference, ints = "", "", list[int]()
    for field, value in fields(message):
        if field == _ATTRIBUTE_NAME:
            name = _text(value)
        elif field == _ATTRIBUTE_REFERENCE:
            reference = _text(value)
        elif field in (_ATTRIBUTE_INT, _ATTRIBUTE_INTS):
            ints += numbers(value)
    return name, Attribute(message, tuple(ints), reference)


def read_tensor(message: memoryview) -> tuple[str, Tensor]:
    """Return a stored tensor and its name.

    Raises:
        ValueError: it is damaged.
    """
    name, dims, element, data = "", list[int](), 0, None
    for field, value in fields(message):
        if field == TENSOR_DIMS:
            dims += numbers(value)
        elif field == TENSOR_TYPE:
            element = numbers(value)[0]
        elif field == TENSOR_NAME:
            name = _text(value)
        elif field == TENSOR_DATA and not isinstance(value, int):
            data = value
    if data is None and 0 in dims:
        data = memoryview(b"")
    return name, Tensor(tuple(dims), element, data)


def _input(message: memoryview) -> tuple[str, tuple[int | None, ...]]:
    name, shape = "", list[int | None]()
    for field, value in fields(message):
        if field == _VALUE_NAME:
            name = _text(value)
        elif field == _VALUE_TYPE and not isinstance(value, int):
            dims = [
                dim
                for kind, tensor in _messages(value)
                if kind == _TYPE_TENSOR
                for part, inner in _messages(tensor)
                if part == _TENSOR_SHAPE
                for place, dim in _messages(inner)
                if place == _SHAPE_DIM
            ]
            for dim in dims:
                sizes = [numbers(size)[0] for part, size in fields(dim) if part == _DIM_VALUE]
                shape.append(sizes[0] if sizes else None)
    return name, tuple(shape)
