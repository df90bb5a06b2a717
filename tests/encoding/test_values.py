"""values: the error of quantisation, scales as stored, and where float16 does not do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from hwprune.encoding import compact_floats, quantise
from hwprune.encoding.codebook import centroids
from hwprune.encoding.values import (
    LEVELS,
    channel_scales,
    codebook_entries,
    dequantise,
    levels_of,
    quantum,
    rounded,
    value_array,
    values_size,
)
from hwprune.ir import VALUE_TYPES, ValueType

FP16_MAX = 65504.0
WEIGHTS = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=1, max_dims=4, max_side=5),
    elements=st.one_of(
        st.floats(-4, 4, width=32).filter(lambda value: value == 0 or abs(value) > 1e-30),
        st.sampled_from([0.0, 1e-9, -3e-6, 5e-5, 1.0, -1.0, 1e6, -3e20]),
    ),
)


@pytest.mark.parametrize("value_type", LEVELS)
@given(weight=WEIGHTS, data=st.data())
def test_whole_numbers_err_by_half_a_quantum_of_the_scale_as_stored(
    value_type: ValueType, weight: NDArray[np.float32], data: st.DataObject
) -> None:
    axis = data.draw(st.integers(0, weight.ndim - 1))
    stored, scales = quantise(weight, value_type, axis)
    assert stored.dtype == np.int8
    assert scales is not None
    assert scales.shape == tuple(s if a == axis else 1 for a, s in enumerate(weight.shape))
    quantum = scales.astype(np.float64)
    assert np.all(quantum > 0)
    assert int(np.abs(stored.astype(int)).max()) <= LEVELS[value_type]
    error = np.abs(stored * quantum - weight)
    assert np.all(error <= 0.5001 * quantum)
    decoded = dequantise(stored, scales, value_type)
    assert decoded.dtype == np.float32
    assert np.array_equal(decoded, stored.astype(np.float32) * scales.astype(np.float32))
    assert np.all(decoded[weight == 0] == 0)


@pytest.mark.parametrize("value_type", LEVELS)
@given(weight=WEIGHTS, data=st.data())
def test_a_channel_uses_its_whole_range(
    value_type: ValueType, weight: NDArray[np.float32], data: st.DataObject
) -> None:
    axis = data.draw(st.integers(0, weight.ndim - 1))
    stored, _ = quantise(weight, value_type, axis)
    others = tuple(a for a in range(weight.ndim) if a != axis)
    largest = np.abs(stored.astype(int)).max(axis=others)
    channel = np.abs(weight).max(axis=others)
    # Scales of smaller ones are off the normal range of float16, where the tensor's other channels
    # are larger.
    assert np.all(largest[channel >= 1e-2] >= LEVELS[value_type] - 1)
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


# -- codebooks -------------------------------------------------------------------------------------

CODEBOOKS: list[ValueType] = ["codebook16", "codebook256"]


@pytest.mark.parametrize("value_type", CODEBOOKS)
@given(weight=WEIGHTS)
def test_a_codebook_takes_the_nearest_entry_and_keeps_what_lives(
    value_type: ValueType, weight: NDArray[np.float32]
) -> None:
    levels, table = quantise(weight, value_type, 0)
    assert table is not None
    assert table.dtype == np.float16
    decoded = dequantise(levels, table, value_type)
    # What float16 cannot tell from zero is zero; nothing else is.
    assert np.array_equal(decoded == 0, np.abs(weight) < 2.0**-24)
    assert np.array_equal(levels == 0, decoded == 0)
    entries = table[table != 0].astype(np.float64)
    clipped = np.clip(weight.astype(np.float64), -FP16_MAX, FP16_MAX)
    for value, found in zip(clipped[decoded != 0], decoded[decoded != 0], strict=True):
        least = np.abs(entries - value).min()
        assert abs(found - value) <= least * (1 + 1e-6) + 1e-12


def test_a_codebook_is_exact_where_there_are_few_values() -> None:
    values = np.array([-1.5, -0.25, 0.5, 3.0], np.float32)
    weight = np.random.default_rng(0).choice(values, (6, 50))
    for value_type in CODEBOOKS:
        assert np.array_equal(rounded(weight, value_type, 0), weight)


@pytest.mark.parametrize(("count", "levels"), [(16, 24.0), (255, 420.0)])
def test_centroids_beat_even_steps(count: int, levels: float) -> None:
    """The error is that of evenly spaced levels of which there are half as many again."""
    generator = np.random.default_rng(0)
    values = generator.laplace(size=50_000).astype(np.float32)
    values = values[np.abs(values) > 0.3]
    entries = centroids(values, count).astype(np.float64)
    assert len(entries) <= count
    assert np.all(np.diff(entries) > 0)
    nearest = entries[np.abs(values[:, None] - entries).argmin(1)]
    step = np.ptp(values) / levels
    assert np.mean(np.square(values - nearest)) < step * step / 12


def test_centroids_do_not_depend_on_the_order_of_values() -> None:
    values = np.random.default_rng(1).standard_normal(3000).astype(np.float32)
    assert np.array_equal(centroids(values, 16), centroids(values[::-1].copy(), 16))


@pytest.mark.parametrize("values", [[], [0.0], [1e-9], [1.0] * 40, [1.0, 1e-30] * 20])
def test_values_without_spread_have_a_codebook(values: list[float]) -> None:
    found = centroids(np.array(values, np.float32), 16)
    assert found.tolist() == ([1.0] if 1.0 in values else [])


# -- arrays ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value_type", VALUE_TYPES)
@given(weight=npst.arrays(np.float32, st.integers(0, 40), elements=st.floats(1, 2, width=32)))
def test_levels_survive_their_array(value_type: ValueType, weight: NDArray[np.float32]) -> None:
    levels, table = quantise(weight.reshape(1, -1), value_type, 0) if weight.size else (
        np.zeros(0, np.int8), np.zeros(16, np.float16)
    )  # fmt: skip
    levels = levels.reshape(-1)
    array = value_array(levels, table, value_type)
    assert (array.size, array.nbytes) == values_size(value_type, weight.size) or not weight.size
    assert np.array_equal(levels_of(array, value_type, weight.size), levels)


def test_a_codebook_has_no_more_entries_than_values_and_one() -> None:
    assert [codebook_entries("codebook256", n) for n in (0, 1, 254, 255, 10**6)] == [
        1, 2, 255, 256, 256,
    ]  # fmt: skip
    assert codebook_entries("codebook16", 0) == codebook_entries("codebook16", 99) == 16


@pytest.mark.parametrize("value_type", VALUE_TYPES)
def test_a_quantum_is_stored_as_something_small(value_type: ValueType) -> None:
    weight = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
    weight[np.abs(weight) < 1] = 0
    weight[3] = 0
    small = quantum(weight, value_type, 0)
    assert small.shape in {(5, 1), (5,)}
    joined = weight.copy()
    joined[0, np.flatnonzero(weight[0] == 0)[0]] = small[0, 0]
    found = rounded(joined, value_type, 0)[0, np.flatnonzero(weight[0] == 0)[0]]
    assert 0 < found <= max(0.15 * np.abs(weight[0]).max(), 1.3 * np.abs(weight[weight != 0]).min())
