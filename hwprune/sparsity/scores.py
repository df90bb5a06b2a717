"""Which connections matter: one function per criterion, all with one signature.

A score is ``weight -> score``, float32 in the weight's own shape; higher means keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from hwprune.sparsity import topk

Score = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def magnitude(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return |w|."""
    return np.asarray(np.abs(weight), dtype=np.float32)


def lamp(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return w^2 over the sum of w^2 of all weights of the tensor that are no smaller.

    arXiv 2010.07611, equation 4. The largest weight of every tensor scores exactly 1, so a global
    ranking by this score empties no tensor while it keeps one connection per tensor. Of equal
    magnitudes the one with the lower index counts as larger. Zero weights score 0.
    """
    positions, values = _lamp_sorted(weight, weight.size)
    scores = np.empty(weight.size, dtype=np.float32)
    scores[positions] = values
    return scores.reshape(weight.shape)


def lamp_top(
    weight: NDArray[np.float32], limit: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the best ``limit`` LAMP scores of a tensor without sorting the rest.

    The score of a weight depends on larger weights only, so the best ones can be computed from
    themselves alone: the values are bit for bit those of ``lamp``.

    Args:
        weight: any shape.
        limit: how many to return; fewer where the tensor is smaller.

    Returns:
        (m,) row-major positions and (m,) scores, by descending score, ties by position.
    """
    limit = min(limit, weight.size)
    positions, values = lamp_candidates(weight, limit)
    best = topk.TopK(limit)
    best.offer_at(values, positions)
    order = topk.indices(best.sorted())
    if np.array_equal(order, positions[:limit]):
        return positions[:limit], values[:limit]
    by_position = np.argsort(positions)
    found = by_position[np.searchsorted(positions, order, sorter=by_position)]
    return order, values[found]


def lamp_candidates(
    weight: NDArray[np.float32], limit: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return a superset of ``lamp_top``, by magnitude, with all that ties with its last score.

    Different magnitudes may round to one float32 score, and ties go to the lower position: what
    ties with the last one wanted has to be seen before the cut is made.
    """
    limit, extra = min(limit, weight.size), 1024
    while True:
        positions, values = _lamp_sorted(weight, min(limit + extra, weight.size))
        if limit == 0 or positions.size == weight.size or not values[-1] >= values[limit - 1]:
            return positions, values
        extra *= 16


def _lamp_sorted(
    weight: NDArray[np.float32], limit: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return positions and LAMP scores of the ``limit`` largest weights, the largest first."""
    best = topk.TopK(limit)
    for start, chunk in topk.chunks(weight):
        values = np.abs(chunk)
        # A NaN is kept as the largest of all, so that the ranking sees it and refuses it.
        if np.isnan(np.max(values, initial=0)):
            values = np.where(np.isnan(values), np.float32(np.inf), values)
        best.offer(values, start)
    positions = topk.indices(best.sorted())
    squared = weight.reshape(-1)[positions].astype(np.float64) ** 2
    # Denominators: float64, since float32 sums stop growing after some ten million terms.
    total = np.cumsum(squared)
    with np.errstate(invalid="ignore"):
        scores = np.divide(squared, total, out=np.zeros_like(squared), where=total != 0)
    return positions, scores.astype(np.float32)


SCORES: dict[str, Score] = {"magnitude": magnitude, "lamp": lamp}


def pieces(name: str, weight: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (offset, flat piece) of a tensor's score: new arrays, one at a time."""
    if name == "lamp":
        yield from topk.chunks(lamp(weight))
        return
    for start, chunk in topk.chunks(weight):
        yield start, SCORES[name](chunk)
