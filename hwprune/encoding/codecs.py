"""How the positions of the nonzeros are stored: one small object per codec.

Every codec turns sorted row-major positions of a tensor into one unsigned integer array, the index,
and back. In the codecs of this file some entries of an index are *marks* that carry no value (a
skip over a long run of zeros, the start of a row); all others stand for one stored value, in order.
Sizes are exact and are counted without encoding, and a further nonzero never makes them smaller.

- ``gap4`` / ``gap8`` / ``gap16``: distance to the previous nonzero over the flattened tensor, so
  that no row table is needed; the entry 0 is a mark that advances by the largest distance and
  stores nothing. (Deep Compression, arXiv 1510.00149, stores a zero value instead, which costs a
  value more.) Two entries of four bits share a byte, the first in its low half; where their number
  is odd, the last half byte is 0.
- ``cols8`` / ``cols16``: compressed sparse rows; the absolute column of each nonzero, each row
  opened by a mark, the number of columns. The marks are the row table: as many bytes as 1- or
  2-byte counts.
- ``bitmap`` and ``rice``: see ``bits.py``.
- ``dense``: no index; every element is stored. Cheaper where hardly anything is pruned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.encoding.bits import BitmapCodec, RiceCodec
from hwprune.encoding.codec import (
    MAX_WEIGHTS,
    Codec,
    MalformedIndexError,
    Positions,
    Spacing,
    check_inside,
    matrix_shape,
    spacing,
)
from hwprune.encoding.nibbles import from_nibbles, to_nibbles
from hwprune.ir import CodecName


@dataclass(frozen=True, slots=True)
class GapCodec(Codec):
    """Distances over the flattened tensor, with a skip mark; two entries of four bits share one."""

    @property
    def reach(self) -> int:
        """Return the largest distance that one entry can express."""
        return (1 << self.least_bits) - 1

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Return True where positions fit 31 bits (standard operators decode in int32)."""
        # The half byte that fills up the last one of gap4 may lead that far out of the tensor.
        return math.prod(shape) <= MAX_WEIGHTS - (self.reach if self.least_bits == 4 else 0)

    def index_entries(self, spaced: Spacing, shape: tuple[int, ...]) -> int:
        """Return the number of nonzeros plus the number of skips; half of it for four bits."""
        entries = spaced.nonzeros
        if spaced.largest >= self.reach:
            entries += int((spaced.zeros // self.reach).sum())
        return -(-entries // 2) if self.least_bits == 4 else entries

    def encode(self, positions: Positions, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return one entry per nonzero, each preceded by its skips."""
        zeros = spacing(positions).zeros
        skips = zeros // self.reach
        entries = np.zeros(int(positions.size + skips.sum()), dtype=self.index_dtype)
        entries[np.cumsum(skips + 1) - 1] = zeros + 1 - skips * self.reach
        return to_nibbles(entries) if self.least_bits == 4 else entries

    def decode(self, index: NDArray[Any], shape: tuple[int, ...], count: int) -> Positions:
        """Return the positions; refuses a trailing skip and a step outside the tensor."""
        entries = index
        if self.least_bits == 4:
            entries = from_nibbles(index, 2 * index.size)
            if entries.size and entries[-1] == 0:
                entries = entries[:-1]
        if entries.size and entries[-1] == 0:
            raise MalformedIndexError("the index ends in a skip")
        steps = np.where(entries == 0, self.reach, entries.astype(np.int64))
        positions: Positions = np.cumsum(steps)[entries != 0] - 1
        check_inside(positions, shape)
        return positions.astype(np.int64)


@dataclass(frozen=True, slots=True)
class ColumnCodec(Codec):
    """Compressed sparse rows: absolute columns, each row opened by a mark."""

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Return True where the mark, the number of columns, fits one entry."""
        # The decoder's rows are one column wider, to hold the marks.
        rows, columns = matrix_shape(shape)
        return columns < 1 << self.least_bits and rows * (columns + 1) <= MAX_WEIGHTS

    def index_entries(self, spaced: Spacing, shape: tuple[int, ...]) -> int:
        """Return the number of nonzeros plus the number of rows."""
        return spaced.nonzeros + shape[0]

    def encode(self, positions: Positions, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the rows one after another: the mark, then the columns."""
        rows, columns = matrix_shape(shape)
        index = np.full(positions.size + rows, columns, dtype=self.index_dtype)
        row, column = np.divmod(positions, columns)
        index[np.arange(positions.size) + row + 1] = column
        return index

    def decode(self, index: NDArray[Any], shape: tuple[int, ...], count: int) -> Positions:
        """Return the positions; refuses a wrong number of rows, columns out of order or range."""
        rows, columns = matrix_shape(shape)
        entries = index.astype(np.int64)
        mark = entries == columns
        if int(mark.sum()) != rows or (entries.size and not mark[0]):
            raise MalformedIndexError(
                f"{int(mark.sum())} rows are marked where {rows} were expected"
            )
        row = np.cumsum(mark) - 1
        if entries.size and int(entries.max()) > columns:
            raise MalformedIndexError(f"column {int(entries.max())} in rows of {columns}")
        positions: Positions = (row * columns + entries)[~mark]
        if np.any(np.diff(positions) <= 0):
            raise MalformedIndexError("the columns of a row are not in order")
        return positions


@dataclass(frozen=True, slots=True)
class DenseCodec(Codec):
    """No index: every element is stored."""

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Return True: any shape can be stored."""
        return True

    def index_entries(self, spaced: Spacing, shape: tuple[int, ...]) -> int:
        """Return 0."""
        return 0

    def encode(self, positions: Positions, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return an empty index."""
        return np.zeros(0, dtype=np.uint8)

    def decode(self, index: NDArray[Any], shape: tuple[int, ...], count: int) -> Positions:
        """Return every position."""
        return np.arange(math.prod(shape), dtype=np.int64)


_BYTE, _WORD = np.dtype(np.uint8), np.dtype(np.uint16)
CODECS: Mapping[CodecName, Codec] = {
    codec.name: codec
    for codec in (
        GapCodec("gap4", _BYTE, 4),
        GapCodec("gap8", _BYTE, 8),
        GapCodec("gap16", _WORD, 16),
        ColumnCodec("cols8", _BYTE, 8),
        ColumnCodec("cols16", _WORD, 16),
        BitmapCodec("bitmap", _BYTE, 1),  # a bitmap of a full tensor
        RiceCodec("rice", _BYTE, 1),  # the end of a quotient
        DenseCodec("dense", None, 0),
    )
}
