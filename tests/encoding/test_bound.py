"""bound: the entropy of masks and values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hwprune.encoding import bound_of, index_bound, pack
from hwprune.ir import VALUE_TYPES


@pytest.mark.parametrize(("weights", "nonzeros"), [(5, 2), (40, 20), (1000, 3), (7, 0), (7, 7)])
def test_the_bound_of_an_index_counts_masks(weights: int, nonzeros: int) -> None:
    expected = math.log2(math.comb(weights, nonzeros)) / 8
    assert index_bound(weights, nonzeros) == pytest.approx(expected, abs=1e-9)


def test_the_bound_of_values_is_their_entropy() -> None:
    weight = np.array([[127, 127, 64, 64, 0, 0]], np.float32)
    packed = pack("w", weight, weight != 0, codec="gap8", value_type="int8", channel_axis=0)
    found = bound_of(packed)
    assert found.values == pytest.approx(4 * 1 / 8)  # two symbols, equally often
    assert found.index == pytest.approx(math.log2(15) / 8)
    assert found.total == found.index + found.values
    full = pack("w", weight, weight != 0, codec="gap8", value_type="fp16", channel_axis=0)
    assert bound_of(full).values == 8


@pytest.mark.parametrize("value_type", VALUE_TYPES)
def test_an_empty_tensor_needs_nothing(value_type: str) -> None:
    weight = np.zeros((3, 4), np.float32)
    packed = pack(
        "w",
        weight,
        weight != 0,
        codec="rice",
        value_type=value_type,
        channel_axis=0,  # type: ignore[arg-type]
    )
    assert bound_of(packed).total == 0


def test_nothing_is_packed_below_the_bound() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((40, 250)).astype(np.float32)
    mask = generator.random(weight.shape) < 0.1
    for value_type in VALUE_TYPES:
        packed = pack("w", weight, mask, codec="rice", value_type=value_type, channel_axis=0)
        bound = bound_of(packed)
        assert packed.arrays["index"].nbytes >= bound.index
        assert packed.arrays["values"].nbytes >= bound.values
