"""How densely the packed layers of a file are filled, without reading it as ONNX.

Most files have none that a dense operator could be faster for, and then nothing more is to be done:
importing onnx would take more memory than many of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

Buffer = bytes | memoryview
# Field numbers of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
_GRAPH = 7  # of ModelProto
_NODE, _INITIALIZER = 1, 5  # of GraphProto
_INPUT, _OP_TYPE, _ATTRIBUTE, _DOMAIN = 1, 4, 5, 7  # of NodeProto
_ATTRIBUTE_NAME, _INT, _INTS = 1, 3, 8  # of AttributeProto
_DIMS, _TENSOR_NAME = 1, 8  # of TensorProto


def densities(data: Buffer) -> list[tuple[str, int, float]]:
    """Return, per node of domain ``hwprune``, its operator and the share of weights it stores.

    What is damaged or no ONNX model has none; onnxruntime says so better.
    """
    view = memoryview(data)
    try:
        return _densities(view)
    except (IndexError, UnicodeDecodeError, ZeroDivisionError):
        return []


def _densities(data: memoryview) -> list[tuple[str, int, float]]:
    sizes: dict[bytes, int] = {}
    nodes = []
    for field, graph in _fields(data):
        if field != _GRAPH or isinstance(graph, int):
            continue
        for part, message in _fields(graph):
            if isinstance(message, int):
                continue
            if part == _INITIALIZER:
                name, size = _tensor(message)
                sizes[name] = size
            elif part == _NODE:
                nodes.append(message)
    found = []
    for node in nodes:
        texts: dict[int, list[bytes]] = {_INPUT: [], _OP_TYPE: [], _DOMAIN: []}
        given: dict[bytes, list[int]] = {}
        for field, value in _fields(node):
            if isinstance(value, int):
                continue
            if field in texts:
                texts[field].append(bytes(value))
            elif field == _ATTRIBUTE:
                name, numbers = _attribute(value)
                given[name] = numbers
        if texts[_DOMAIN] != [b"hwprune"] or len(texts[_INPUT]) < 2 or not texts[_OP_TYPE]:
            continue
        stored = given.get(b"count", [sizes.get(texts[_INPUT][1], 0)])[0]
        shape = given.get(b"shape")
        share = stored / math.prod(shape) if shape else 1.0
        found.append((texts[_OP_TYPE][0].decode(), stored, share))
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the fields of a message: numbers as they are, everything else as its bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield tag >> 3, number
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise IndexError
        if at + size > len(data):
            raise IndexError
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise IndexError


def _numbers(value: int | memoryview) -> list[int]:
    """Return a repeated field's numbers, which may be packed into one."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def _tensor(message: memoryview) -> tuple[bytes, int]:
    name, dims = b"", list[int]()
    for field, value in _fields(message):
        if field == _DIMS:
            dims += _numbers(value)
        elif field == _TENSOR_NAME and not isinstance(value, int):
            name = bytes(value)
    return name, math.prod(dims)


def _attribute(message: memoryview) -> tuple[bytes, list[int]]:
    name, numbers = b"", list[int]()
    for field, value in _fields(message):
        if field == _ATTRIBUTE_NAME and not isinstance(value, int):
            name = bytes(value)
        elif field in (_INT, _INTS):
            numbers += _numbers(value)
    return name, numbers
