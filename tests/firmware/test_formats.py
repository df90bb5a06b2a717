"""Rows of weights: what is stored is what was given, and takes what was promised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprune.errors import ArtifactError
from hwprune.firmware import formats
from hwprune.firmware.formats import (
    FORMATS,
    PACKED,
    FormatName,
    columns_of,
    decode,
    encode,
    smallest,
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
def test_rows_come_back_and_their_size_was_known(
    name: FormatName, seed: int, filters: int, columns: int, density: float
) -> None:
    rows = rows_of(seed, filters, columns, density)
    offsets = np.random.default_rng(seed).permutation(60_000)[:columns]
    stored = encode(rows, name, offsets)
    assert stored.size == stored_bytes(rows != 0, name)
    assert stored.most == (rows != 0).sum(1).max()
    assert np.array_equal(decode(stored, offsets), rows)
    if name in PACKED:
        assert smallest(rows).size <= stored.size


@pytest.mark.parametrize("density", [0.002, 0.02, 0.1, 0.4])
def test_the_rice_code_is_the_shortest_there_is(density: float) -> None:
    rows = rows_of(2, 6, 900, density)
    stored = encode(rows, "rice")
    gaps = formats._gaps(rows != 0)
    assert stored.rice > 0 or density == 0.4
    assert len(stored.index) == min(
        len(formats._rice_bytes(gaps, rice)) for rice in range(formats.MAX_RICE + 1)
    )


def test_columns_are_in_the_order_of_memory() -> None:
    weight = np.arange(2 * 3 * 2 * 2, dtype=np.int8).reshape(2, 3, 2, 2)
    first = columns_of(weight)[0].tolist()
    assert first == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]


@pytest.mark.parametrize("name", ["rice", "gap8", "bitmap", "dense"])
def test_a_stream_that_ends_early_is_refused(name: FormatName) -> None:
    stored = encode(rows_of(1, 4, 90, 0.3), name)
    for part in ("values", "index", "counts"):
        data = getattr(stored, part)
        if data:
            with pytest.raises(ArtifactError, match="not what was written"):
                decode(replace(stored, **{part: data[:-1]}))
