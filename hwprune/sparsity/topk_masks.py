"""The best connections of a whole network: exact, deterministic, ties broken by index.

A connection becomes one 64-bit key: whether it comes first whatever its score, its score, its
index. Keys are unique, so an unstable sort of them is an exact order, a partition an exact cut, and
ties go to the earlier tensor, then to the lower position. An order (``rank``) is what a budget in
bytes is filled along; where a number is the aim, the cut alone gives the masks (``select``).

Memory: 8 bytes for each weight of the network, and some 16 for each of the largest tensor while its
scores are worked out; a ranking takes 12 more for each connection in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import HwpruneError, UsageError
from hwprune.ir import Masks, Ranking
from hwprune.sparsity.scores import SCORES, ascending

Scores = Mapping[str, NDArray[np.float32]]

# 31 bits of a key are the index, 32 the score; temporaries are of so many elements.
_INDEX = 31
_MOST = 1 << _INDEX
_CHUNK = 1 << 20


class LazyScores(Mapping[str, NDArray[np.float32]]):
    """Scores by tensor, of which only the one in use exists.

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
        self.shapes, self._compute = dict(shapes), compute

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def shapes_of(scores: Scores) -> dict[str, tuple[int, ...]]:
    """Return the shapes, without working out what is lazy."""
    if isinstance(scores, LazyScores):
        return dict(scores.shapes)
    return {name: array.shape for name, array in scores.items()}


def priced(scores: Scores, prices: Mapping[str, float]) -> Scores:
    """Return scores by what a connection of each tensor costs; as they are without prices."""
    if not prices:
        return scores
    return LazyScores(shapes_of(scores), lambda name: scores[name] / np.float32(prices[name]))


def rank(
    scores: Scores,
    *,
    limit: int | None = None,
    keep: Masks | None = None,
    guard: Collection[str] = (),
) -> Ranking:
    """Rank connections by score, the best first; ties by tensor order, then by position.

    Args:
        scores: one array per tensor, any shapes; compared as float32. -inf is never ranked.
        limit: rank only the best so many. None ranks all.
        keep: connections that come before all others whatever their score (even -inf), ordered
            by score among themselves.
        guard: tensors whose best connection does so too, so that no mask need empty them.

    Raises:
        UsageError: a score is NaN, there are more than 2^31, or the masks of ``keep`` do not have
            the scores' names and shapes.
    """
    shapes = shapes_of(scores)
    keys = _best(scores, limit, keep, guard)
    keys.sort()
    index = _indices(keys)
    starts = np.fromiter(accumulate(map(math.prod, shapes.values()), initial=0), np.int64)
    # side="right" skips over empty tensors, whose start equals the next one's.
    tensor = np.searchsorted(starts[1:], index, side="right").astype(np.int32)
    index -= starts[tensor]
    return Ranking(shapes, tensor, index)


def select(scores: Scores, count: int, *, guard: Collection[str] = ()) -> Masks:
    """Return ``rank(scores, limit=count, guard=guard)`` as masks, without working an order out."""
    shapes = shapes_of(scores)
    alive = np.zeros(sum(map(math.prod, shapes.values())), np.bool_)
    alive[_indices(_best(scores, count, None, guard))] = True
    ends = list(accumulate(map(math.prod, shapes.values())))
    parts = np.split(alive, ends[:-1])
    pairs = zip(shapes.items(), parts, strict=False)
    return Masks({name: part.reshape(shape) for (name, shape), part in pairs})


def rank_weights(
    weights: Scores,
    score: Literal["lamp", "magnitude"] = "lamp",
    limit: int | None = None,
    prices: Mapping[str, float] | None = None,
) -> Ranking:
    """Rank the connections of a network by a score of its weights.

    Args:
        weights: one array per tensor.
        score: a name in SCORES.
        limit: rank only the best so many. None ranks all.
        prices: what a connection of each tensor costs; without, all cost the same.

    Raises:
        UsageError: another score, or a weight that is not a finite number.
    """
    if score not in SCORES:
        raise UsageError(f"there is no score {score!r}", hint=f"use one of {', '.join(SCORES)}")

    def scored(name: str) -> NDArray[np.float32]:
        weight = weights[name]
        # A maximum is not finite where anything is not, and needs no temporary.
        if weight.size and not (np.isfinite(weight.max()) and np.isfinite(weight.min())):
            raise UsageError(
                f"{np.count_nonzero(~np.isfinite(weight)):,} of {weight.size:,} weights of {name!r}"
                " are NaN or infinite",
                hint="the model file is damaged, or its training diverged",
            )
        return SCORES[score](weight, limit)

    return rank(priced(LazyScores(shapes_of(weights), scored), prices or {}), limit=limit)


def rank_allocated(
    scores: Scores, counts: Mapping[str, int], *, limit: int | None = None
) -> Ranking:
    """Rank connections so that every prefix is shared out as ``counts`` is.

    A connection's place is its rank inside its tensor over the tensor's count: the first
    ``sum(counts)`` are exactly the best ``counts[name]`` of each tensor (as far as they have a
    score above -inf), and a shorter or longer prefix keeps their proportion. A tensor with count
    zero comes after all others.

    Args:
        scores: one array per tensor; higher is better, -inf is never ranked.
        counts: connections per tensor, as an allocation returns them.
        limit: rank only the best so many.
    """
    shapes = shapes_of(scores)
    tensors, positions, places = [], [], []
    for number, name in enumerate(shapes):
        found = rank({name: scores[name]}, limit=limit).position
        # +1/2 puts the last of its share below 1 and the next one above 1 for every count.
        order = np.arange(found.size, dtype=np.float64) + 0.5
        count = counts[name]
        tensors.append(np.full(found.size, number, np.int32))
        positions.append(found)
        places.append(order / count if count else np.finfo(np.float64).max / 2 + order)
    # Ties go to the earlier tensor; inside one there are none, but for those with count zero,
    # whose present order a stable sort keeps.
    order_ = np.argsort(np.concatenate([np.zeros(0), *places]), kind="stable")[:limit]
    tensor = np.concatenate([np.zeros(0, np.int32), *tensors])[order_]
    return Ranking(shapes, tensor, np.concatenate([np.zeros(0, np.int64), *positions])[order_])


def followed_by(first: Ranking, second: Ranking) -> Ranking:
    """Return the connections of ``first``, then those of ``second``, which must not overlap.

    Raises:
        HwpruneError: the two are rankings of different networks.
    """
    if list(first.shapes.items()) != list(second.shapes.items()):
        raise HwpruneError("two rankings of different networks cannot be joined")
    return Ranking(
        first.shapes,
        np.concatenate([first.tensor, second.tensor]),
        np.concatenate([first.position, second.position]),
    )


def _best(
    scores: Scores, limit: int | None, keep: Masks | None, guard: Collection[str]
) -> NDArray[np.uint64]:
    """Return the keys of the best ``limit``, in no order."""
    shapes = shapes_of(scores)
    total = sum(map(math.prod, shapes.values()))
    if total > _MOST:
        raise UsageError(
            f"{total:,} connections cannot be ranked, only {_MOST:,}",
            hint="compile the network in parts",
        )
    keys = np.empty(total, np.uint64)
    used = start = 0
    for name, shape in shapes.items():
        flat = scores[name].reshape(-1).astype(np.float32, copy=False)
        _check_nan(name, flat)
        kept = None if keep is None else _kept(name, shape, keep)
        if name in guard and flat.size and flat[best := int(np.argmax(flat))] > -np.inf:
            kept = np.zeros(flat.size, np.bool_) if kept is None else kept.copy()
            kept[best] = True
        for at in range(0, flat.size, _CHUNK):
            piece = flat[at : at + _CHUNK]
            first = None if kept is None else kept[at : at + _CHUNK]
            ranked = piece > -np.inf
            index = np.flatnonzero(ranked if first is None else ranked | first)
            key = (~ascending(piece[index])).astype(np.uint64)
            if first is None:
                key |= np.uint64(1 << 32)
            else:
                key |= (~first[index]).astype(np.uint64) << np.uint64(32)
            key <<= np.uint64(_INDEX)
            index += start + at
            key |= index.view(np.uint64)
            keys[used : used + key.size] = key
            used += key.size
        start += flat.size
    keys = keys[:used]
    if limit is not None and limit < used:
        limit = max(0, limit)
        if limit:
            keys.partition(limit - 1)
        keys = keys[:limit].copy()
    return keys


def _indices(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return what connections keys stand for; the keys are lost."""
    keys &= np.uint64(_MOST - 1)
    return keys.view(np.int64)


def _kept(name: str, shape: tuple[int, ...], keep: Masks) -> NDArray[np.bool_]:
    if name not in keep.by_name or keep[name].shape != shape:
        raise UsageError(
            f"the masks to keep have no entry {name!r} of shape {shape}",
            hint="masks and scores must be of the same network",
        )
    return keep[name].reshape(-1)


def _check_nan(name: str, flat: NDArray[np.float32]) -> None:
    # max propagates NaN and needs no temporary, unlike isnan.
    if flat.size and np.isnan(np.max(flat)):
        raise UsageError(
            f"{np.count_nonzero(np.isnan(flat)):,} of {flat.size:,} scores of {name!r} are NaN",
            hint="weights or gradients of this tensor are not finite: was training diverging?",
        )


# -- small questions about masks ------------------------------------------------------------------


def full(shapes: Mapping[str, tuple[int, ...]]) -> Masks:
    """Return masks that keep every connection."""
    return Masks({name: np.ones(shape, dtype=np.bool_) for name, shape in shapes.items()})


def masks_equal(first: Masks, second: Masks) -> bool:
    """Return whether both have the same tensors, in any order, and keep the same connections."""
    return set(first) == set(second) and all(
        np.array_equal(first[name], second[name]) for name in first
    )
