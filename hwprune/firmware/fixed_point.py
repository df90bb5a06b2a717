"""Integers that rescale accumulators as single precision does, to the bit.

``RNE(f32(f32(acc) * s))`` never falls where ``acc`` grows, and neither does its counterpart

    floor((floor(acc * 2^shift * multiplier / 2^32) + 2^7) / 2^8),  multiplier ~ s * 2^(40 - shift)

so both are alike for every accumulator that can be if they step up at the same ones, and of steps
there are 255 at most, beyond which a result saturates. Each of them bounds the multiplier. Of most
scales an integer lies within all bounds. Where the roundings of single precision have moved two
steps apart, one does for a scale that differs in the last places: ``settled_scales`` finds that. So
no chip needs floating point here, nor a second look at what is near a tie.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwprune.firmware.network import (
    FULL_RANGE,
    Clamp,
    GlobalAveragePool,
    IntegerNetwork,
    QuantizedTensor,
    Weighted,
    pool_multiplier,
)

FRACTION_BITS, PRODUCT_BITS = 8, 32
LARGEST = (1 << 31) - 1
# An int8 weight has eight bits to spare in a tap. Sums over an image are shifted as they are.
MAX_SHIFT, MAX_SUM_SHIFT = 8, 16
# Below these, one by itself and one as a part of a layer's largest, multipliers are hard to find:
# single precision has moved too many steps, and a common shift leaves too few bits.
LEAST_SCALE, MAX_SPREAD = 2.0**-13, 2.0**-9
# How far a scale may be from the one that was asked for, and in which steps.
_TRIES, _STEP = 4096, 2.0**-22

Scales = NDArray[np.float32]
Integers = NDArray[np.int64]


def layer_multipliers(
    network: IntegerNetwork, layer: Weighted | GlobalAveragePool
) -> tuple[Integers, int]:
    """Return the multipliers of a layer, 0 where there is none, and its accumulators' shift."""
    x, y = network.tensors[layer.inputs[0]], network.tensors[layer.output]
    scales = network.multipliers(layer)
    if isinstance(layer, GlobalAveragePool):
        shift = shift_of(scales, MAX_SUM_SHIFT)
        return multipliers(scales, shift, *_sums(x), y.zero_point), shift
    shift = shift_of(scales)
    reach = accumulators(layer.weight, layer.bias, x.zero_point)
    return multipliers(scales, shift, *reach, y.zero_point, layer.clamp), shift


def accumulators(
    weight: NDArray[np.int8], bias: NDArray[np.int32], zero_point: int
) -> tuple[Integers, Integers]:
    """Return the least and the largest value that each filter's accumulator can have."""
    flat = weight.reshape(len(weight), -1).astype(np.int64)
    up, down = np.maximum(flat, 0).sum(1), np.minimum(flat, 0).sum(1)
    low, high = -128 - zero_point, 127 - zero_point
    return bias + up * low + down * high, bias + up * high + down * low


def shift_of(scales: Scales, most: int = MAX_SHIFT) -> int:
    """Return by how many bits accumulators are to be longer, so that multipliers fit in 31."""
    _, exponent = np.frexp(float(scales.max(initial=0)))
    return int(np.clip(exponent + FRACTION_BITS + 1, 0, most))


def multipliers(
    scales: Scales, shift: int, least: Integers, most: Integers, zero_point: int,
    clamp: Clamp = FULL_RANGE,
) -> Integers:  # fmt: skip
    """Return for each scale a multiplier that gives what single precision gives, or 0.

    Args:
        scales: (n,).
        shift: of the accumulators.
        least: (n,) the least that each accumulator can be.
        most: (n,) the largest.
        zero_point: of what they become.
        clamp: likewise.
    """
    least, most = least[:, None], most[:, None]
    steps = np.arange(int(clamp[0]) + 1, int(clamp[1]) + 1, dtype=np.int64) - zero_point
    near = np.rint((steps - 0.5) / scales.astype(np.float64)[:, None])[..., None] + np.arange(-2, 3)
    below = np.rint(near.astype(np.float32) * scales[:, None, None]) < steps[:, None]
    first = (near[..., 0] + below.sum(-1)).astype(np.int64)  # accumulator of each step
    first = np.clip(first, least, most + 1)
    goal = ((steps << FRACTION_BITS) - (1 << (FRACTION_BITS - 1))) << PRODUCT_BITS
    # From its first accumulator on a step's product is at least the goal. Of the one before it the
    # negative is at least 1 - goal.
    acc = np.concatenate([first, 1 - first], 1) << shift
    goals = np.concatenate([goal, 1 - goal])
    seen = np.concatenate([first <= most, first > least], 1)
    divisor = np.where(acc == 0, 1, acc)
    low = np.where(seen & (acc > 0) & (goals > 0), -(-goals // divisor), 1).max(1, initial=1)
    high = np.where(seen & (acc < 0) & (goals <= 0), goals // divisor, LARGEST).min(
        1, initial=LARGEST
    )
    never = (seen & (acc <= 0) & (goals > 0)).any(1)
    wanted = np.rint(scales.astype(np.float64) * 2.0 ** (PRODUCT_BITS + FRACTION_BITS - shift))
    chosen = np.clip(np.minimum(wanted, LARGEST).astype(np.int64), low, np.maximum(low, high))
    return np.where((low <= high) & ~never, chosen, 0)


def settled_scales(
    weight: NDArray[np.int8], bias: NDArray[np.int32], scale: Scales, x: QuantizedTensor,
    y: QuantizedTensor, clamp: Clamp,
) -> Scales:  # fmt: skip
    """Return scales of weights, hardly larger, for which there are multipliers.

    Args:
        weight: (out, ...).
        bias: (out,).
        scale: (out,).
        x: what the layer reads.
        y: what it makes.
        clamp: of the layer.
    """
    reach = accumulators(weight, bias, x.zero_point)
    found: Scales = scale.copy()
    open_ = np.arange(len(scale))
    for attempt in range(_TRIES):
        found[open_] = scale[open_] * np.float32(1 + attempt * _STEP)
        factors = np.asarray(x.scale * found / y.scale, np.float32)
        shift = shift_of(factors)
        least, most = reach[0][open_], reach[1][open_]
        made = multipliers(factors[open_], shift, least, most, y.zero_point, clamp)
        open_ = open_[made == 0]
        if not len(open_):
            break
    found[open_] = scale[open_]
    return found


def settled_average(x: QuantizedTensor, y: QuantizedTensor) -> np.float32:
    """Return a scale, hardly above that of ``y``, at which averages of ``x`` have a multiplier."""
    for attempt in range(_TRIES):
        scale: np.float32 = y.scale * np.float32(1 + attempt * _STEP)
        nearly = QuantizedTensor(y.name, y.shape, scale, y.zero_point)
        factor = np.asarray([pool_multiplier(x, nearly, x.chw[1] * x.chw[2])])
        if multipliers(factor, shift_of(factor, MAX_SUM_SHIFT), *_sums(x), y.zero_point)[0]:
            return scale
    return y.scale


def _sums(x: QuantizedTensor) -> tuple[Integers, Integers]:
    """Return the least and the largest sum over an image."""
    count = x.chw[1] * x.chw[2]
    least, most = (np.asarray([(end - x.zero_point) * count]) for end in FULL_RANGE)
    return least, most
