"""Scores of a whole network that are worked out tensor by tensor, when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray


class Streamed(Mapping[str, NDArray[np.float32]]):
    """A mapping from tensors to arrays of which only the one in use exists.

    Args:
        shapes: the shape of each tensor, in order.
        compute: name -> the tensor's array; called anew each time.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        compute: Callable[[str], NDArray[np.float32]],
    ) -> None:
        """Hold the function."""
        self.shapes = dict(shapes)
        self._compute = compute

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def shapes_of(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes, without working out what is streamed."""
    if isinstance(arrays, Streamed):
        return dict(arrays.shapes)
    return {name: array.shape for name, array in arrays.items()}


def size_of(shape: tuple[int, ...]) -> int:
    """Return the number of elements."""
    return math.prod(shape)
