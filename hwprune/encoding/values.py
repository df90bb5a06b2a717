"""How the values of the nonzeros are stored.

- ``fp32``, ``fp16``: as they are.
- ``int8``, ``int4``: a whole number q stands for ``q * scale[channel]``, with q in -127..127 or
  -7..7 and the scale chosen so that the channel's largest magnitude becomes 127 or 7. Scales are
  kept in float16 where its range allows; values are quantised against the scale *as stored*, so
  that nothing is lost by rounding it. Two int4 values share a byte, as q + 8.
- ``codebook16``, ``codebook256``: the number of an entry of the tensor's own codebook, float16,
  found by k-means (``codebook.py``). Of 256 the first is 0, and there are no more entries than
  values and one; of 16 two numbers share a byte.

A tensor is quantised to *levels* of its own shape, in which 0 is what is zero, and a table: the
scales or the codebook.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.encoding.codebook import FP16_MAX, FP16_MIN, centroids, nearest
from hwprune.encoding.codecs import from_nibbles, to_nibbles
from hwprune.ir import ValueType

# The largest whole number of the types with a scale per channel.
LEVELS: Mapping[ValueType, int] = {"int8": 127, "int4": 7}
INT8_LEVELS = LEVELS["int8"]
# The most entries of a codebook.
CODEBOOK_ENTRIES: Mapping[ValueType, int] = {"codebook16": 16, "codebook256": 256}
VALUE_DTYPES: Mapping[ValueType, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
    "int4": np.dtype(np.uint8),
    "codebook16": np.dtype(np.uint8),
    "codebook256": np.dtype(np.uint8),
}
VALUE_BITS: Mapping[ValueType, int] = {
    "fp32": 32,
    "fp16": 16,
    "int8": 8,
    "int4": 4,
    "codebook16": 4,
    "codebook256": 8,
}
# Two of these share a byte, so an array of them does not say how many there are.
NIBBLE_TYPES: tuple[ValueType, ...] = ("int4", "codebook16")
# Below its smallest normal number float16 loses precision; above its largest it is infinite.
_FP16_NORMAL_MIN = float(np.finfo(np.float16).smallest_normal)
# float16 steps by 2**-24 here, so the first is off by 1/16 at most. A channel with a finer scale
# may be stored with a coarse one where another channel of its tensor is much larger, at least the
# second. So the type hardly ever depends on what is pruned, and sizes do not jump with it.
_FINE_SCALE, _COARSE_SCALE = 2.0**-20, 2.0**-17


def compact_floats(array: NDArray[np.float32], value_type: ValueType) -> NDArray[Any]:
    """Return biases in the type that goes with ``value_type``: float16 where it holds them well.

    float16 holds an array when nothing overflows and what it rounds below its normal range
    (absolute error 3e-8) is small beside the largest element; otherwise, and for fp32 values, it
    stays float32.
    """
    if value_type == "fp32":
        return array.astype(np.float32)
    magnitude = np.abs(array[array != 0])
    if magnitude.size == 0:
        return array.astype(np.float16)
    largest, smallest = magnitude.max(), magnitude.min()
    if largest > FP16_MAX or (smallest < _FP16_NORMAL_MIN and largest < 64 * _FP16_NORMAL_MIN):
        return array.astype(np.float32)
    return array.astype(np.float16)


def channel_scales(
    weight: NDArray[np.float32], channel_axis: int, value_type: ValueType = "int8"
) -> NDArray[Any]:
    """Return the scales of a tensor, as stored.

    Args:
        weight: the tensor, pruned elements zero.
        channel_axis: the axis that counts output channels.
        value_type: a key of ``LEVELS``.

    Returns:
        float16 or float32, shaped to broadcast over ``weight``. A channel without nonzeros gets
        scale 1.
    """
    axes = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    # Not max(abs()): that would copy a tensor that may be the larger part of a network.
    highest, lowest = (pick(weight, axis=axes, keepdims=True) for pick in (np.max, np.min))
    return scales_of(np.maximum(highest, -lowest), value_type)


def scales_of(largest: NDArray[np.float32], value_type: ValueType) -> NDArray[Any]:
    """Return the scales, as stored, of channels whose largest magnitudes are these.

    Args:
        largest: one number per channel of a tensor, in any shape; 0 where nothing is kept.
        value_type: a key of ``LEVELS``.

    Returns:
        float16 or float32, in the shape of ``largest``.
    """
    levels = LEVELS[value_type]
    scales: NDArray[Any] = np.where(largest > 0, largest / levels, 1.0).astype(np.float32)
    # A tiny channel may make its scale zero in float32 too; the smallest number there is stands in.
    scales = np.maximum(scales, np.finfo(np.float32).smallest_subnormal)
    alive = scales[largest > 0]
    if not holds_scales(alive):
        return scales
    compact = scales.astype(np.float16)
    # Rounding up where rounding down would push the channel's largest weight half a level off.
    short = largest > (levels + 0.5) * compact.astype(np.float32)
    rounded: NDArray[Any] = np.where(short, np.nextafter(compact, np.float16(np.inf)), compact)
    return rounded


def holds_scales(scales: NDArray[Any]) -> bool:
    """Return whether float16 holds a tensor's scales well: sizes above zero, in any shape."""
    if not scales.size:
        return True
    fine = scales.min() < _FINE_SCALE and scales.max() < _COARSE_SCALE
    return not (fine or scales.max() > FP16_MAX)


def quantise(
    weight: NDArray[np.float32], value_type: ValueType, channel_axis: int, *, zero: bool = False
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the tensor as levels of its own shape, and their table (None for floats).

    What lies beyond the range of fp16 becomes its largest number.

    Args:
        weight: the tensor, pruned elements zero.
        value_type: of the stored values.
        channel_axis: the axis that counts output channels.
        zero: for ``codebook16``: some of the stored values are zero, so one entry must be.
    """
    if value_type == "fp32":
        return weight.astype(np.float32), None
    if value_type == "fp16":
        return np.clip(weight, -FP16_MAX, FP16_MAX).astype(np.float16), None
    if value_type in LEVELS:
        scales = channel_scales(weight, channel_axis, value_type)
        most = LEVELS[value_type]
        levels = np.rint(weight / scales.astype(np.float32))
        return np.clip(levels, -most, most).astype(np.int8), scales
    spare = 1 if zero or value_type == "codebook256" else 0
    entries = centroids(weight, CODEBOOK_ENTRIES[value_type] - spare)
    found = np.zeros(weight.shape, np.uint8)
    alive = np.abs(weight) >= FP16_MIN
    if entries.size:
        found[alive] = nearest(weight[alive], entries) + 1
    if value_type == "codebook256":
        return found, np.concatenate([np.zeros(1, np.float16), entries])
    table = np.zeros(CODEBOOK_ENTRIES[value_type], np.float16)
    table[: entries.size] = entries
    return found, table


def dequantise(
    levels: NDArray[Any], table: NDArray[Any] | None, value_type: ValueType
) -> NDArray[np.float32]:
    """Return float32 weights from levels; scales must broadcast over them."""
    if table is None:
        return levels.astype(np.float32)
    if value_type in LEVELS:
        return levels.astype(np.float32) * table.astype(np.float32)
    wide = table.astype(np.float32)
    if value_type == "codebook16":
        wide = np.concatenate([np.zeros(1, np.float32), wide])
    weight: NDArray[np.float32] = wide[levels]
    return weight


def rounded(
    weight: NDArray[np.float32], value_type: ValueType, channel_axis: int
) -> NDArray[np.float32]:
    """Return what a tensor, its pruned elements zero, becomes by being stored."""
    return dequantise(*quantise(weight, value_type, channel_axis), value_type)


def quantum(
    weight: NDArray[np.float32], value_type: ValueType, channel_axis: int
) -> NDArray[np.float32]:
    """Return the smallest magnitude that each channel can store, or hardly notices.

    Returns:
        shaped to broadcast over ``weight``; 0 for a channel of which nothing is kept.
    """
    axes = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    magnitude = np.abs(weight)
    if value_type in CODEBOOK_ENTRIES:
        # Whatever joins is stored as an entry: as the smallest, if it is no larger.
        alive = magnitude[magnitude > 0]
        smallest = alive.min() if alive.size else np.float32(0)
        sizes = [n if axis == channel_axis else 1 for axis, n in enumerate(weight.shape)]
        return np.full(sizes, smallest, np.float32)
    largest = np.max(magnitude, axis=axes, keepdims=True)
    return np.asarray(largest / LEVELS.get(value_type, INT8_LEVELS), np.float32)


# -- arrays -----------------------------------------------------------------------------------


def value_array(
    levels: NDArray[Any], table: NDArray[Any] | None, value_type: ValueType
) -> NDArray[Any]:
    """Return the array that stores these levels: as they are, or two to a byte.

    A level 0 among those of ``codebook16`` needs an entry that is zero, the last one.
    """
    if value_type == "int4":
        return to_nibbles(levels + np.int8(8))
    if value_type == "codebook16":
        assert table is not None
        # 0 becomes the largest number: that of the last entry, see ``quantise``'s ``zero``.
        return to_nibbles(np.minimum(levels - np.uint8(1), np.uint8(len(table) - 1)))
    return levels


def levels_of(values: NDArray[Any], value_type: ValueType, count: int) -> NDArray[Any]:
    """Return the levels of stored values; those of ``codebook16`` from 1."""
    if value_type == "int4":
        levels: NDArray[np.int8] = from_nibbles(values, count).astype(np.int8) - np.int8(8)
        return levels
    if value_type == "codebook16":
        return np.add(from_nibbles(values, count), 1, dtype=np.uint8)
    return values


def values_size(value_type: ValueType, count: int) -> tuple[int, int]:
    """Return how many elements and bytes the array of ``count`` values has."""
    size = -(-count * VALUE_BITS[value_type] // 8)
    return (size if value_type in NIBBLE_TYPES else count), size


def codebook_entries(value_type: ValueType, count: int) -> int:
    """Return how many entries the codebook of a tensor with ``count`` stored values has."""
    most = CODEBOOK_ENTRIES[value_type]
    return min(most, count + 1) if value_type == "codebook256" else most
