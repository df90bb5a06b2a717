"""How the positions of the nonzeros are stored: one small object per codec.

Every codec turns sorted row-major positions of a tensor into one unsigned integer array, the index,
and back. In gaps and columns some entries of an index are *marks* that carry no value (a
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
- ``bitmap``: one bit for each weight, the least significant first; nothing beats it by much where
  half of the weights are kept.
- ``rice``: Golomb-Rice codes of the gaps over the flattened tensor, in two streams. The first byte
  is the parameter r; then come r bit planes of the low bits of (gap - 1), each padded to a byte;
  then, for each nonzero, (gap - 1) >> r zeros and a one. Apart like this, standard operators can
  decode it: no bit's place depends on one that was decoded before. (S. W. Golomb, "Run-length
  encodings", 1966; R. F. Rice, JPL publication 79-22, 1979.)
- ``dense``: no index; every element is stored. Cheaper where hardly anything is pruned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.ir import CodecName

Positions = NDArray[np.int64]
# Standard operators decode positions in int32.
MAX_WEIGHTS = 2**31 - 2
# A gap has at most 31 bits; beyond this, a longer unary part costs next to nothing.
MAX_PARAMETER = 24
_BYTE, _WORD = np.dtype(np.uint8), np.dtype(np.uint16)


class MalformedIndexError(ValueError):
    """An index that no encoder of ours writes: it leaves its tensor, or does not add up."""


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (rows, columns) of a tensor read as a matrix: its first axis by everything else."""
    return shape[0], math.prod(shape[1:])


@dataclass(frozen=True, slots=True)
class Spacing:
    """How far apart the nonzeros of a tensor lie: all that the size of an index depends on.

    Attributes:
        zeros: (k,) the zeros before each nonzero, back to the previous one.
        largest: the longest run of them; 0 where there is no nonzero.
        total: their sum.
    """

    zeros: NDArray[np.int64]
    largest: int
    total: int

    @property
    def nonzeros(self) -> int:
        """Return how many nonzeros there are."""
        return int(self.zeros.size)


def spacing(positions: Positions) -> Spacing:
    """Return the spacing of sorted positions."""
    if positions.size == 0:
        return Spacing(np.zeros(0, np.int64), 0, 0)
    zeros = np.empty_like(positions)
    zeros[0] = positions[0]
    np.subtract(positions[1:], positions[:-1], out=zeros[1:])
    zeros[1:] -= 1
    return Spacing(zeros, int(zeros.max()), int(positions[-1]) + 1 - positions.size)


@dataclass(frozen=True, slots=True)
class Codec:
    """What every codec says and can do.

    Attributes:
        name: the codec's name.
        index_dtype: the unsigned type of one element of the index; None where there is no index.
        least_bits: what a nonzero adds to the index at least, on average over a whole index.
    """

    name: CodecName
    index_dtype: np.dtype[Any] | None
    least_bits: int

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor of this shape can be stored: its positions fit 31 bits."""
        return math.prod(shape) <= MAX_WEIGHTS

    def index_entries(self, spaced: Spacing, shape: tuple[int, ...]) -> int:
        """Return the exact length of the index, without encoding."""
        raise NotImplementedError

    def encode(self, positions: Positions, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the index of these sorted positions."""
        raise NotImplementedError

    def decode(self, index: NDArray[Any], shape: tuple[int, ...], count: int) -> Positions:
        """Return the positions of ``count`` stored values.

        Raises:
            MalformedIndexError: the index leaves the tensor, does not add up, or is not the one
                that these positions have.
        """
        raise NotImplementedError


def check_inside(positions: Positions, shape: tuple[int, ...]) -> None:
    """Refuse increasing positions of which the last lies outside the tensor."""
    weights = math.prod(shape)
    if positions.size and positions[-1] >= weights:
        raise MalformedIndexError(f"position {positions[-1]} in a tensor of {weights} weights")


def to_nibbles(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    """Return numbers 0..15 two to a byte; the last half byte of an odd number of them is 0."""
    padded = np.zeros(numbers.size + numbers.size % 2, np.uint8)
    padded[: numbers.size] = numbers.reshape(-1)
    packed: NDArray[np.uint8] = padded[::2] | padded[1::2] << np.uint8(4)
    return packed


def from_nibbles(packed: NDArray[Any], count: int) -> NDArray[np.uint8]:
    """Return the first ``count`` numbers."""
    numbers = np.empty(2 * packed.size, np.uint8)
    numbers[::2] = packed & np.uint8(15)
    numbers[1::2] = packed >> np.uint8(4)
    return numbers[:count]


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


def _bytes(bits: int) -> int:
    return -(-bits // 8)


@dataclass(frozen=True, slots=True)
class BitmapCodec(Codec):
    """One bit for each weight."""

    def index_entries(self, spaced: Spacing, shape: tuple[int, ...]) -> int:
        """Return an eighth of the number of weights."""
        return _bytes(math.prod(shape))

    def encode(self, positions: Positions, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return bit j of byte b for weight 8b + j."""
        alive = np.zeros(math.prod(shape), np.bool_)
        alive[positions] = True
        return np.packbits(alive, bitorder="little")

    def decode(self, index: NDArray[Any], shape: tuple[int, ...], count: int) -> Positions:
        """Return the positions; refuses another length, and bits beyond the last weight."""
        weights = math.prod(shape)
        if index.size != _bytes(weights):
            raise MalformedIndexError(f"{index.size} bytes for {weights} weights")
        positions = np.flatnonzero(np.unpackbits(index, bitorder="little"))
        check_inside(positions, shape)
        return positions


@dataclass(frozen=True, slots=True)
class RiceCodec(Codec):
    """Golomb-Rice gaps: bit planes of the remainders, then the quotients in unary."""

    def index_entries(self, spaced: Spacing, shape: tuple[int, ...]) -> int:
        """Return the bytes with the best parameter.

        For each parameter they never fall when a nonzero joins (a gap split in two loses at most
        one from its quotient and gains an end), so their smallest never does either.
        """
        return self._best(spaced)[1]

    def parameter(self, spaced: Spacing) -> int:
        """Return the parameter that gives the shortest index."""
        return self._best(spaced)[0]

    def _best(self, spaced: Spacing) -> tuple[int, int]:
        """Return the parameter that gives the shortest index, and the index's bytes.

        Bits are convex in the parameter: each further one saves no more than the one before. So
        from any parameter, downhill leads to the best one.
        """
        count = spaced.nonzeros
        if not count:
            return 0, 1
        planes = 8 * _bytes(count)

        def bits(parameter: int) -> int:
            quotients = int((spaced.zeros >> parameter).sum()) if parameter else spaced.total
            return parameter * planes + count + quotients

        mean = spaced.total / count
        best = min(MAX_PARAMETER, max(0, math.frexp((mean + 1) * math.log(2))[1] - 1))
        least = bits(best)
        for step in (-1, 1):
            while 0 <= best + step <= MAX_PARAMETER and (found := bits(best + step)) < least:
                best, least = best + step, found
        return best, 1 + _bytes(least)

    def encode(self, positions: Positions, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the parameter, the bit planes and the unary stream."""
        spaced = spacing(positions)
        parameter, size = self._best(spaced)
        index = np.zeros(size, _BYTE)
        if not spaced.nonzeros:
            return index
        index[0] = parameter
        width = _bytes(spaced.nonzeros)
        for plane in range(parameter):
            start = 1 + plane * width
            bits = (spaced.zeros >> plane & 1).astype(np.bool_)
            index[start : start + width] = np.packbits(bits, bitorder="little")
        ends = np.cumsum((spaced.zeros >> parameter) + 1) - 1
        stream = np.zeros(int(ends[-1]) + 1, np.bool_)
        stream[ends] = True
        index[1 + parameter * width :] = np.packbits(stream, bitorder="little")
        return index

    def decode(self, index: NDArray[Any], shape: tuple[int, ...], count: int) -> Positions:
        """Return the positions; refuses lengths that do not add up and bits that mean nothing.

        Any parameter is read, not only the best one.
        """
        parameter = int(index[0]) if index.size else -1
        if not 0 <= parameter <= (MAX_PARAMETER if count else 0):
            raise MalformedIndexError("it does not open with a parameter")
        width = _bytes(count)
        start = 1 + parameter * width
        if index.size < start:
            raise MalformedIndexError(f"{index.size} bytes do not hold {parameter} bit planes")
        zeros = np.zeros(count, np.int64)
        for plane in range(parameter):
            part = index[1 + plane * width : 1 + (plane + 1) * width]
            bits = np.unpackbits(part, bitorder="little")
            if bits[count:].any():
                raise MalformedIndexError("a bit plane goes on after the last nonzero")
            zeros |= bits[:count].astype(np.int64) << plane
        ends = np.flatnonzero(np.unpackbits(index[start:], bitorder="little"))
        if ends.size != count:
            raise MalformedIndexError(f"{ends.size} gaps for {count} nonzeros")
        if index.size - start != (_bytes(int(ends[-1]) + 1) if count else 0):
            raise MalformedIndexError("it goes on after the last gap")
        zeros += (np.diff(ends, prepend=-1) - 1) << parameter
        positions: Positions = np.cumsum(zeros + 1) - 1
        check_inside(positions, shape)
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
