"""How the values of the nonzeros are stored: fp32, fp16, or int8 with a scale per output channel.

int8 is symmetric: a stored q stands for ``q * scale[channel]`` with q in -127..127 and the scale chosen
so that the channel's largest magnitude becomes 127. Scales are kept in float16 where its range
allows; values are quantised against the scale *as stored*, so that nothing is lost by rounding it.
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


def compact_floats(array: NDArray[np.float32], value_type: ValueType) -> NDArray[Any]:
    """Return biases or scales in the type that goes with ``value_type``: float16 where it holds them.

    float16 holds an array when every element is zero or a normal float16 number after rounding; otherwise, and
    for fp32 values, the array stays float32.
    """
    if value_type == "fp32":
        return array.astype(np.float32)
    magnitude = np.abs(array[array != 0])
    if magnitude.size and (magnitude.max() > _FP16_MAX or magnitude.min() < _FP16_NORMAL_MIN):
        # A bias may be so small that flushing it is harmless; a scale may not: judged by the whole.
        harmless = magnitude.max() <= _FP16_MAX and magnitude.max() >= 64 * _FP16_NORMAL_MIN
        if not harmless or np.any(array.astype(np.float16) == 0):
            return array.astype(np.float32)
    return array.astype(np.float16)


def channel_scales(weight: NDArray[np.float32], channel_axis: int) -> NDArray[Any]:
    """Return the int8 scales of a tensor, as stored.

    Args:
        weight: the tensor, pruned elements zero.
        channel_axis: the axis that counts output channels.

    Returns:
        float16 or float32, shaped to broadcast over ``weight``. A channel without nonzeros gets scale 1.
    """
    axes = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    largest = np.max(np.abs(weight), axis=axes, keepdims=True)
    scales = np.where(largest > 0, largest / INT8_LEVELS, 1.0).astype(np.float32)
    return compact_floats(scales, "int8")


def quantise(
    weight: NDArray[np.float32], value_type: ValueType, channel_axis: int
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the tensor as stored values of its own shape, and the scales (None unless int8)."""
    if value_type != "int8":
        return weight.astype(VALUE_DTYPES[value_type]), None
    scales = channel_scales(weight, channel_axis)
    levels = np.rint(weight / scales.astype(np.float32))
    return np.clip(levels, -INT8_LEVELS, INT8_LEVELS).astype(np.int8), scales


def dequantise(values: NDArray[Any], scales: NDArray[Any] | None) -> NDArray[np.float32]:
    """Return float32 weights from stored values; ``scales`` must broadcast over them."""
    weight = values.astype(np.float32)
    return weight if scales is None else weight * scales.astype(np.float32)
