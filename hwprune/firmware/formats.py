"""How firmware stores the weights of a layer: its own codecs, which a stream can be read with.

The packed forms of ``encoding`` flatten a tensor, and a microcontroller has no room to unpack one:
here filters follow one another, so that one at a time becomes a list of taps. A filter's columns
are in the order [kernel row][channel][kernel column], in which the input lies in memory.

    rice     gaps between nonzeros as Golomb-Rice codes, the highest bit first, in one bit stream
    gap8     gaps between where nonzeros lie in memory as bytes; 255 skips 255 of it
    bitmap   a bit a column, the lowest first, each filter from a new byte
    dense    every column, zeros included
    words    the taps themselves, four bytes a nonzero, and a word of 0 behind those of each filter

``rice``, ``gap8`` and ``words`` also store how many nonzeros each filter has: bytes that are
summed, where 255 says that another one follows. A filter of ``words`` has one at least, which may
be of weight 0. The decoders in C are in ``runtime/hwp_decode.c``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hwprune.firmware.network import Int8Array

FormatName = Literal["rice", "gap8", "bitmap", "dense", "words"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)
Offsets = NDArray[np.integer[Any]]
# A decoder holds a code's low bits and the rest of a byte in one word.
MAX_RICE = 15
LONG_GAP = LONG_COUNT = 255
TAP_BYTES = 4
# Measured on a Cortex-M4: instructions that decoding takes for a filter, for each of its nonzeros,
# for each of its columns.
DECODING: dict[FormatName, tuple[int, int, int]] = {
    "rice": (165, 44, 0), "gap8": (125, 17, 0), "bitmap": (90, 31, 3), "dense": (90, 17, 10),
    "words": (60, 0, 0),
}  # fmt: skip


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


def encode(rows: Int8Array, offsets: Offsets, name: FormatName, shift: int = 0) -> StoredRows:
    """Store the filters of a layer.

    Args:
        rows: (filters, columns).
        offsets: (columns,) where the input's byte of each column lies.
        name: the format.
        shift: by how many bits weights are longer in a tap, which ``words`` holds.
    """
    alive = rows != 0
    index, counts, rice = b"", b"", 0
    values = rows[alive].tobytes()
    if name == "words":
        alive[~alive.any(1), 0] = True
        taps = np.zeros(int(alive.sum()) + len(rows), np.int64)
        marks = np.cumsum(alive.sum(1) + 1) - 1
        taps[np.delete(np.arange(len(taps)), marks)] = (
            rows[alive].astype(np.int64) << (16 + shift)
        ) + offsets[np.nonzero(alive)[1]]
        values, index = b"", (taps & 0xFFFFFFFF).astype("<u4").tobytes()
    if name in ("rice", "gap8", "words"):
        counts = b"".join(_spilled(int(count), LONG_COUNT) for count in alive.sum(1))
    if name == "dense":
        values = rows.tobytes()
    elif name == "bitmap":
        index = np.packbits(alive, axis=1, bitorder="little").tobytes()
    elif name == "gap8":
        index = b"".join(_spilled(int(gap), LONG_GAP) for gap in _gaps(alive, offsets))
    elif name == "rice":
        gaps = _gaps(alive, np.arange(rows.shape[1]))
        rice = _best_rice(gaps)[0]
        index = _rice_bytes(gaps, rice)
    most = int(alive.sum(1).max(initial=0))
    return StoredRows(name, rows.shape, values, index, counts, rice, most)


def stored_bytes(alive: NDArray[np.bool_], offsets: Offsets, name: FormatName) -> int:
    """Return the exact bytes of weights, of which only the nonzeros' places are known.

    Args:
        alive: (filters, columns).
        offsets: as in ``encode``.
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
        return counts + TAP_BYTES * int((np.maximum(nonzeros, 1) + 1).sum())
    if name == "rice":
        index = _best_rice(_gaps(alive, np.arange(columns)))[1]
    else:
        index = int((_gaps(alive, offsets) // LONG_GAP + 1).sum())
    return counts + int(nonzeros.sum()) + index


def decoding_cost(alive: NDArray[np.bool_], name: FormatName) -> int:
    """Return about how many instructions of a Cortex-M4 it takes to decode a layer once."""
    each, weight, column = DECODING[name]
    return each * len(alive) + weight * int(alive.sum()) + column * alive.size


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer whose format is to be chosen.

    Attributes:
        alive: (filters, columns) where its weights are not zero.
        offsets: as in ``encode``.
        passes: how often it is decoded in a run.
    """

    alive: NDArray[np.bool_]
    offsets: Offsets
    passes: int


def choose(
    layers: Mapping[str, StoredLayer], code: Mapping[FormatName, int], spare_bytes: int = 0
) -> dict[str, FormatName]:
    """Return the format of each layer: the shortest, or a faster one while bytes are spare.

    The bytes go step by step to where each of them saves the most instructions, among the layers
    that are decoded several times: of others decoding is a small part.

    Args:
        layers: by their names.
        code: what each format's decoder takes of flash.
        spare_bytes: of flash, that may be spent on formats longer than the shortest.
    """
    sizes = {
        name: {each: stored_bytes(layer.alive, layer.offsets, each) for each in FORMATS}
        for name, layer in layers.items()
    }
    costs = {
        name: {each: layer.passes * decoding_cost(layer.alive, each) for each in FORMATS}
        for name, layer in layers.items()
    }
    chosen = {name: min(FORMATS, key=lambda each: sizes[name][each]) for name in layers}

    def added(each: FormatName) -> int:
        return 0 if each in chosen.values() else code[each]

    while True:
        steps = [
            ((costs[name][chosen[name]] - costs[name][each]) / longer, longer, name, each)
            for name in layers
            for each in FORMATS
            if layers[name].passes > 1
            and costs[name][each] < costs[name][chosen[name]]
            and (longer := max(1, sizes[name][each] - sizes[name][chosen[name]] + added(each)))
            <= spare_bytes
        ]
        if not steps:
            return chosen
        _, longer, name, each = max(steps)
        chosen[name] = each
        spare_bytes -= longer


def _gaps(alive: NDArray[np.bool_], places: Offsets) -> NDArray[np.int64]:
    """Return what lies between each nonzero and the one before it in the same filter."""
    filters, columns = np.nonzero(alive)
    at = places[columns].astype(np.int64)
    before = np.concatenate([[-1], at[:-1]])
    before[np.concatenate([[True], filters[1:] != filters[:-1]])[: len(filters)]] = -1
    result: NDArray[np.int64] = at - before[: len(at)] - 1
    return result


def _spilled(number: int, long: int) -> bytes:
    """Return bytes whose sum is a number, where each ``long`` says that another one follows."""
    return bytes([long] * (number // long) + [number % long])


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
