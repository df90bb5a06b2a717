"""The best connections of an endless stream of scores, exactly and in bounded memory.

A connection becomes one 64-bit key: its score, inverted so that the best sorts first, in the upper
half, its index in the lower half. Keys are unique, so an unstable sort of keys is an exact, stable
order of connections, and a partition of keys is an exact cut with ties broken by index. Sorting
keys is also several times faster than ``argsort``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import UsageError

# One chunk's temporaries stay within the last-level cache of an ordinary machine.
CHUNK = 1 << 18
MAX_INDEX = 1 << 32

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_SIGN = np.uint32(0x80000000)


def ascending(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return integers that are ordered as the scores are."""
    # Adding zero turns -0.0 into 0.0: the two are equal and must tie.
    bits = (scores + np.float32(0)).view(np.uint32)
    ordered: NDArray[np.uint32] = np.where(bits & _SIGN != 0, ~bits, bits | _SIGN)
    return ordered


def pack(scores: NDArray[np.float32], index: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return one key per score; ascending keys are descending scores, ties by ascending index.

    Args:
        scores: (m,) without NaN.
        index: (m,) below 2**32.
    """
    keys: NDArray[np.uint64] = (~ascending(scores)).astype(np.uint64)
    keys <<= _SHIFT
    keys |= index.astype(np.uint64)
    return keys


def indices(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the index that each key carries."""
    index: NDArray[np.int64] = (keys & _LOW).astype(np.int64)
    return index


def chunks(array: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (offset, flat float32 piece) over an array in row-major order."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        yield start, flat[start : start + CHUNK].astype(np.float32, copy=False)


class TopK:
    """Collects the best ``limit`` of all offered scores.

    Pieces come in ascending index order: later indices lose ties, so a score equal to the worst one
    of a full collection can be dropped at once. That makes the filter one comparison, and exact.

    Args:
        limit: how many to keep; at most about twice as many keys (8 bytes each) are held.
    """

    def __init__(self, limit: int) -> None:
        """Start an empty collection."""
        self._limit = max(0, limit)
        self._parts: list[NDArray[np.uint64]] = []
        self._held = 0
        # The worst key of a full collection, and the score in it.
        self._worst: np.uint64 | None = None
        self._threshold: np.float32 | None = None

    def offer(
        self,
        scores: NDArray[np.float32],
        start: int,
        *,
        among: NDArray[np.bool_] | None = None,
        unranked: bool = False,
    ) -> None:
        """Offer a flat piece whose first element has index ``start``.

        Args:
            scores: (m,) a chunk; -inf is passed over unless ``unranked`` is set.
            start: the index of ``scores[0]``.
            among: (m,) only these count.
            unranked: take -inf as well, as the worst score there is.
        """
        if self._limit == 0:
            return
        if self._threshold is not None:
            chosen = scores > self._threshold
        elif unranked:
            chosen = np.ones(scores.shape, dtype=np.bool_)
        else:
            chosen = scores > -np.inf
        if among is not None:
            chosen &= among
        where = np.flatnonzero(chosen)
        if where.size:
            self._take(scores[where], where + start)

    def offer_at(self, scores: NDArray[np.float32], index: NDArray[np.int64]) -> None:
        """Offer scores with their indices, in any order.

        Args:
            scores: (m,) without -inf.
            index: (m,) none of them offered before.
        """
        if self._limit and scores.size:
            self._take(scores, index)

    def _take(self, scores: NDArray[np.float32], index: NDArray[np.int64]) -> None:
        if int(index.max()) >= MAX_INDEX:
            raise UsageError(
                f"more than {MAX_INDEX:,} connections cannot be ranked",
                hint="compile the network in parts",
            )
        keys = pack(scores, index)
        if self._worst is not None:
            keys = keys[keys < self._worst]
        self._parts.append(keys)
        self._held += keys.size
        if self._held >= 2 * self._limit + CHUNK:
            self._compact()

    def _compact(self) -> None:
        keys = np.concatenate(self._parts)
        self._parts = []
        keys.partition(self._limit - 1)
        self._worst = keys[self._limit - 1]
        self._parts = [keys[: self._limit].copy()]
        self._held = self._limit
        self._threshold = _score(self._worst)

    def worst(self) -> np.float32 | None:
        """Return a score that nothing which is still to come can rank below; None if not full."""
        if self._limit and self._held >= self._limit + CHUNK:
            self._compact()
        return self._threshold

    def sorted(self) -> NDArray[np.uint64]:
        """Return the keys of the best ``limit``, the best first."""
        if not self._parts:
            return np.zeros(0, dtype=np.uint64)
        if self._held > self._limit:
            self._compact()
        keys = np.concatenate(self._parts) if len(self._parts) > 1 else self._parts[0].copy()
        keys.sort()
        return keys


def _score(key: np.uint64) -> np.float32:
    """Return the score that a key carries: the inverse of ``pack``."""
    ordered = ~np.array([key >> _SHIFT]).astype(np.uint32)
    bits = np.where(ordered & _SIGN != 0, ordered & ~_SIGN, ~ordered)
    score: np.float32 = bits.astype(np.uint32).view(np.float32)[0]
    return score
