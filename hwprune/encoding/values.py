"""How the values of the nonzeros are stored: fp32, fp16, or int8 with a scale per output channel.

int8 is symmetric: a stored q stands for ``q * scale[channel]`` with q in -127..127 and the scale
chosen so that the channel's largest magnitude becomes 127. Scales are kept in float16 where its
range allows; values are quantised against the scale *as stored*, so that nothing is lost by
rounding it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.ir import ValueType

INT8_LEVELS = 127
VALUE_DTYPES: Mapping[ValueType, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
}
# Below its smallest normal number float16 loses precision; above its largest it is infinite.
_FP16_NORMAL_MIN = float(np.finfo(np.float16).smallest_normal)
_FP16_MAX = float(np.finfo(np.float16).max)
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
    if largest > _FP16_MAX or (smallest < _FP16_NORMAL_MIN and largest < 64 * _FP16_NORMAL_MIN):
        return array.astype(np.float32)
    return array.astype(np.float16)


def channel_scales(weight: NDArray[np.float32], channel_axis: int) -> NDArray[Any]:
    """Return the int8 scales of a tensor, as stored.

    Args:
        weight: the tensor, pruned elements zero.
        channel_axis: the axis that counts output channels.

    Returns:
        float16 or float32, shaped to broadcast over ``weight``. A channel without nonzeros gets
        scale 1.
    """
    axes = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    # Not max(abs()): that would copy a tensor that may be the larger part of a network.
    highest, lowest = (pick(weight, axis=axes, keepdims=True) for pick in (np.max, np.min))
    largest = np.maximum(highest, -lowest)
    scales: NDArray[Any] = np.where(largest > 0, largest / INT8_LEVELS, 1.0).astype(np.float32)
    # A tiny channel may make its scale zero in float32 too; the smallest number there is stands in.
    scales = np.maximum(scales, np.finfo(np.float32).smallest_subnormal)
    alive = scales[largest > 0]
    if alive.size and (
        alive.max() > _FP16_MAX or (alive.min() < _FINE_SCALE and alive.max() < _COARSE_SCALE)
    ):
        return scales
    compact = scales.astype(np.float16)
    # Rounding up where rounding down would push the channel's largest weight half a level off.
    short = largest > (INT8_LEVELS + 0.5) * compact.astype(np.float32)
    rounded: NDArray[Any] = np.where(short, np.nextafter(compact, np.float16(np.inf)), compact)
    return rounded


def quantise(
    weight: NDArray[np.float32], value_type: ValueType, channel_axis: int
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the tensor as stored values of its own shape, and the scales (None unless int8).

    What lies beyond the range of fp16 becomes its largest number.
    """
    if value_type == "fp32":
        return weight.astype(np.float32), None
    if value_type == "fp16":
        return np.clip(weight, -_FP16_MAX, _FP16_MAX).astype(np.float16), None
    scales = channel_scales(weight, channel_axis)
    levels = np.rint(weight / scales.astype(np.float32))
    return np.clip(levels, -INT8_LEVELS, INT8_LEVELS).astype(np.int8), scales


def dequantise(values: NDArray[Any], scales: NDArray[Any] | None) -> NDArray[np.float32]:
    """Return float32 weights from stored values; ``scales`` must broadcast over them."""
    weight = values.astype(np.float32)
    return weight if scales is None else weight * scales.astype(np.float32)
