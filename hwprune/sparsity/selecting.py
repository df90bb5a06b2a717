"""The best so many connections as masks, where their order is of no interest.

The result is that of ``rank(...).masks(count)``. But nothing is held for each connection: scores
are counted by their upper and then by their lower sixteen bits, which gives the score of the last
one that is taken exactly, and a last walk over the scores marks what is above it. Ties go to the
earlier tensor, then to the lower position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwprune.ir import Masks
from hwprune.sparsity import topk
from hwprune.sparsity.ranking import check_finite, check_nan
from hwprune.sparsity.streaming import parts_of, shapes_of

_UNRANKED = topk.ascending(np.array([-np.inf], np.float32))[0]
_BUCKETS = 1 << 16
_HALF = np.uint32(16)
_LOWER = np.uint32(0xFFFF)

Scores = Mapping[str, NDArray[np.float32]]
Keys = Callable[[str], Iterator[NDArray[np.uint32]]]


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where the best end.

    Attributes:
        key: the score of the last one that is taken, as an ordered integer.
        above: per tensor, how many score higher.
        level: per tensor, how many score the same.
        taken: per tensor, how many of these are taken.
    """

    key: np.uint32
    above: dict[str, int]
    level: dict[str, int]
    taken: dict[str, int]


def select(scores: Scores, count: int, keep: Masks) -> Masks:
    """Return the connections of ``keep`` and the best others, ``count`` together.

    Args:
        scores: one array per tensor, higher is better; -inf is never taken. Streamed scores are
            worked out three times.
        count: how many connections; at least those of ``keep``, which are all taken.
        keep: connections that are taken whatever their score.

    Raises:
        UsageError: a score is NaN.
    """

    def keys(name: str) -> Iterator[NDArray[np.uint32]]:
        kept = keep[name].reshape(-1)
        for start, chunk in parts_of(scores, name):
            check_nan(name, scores, chunk)
            yield topk.ascending(chunk)[~kept[start : start + chunk.size] & (chunk > -np.inf)]

    shapes = shapes_of(scores)
    cut = _cut(list(shapes), keys, count - keep.nonzeros)
    masks = {}
    for name, shape in shapes.items():
        mask = keep[name].copy().reshape(-1)
        left = cut.taken[name]
        for start, chunk in parts_of(scores, name):
            part = mask[start : start + chunk.size]
            found = topk.ascending(chunk)
            found[part] = _UNRANKED  # a view: what was kept must not count as one of the level
            part |= found > cut.key
            if left:
                level = np.flatnonzero(found == cut.key)[:left]
                part[level] = True
                left -= level.size
        masks[name] = mask.reshape(shape)
    return Masks(masks)


def select_living(weights: Scores, alive: Masks, count: int) -> Masks:
    """Return the ``count`` best of the living connections by LAMP, the best of each tensor first.

    Equal to ``rank_living(weights, alive, limit=count).masks(count)``. LAMP falls with magnitude
    inside a tensor, so that sorted magnitudes give all scores, and a count gives the mask.

    Args:
        weights: one array per tensor; zero where dead.
        alive: which connections count.
        count: how many to keep; at least one per tensor with a living connection.

    Raises:
        UsageError: a weight that is not a finite number.
    """

    def keys(name: str) -> Iterator[NDArray[np.uint32]]:
        first = True
        for chunk in _lamp_descending(_magnitudes(name, weights[name], alive[name])):
            # The best of a tensor is taken whatever it scores.
            yield topk.ascending(chunk[1:] if first else chunk)
            first = False

    guarded = [name for name in alive if alive[name].any()]
    cut = _cut(list(alive), keys, count - len(guarded))
    masks = {}
    for name in alive:
        masks[name] = np.zeros(alive[name].shape, np.bool_)
        if name not in guarded:
            continue
        low = 1 + cut.above[name]
        high = low + cut.level[name]
        whole = cut.taken[name] == cut.level[name]
        best = _largest(name, weights[name], alive[name], high if whole else low)
        if not whole and cut.taken[name]:
            # Different magnitudes may round to one score: of these the lower positions are taken.
            level = _largest(name, weights[name], alive[name], high) & ~best
            best[np.flatnonzero(level)[: cut.taken[name]]] = True
        masks[name] = best.reshape(masks[name].shape)
    return Masks(masks)


def _cut(names: Sequence[str], keys: Keys, wanted: int) -> _Cut:
    """Return where the best ``wanted`` of all keys end; ``keys`` is asked twice for each tensor."""
    none = dict.fromkeys(names, 0)
    if wanted <= 0:
        return _Cut(np.uint32(0xFFFFFFFF), none, none, none)
    upper = {name: _counted(chunk >> _HALF for chunk in keys(name)) for name in names}
    total = np.sum(list(upper.values()), axis=0)
    if total.sum() <= wanted:
        every = {name: int(upper[name].sum()) for name in names}
        return _Cut(_UNRANKED, every, none, none)
    bucket, before = _reached(total, wanted)
    lower = {name: _counted(c[c >> _HALF == bucket] & _LOWER for c in keys(name)) for name in names}
    low, inside = _reached(np.sum(list(lower.values()), axis=0), wanted - before)
    left = wanted - before - inside
    above, level, taken = {}, {}, {}
    for name in names:
        above[name] = int(upper[name][bucket + 1 :].sum() + lower[name][low + 1 :].sum())
        level[name] = int(lower[name][low])
        taken[name] = min(left, level[name])
        left -= taken[name]
    return _Cut(np.uint32(bucket << 16 | low), above, level, taken)


def _counted(pieces: Iterator[NDArray[np.uint32]]) -> NDArray[np.int64]:
    counts = np.zeros(_BUCKETS, np.int64)
    for piece in pieces:
        counts += np.bincount(piece, minlength=_BUCKETS)
    return counts


def _reached(counts: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """Return the bucket, from the top, in which the wanted one lies, and how many lie above it."""
    running = np.cumsum(counts[::-1])
    place = min(int(np.searchsorted(running, wanted)), _BUCKETS - 1)
    bucket = _BUCKETS - 1 - place
    return bucket, int(running[place] - counts[bucket])


def _magnitudes(
    name: str, weight: NDArray[np.float32], alive: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the magnitudes of the living as a new flat array, and hold no other one.

    Raises:
        UsageError: one is not a finite number.
    """
    flat, living = weight.reshape(-1), alive.reshape(-1)
    values = flat.copy() if living.all() else flat[living]
    for _, chunk in topk.chunks(values):
        check_finite(name, values, chunk)
    np.abs(values, out=values)
    return values


def _lamp_descending(magnitudes: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield LAMP scores, the best first, bit for bit those of ``lamp``; sorts in place."""
    magnitudes.sort()
    descending = magnitudes[::-1]
    carried = 0.0
    for start in range(0, descending.size, topk.CHUNK):
        squared = descending[start : start + topk.CHUNK].astype(np.float64) ** 2
        total = squared.copy()
        total[0] += carried
        np.cumsum(total, out=total)
        carried = float(total[-1])
        scores = np.divide(squared, total, out=np.zeros_like(squared), where=total != 0)
        yield scores.astype(np.float32)


def _largest(
    name: str, weight: NDArray[np.float32], alive: NDArray[np.bool_], count: int
) -> NDArray[np.bool_]:
    """Return (weights,) the ``count`` living connections of the largest magnitude.

    Of equal ones the lower position is taken.
    """
    flat, living = weight.reshape(-1), alive.reshape(-1)
    many = int(np.count_nonzero(living))
    if count >= many:
        return np.array(living)
    magnitudes = _magnitudes(name, weight, alive)
    magnitudes.partition(many - count)
    last = magnitudes[many - count]
    left = count - int(np.count_nonzero(magnitudes[many - count :] > last))
    del magnitudes
    best = np.zeros(flat.size, np.bool_)
    for start, chunk in topk.chunks(flat):
        here = living[start : start + chunk.size]
        size = np.abs(chunk)
        part = best[start : start + chunk.size]
        np.logical_and(here, size > last, out=part)
        if left:
            level = np.flatnonzero(here & (size == last))[:left]
            part[level] = True
            left -= level.size
    return best


def empty_of(masks: Masks) -> tuple[str, ...]:
    """Return the tensors without a living connection: the network is cut in two there."""
    return tuple(name for name in masks if masks[name].size and not masks[name].any())
