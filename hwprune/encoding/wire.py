"""Protocol-buffer sizes of the few messages that an artifact repeats, by arithmetic.

An ONNX file is a protocol buffer; a length is written as a varint, so headers grow with what they
head. Field numbers are those of onnx.proto (all below 16, hence one-byte tags, unless said).
Source: https://protobuf.dev/programming-guides/encoding/ and onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Sequence


def varint_bytes(value: int) -> int:
    """Return how many bytes the varint of a non-negative ``value`` takes."""
    return max(1, -(-value.bit_length() // 7))


def field_bytes(payload_bytes: int, tag_bytes: int = 1) -> int:
    """Return the size of a length-delimited field: tag, length, payload."""
    return tag_bytes + varint_bytes(payload_bytes) + payload_bytes


def tensor_field_bytes(name: str, dims: Sequence[int], raw_bytes: int) -> int:
    """Return what a TensorProto with raw data adds to a graph as an initializer.

    dims are single varint fields (the schema is proto2: not packed), the data type is one byte for
    every type that we store.
    """
    payload = sum(1 + varint_bytes(size) for size in dims) + 2
    return field_bytes(payload + field_bytes(len(name.encode())) + field_bytes(raw_bytes))
