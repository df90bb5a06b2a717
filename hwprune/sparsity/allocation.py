"""How many connections each tensor gets: one function per rule, all with one signature.

An allocation is ``(scores, total) -> counts``: integers per tensor that sum to ``total`` exactly
(or to all connections, where there are fewer) and never exceed a tensor's size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import UsageError
from hwprune.ir import Masks, Ranking
from hwprune.sparsity.ranking import rank
from hwprune.sparsity.streaming import shapes_of, size_of

# ERK's floor: this part of an even split between all tensors.
_FLOOR = 10

Allocation = Callable[[Mapping[str, NDArray[np.float32]], int], dict[str, int]]


def global_(scores: Mapping[str, NDArray[np.float32]], total: int) -> dict[str, int]:
    """Give each tensor as many as it has among the best ``total`` of all."""
    return _tally(rank(scores, limit=_checked(total)))


def erk(scores: Mapping[str, NDArray[np.float32]], total: int) -> dict[str, int]:
    """Give every tensor a count in proportion to the sum of its dimensions, but not too few.

    Erdos-Renyi-Kernel, arXiv 1911.11134, section 3: density in proportion to
    ``sum(shape) / prod(shape)``. A tensor that would exceed its size is kept whole and what it
    cannot take goes to the others in the same proportion.

    The floor: no tensor gets less than a tenth of an even split between all tensors, and none less
    than one connection, whatever its shape. Where there are fewer connections than tensors the
    tensors with the largest sums get one each.
    """
    return _erk(shapes_of(scores), total)


def _erk(shapes: Mapping[str, tuple[int, ...]], total: int) -> dict[str, int]:
    sizes = {name: size_of(shape) for name, shape in shapes.items()}
    shares = {name: float(sum(shape)) for name, shape in shapes.items()}
    even = _checked(total) // max(1, len(sizes))
    floors = {name: min(size, max(1, even // _FLOOR)) for name, size in sizes.items()}
    if sum(floors.values()) > total:
        first = sorted((name for name in sizes if sizes[name]), key=lambda name: -shares[name])
        return {**dict.fromkeys(sizes, 0), **dict.fromkeys(first[:total], 1)}
    low: dict[str, int] = {}
    while True:
        rest = {name: size for name, size in sizes.items() if name not in low}
        counts = _apportion({n: shares[n] for n in rest}, rest, total - sum(low.values()))
        short = {name: floors[name] for name in rest if counts[name] < floors[name]}
        if not short:
            return {name: low[name] if name in low else counts[name] for name in sizes}
        low.update(short)


ALLOCATIONS: dict[str, Allocation] = {
    "global": global_,
    "erk": erk,
}


Share = Callable[[Mapping[str, tuple[int, ...]], Mapping[str, int], int], Mapping[str, float]]
"""(shapes, living connections, how many are added) -> each tensor's share of those."""


def _towards_erk(
    shapes: Mapping[str, tuple[int, ...]], living: Mapping[str, int], added: int
) -> dict[str, float]:
    """Return what each tensor lacks of its ERK share of all that live afterwards."""
    wanted = _erk(shapes, sum(living.values()) + added)
    return {name: float(max(0, wanted[name] - living[name])) for name in shapes}


GROWTHS: dict[str, Share | None] = {
    # None: the best of all dead ones, wherever they lie.
    "global": None,
    # In proportion to the connections that live: each tensor's density stays, nearly.
    "proportional": lambda shapes, living, added: {n: float(c) for n, c in living.items()},
    # So that the living and the new together are shared out as ``erk`` would.
    "towards-erk": _towards_erk,
}


def growth(share: str, alive: Masks, total: int) -> dict[str, int]:
    """Return how many of ``total`` new connections each tensor gets: never more than are dead.

    Args:
        share: a name in GROWTHS other than ``global``.
        alive: the present masks.
        total: how many are added; all dead ones, where there are fewer.
    """
    rule = GROWTHS[share]
    assert rule is not None
    living = {name: int(np.count_nonzero(alive[name])) for name in alive}
    room = {name: alive[name].size - living[name] for name in alive}
    shapes = {name: alive[name].shape for name in alive}
    # No share is zero: a tensor without a living connection would never get one.
    shares = {n: max(1e-9, share) for n, share in rule(shapes, living, total).items()}
    return _apportion(shares, room, _checked(total))


def rank_allocated(
    scores: Mapping[str, NDArray[np.float32]],
    counts: Mapping[str, int],
    *,
    limit: int | None = None,
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
    whole = _rank_each(scores, limit)
    places = np.empty(len(whole), dtype=np.float64)
    for number, name in enumerate(whole.shapes):
        where = np.flatnonzero(whole.tensor == number)
        count = counts[name]
        # +1/2 puts the last of its share below 1 and the next one above 1 for every count.
        order = np.arange(where.size, dtype=np.float64) + 0.5
        places[where] = order / count if count else np.finfo(np.float64).max / 2 + order
    # Ties go to the earlier tensor; inside one tensor there are none, but for those with count
    # zero, whose places are all alike and whose present order by score a stable sort keeps.
    order_ = np.argsort(places, kind="stable")[:limit]
    return Ranking(whole.shapes, whole.tensor[order_], whole.position[order_])


def _rank_each(scores: Mapping[str, NDArray[np.float32]], limit: int | None) -> Ranking:
    """Rank each tensor by itself, one after another: none adds more than ``limit``."""
    shapes = shapes_of(scores)
    parts = [rank({name: scores[name]}, limit=limit).position for name in shapes]
    numbers = [np.full(part.size, n, np.int32) for n, part in enumerate(parts)]
    nothing = np.zeros(0, np.int64)
    tensor = np.concatenate([nothing.astype(np.int32), *numbers])
    return Ranking(shapes, tensor, np.concatenate([nothing, *parts]))


def _checked(total: int) -> int:
    if total < 0:
        raise UsageError(f"{total} connections to allocate", hint="a count is zero or more")
    return total


def _tally(ranking: Ranking) -> dict[str, int]:
    counts = np.bincount(ranking.tensor, minlength=len(ranking.shapes))
    return {name: int(count) for name, count in zip(ranking.shapes, counts, strict=True)}


def _apportion(shares: Mapping[str, float], sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Split ``total`` in proportion to ``shares``, capped by ``sizes``, by largest remainder."""
    total = min(total, sum(sizes.values()))
    ideal: dict[str, float] = {}
    open_ = {name: share for name, share in shares.items() if sizes[name] and share > 0}
    left = total
    while open_:
        factor = left / sum(open_.values())
        full = [name for name, share in open_.items() if factor * share >= sizes[name]]
        if not full:
            ideal.update({name: factor * share for name, share in open_.items()})
            break
        for name in full:
            ideal[name] = sizes[name]
            left -= sizes[name]
            del open_[name]
    counts = {name: min(int(ideal.get(name, 0)), sizes[name]) for name in sizes}
    # Ties in the remainder go to the earlier tensor: sorted is stable.
    by_remainder = sorted(sizes, key=lambda name: counts[name] - ideal.get(name, 0))
    missing = total - sum(counts.values())
    while missing > 0:
        for name in by_remainder:
            if missing and counts[name] < sizes[name]:
                counts[name] += 1
                missing -= 1
    return counts
