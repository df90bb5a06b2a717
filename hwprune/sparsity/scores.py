"""Which connections stay: one function per criterion, ``(weight, best) -> score``; higher: keep.

A score is float32 in the weight's own shape and falls with magnitude inside a tensor. Those that
are not among the ``best`` so many of the tensor may score 0: None asks for all.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Score(Protocol):
    """(weight, how many of its best are asked for) -> score."""

    def __call__(self, weight: NDArray[np.float32], best: int | None = None) -> NDArray[np.float32]:
        """Return the score, in the weight's shape."""


_SIGN = np.uint32(0x80000000)
_CHUNK = 1 << 18


def ascending(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return integers that are ordered as the scores are."""
    # Adding zero turns -0.0 into 0.0: the two are equal and must tie.
    bits = (scores + np.float32(0)).view(np.uint32)
    return np.asarray(np.where(bits & _SIGN, ~bits, bits | _SIGN), np.uint32)


def magnitude(weight: NDArray[np.float32], best: int | None = None) -> NDArray[np.float32]:
    """Return |w|."""
    del best
    return np.asarray(np.abs(weight), dtype=np.float32)


def lamp(weight: NDArray[np.float32], best: int | None = None) -> NDArray[np.float32]:
    """Return w^2 over the sum of w^2 of all weights of the tensor that are no smaller.

    arXiv 2010.07611, equation 4. The largest weight of every tensor scores exactly 1, so a global
    ranking by this score empties no tensor while it keeps one connection per tensor. Of equal
    magnitudes the one with the lower index counts as larger. Zero weights score 0.
    """
    flat = weight.reshape(-1)
    # Keys whose order is that of falling magnitude, ties by index; a score needs larger ones only.
    order = np.empty(np.count_nonzero(flat), np.uint64)
    used = 0
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK]
        index = np.flatnonzero(piece)
        keys = (~ascending(np.abs(piece[index]))).astype(np.uint64) << np.uint64(32)
        order[used : used + keys.size] = keys | (index + start).view(np.uint64)
        used += keys.size
    if best is not None and best < order.size:
        order.partition(max(0, best - 1))
        order = order[: max(0, best)].copy()
    order.sort()
    order &= np.uint64(0xFFFFFFFF)
    places = order.view(np.int64)
    scores = np.zeros(flat.size, np.float32)
    total = 0.0
    for start in range(0, places.size, _CHUNK):
        place = places[start : start + _CHUNK]
        # Denominators: float64, since float32 sums stop growing after some ten million terms.
        squared = flat[place].astype(np.float64) ** 2
        sums = squared.copy()
        sums[0] += total
        np.cumsum(sums, out=sums)
        total = float(sums[-1])
        with np.errstate(invalid="ignore"):
            scores[place] = np.divide(squared, sums, out=np.zeros_like(squared), where=sums != 0)
    return scores.reshape(weight.shape)


SCORES: dict[str, Score] = {"magnitude": magnitude, "lamp": lamp}
