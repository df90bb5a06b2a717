"""Codecs that spend bits and not bytes on a position: a bitmap, and Golomb-Rice gaps.

All bits are packed least significant first.

- ``bitmap``: one bit for each weight; nothing beats it by much where half of the weights live.
- ``rice``: Golomb-Rice codes of the gaps over the flattened tensor, in two streams. The first byte
  is the parameter r; then come r bit planes of the low bits of (gap - 1), each padded to a byte;
  then, for each nonzero, (gap - 1) >> r zeros and a one. Apart like this, standard operators can
  decode it: no bit's place depends on one that was decoded before. (S. W. Golomb, "Run-length
  encodings", 1966; R. F. Rice, JPL publication 79-22, 1979.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.encoding.codec import (
    Codec,
    MalformedIndexError,
    Positions,
    Spacing,
    check_inside,
    spacing,
)

_BYTE = np.dtype(np.uint8)
# A gap has at most 31 bits; beyond this, a longer unary part costs next to nothing.
MAX_PARAMETER = 24


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
