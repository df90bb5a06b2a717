"""values: the error of quantisation, scales as stored, and where float16 does not do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from hwprune.encoding import compact_floats, quantise
from hwprune.encoding.values import INT8_LEVELS, channel_scales, dequantise

FP16_MAX = 65504.0
WEIGHTS = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=1, max_dims=4, max_side=5),
    elements=st.one_of(
        st.floats(-4, 4, width=32).filter(lambda value: value == 0 or abs(value) > 1e-30),
        st.sampled_from([0.0, 1e-9, -3e-6, 5e-5, 1.0, -1.0, 1e6, -3e20]),
    ),
)


@given(weight=WEIGHTS, data=st.data())
def test_int8_errs_by_half_a_quantum_of_the_scale_as_stored(
    weight: NDArray[np.float32], data: st.DataObject
) -> None:
    axis = data.draw(st.integers(0, weight.ndim - 1))
    stored, scales = quantise(weight, "int8", axis)
    assert stored.dtype == np.int8
    assert scales is not None
    assert scales.shape == tuple(s if a == axis else 1 for a, s in enumerate(weight.shape))
    quantum = scales.astype(np.float64)
    assert np.all(quantum > 0)
    assert int(np.abs(stored.astype(int)).max()) <= INT8_LEVELS
    error = np.abs(stored * quantum - weight)
    assert np.all(error <= 0.5001 * quantum)
    decoded = dequantise(stored, scales)
    assert decoded.dtype == np.float32
    assert np.array_equal(decoded, stored.astype(np.float32) * scales.astype(np.float32))
    assert np.all(decoded[weight == 0] == 0)


@given(weight=WEIGHTS, data=st.data())
def test_a_channel_uses_its_whole_range(weight: NDArray[np.float32], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, weight.ndim - 1))
    stored, _ = quantise(weight, "int8", axis)
    others = tuple(a for a in range(weight.ndim) if a != axis)
    largest = np.abs(stored.astype(int)).max(axis=others)
    channel = np.abs(weight).max(axis=others)
    # Scales of smaller ones are off the normal range of float16, where the tensor's other channels
    # are larger.
    assert np.all(largest[channel >= 1e-2] >= INT8_LEVELS - 1)
    assert np.all(largest[channel == 0] == 0)


@given(weight=WEIGHTS)
def test_fp32_is_exact_and_fp16_rounds_and_saturates(weight: NDArray[np.float32]) -> None:
    exact, no_scales = quantise(weight, "fp32", 0)
    assert no_scales is None
    assert np.array_equal(exact, weight)
    half, no_scales = quantise(weight, "fp16", 0)
    assert no_scales is None
    assert half.dtype == np.float16
    assert np.all(np.isfinite(half))
    inside = np.abs(weight) <= FP16_MAX
    error = np.abs(half.astype(np.float64) - weight)[inside]
    assert np.all(error <= np.maximum(np.abs(weight[inside]) * 2.0**-11, 2.0**-25))
    assert np.all(np.abs(half[~inside]) == FP16_MAX)


def test_a_channel_without_nonzeros_has_scale_one() -> None:
    weight = np.array([[0, 0], [0.5, -1.27]], np.float32)
    scales = channel_scales(weight, 0)
    assert scales.dtype == np.float16
    assert scales[0] == 1
    assert float(scales[1, 0]) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [
        ([1.0, 1e-2], np.float16),
        ([1.0, 3e-5], np.float16),  # small beside the other channel
        ([1.0, 1e-9], np.float16),
        ([1.0, 0.0], np.float16),
        ([0.0, 0.0], np.float16),
        ([3e-5, 1e-6], np.float32),  # nothing else is there
        ([3e-5, 0.0], np.float32),  # and a dead channel is no excuse
        ([1e9, 1.0], np.float32),  # its scale would be infinite
    ],
)
def test_scales_fall_back_to_float32(largest: list[float], dtype: type[np.generic]) -> None:
    weight = np.array([[value, value / 3] for value in largest], np.float32)
    assert channel_scales(weight, 0).dtype == dtype


@pytest.mark.parametrize(
    ("biases", "dtype"),
    [
        ([0.0, 0.0], np.float16),
        ([1.0, -2.0], np.float16),
        ([1.0, 1e-9, 0.0], np.float16),  # what is lost is small beside the largest
        ([1e-6, 1e-7], np.float32),  # nothing else is there
        ([1e6, 1.0], np.float32),
    ],
)
def test_biases_fall_back_to_float32(biases: list[float], dtype: type[np.generic]) -> None:
    array = np.array(biases, np.float32)
    for value_type in ("fp16", "int8"):
        compact = compact_floats(array, value_type)  # type: ignore[arg-type]
        assert compact.dtype == dtype
        assert np.allclose(compact, array, rtol=2**-10, atol=1e-3 * np.abs(array).max())
    assert np.array_equal(compact_floats(array, "fp32"), array)
