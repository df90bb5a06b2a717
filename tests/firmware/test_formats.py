"""Rows of weights: what they take is known, and the format of each layer chosen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprune.firmware import formats
from hwprune.firmware.formats import (
    FORMATS,
    FormatName,
    StoredLayer,
    choose,
    columns_of,
    decoding_cost,
    encode,
    stored_bytes,
)


def rows_of(seed: int, filters: int, columns: int, density: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    kept = rng.random((filters, columns)) < density
    signs = rng.choice([-1, 1], (filters, columns))
    return np.where(kept, signs * rng.integers(1, 128, (filters, columns)), 0).astype(np.int8)


@given(
    name=st.sampled_from(FORMATS), seed=st.integers(0, 10_000), filters=st.integers(1, 9),
    columns=st.integers(1, 700), density=st.sampled_from([0, 0.002, 0.05, 0.3, 0.9, 1]),
)  # fmt: skip
def test_the_size_of_rows_is_known_from_where_their_nonzeros_are(
    name: FormatName, seed: int, filters: int, columns: int, density: float
) -> None:
    rows = rows_of(seed, filters, columns, density)
    offsets = np.sort(np.random.default_rng(seed).permutation(60_000)[:columns])
    stored = encode(rows, offsets, name)
    assert stored.size == stored_bytes(rows != 0, offsets, name)
    assert max(stored.most, 1) == max((rows != 0).sum(1).max(), 1)


def layer_of(seed: int, filters: int, columns: int, density: float, passes: int) -> StoredLayer:
    return StoredLayer(
        rows_of(seed, filters, columns, density) != 0, np.arange(columns) * 3, passes
    )


def test_spare_bytes_go_where_each_saves_the_most_instructions() -> None:
    layers = {
        "once": layer_of(1, 16, 144, 0.1, 1),
        "often": layer_of(2, 16, 144, 0.1, 32),
        "dense": layer_of(3, 8, 27, 1, 32),
        "half": layer_of(4, 32, 90, 0.6, 4),
    }

    def size(chosen: dict[str, FormatName]) -> int:
        return sum(stored_bytes(la.alive, la.offsets, chosen[n]) for n, la in layers.items())

    def cost(chosen: dict[str, FormatName]) -> int:
        return sum(la.passes * decoding_cost(la.alive, chosen[n]) for n, la in layers.items())

    code = dict.fromkeys(formats.FORMATS, 200)
    shortest = choose(layers, code)
    assert shortest == {"once": "rice", "often": "rice", "dense": "dense", "half": "bitmap"}
    before = cost(shortest)
    for spare in (300, 1_000, 3_000, 100_000):
        chosen = choose(layers, code, spare)
        assert size(chosen) <= size(shortest) + spare
        assert cost(chosen) < before
        before = cost(chosen)
    assert chosen == {"once": "rice", "often": "words", "dense": "words", "half": "words"}
    assert choose(layers, code, 300)["often"] == "gap8"
    # Where a decoder alone takes more than there is, no layer changes to it.
    assert choose(layers, code | {"gap8": 400}, 300) == shortest


@pytest.mark.parametrize("density", [0.002, 0.02, 0.1, 0.4])
def test_the_rice_code_is_the_shortest_there_is(density: float) -> None:
    rows = rows_of(2, 6, 900, density)
    columns = np.arange(900)
    stored = encode(rows, columns, "rice")
    gaps = formats._gaps(rows != 0, columns)
    assert stored.rice > 0 or density == 0.4
    assert len(stored.index) == min(
        len(formats._rice_bytes(gaps, rice)) for rice in range(formats.MAX_RICE + 1)
    )


def test_columns_are_in_the_order_of_memory() -> None:
    weight = np.arange(2 * 3 * 2 * 2, dtype=np.int8).reshape(2, 3, 2, 2)
    first = columns_of(weight)[0].tolist()
    assert first == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]
