"""codecs: each round-trips, is counted without encoding, refuses what no encoder writes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from hwprune.encoding import CODECS, MalformedIndexError, index_bound, spacing
from hwprune.encoding.codecs import MAX_PARAMETER, MAX_WEIGHTS, Codec, matrix_shape
from hwprune.ir import CodecName

SPARSE = [codec for name, codec in CODECS.items() if name != "dense"]
SHAPES = st.one_of(
    st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple),
    # Long enough for skips and for columns that need two bytes.
    st.tuples(st.integers(1, 4), st.sampled_from([127, 254, 255, 256, 257, 3000])),
    st.just((1, 66_000)),
)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[tuple[int, ...], NDArray[np.int64]]:
    """A shape and sorted positions in it: few, many, none, all, and both ends."""
    shape = draw(SHAPES)
    weights = math.prod(shape)
    density = draw(st.sampled_from([0.0, 0.0005, 0.01, 0.3, 0.9, 1.0]))
    seed = draw(st.integers(0, 2**32 - 1))
    mask = np.random.default_rng(seed).random(weights) < density
    for place in draw(st.lists(st.integers(0, weights - 1), max_size=3)):
        mask[place] = True
    return shape, np.flatnonzero(mask)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@given(tensor=tensors())
def test_positions_survive_and_sizes_are_counted_without_encoding(
    codec: Codec, tensor: tuple[tuple[int, ...], NDArray[np.int64]]
) -> None:
    shape, positions = tensor
    if not codec.accepts(shape):
        assert codec.index_dtype is not None
        assert codec.name.startswith("cols")
        assert matrix_shape(shape)[1] >= 1 << (8 * codec.index_dtype.itemsize)
        return
    index = codec.encode(positions, shape)
    assert index.size == codec.index_entries(spacing(positions), shape)
    expected = positions if codec.name != "dense" else np.arange(math.prod(shape))
    if codec.name != "dense":
        assert index.dtype == codec.index_dtype
    decoded = codec.decode(index, shape, expected.size)
    assert np.array_equal(decoded, expected)
    assert decoded.dtype == np.int64


@pytest.mark.parametrize("codec", SPARSE, ids=lambda codec: codec.name)
@given(data=st.data())
def test_any_index_is_decoded_inside_the_tensor_or_refused(
    codec: Codec, data: st.DataObject
) -> None:
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 300)))
    if not codec.accepts(shape):
        return
    columns = shape[1]
    likely = st.integers(0, min(columns + 1, 255))
    assert codec.index_dtype is not None
    index = data.draw(npst.arrays(codec.index_dtype, st.integers(0, 12), elements=likely))
    count = data.draw(st.integers(0, 40))
    try:
        positions = codec.decode(index, shape, count)
    except MalformedIndexError:
        return
    assert np.all(np.diff(positions) > 0)
    assert positions.size == 0 or (positions[0] >= 0 and positions[-1] < math.prod(shape))
    # What is accepted is what the encoder writes: no two indices mean the same. Rice codes of
    # another parameter than the best are read too.
    written = codec.encode(positions, shape)
    if codec.name == "rice":
        assert positions.size == count
        assert written.size <= index.size
        if written[0] != index[0]:
            return
    assert written.tolist() == index.tolist()


@pytest.mark.parametrize(
    ("name", "index", "reason"),
    [
        ("gap8", [1, 0], "ends in a skip"),
        ("gap8", [0, 0, 1], "position 510 in a tensor of 20"),
        ("gap16", [21], "position 20 in a tensor of 20"),
        ("cols8", [5, 1, 5, 2, 5, 3], "3 rows are marked where 4"),
        ("cols8", [1, 5, 5, 5, 5], "rows are marked"),
        ("cols8", [], "0 rows are marked"),
        ("cols16", [5, 6, 5, 5, 5], "column 6 in rows of 5"),
        ("cols16", [5, 3, 1, 5, 5, 5], "not in order"),
        ("cols8", [5, 3, 3, 5, 5, 5], "not in order"),
        ("gap4", [0x01, 0x00], "ends in a skip"),
        ("gap4", [0x00], "ends in a skip"),
        ("gap4", [0x1F, 0x6], "position 21 in a tensor of 20"),
        ("bitmap", [1, 2], "2 bytes for 20 weights"),
        ("bitmap", [1, 2, 0x10], "position 20 in a tensor of 20"),
        ("rice", [], "does not open with a parameter"),
        ("rice", [25, 0, 0], "does not open with a parameter"),
        ("rice", [2, 0], "do not hold 2 bit planes"),
        ("rice", [1, 0x08, 0x07], "goes on after the last nonzero"),
        ("rice", [0, 0x03], "2 gaps for 3 nonzeros"),
        ("rice", [0, 0x0F], "4 gaps for 3 nonzeros"),
        ("rice", [0, 0x07, 0x00], "goes on after the last gap"),
        ("rice", [3, 7, 7, 7, 0x15], "position 39 in a tensor of 20"),
    ],
)
def test_what_is_wrong_with_an_index_is_said(name: str, index: list[int], reason: str) -> None:
    codec = CODECS[name]  # type: ignore[index]
    with pytest.raises(MalformedIndexError, match=reason):
        codec.decode(np.array(index, codec.index_dtype), (4, 5), 3)


@pytest.mark.parametrize("codec", SPARSE, ids=lambda codec: codec.name)
@settings(max_examples=40)
@given(tensor=tensors(), extra=st.integers(0, 2**31))
def test_one_more_nonzero_never_makes_an_index_shorter(
    codec: Codec, tensor: tuple[tuple[int, ...], NDArray[np.int64]], extra: int
) -> None:
    shape, positions = tensor
    place = extra % math.prod(shape)
    at = int(np.searchsorted(positions, place))
    more = positions if place in positions[at : at + 1] else np.insert(positions, at, place)
    before, after = (codec.index_entries(spacing(p), shape) for p in (positions, more))
    assert after >= before


def test_a_skip_is_cheaper_than_a_stored_zero() -> None:
    positions = np.array([0, 255, 511, 1276])
    index = CODECS["gap8"].encode(positions, (2000,))
    assert index.tolist() == [1, 255, 0, 1, 0, 0, 255]


def test_marks_are_the_row_table() -> None:
    index = CODECS["cols8"].encode(np.array([1, 8]), (3, 2, 2))
    assert index.tolist() == [4, 1, 4, 4, 0]


@pytest.mark.parametrize(
    ("name", "shape", "accepted"),
    [
        ("cols8", (2, 255), True),
        ("cols8", (2, 256), False),
        ("cols16", (2, 65535), True),
        ("cols16", (2, 65536), False),
        ("gap8", (MAX_WEIGHTS,), True),
        ("gap8", (MAX_WEIGHTS + 1,), False),
        ("rice", (MAX_WEIGHTS,), True),
        ("bitmap", (MAX_WEIGHTS + 1,), False),
        ("gap4", (MAX_WEIGHTS,), False),  # the half byte that fills it up leads out of it
        ("gap4", (MAX_WEIGHTS - 15,), True),
        ("cols8", (MAX_WEIGHTS // 2, 1), True),
        ("cols8", (MAX_WEIGHTS, 1), False),  # its decoder needs a column more
        ("dense", (1,), True),
    ],
)
def test_what_a_codec_can_store(name: str, shape: tuple[int, ...], accepted: bool) -> None:
    assert CODECS[name].accepts(shape) is accepted  # type: ignore[index]


# -- layouts that other decoders rely on -----------------------------------------------------------


def test_gap4_puts_two_entries_in_a_byte_the_first_in_its_low_half() -> None:
    codec = CODECS["gap4"]
    index = codec.encode(np.array([0, 15, 31, 33]), (40,))
    # gaps 1, 15, 16 = a skip and 1, 2
    assert index.tolist() == [0xF1, 0x10, 0x02]
    assert codec.decode(index, (40,), 4).tolist() == [0, 15, 31, 33]


def test_a_bitmap_starts_with_the_lowest_bit() -> None:
    index = CODECS["bitmap"].encode(np.array([0, 3, 8, 19]), (4, 5))
    assert index.tolist() == [0b1001, 0b1, 0b1000]


def test_rice_is_a_parameter_bit_planes_and_a_unary_stream() -> None:
    # gap - 1: 0 5 2 3 4 1 6 2 with r = 1: low bits 0 1 0 1 0 1 0 0;
    # quotients 0 2 1 1 2 0 3 1: 1 001 01 01 001 1 0001 01
    positions = np.array([0, 6, 9, 13, 18, 20, 27, 30])
    index = CODECS["rice"].encode(positions, (40,))
    assert index.tolist() == [1, 0b101010, 0b10101001, 0b10001100, 0b10]
    assert CODECS["rice"].encode(np.zeros(0, np.int64), (20,)).tolist() == [0]
    assert CODECS["rice"].decode(np.array([0], np.uint8), (20,), 0).tolist() == []


@given(tensor=tensors())
def test_the_parameter_of_rice_is_the_best_one(
    tensor: tuple[tuple[int, ...], NDArray[np.int64]],
) -> None:
    shape, positions = tensor
    spaced = spacing(positions)
    if not spaced.nonzeros:
        return
    every = [
        1 + r * -(-spaced.nonzeros // 8) + -(-int((spaced.zeros >> r).sum() + positions.size) // 8)
        for r in range(MAX_PARAMETER + 1)
    ]
    index = CODECS["rice"].encode(positions, shape)
    assert index.size == min(every) == every[int(index[0])]


@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95, 0.98, 0.99, 0.995])
@pytest.mark.parametrize(
    ("shape", "excess"),
    [
        ((512, 512, 3, 3), 0.05),
        ((256, 128, 3, 3), 0.05),
        ((100, 1000), 0.05),
        ((64, 64, 3, 3), 0.10),
        ((10, 64, 3, 3), 0.10),
    ],
)
def test_rice_is_close_to_the_entropy_of_the_mask(
    shape: tuple[int, ...], excess: float, sparsity: float
) -> None:
    generator = np.random.default_rng(0)
    weights = math.prod(shape)
    positions = np.sort(generator.permutation(weights)[: round((1 - sparsity) * weights)])
    bound = index_bound(weights, positions.size)
    found = CODECS["rice"].index_entries(spacing(positions), shape)
    # The size of a byte is not known to the bound: the parameter and the ends of three streams.
    assert found <= (1 + excess) * bound + (0 if weights >= 100_000 else 4)


@pytest.mark.parametrize("name", ["gap4", "bitmap", "rice"])
@pytest.mark.parametrize(
    "positions", [[], [0], [299_999], [0, 299_999], list(range(0, 300_000, 15))]
)
def test_single_nonzeros_and_long_gaps(name: CodecName, positions: list[int]) -> None:
    given_positions = np.array(positions, np.int64)
    index = CODECS[name].encode(given_positions, (3, 100_000))
    assert index.size == CODECS[name].index_entries(spacing(given_positions), (3, 100_000))
    decoded = CODECS[name].decode(index, (3, 100_000), len(positions))
    assert decoded.tolist() == positions
