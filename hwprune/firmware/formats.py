"""How firmware stores the weights of a layer: its own codecs, which a stream can be read with.

The packed forms of ``encoding`` flatten a tensor, and a microcontroller has no room to unpack one:
here filters follow one another, so that one at a time becomes a list of taps. A filter's columns
are in the order [kernel row][channel][kernel column], in which the input lies in memory.

    rice     gaps between nonzeros as Golomb-Rice codes, the highest bit first, in one bit stream
    gap8     gaps as bytes; 255 skips 255 columns
    bitmap   a bit a column, the lowest first, each filter from a new byte
    dense    every column, zeros included
    words    the taps themselves, four bytes a nonzero: nothing is decoded

``rice``, ``gap8`` and ``words`` also store how many nonzeros each filter has: bytes that are
summed, where 255 says that another one follows. The decoders in C are in ``runtime/hwp_decode.c``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import ArtifactError
from hwprune.firmware.network import Int8Array

FormatName = Literal["rice", "gap8", "bitmap", "dense", "words"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)
# What `smallest` chooses from: taps in flash are never the shortest.
PACKED: tuple[FormatName, ...] = FORMATS[:-1]
# A decoder holds a code's low bits and the rest of a byte in one word.
MAX_RICE = 15
LONG_GAP = LONG_COUNT = 255
TAP_BYTES = 4


@dataclass(frozen=True, slots=True)
class StoredRows:
    """The weights of a layer as flash holds them.

    Attributes:
        format: one of ``FORMATS``.
        shape: (filters, columns).
        values: the int8 values; empty for ``words``.
        index: where they lie; empty for ``dense``.
        counts: how many nonzeros each filter has; empty for ``bitmap`` and ``dense``.
        rice: the parameter of the Rice code, else 0.
        most: the nonzeros of the fullest filter.
    """

    format: FormatName
    shape: tuple[int, int]
    values: bytes
    index: bytes
    counts: bytes
    rice: int
    most: int

    @property
    def size(self) -> int:
        """Return the bytes of all three arrays."""
        return len(self.values) + len(self.index) + len(self.counts)


def columns_of(weight: Int8Array) -> Int8Array:
    """Return (out, kernel rows * channels * kernel columns) of (out, channels, rows, columns)."""
    return np.ascontiguousarray(weight.transpose(0, 2, 1, 3).reshape(len(weight), -1))


def encode(
    rows: Int8Array, name: FormatName, offsets: NDArray[np.integer[Any]] | None = None
) -> StoredRows:
    """Store the filters of a layer.

    Args:
        rows: (filters, columns).
        name: the format.
        offsets: (columns,) where the input's byte of each column lies, for ``words`` alone.
    """
    alive = rows != 0
    most = int(alive.sum(1).max(initial=0))
    index, counts, rice = b"", b"", 0
    values = rows[alive].tobytes()
    if name in ("rice", "gap8", "words"):
        counts = b"".join(_spilled(int(count), LONG_COUNT) for count in alive.sum(1))
    gaps = _gaps(alive)
    if name == "dense":
        values = rows.tobytes()
    elif name == "bitmap":
        index = np.packbits(alive, axis=1, bitorder="little").tobytes()
    elif name == "gap8":
        index = b"".join(_spilled(int(gap), LONG_GAP) for gap in gaps)
    elif name == "rice":
        rice = _best_rice(gaps)[0]
        index = _rice_bytes(gaps, rice)
    else:
        assert offsets is not None, "taps hold offsets"
        taps = (rows[alive].astype(np.int64) << 16) | offsets[np.nonzero(alive)[1]]
        values, index = b"", (taps & 0xFFFFFFFF).astype("<u4").tobytes()
    return StoredRows(name, (len(rows), rows.shape[1]), values, index, counts, rice, most)


def smallest(rows: Int8Array) -> StoredRows:
    """Store the filters of a layer in the fewest bytes; the earlier of two equal formats."""
    return encode(rows, min(PACKED, key=lambda name: stored_bytes(rows != 0, name)))


def stored_bytes(alive: NDArray[np.bool_], name: FormatName) -> int:
    """Return the exact bytes of weights, of which only the nonzeros' places are known.

    Args:
        alive: (filters, columns).
        name: the format.
    """
    filters, columns = len(alive), int(alive.shape[1])
    nonzeros = alive.sum(1)
    if name == "dense":
        return filters * columns
    if name == "bitmap":
        return int(nonzeros.sum()) + filters * -(-columns // 8)
    counts = int((nonzeros // LONG_COUNT + 1).sum())
    if name == "words":
        return counts + TAP_BYTES * int(nonzeros.sum())
    gaps = _gaps(alive)
    index = _best_rice(gaps)[1] if name == "rice" else int((gaps // LONG_GAP + 1).sum())
    return counts + int(nonzeros.sum()) + index


def decode(stored: StoredRows, offsets: NDArray[np.integer[Any]] | None = None) -> Int8Array:
    """Return the filters again: (filters, columns).

    Args:
        stored: what ``encode`` made.
        offsets: as there.

    Raises:
        ArtifactError: the bytes are not what ``encode`` writes.
    """
    filters, columns = stored.shape
    rows = np.zeros((filters, columns), np.int8)
    if stored.format == "dense":
        alive = np.ones((filters, columns), np.bool_)
    elif stored.format == "bitmap":
        packed = np.frombuffer(stored.index, np.uint8)
        _expect(packed.size == filters * -(-columns // 8), stored)
        bits = np.unpackbits(packed.reshape(filters, -1), axis=1, bitorder="little")
        _expect(not bits[:, columns:].any(), stored)
        alive = bits[:, :columns].astype(np.bool_)
    elif stored.format == "words":
        assert offsets is not None, "taps hold offsets"
        taps = np.frombuffer(stored.index, "<u4")
        places = {int(offset): column for column, offset in enumerate(offsets)}
        counts = _joined(stored, stored.counts, LONG_COUNT)
        _expect(len(counts) == filters and sum(counts) == taps.size, stored)
        for row, tap in zip(np.repeat(np.arange(filters), counts), taps.tolist(), strict=True):
            _expect(tap & 0xFFFF in places, stored)
            rows[row, places[tap & 0xFFFF]] = np.int8((tap >> 16 & 0xFF ^ 0x80) - 0x80)
        return rows
    else:
        counts = _joined(stored, stored.counts, LONG_COUNT)
        _expect(len(counts) == filters, stored)
        is_rice = stored.format == "rice"
        gaps = (
            _rice_gaps(stored, sum(counts)) if is_rice else _joined(stored, stored.index, LONG_GAP)
        )
        _expect(len(gaps) == sum(counts), stored)
        alive = np.zeros((filters, columns), np.bool_)
        start = 0
        for at, count in enumerate(counts):
            places_of = np.cumsum(np.asarray(gaps[start : start + count], np.int64) + 1) - 1
            _expect(not count or int(places_of[-1]) < columns, stored)
            alive[at, places_of] = True
            start += count
    _expect(int(alive.sum()) == len(stored.values), stored)
    rows[alive] = np.frombuffer(stored.values, np.int8)
    return rows


def _expect(met: bool, stored: StoredRows) -> None:
    if not met:
        raise ArtifactError(
            f"the {stored.format} weights of a layer of {stored.shape} are not what was written"
        )


def _gaps(alive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the zeros before each nonzero, counted from the one before it in the same filter."""
    filters, columns = np.nonzero(alive)
    before = np.concatenate([[-1], columns[:-1]])
    before[np.concatenate([[True], filters[1:] != filters[:-1]])[: len(filters)]] = -1
    result: NDArray[np.int64] = columns - before[: len(columns)] - 1
    return result


def _spilled(number: int, long: int) -> bytes:
    """Return bytes whose sum is a number, where each ``long`` says that another one follows."""
    return bytes([long] * (number // long) + [number % long])


def _joined(stored: StoredRows, stream: bytes, long: int) -> list[int]:
    """Return the numbers of a stream of ``_spilled``."""
    numbers, number = [], 0
    for byte in stream:
        number += byte
        if byte < long:
            numbers.append(number)
            number = 0
    _expect(number == 0, stored)
    return numbers


def _best_rice(gaps: NDArray[np.int64]) -> tuple[int, int]:
    """Return the parameter of the shortest stream, and its bytes."""
    bits = [int((gaps >> rice).sum()) + len(gaps) * (1 + rice) for rice in range(MAX_RICE + 1)]
    best = int(np.argmin(bits))
    return best, -(-bits[best] // 8)


def _rice_bytes(gaps: NDArray[np.int64], rice: int) -> bytes:
    """Return each gap as its quotient in zeros, a one, and the low bits."""
    quotients = gaps >> rice
    ends = np.cumsum(quotients + 1 + rice)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    bits[ends - 1 - rice] = 1
    for place in range(rice):
        bits[ends - 1 - place] = gaps >> place & 1
    return np.packbits(bits).tobytes()


def _rice_gaps(stored: StoredRows, count: int) -> list[int]:
    bits = np.unpackbits(np.frombuffer(stored.index, np.uint8)).tolist()
    gaps, at, rice = [], 0, stored.rice
    for _ in range(count):
        end = bits.index(1, at) if 1 in bits[at:] else len(bits)
        _expect(end + rice < len(bits), stored)
        low = sum(bit << rice - 1 - i for i, bit in enumerate(bits[end + 1 : end + 1 + rice]))
        gaps.append((end - at << rice) + low)
        at = end + 1 + rice
    _expect(len(bits) - at < 8, stored)
    return gaps
