"""pack: a tensor comes back as it was quantised; arrays that do not fit are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprune.encoding import CODECS, pack, packed_positions, stored_nonzeros, to_csr, unpack
from hwprune.encoding.values import NIBBLE_TYPES, rounded
from hwprune.errors import VerificationError
from hwprune.ir import VALUE_TYPES, CodecName, Packed, ValueType

SHAPES = st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple)


@pytest.mark.parametrize("value_type", VALUE_TYPES)
@pytest.mark.parametrize("codec", CODECS)
@given(shape=SHAPES, density=st.sampled_from([0.0, 0.2, 1.0]), seed=st.integers(0, 999))
def test_what_is_packed_comes_back(
    codec: CodecName, value_type: ValueType, shape: tuple[int, ...], density: float, seed: int
) -> None:
    if codec == "dense" and value_type in NIBBLE_TYPES:
        with pytest.raises(ValueError, match="not stored dense"):
            pack("w", np.ones(shape, np.float32), np.ones(shape, np.bool_), codec=codec,
                 value_type=value_type, channel_axis=0)  # fmt: skip
        return
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal(shape).astype(np.float32)
    mask = generator.random(shape) < density
    axis = seed % len(shape)
    packed = pack("w", weight, mask, codec=codec, value_type=value_type, channel_axis=axis)
    masked = np.where(mask, weight, np.float32(0))
    expected = rounded(masked, value_type, axis)
    assert np.array_equal(unpack(packed), expected)
    assert unpack(packed).shape == shape
    matrix = to_csr(packed)
    assert matrix.shape == (shape[0], math.prod(shape[1:]))
    assert matrix.nnz == np.count_nonzero(expected)
    assert np.array_equal(matrix.toarray(), expected.reshape(matrix.shape))
    stored = mask.size if codec == "dense" else int(mask.sum())
    assert packed.nonzeros == stored == packed_positions(packed).size
    assert stored_nonzeros(packed) == np.count_nonzero(expected)


@pytest.mark.parametrize("value_type", VALUE_TYPES)
def test_a_zero_that_is_stored_stays_a_zero(value_type: ValueType) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 9)).astype(np.float32)
    weight[0, :3] = 0
    mask = np.ones(weight.shape, np.bool_)
    packed = pack("w", weight, mask, codec="gap8", value_type=value_type, channel_axis=0)
    assert packed.nonzeros == 72
    assert np.array_equal(unpack(packed) == 0, rounded(weight, value_type, 0) == 0)
    assert np.all(unpack(packed)[0, :3] == 0)
    assert stored_nonzeros(packed) <= 69


def _packed(codec: CodecName = "gap8", value_type: ValueType = "int8") -> Packed:
    weight = np.arange(1, 21, dtype=np.float32).reshape(4, 5)
    mask = np.zeros((4, 5), np.bool_)
    mask[1, 2] = mask[3, 0] = True
    return pack("w", weight, mask, codec=codec, value_type=value_type, channel_axis=0)


@pytest.mark.parametrize(
    ("value_type", "changes", "reason"),
    [
        ("int4", {"count": 1}, "the last half byte is not 0"),
        ("int4", {"count": 3}, "3 values of four bits"),
        ("int4", {"count": None}, "None values of four bits"),
        ("codebook16", {"count": -1}, "-1 values of four bits"),
        ("int8", {"count": 2}, "int8 values say their number"),
        ("int4", {"codec": "dense"}, "not stored dense"),
    ],
)
def test_a_number_of_values_that_is_not_that_of_the_array_is_refused(
    value_type: ValueType, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(VerificationError, match=reason):
        unpack(replace(_packed(value_type=value_type), **changes))


def test_a_half_byte_too_many_is_refused() -> None:
    weight = np.ones((1, 3), np.float32)
    packed = pack("w", weight, weight > 0, codec="rice", value_type="int4", channel_axis=0)
    assert packed.arrays["values"].tolist() == [0xFF, 0x0F]
    broken = replace(packed, arrays={**packed.arrays, "values": np.array([0xFF, 0x1F], np.uint8)})
    with pytest.raises(VerificationError, match="half byte is not 0"):
        unpack(broken)


@pytest.mark.parametrize(
    ("value_type", "changes", "reason"),
    [
        ("codebook16", {"codebook": np.zeros(15, np.float16)}, "expected 16 fp16"),
        ("codebook16", {"codebook": np.zeros(16, np.float32)}, "codebook is float32"),
        ("codebook256", {"codebook": np.zeros(256, np.float16)}, "expected 3 fp16"),
        ("codebook256", {"codebook": np.ones(3, np.float16)}, "first entry of its codebook"),
        ("codebook256", {"values": np.array([1, 3], np.uint8)}, "entry 3 of 3"),
        ("fp16", {"codebook": np.zeros(16, np.float16)}, "fp16 values have no codebook"),
        ("codebook16", {"scale": np.ones(3, np.float16)}, "codebook16 values have no scale"),
    ],
)
def test_a_codebook_that_does_not_fit_is_refused(
    value_type: ValueType, changes: dict[str, Any], reason: str
) -> None:
    packed = _packed(value_type=value_type)
    with pytest.raises(VerificationError, match=reason):
        unpack(replace(packed, arrays={**packed.arrays, **changes}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"index": np.array([8, 0], np.uint8)}, "malformed: the index ends in a skip"),
        ({"index": np.array([8, 200], np.uint8)}, "malformed: position 207"),
        ({"index": np.array([8, 8], np.uint16)}, "index is uint16"),
        ({"index": np.array([[8, 8]], np.uint8)}, "expected one axis"),
        ({"values": np.array([1], np.int8)}, "1 values for 2 positions"),
        ({"values": np.array([1, 2], np.float32)}, "values are float32, expected int8"),
    ],
)
def test_broken_arrays_are_refused(changes: dict[str, object], reason: str) -> None:
    packed = _packed()
    broken = replace(packed, arrays={**packed.arrays, **changes})
    with pytest.raises(VerificationError, match=reason):
        unpack(broken)


def test_scales_of_another_shape_are_refused() -> None:
    packed = _packed()
    broken = replace(packed, arrays={**packed.arrays, "scale": np.ones((3, 1), np.float16)})
    with pytest.raises(VerificationError, match="scales of shape"):
        unpack(broken)


def test_a_dense_tensor_of_another_length_is_refused() -> None:
    packed = replace(_packed("dense"), shape=(4, 6))
    with pytest.raises(VerificationError, match="20 values for 24 weights"):
        unpack(packed)


@pytest.mark.parametrize("shape", [(), (0, 5), (-4, -5), (2**40, 2**40), (2**31,)])
def test_a_shape_that_no_weight_has_is_refused_before_memory_is_asked_for(
    shape: tuple[int, ...],
) -> None:
    with pytest.raises(VerificationError, match="not the shape of a weight"):
        unpack(replace(_packed(), shape=shape))


def test_a_shape_that_the_codec_cannot_store_is_refused() -> None:
    with pytest.raises(VerificationError, match="cols8 cannot store"):
        unpack(replace(_packed("cols8"), shape=(4, 256)))
