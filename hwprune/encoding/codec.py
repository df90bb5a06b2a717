"""What a codec is: how the positions of the nonzeros become an index, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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
