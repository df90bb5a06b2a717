"""codecs: each round-trips, is counted without encoding, refuses what no encoder writes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from hwprune.encoding import CODECS, MalformedIndexError
from hwprune.encoding.codecs import MAX_WEIGHTS, Codec, matrix_shape

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
    assert index.size == codec.index_entries(positions, shape)
    expected = positions if codec.name != "dense" else np.arange(math.prod(shape))
    if codec.name != "dense":
        assert index.dtype == codec.index_dtype
    decoded = codec.decode(index, shape)
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
    try:
        positions = codec.decode(index, shape)
    except MalformedIndexError:
        return
    assert np.all(np.diff(positions) > 0)
    assert positions.size == 0 or (positions[0] >= 0 and positions[-1] < math.prod(shape))
    # What is accepted is what the encoder writes: no two indices mean the same.
    assert codec.encode(positions, shape).tolist() == index.tolist()


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
    ],
)
def test_what_is_wrong_with_an_index_is_said(name: str, index: list[int], reason: str) -> None:
    codec = CODECS[name]  # type: ignore[index]
    with pytest.raises(MalformedIndexError, match=reason):
        codec.decode(np.array(index, codec.index_dtype), (4, 5))


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
    assert codec.index_entries(more, shape) >= codec.index_entries(positions, shape)


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
        ("cols8", (MAX_WEIGHTS // 2, 1), True),
        ("cols8", (MAX_WEIGHTS, 1), False),  # its decoder needs a column more
        ("dense", (1,), True),
    ],
)
def test_what_a_codec_can_store(name: str, shape: tuple[int, ...], accepted: bool) -> None:
    assert CODECS[name].accepts(shape) is accepted  # type: ignore[index]
