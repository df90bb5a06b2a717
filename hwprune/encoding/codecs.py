"""How the positions of the nonzeros are stored: one small object per codec.

Every codec turns sorted row-major positions of a tensor into one unsigned integer array, the index,
and back. Some entries of an index are *marks* that carry no value (a skip over a long run of zeros,
the start of a row); all others stand for one stored value, in order. Sizes are exact and are
counted without encoding.

- ``gap8`` / ``gap16``: distance to the previous nonzero over the flattened tensor, so that no row
  table is needed; the entry 0 is a mark that advances by the largest distance and stores nothing.
  (Deep Compression, arXiv 1510.00149, stores a zero value instead, which costs a value more.)
- ``cols8`` / ``cols16``: compressed sparse rows; the absolute column of each nonzero, each row
  opened by a mark, the number of columns. The marks are the row table: as many bytes as 1- or
  2-byte counts.
- ``dense``: no index; every element is stored. Cheaper where hardly anything is pruned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hwprune.ir import CodecName

Positions = NDArray[np.int64]


# Standard operators decode positions in int32.
MAX_WEIGHTS = 2**31 - 2


class MalformedIndexError(ValueError):
    """An index that no encoder of ours writes: it leaves its tensor, or does not add up."""


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (rows, columns) of a tensor read as a matrix: its first axis by everything else."""
    return shape[0], math.prod(shape[1:])


class Codec(Protocol):
    """What every codec can do."""

    @property
    def name(self) -> CodecName:
        """Return the codec's name."""

    @property
    def index_dtype(self) -> np.dtype[Any] | None:
        """Return the type of one index entry; None where there is no index."""

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor of this shape can be stored."""

    def index_entries(self, positions: Positions, shape: tuple[int, ...]) -> int:
        """Return the exact length of the index, without encoding."""

    def encode(self, positions: Positions, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the index of these sorted positions."""

    def decode(self, index: NDArray[Any], shape: tuple[int, ...]) -> Positions:
        """Return the positions. Raises MalformedIndexError."""


@dataclass(frozen=True, slots=True)
class GapCodec:
    """Distances over the flattened tensor, with a skip mark."""

    name: CodecName
    bits: int

    @property
    def index_dtype(self) -> np.dtype[Any]:
        """Return the unsigned type of one entry."""
        return np.dtype(f"uint{self.bits}")

    @property
    def reach(self) -> int:
        """Return the largest distance that one entry can express."""
        return (1 << self.bits) - 1

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Return True where positions fit 31 bits (standard operators decode in int32)."""
        return math.prod(shape) <= MAX_WEIGHTS

    def index_entries(self, positions: Positions, shape: tuple[int, ...]) -> int:
        """Return the number of nonzeros plus the number of skips."""
        if positions.size == 0:
            return 0
        skips = (np.diff(positions, prepend=-1) - 1) // self.reach
        return int(positions.size + skips.sum())

    def encode(self, positions: Positions, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return one entry per nonzero, each preceded by its skips."""
        gaps = np.diff(positions, prepend=-1)
        skips = (gaps - 1) // self.reach
        index = np.zeros(int(positions.size + skips.sum()), dtype=self.index_dtype)
        index[np.cumsum(skips + 1) - 1] = gaps - skips * self.reach
        return index

    def decode(self, index: NDArray[Any], shape: tuple[int, ...]) -> Positions:
        """Return the positions; refuses a trailing skip and a step outside the tensor."""
        if index.size and index[-1] == 0:
            raise MalformedIndexError("the index ends in a skip")
        steps = np.where(index == 0, self.reach, index.astype(np.int64))
        positions = np.cumsum(steps)[index != 0] - 1
        weights = math.prod(shape)
        if positions.size and positions[-1] >= weights:
            raise MalformedIndexError(f"position {positions[-1]} in a tensor of {weights} weights")
        decoded: Positions = positions.astype(np.int64)
        return decoded


@dataclass(frozen=True, slots=True)
class ColumnCodec:
    """Compressed sparse rows: absolute columns, each row opened by a mark."""

    name: CodecName
    bits: int

    @property
    def index_dtype(self) -> np.dtype[Any]:
        """Return the unsigned type of one entry."""
        return np.dtype(f"uint{self.bits}")

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Return True where the mark, the number of columns, fits one entry."""
        # The decoder's rows are one column wider, to hold the marks.
        rows, columns = matrix_shape(shape)
        return columns < 1 << self.bits and rows * (columns + 1) <= MAX_WEIGHTS

    def index_entries(self, positions: Positions, shape: tuple[int, ...]) -> int:
        """Return the number of nonzeros plus the number of rows."""
        return int(positions.size) + shape[0]

    def encode(self, positions: Positions, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the rows one after another: the mark, then the columns."""
        rows, columns = matrix_shape(shape)
        index = np.full(positions.size + rows, columns, dtype=self.index_dtype)
        row, column = np.divmod(positions, columns)
        index[np.arange(positions.size) + row + 1] = column
        return index

    def decode(self, index: NDArray[Any], shape: tuple[int, ...]) -> Positions:
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
class DenseCodec:
    """No index: every element is stored."""

    name: CodecName = "dense"

    @property
    def index_dtype(self) -> None:
        """Return None: there is no index."""
        return None

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Return True: any shape can be stored."""
        return True

    def index_entries(self, positions: Positions, shape: tuple[int, ...]) -> int:
        """Return 0."""
        return 0

    def encode(self, positions: Positions, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return an empty index."""
        return np.zeros(0, dtype=np.uint8)

    def decode(self, index: NDArray[Any], shape: tuple[int, ...]) -> Positions:
        """Return every position."""
        return np.arange(math.prod(shape), dtype=np.int64)


CODECS: Mapping[CodecName, Codec] = {
    "gap8": GapCodec("gap8", 8),
    "gap16": GapCodec("gap16", 16),
    "cols8": ColumnCodec("cols8", 8),
    "cols16": ColumnCodec("cols16", 16),
    "dense": DenseCodec(),
}
