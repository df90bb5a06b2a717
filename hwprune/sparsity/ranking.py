"""One order over the connections of all tensors: exact, deterministic, bounded in memory."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import HwpruneError, UsageError
from hwprune.ir import Masks, Ranking
from hwprune.sparsity import topk
from hwprune.sparsity.scores import lamp_candidates
from hwprune.sparsity.streaming import parts_of, shapes_of, size_of


def rank(
    scores: Mapping[str, NDArray[np.float32]],
    *,
    limit: int | None = None,
    keep: Masks | None = None,
) -> Ranking:
    """Rank connections by score, the best first; ties by tensor order, then by position.

    Args:
        scores: one array per tensor, any shapes; compared as float32. -inf is never ranked.
        limit: rank only the best so many; bounds memory to about 40 bytes each. None ranks all.
        keep: connections that come before all others whatever their score (even -inf), ordered
            by score among themselves.

    Raises:
        UsageError: a score is NaN (names the tensor and how many), or the masks of ``keep`` do
            not have the scores' names and shapes.
    """
    shapes = shapes_of(scores)
    starts = _starts({name: size_of(shape) for name, shape in shapes.items()})
    total = starts[-1]
    limit = total if limit is None else max(0, min(limit, total))
    kept, rest = topk.TopK(0), topk.TopK(limit)
    if keep is not None:
        _check_keep(shapes, keep)
        kept = topk.TopK(min(limit, keep.nonzeros))
        rest = topk.TopK(limit - min(limit, keep.nonzeros))
    for name, start in zip(shapes, starts, strict=False):
        alive = None if keep is None else keep[name].reshape(-1)
        for offset, chunk in parts_of(scores, name):
            check_nan(name, scores, chunk)
            if alive is None:
                rest.offer(chunk, start + offset)
                continue
            living = alive[offset : offset + chunk.size]
            kept.offer(chunk, start + offset, among=living, unranked=True)
            rest.offer(chunk, start + offset, among=~living)
    keys = rest.sorted()
    if keep is not None:
        keys = np.concatenate([kept.sorted(), keys])
    return _ranking(keys, shapes, starts)


def rank_weights(
    weights: Mapping[str, NDArray[np.float32]],
    score: Literal["lamp", "magnitude"] = "lamp",
    limit: int | None = None,
) -> Ranking:
    """Rank the connections of a network by a score that needs the weights alone.

    The order is exactly that of ``rank`` on the scores; the scores of a whole network are never
    held, nor is any tensor sorted beyond its best ``limit``.

    Args:
        weights: one array per tensor.
        score: ``lamp`` or ``magnitude``.
        limit: rank only the best so many. None ranks all.

    Raises:
        UsageError: another score, or a weight that is not a finite number.
    """
    if score not in ("lamp", "magnitude"):
        raise UsageError(
            f"the score {score!r} cannot be computed from weights alone",
            hint="use lamp or magnitude here",
        )
    starts = _starts({name: array.size for name, array in weights.items()})
    limit = starts[-1] if limit is None else max(0, min(limit, starts[-1]))
    best = topk.TopK(limit)
    for name, array in weights.items():
        for _, chunk in topk.chunks(array):
            check_finite(name, array, chunk)
    if score == "magnitude":
        for array, start in zip(weights.values(), starts, strict=False):
            for offset, chunk in topk.chunks(array):
                best.offer(np.abs(chunk), start + offset)
    else:
        # The small tensors first: what they fill the ranking with bounds what large ones can add.
        pairs = zip(weights.values(), starts, strict=False)
        for array, start in sorted(pairs, key=lambda pair: pair[0].size):
            positions, values = lamp_candidates(array, _lamp_limit(limit, best.worst()))
            best.offer_at(values, positions + start)
    return _ranking(best.sorted(), {name: array.shape for name, array in weights.items()}, starts)


def rank_living(
    weights: Mapping[str, NDArray[np.float32]], alive: Masks, *, limit: int | None = None
) -> Ranking:
    """Rank the living connections by LAMP; the best of each tensor comes before all the others.

    Equal to ``rank`` on the scores of the living with ``keep=champions``; scores are never held.

    Args:
        weights: one array per tensor; zero where dead.
        alive: which connections count.
        limit: rank only the best so many. None ranks all.

    Raises:
        UsageError: a weight that is not a finite number.
    """
    shapes = shapes_of(weights)
    starts = _starts({name: size_of(shape) for name, shape in shapes.items()})
    limit = starts[-1] if limit is None else max(0, min(limit, starts[-1]))
    best = topk.TopK(limit)
    numbered = zip(shapes, starts, strict=False)
    # The small tensors first: what they fill the ranking with bounds what large ones can add.
    for name, start in sorted(numbered, key=lambda pair: size_of(shapes[pair[0]])):
        values, places = _compressed(name, weights[name], alive[name])
        positions, found = lamp_candidates(values, _lamp_limit(limit, best.worst()))
        if found.size and found[0] == 0:
            # All are zero. Its first one still comes after the others' best, which score 1, and
            # before the rest, which score at most 1/2.
            found[0] = 0.75
        best.offer_at(found, (positions if places is None else places[positions]) + start)
    return _ranking(best.sorted(), shapes, starts)


def rank_dead(
    pretrained: Mapping[str, NDArray[np.float32]], alive: Masks, *, limit: int
) -> Ranking:
    """Rank the dead connections by the LAMP scores that they have in the dense network.

    Args:
        pretrained: the dense weights, one array per tensor.
        alive: which connections do not count.
        limit: rank only the best so many.
    """
    shapes = shapes_of(pretrained)
    starts = _starts({name: size_of(shape) for name, shape in shapes.items()})
    best = topk.TopK(max(0, limit))
    for (name, array), start in zip(pretrained.items(), starts, strict=False):
        for _, chunk in topk.chunks(array):
            check_finite(name, array, chunk)
        living = alive[name].reshape(-1)
        # Among so many of the tensor's best, ``limit`` are dead, or all that there are.
        wanted = min(array.size, max(0, limit) + int(np.count_nonzero(living)))
        positions, found = lamp_candidates(array, wanted)
        dead = ~living[positions]
        best.offer_at(found[dead], positions[dead] + start)
    return _ranking(best.sorted(), shapes, starts)


def _compressed(
    name: str, weight: NDArray[np.float32], alive: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Return the living values of a tensor and their flat positions; None where all live.

    Raises:
        UsageError: a weight that is not a finite number.
    """
    for _, chunk in topk.chunks(weight):
        check_finite(name, weight, chunk)
    if alive.all():
        return weight.reshape(-1), None
    places = np.flatnonzero(alive)
    return weight.reshape(-1)[places], places


def _lamp_limit(limit: int, worst: np.float32 | None) -> int:
    """Return how many weights of one tensor can come into a ranking whose worst score is known.

    The j-th largest weight scores at most 1 / j, since none before it is smaller.
    """
    if worst is None or not worst > 0:
        return limit
    # A part in a million covers what rounding adds to a score.
    return int(min(limit, 1.000001 / float(worst) + 1))


def followed_by(first: Ranking, second: Ranking) -> Ranking:
    """Return the connections of ``first``, then those of ``second``, which must not overlap.

    Raises:
        HwpruneError: the two are rankings of different networks.
    """
    if dict(first.shapes) != dict(second.shapes) or list(first.shapes) != list(second.shapes):
        raise HwpruneError("two rankings of different networks cannot be joined")
    return Ranking(
        first.shapes,
        np.concatenate([first.tensor, second.tensor]),
        np.concatenate([first.position, second.position]),
    )


def _starts(sizes: Mapping[str, int]) -> list[int]:
    """Return where each tensor starts in the common numbering, and at the end the total."""
    return list(accumulate(sizes.values(), initial=0))


def _ranking(
    keys: NDArray[np.uint64], shapes: Mapping[str, tuple[int, ...]], starts: list[int]
) -> Ranking:
    index = topk.indices(keys)
    # side="right" skips over empty tensors, whose start equals the next one's.
    bounds = np.asarray(starts, dtype=np.int64)
    tensor = np.searchsorted(bounds[1:], index, side="right").astype(np.int32)
    index -= bounds[tensor]
    return Ranking(dict(shapes), tensor, index)


def _check_keep(shapes: Mapping[str, tuple[int, ...]], keep: Masks) -> None:
    for name, shape in shapes.items():
        if name not in keep.by_name or keep[name].shape != shape:
            raise UsageError(
                f"the masks to keep have no entry {name!r} of shape {shape}",
                hint="masks and scores must be of the same network",
            )


def check_nan(
    name: str, scores: Mapping[str, NDArray[np.float32]], chunk: NDArray[np.float32]
) -> None:
    """Raise UsageError where a chunk of a tensor's scores holds a NaN."""
    # max propagates NaN and needs no temporary, unlike isnan.
    if chunk.size and np.isnan(np.max(chunk)):
        array = scores[name]
        count = int(np.count_nonzero(np.isnan(array)))
        raise UsageError(
            f"{count:,} of {array.size:,} scores of {name!r} are NaN",
            hint="weights or gradients of this tensor are not finite: was training diverging?",
        )


def check_finite(name: str, array: NDArray[np.float32], chunk: NDArray[np.float32]) -> None:
    """Raise UsageError where a chunk of a tensor's weights holds no finite number."""
    if chunk.size and not (np.isfinite(np.max(chunk)) and np.isfinite(np.min(chunk))):
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise UsageError(
            f"{count:,} of {array.size:,} weights of {name!r} are NaN or infinite",
            hint="the model file is damaged, or its training diverged",
        )
