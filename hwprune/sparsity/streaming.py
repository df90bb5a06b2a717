"""Scores of a whole network that are worked out tensor by tensor, when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from hwprune.sparsity import topk

Parts = Iterator[tuple[int, NDArray[np.float32]]]


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
        self.parts: Callable[[str], Parts] = lambda name: topk.chunks(compute(name))
        self._compute = compute

    @classmethod
    def of_parts(
        cls, shapes: Mapping[str, tuple[int, ...]], parts: Callable[[str], Parts]
    ) -> Streamed:
        """Return one that is worked out in flat parts, so that not even one array need exist.

        Args:
            shapes: the shape of each tensor, in order.
            parts: name -> (offset, flat part), from the first to the last element.
        """

        def joined(name: str) -> NDArray[np.float32]:
            array = np.empty(size_of(shapes[name]), np.float32)
            for start, part in parts(name):
                array[start : start + part.size] = part
            return array.reshape(shapes[name])

        made = cls(shapes, joined)
        made.parts = parts
        return made

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def parts_of(arrays: Mapping[str, NDArray[np.float32]], name: str) -> Parts:
    """Yield (offset, flat float32 part) over a tensor in row-major order."""
    if isinstance(arrays, Streamed):
        return arrays.parts(name)
    return topk.chunks(arrays[name])


def shapes_of(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes, without working out what is streamed."""
    if isinstance(arrays, Streamed):
        return dict(arrays.shapes)
    return {name: array.shape for name, array in arrays.items()}


def size_of(shape: tuple[int, ...]) -> int:
    """Return the number of elements."""
    return math.prod(shape)
