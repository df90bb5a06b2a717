"""Protocol buffers' wire format, as far as ONNX files need it.

A session on a board has onnxruntime and NumPy. Importing onnx there would take more time and memory
than loading most networks (https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from collections.abc import Iterator

# What a field of a message is: a number, or bytes that are a text or another message.
Value = int | memoryview
# Consecutive parts of a message.
Pieces = list[bytes | memoryview]


def fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Yield the number and the value of each field; four and eight byte numbers as their bytes.

    Raises:
        ValueError: this is no message.
    """
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(data, at)
        elif kind == 0:
            number, at = _varint(data, at)
            yield tag >> 3, number
            continue
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > end:
            raise ValueError("a field ends behind its message")
        yield tag >> 3, data[at : at + size]
        at += size


def numbers(value: Value) -> list[int]:
    """Return a repeated field's numbers, signed, which may be packed into one value.

    Raises:
        ValueError: these are no numbers.
    """
    if isinstance(value, int):
        return [_signed(value)]
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(_signed(number))
    return found


def written(field: int, *pieces: bytes | memoryview) -> Pieces:
    """Return a text or a message as a field, in pieces to be joined: large ones are not copied."""
    size = sum(len(piece) for piece in pieces)
    return [_number(field << 3 | 2) + _number(size), *pieces]


def written_number(field: int, value: int) -> bytes:
    """Return a number that is not negative, as a field."""
    return _number(field << 3) + _number(value)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    try:
        value = data[at]
        at += 1
        if value < 128:  # as nearly all are
            return value, at
        value, shift = value & 127, 7
        while shift < 70:
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at
    except IndexError:
        pass
    raise ValueError("a number does not end")


def _signed(number: int) -> int:
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


def _number(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)
