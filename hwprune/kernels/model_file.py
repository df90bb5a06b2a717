"""An ONNX file by its bytes: its nodes and tensors, and the file with packed layers made dense.

A session on a board has onnxruntime and NumPy. Importing onnx there would take more time and memory
than loading most networks, so protocol buffers (https://protobuf.dev/programming-guides/encoding/)
are read here, as far as ONNX needs them, and weights are not copied.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from mmap import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.kernels import library

DOMAIN = "hwprune"
# Field numbers of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODES, _GRAPH_TENSORS = 1, 5
_NODE_INPUTS, _NODE_OUTPUTS, _NODE_NAME, _NODE_OPERATOR = 1, 2, 3, 4
_NODE_ATTRIBUTES, _NODE_DOMAIN = 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_INTS = 1, 3, 8
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_DATA = 1, 2, 8, 9
_FUNCTION_NAME, _FUNCTION_INPUTS, _FUNCTION_OUTPUTS = 1, 4, 5
_FUNCTION_NODES, _FUNCTION_DOMAIN = 7, 10
# onnx.TensorProto.DataType, of what packed layers are stored as.
_FLOAT = 1
_DTYPES = {_FLOAT: "<f4", 2: "<u1", 3: "<i1", 4: "<u2", 10: "<f2"}
# The standard operators that a weight can be the second input of.
_LAYERS = ("Conv", "Gemm", "MatMul")
# onnxruntime takes no larger message.
_MOST_BYTES = 2**31 - 1

# Consecutive parts of a message, to be joined once: weights are large.
Pieces = list[bytes | memoryview]
# What a field is: a number, or bytes that are a text, another message or packed numbers.
Value = int | memoryview | bytes | Pieces
# The values of each field, in their order.
Message = defaultdict[int, list[Value]]


def parse(value: Value) -> Message:
    """Return the fields of a message; numbers of four and eight bytes as their bytes.

    Raises:
        ValueError: this is no message.
    """
    message: Message = defaultdict(list)
    data = _bytes(value)
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            number, at = _varint(data, at)
            message[tag >> 3].append(number)
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind}")
        size = 8 if kind == 1 else 4
        if kind == 2:
            size, at = _varint(data, at)
        if at + size > end:
            raise ValueError("a field ends behind its message")
        message[tag >> 3].append(data[at : at + size])
        at += size
    return message


def written(message: Mapping[int, Sequence[Value]]) -> Pieces:
    """Return a message, field after field."""
    pieces: Pieces = []
    for field, values in message.items():
        for value in values:
            if isinstance(value, int):
                pieces.append(_number(field << 3) + _number(value))
                continue
            parts = value if isinstance(value, list) else [value]
            pieces += (_number(field << 3 | 2) + _number(sum(map(len, parts))), *parts)
    return pieces


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70 and at < len(data):
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a number does not end")


def _number(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)


def _numbers(values: Iterable[Value]) -> tuple[int, ...]:
    """Return a repeated field's numbers, signed, which may be packed."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
            continue
        at, packed = 0, _bytes(value)
        while at < len(packed):
            number, at = _varint(packed, at)
            found.append(number)
    return tuple(n - (1 << 64) if n >> 63 else n for n in found)


def _texts(values: Iterable[Value]) -> list[str]:
    return [str(_bytes(value), "utf-8") for value in values]  # UnicodeDecodeError is a ValueError


def _text(values: Sequence[Value]) -> str:
    """Return a field's text, of which the last counts; empty where there is none."""
    return "".join(_texts(values[-1:]))


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int | list):
        raise ValueError("a number in place of a message")
    return memoryview(value)


class Node:
    """A node of a graph or of a function."""

    def __init__(self, data: Value) -> None:
        self._message = parse(data)
        self._attributes: dict[str, Message] | None = None
        self.name = _text(self._message[_NODE_NAME])
        self.operator = _text(self._message[_NODE_OPERATOR])
        self.domain = _text(self._message[_NODE_DOMAIN])
        self.inputs = _texts(self._message[_NODE_INPUTS])
        self.outputs = _texts(self._message[_NODE_OUTPUTS])

    def integers(self, name: str) -> tuple[int, ...]:
        """Return an attribute's whole numbers, one or many; none where it is absent."""
        if self._attributes is None:  # asked several times of packed layers, never of others
            read = [parse(data) for data in self._message[_NODE_ATTRIBUTES]]
            self._attributes = {_text(each[_ATTRIBUTE_NAME]): each for each in reversed(read)}
        found: Mapping[int, list[Value]] = self._attributes.get(name, {})
        return _numbers([*found.get(_ATTRIBUTE_INT, ()), *found.get(_ATTRIBUTE_INTS, ())])

    def changed(self, operator: str, inputs: Iterable[str]) -> Pieces:
        """Return it with another operator and other inputs."""
        changes = {
            _NODE_INPUTS: [name.encode() for name in inputs],
            _NODE_OPERATOR: [operator.encode()],
        }
        return written({**self._message, **changes})


class Tensor:
    """A stored tensor."""

    def __init__(self, data: Value) -> None:
        self._message = parse(data)
        self.name = _text(self._message[_TENSOR_NAME])
        self.dims = _numbers(self._message[_TENSOR_DIMS])

    def array(self) -> NDArray[Any]:
        """Return its elements, in the file's own memory.

        Raises:
            ValueError: they are not stored as bytes, of another type, or not as many.
        """
        (dtype,) = (_DTYPES.get(n) for n in _numbers(self._message[_TENSOR_TYPE]))
        (data,) = self._message[_TENSOR_DATA] or [b""]
        if dtype is None:
            raise ValueError(f"tensor {self.name} is of a type that packed layers do not have")
        return np.frombuffer(_bytes(data), dtype).reshape(self.dims)


class ModelFile:
    """The nodes of a file's graph, in order, and its initializers by name.

    Raises:
        ValueError: the file is damaged, or no ONNX model.
    """

    def __init__(self, data: bytes | mmap) -> None:
        self._model = parse(memoryview(data))
        if len(self._model[_MODEL_GRAPH]) != 1:
            raise ValueError("not one graph")
        self._graph = parse(self._model[_MODEL_GRAPH][0])
        self.nodes = [Node(data) for data in self._graph[_GRAPH_NODES]]
        self.tensors = {t.name: t for t in map(Tensor, self._graph[_GRAPH_TENSORS])}

    @property
    def operators(self) -> tuple[str, ...]:
        """Return the operators of its nodes that there may be kernels for, sorted.

        What is stored dense is left to onnxruntime's own operators, which are faster there, but for
        depthwise convolutions; so is what only decodes a weight, once, as the file is loaded.
        """
        ours = {node.operator for node in self.nodes if node.domain == DOMAIN}
        layers = {name for name in ours if not name.startswith("CsrWeight")}
        return tuple(sorted(name for name in layers if name.startswith(("Csr", "DenseDepthwise"))))

    def densified(self, places: Collection[int]) -> tuple[bytes, int]:
        """Return the model with standard operators for some of its packed nodes, serialised.

        Such a node calls a copy of its function that takes the decoded weight and decodes nothing:
        to onnxruntime, which inlines it, the layer is that of the dense network.

        Args:
            places: in ``nodes``, of nodes of domain ``hwprune``.

        Returns:
            the bytes of the model, and those of what these layers read, as float32.

        Raises:
            ValueError: the packed arrays of such a node are broken, or the result is too large.
            LookupError: there is no such node, or it has no function.
        """
        functions = {
            _text(function[_FUNCTION_NAME]): function
            for function in map(parse, self._model[_MODEL_FUNCTIONS])
            if _text(function[_FUNCTION_DOMAIN]) == DOMAIN
        }
        nodes = [*self._graph[_GRAPH_NODES]]
        over_dense: dict[str, tuple[Pieces, list[str]]] = {}
        weights: dict[tuple[Any, ...], tuple[str, NDArray[np.float32]]] = {}
        read = {n for i, node in enumerate(self.nodes) if i not in places for n in node.inputs}
        held, gone = set[str](), set[str]()
        for place in sorted(places):
            node = self.nodes[place]
            function, operator = functions[node.operator], f"{node.operator}OverDense"
            if operator not in over_dense:
                over_dense[operator] = _over_dense_weight(function, operator)
            roles = dict(zip(_texts(function[_FUNCTION_INPUTS]), node.inputs, strict=True))
            inputs = [roles.pop(role) for role in over_dense[operator][1]]
            held.update(inputs)
            if roles:  # none of a layer that is stored dense
                key = (*roles.values(), node.integers("shape"), node.integers("count"))
                if key not in weights:  # layers can share one
                    weights[key] = f"{node.name}:dense:{place}", self._weight(node, roles.values())
                inputs.append(weights[key][0])
                gone.update(roles.values())
            nodes[place] = node.changed(operator, inputs)
        gone -= read | held
        tensors = [d for d in self._graph[_GRAPH_TENSORS] if Tensor(d).name not in gone]
        tensors += [_dense_tensor(name, weight) for name, weight in weights.values()]
        bodies: list[Value] = [*self._model[_MODEL_FUNCTIONS]]
        bodies += [body for body, _ in over_dense.values()]
        graph = {**self._graph, _GRAPH_NODES: nodes, _GRAPH_TENSORS: tensors}
        changes: dict[int, list[Value]] = {_MODEL_GRAPH: [written(graph)], _MODEL_FUNCTIONS: bodies}
        pieces = written({**self._model, **changes})
        if sum(map(len, pieces)) > _MOST_BYTES:
            raise ValueError("more than onnxruntime reads from memory")
        floats = sum(math.prod(self.tensors[name].dims) for name in held & self.tensors.keys())
        floats += sum(weight.size for _, weight in weights.values())
        return b"".join(pieces), 4 * floats

    def _weight(self, node: Node, stored: Iterable[str]) -> NDArray[np.float32]:
        arrays = [self.tensors[name].array() for name in stored]
        count = next(iter(node.integers("count")), None)
        dense = library.unpack(node.operator, node.integers("shape"), count, arrays)
        if dense is None:
            raise ValueError(f"{node.name}: its packed arrays are malformed")
        return dense


def _dense_tensor(name: str, array: NDArray[np.float32]) -> Pieces:
    fields: dict[int, list[Value]] = {
        _TENSOR_DIMS: [*array.shape],
        _TENSOR_TYPE: [_FLOAT],
        _TENSOR_NAME: [name.encode()],
        _TENSOR_DATA: [array.reshape(-1).data.cast("B")],
    }
    return written(fields)


def _over_dense_weight(function: Message, name: str) -> tuple[Pieces, list[str]]:
    """Return a packed layer's function over its dense weight, the last input, and its other inputs.

    A layer that is stored dense has nothing to decode: its function only gets another name.

    Raises:
        ValueError: the function is none of a packed layer.
    """
    inputs = _texts(function[_FUNCTION_INPUTS])
    changes: dict[int, list[Value]] = {_FUNCTION_NAME: [name.encode()]}
    if not name.startswith("Dense"):
        nodes = [(Node(data), data) for data in function[_FUNCTION_NODES]]
        weight = next((n.inputs[1] for n, _ in nodes if n.operator in _LAYERS), "")
        # Of a linear layer it is transposed before.
        makers = {n.outputs[0]: n for n, _ in nodes if n.operator == "Transpose"}
        weight = makers[weight].inputs[0] if weight in makers else weight
        needed, body = {*_texts(function[_FUNCTION_OUTPUTS])}, list[Value]()
        for node, data in reversed(nodes):
            if weight not in node.outputs and needed.intersection(node.outputs):
                needed.update(node.inputs)
                body.append(data)
        if weight not in needed:
            raise ValueError(f"{name}: its function is no layer")
        inputs = [role for role in inputs if role in needed]
        changes[_FUNCTION_INPUTS] = [role.encode() for role in (*inputs, weight)]
        changes[_FUNCTION_NODES] = body[::-1]
    return written({**function, **changes}), inputs
