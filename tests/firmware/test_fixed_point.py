"""Multipliers give what single precision gives, for every accumulator that can be."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.firmware.fixed_point import (
    LARGEST,
    MAX_SUM_SHIFT,
    accumulators,
    multipliers,
    settled_average,
    settled_scales,
    shift_of,
)
from hwprune.firmware.network import QuantizedTensor
from hwprune.firmware.reference import requantize


def rescaled(acc: np.ndarray, multiplier: int, shift: int, zero: int, clamp: tuple) -> np.ndarray:
    """What the runtime computes."""
    upper = ((acc << shift) * multiplier) >> 32
    return np.clip((upper + zero * 256 + 128) >> 8, *clamp)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 1 << 30), exponent=st.floats(-13, -1.01), zero=st.integers(-128, 127),
    clamp=st.sampled_from([(-128, 127), (-128, -20), (5, 127)]), wide=st.integers(0, 16),
)  # fmt: skip
def test_every_accumulator_is_rescaled_as_single_precision_does(
    seed: int, exponent: float, zero: int, clamp: tuple[int, int], wide: int
) -> None:
    rng = np.random.default_rng(seed)
    scale = np.asarray([2.0**exponent], np.float32)
    least = np.asarray([-int(rng.integers(0, 1 << wide + 6))])
    most = np.asarray([int(rng.integers(0, 1 << wide + 6))])
    shift = shift_of(scale)
    (found,) = multipliers(scale, shift, least, most, zero, clamp)
    if found:
        assert 0 < found <= LARGEST
        acc = np.arange(least[0], most[0] + 1)
        expected = requantize(acc.astype(np.float64), scale, zero, clamp)
        assert np.array_equal(rescaled(acc, int(found), shift, zero, clamp), expected)


def test_scales_that_have_none_are_moved_and_rounding_alone_would_not_do() -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (300, 200)).astype(np.int8)
    bias = rng.integers(-9999, 9999, 300).astype(np.int32)
    scale = (2.0 ** rng.uniform(-13, -10, 300)).astype(np.float32)
    scale[::3] = 2.0 ** -rng.integers(10, 13, 100)  # of exact ties
    one = QuantizedTensor("x", (200,), np.float32(1), 7)
    reach = accumulators(weight, bias, one.zero_point)
    asked = multipliers(scale, 0, *reach, 7)
    assert 0 < (asked == 0).sum() < 300
    settled = settled_scales(weight, bias, scale, one, one, (-128, 127))
    assert np.all(np.abs(settled / scale - 1) < 0.001)
    assert np.array_equal(settled[asked > 0], scale[asked > 0])
    made = multipliers(settled, 0, *reach, 7)
    assert made.all()
    # Of some the multiplier that is nearest to the scale is none.
    assert (made != np.rint(settled * 2.0**40)).any()


def test_an_average_gets_a_scale_that_has_a_multiplier() -> None:
    for side in (1, 7, 8, 30):
        x = QuantizedTensor("x", (4, side, side), np.float32(0.5), -3)
        y = QuantizedTensor("y", (4, 1, 1), np.float32(0.25), 5)
        scale = settled_average(x, y)
        assert 0.25 <= scale < 0.2503
        factor = np.asarray([x.scale / (scale * np.float32(side * side))], np.float32)
        sums = np.arange(-125 * side * side, 130 * side * side + 1)
        shift = shift_of(factor, MAX_SUM_SHIFT)
        (found,) = multipliers(factor, shift, sums[:1], sums[-1:], 5)
        expected = requantize(sums.astype(np.float64), factor, 5)
        assert np.array_equal(rescaled(sums, int(found), shift, 5, (-128, 127)), expected)
