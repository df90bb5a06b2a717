"""What a further nonzero costs is what the packed arrays grow by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hwprune.encoding import CODECS, VALUE_BITS, marginal_bytes, pack, spacing
from hwprune.ir import VALUE_TYPES, CodecName, ValueType

SHAPES = [(3, 40), (2, 7, 5, 5), (1, 700), (4, 3)]


def bits_of(alive: NDArray[np.bool_], codec: CodecName, kind: ValueType) -> int:
    """Return the bits of index and values before they are rounded up to bytes."""
    positions, how = np.flatnonzero(alive), CODECS[codec]
    spaced = spacing(positions)
    count = alive.size if codec == "dense" else positions.size
    values = count * VALUE_BITS[kind]
    if codec == "dense":
        return values
    if codec == "gap4":
        return values + 4 * (positions.size + int((spaced.zeros // 15).sum()))
    if codec == "rice":
        parameter = how.parameter(spaced)  # type: ignore[attr-defined]
        quotients = int((spaced.zeros >> parameter).sum())
        return values + positions.size * (parameter + 1) + quotients
    width = how.index_dtype.itemsize  # type: ignore[union-attr]
    return values + 8 * width * how.index_entries(spaced, alive.shape)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    codec=st.sampled_from(sorted(CODECS)),
    kind=st.sampled_from(["fp32", "int8", "int4"]),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_every_dead_position_costs_what_it_adds(
    shape: tuple[int, ...], codec: CodecName, kind: ValueType, density: float, seed: int
) -> None:
    if not CODECS[codec].accepts(shape):
        return
    generator = np.random.default_rng(seed)
    alive = generator.random(shape) < density
    added = marginal_bytes(np.flatnonzero(alive), shape, codec, kind)
    assert added.dtype == np.float32
    assert added.shape == shape
    assert not added[alive].any()
    before = bits_of(alive, codec, kind)
    parameter = CODECS[codec].parameter if codec == "rice" else None  # type: ignore[attr-defined]
    dead = np.flatnonzero(~alive)
    for place in generator.permutation(dead)[:25]:
        more = alive.copy()
        more.reshape(-1)[place] = True
        if parameter and parameter(spacing(np.flatnonzero(more))) != parameter(
            spacing(np.flatnonzero(alive))
        ):
            continue  # another parameter moves every code
        grown = bits_of(more, codec, kind) - before
        if codec == "rice" and not alive.any():
            continue  # the first nonzero chooses the parameter
        assert 8 * added.reshape(-1)[place] == grown


@pytest.mark.parametrize("kind", VALUE_TYPES)
@pytest.mark.parametrize("codec", ["gap8", "gap16", "cols8", "bitmap"])
def test_real_arrays_grow_by_as_much(codec: CodecName, kind: ValueType) -> None:
    """Codecs of whole bytes, on what ``pack`` writes; a gap of 600 zeros has marks to save."""
    generator = np.random.default_rng(3)
    weight = generator.standard_normal((4, 200)).astype(np.float32)
    alive = generator.random(weight.shape) < 0.1
    alive[1:] = False
    alive[3, 190:] = True

    def size(mask: NDArray[np.bool_]) -> int:
        packed = pack("w", weight, mask, codec=codec, value_type=kind, channel_axis=0)
        return sum(packed.arrays[r].nbytes for r in ("values", "index") if r in packed.arrays)

    added = marginal_bytes(np.flatnonzero(alive), weight.shape, codec, kind).reshape(-1)
    before = size(alive)
    for place in generator.permutation(np.flatnonzero(~alive))[:40]:
        mask = alive.copy()
        mask.reshape(-1)[place] = True
        # Two values of four bits share a byte.
        assert 0 <= size(mask) - before - added[place] + (0.5 if VALUE_BITS[kind] == 4 else 0) < 1.1
        if VALUE_BITS[kind] >= 8:
            assert size(mask) - before == added[place]


def test_a_mark_that_is_there_anyway_is_free_and_a_far_place_is_dear() -> None:
    # Zeros 0..29, a nonzero at 30, then a tail.
    added = marginal_bytes(np.array([30]), (100,), "gap4", "int8")
    assert added[14] == 1.0  # takes the place of the mark at distance 15
    assert added[0] == 1.0 + 0.5 * (1 + 29 // 15 - 30 // 15)
    assert added[31] == 1.5
    assert added[31 + 15] == 2.0
    assert added[99] == 1.5 + 0.5 * (68 // 15)
