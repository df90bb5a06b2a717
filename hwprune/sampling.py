"""Samples of a split: which ones to look at, and a split that is cut down to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.ir import Split
from hwprune.trees import tree_map


def evenly_spread(total: int, count: int) -> NDArray[np.int64]:
    """Return ``count`` of the numbers below ``total``, the first and the last among them.

    Spread over a whole split, because some data sets are sorted by class. Where ``count`` is more
    than ``total``, some come twice.
    """
    return np.linspace(0, max(0, total - 1), count).astype(np.int64)


def sample_shapes(split: Split) -> list[tuple[int, ...]]:
    """Return the shape of each input of a split, without the batch."""
    return [array.shape[1:] for array in split.batch(np.zeros(1, dtype=np.int64))]


@dataclass(frozen=True, slots=True)
class Sampled:
    """A split cut down to the samples at ``chosen``; as bytes where the whole has them."""

    whole: Split
    chosen: NDArray[np.int64]

    @property
    def labels(self) -> Any:
        """Return their labels."""
        whole = self.whole.labels
        return None if whole is None else tree_map(lambda part: part[self.chosen], whole)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.chosen)

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return their inputs."""
        return self.whole.batch(self.chosen[indices])

    def stored(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return their images as bytes; only where ``affine`` says what these mean."""
        whole: Any = self.whole
        found: NDArray[np.uint8] = whole.stored(self.chosen[indices])
        return found

    def affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return (factor, shift) per channel of the whole; None where it has no bytes."""
        of_whole: Any = getattr(self.whole, "affine", None)
        found: tuple[NDArray[np.float32], NDArray[np.float32]] | None
        found = None if of_whole is None else of_whole()
        return found
