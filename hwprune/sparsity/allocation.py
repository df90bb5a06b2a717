"""How many connections each tensor gets.

An allocation is ``(scores, total) -> counts``: integers per tensor that sum to ``total`` exactly
(or to all connections, where there are fewer) and never exceed a tensor's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import UsageError
from hwprune.ir import Masks
from hwprune.sparsity.topk_masks import select, shapes_of

# ERK's floor: this part of an even split between all tensors.
_FLOOR = 10

Allocation = Callable[[Mapping[str, NDArray[np.float32]], int], dict[str, int]]
Shapes = Mapping[str, tuple[int, ...]]


def global_(scores: Mapping[str, NDArray[np.float32]], total: int) -> dict[str, int]:
    """Give each tensor as many as it has among the best ``total`` of all."""
    masks = select(scores, _checked(total))
    return {name: int(np.count_nonzero(masks[name])) for name in masks}


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


def _erk(shapes: Shapes, total: int) -> dict[str, int]:
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
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


def at_prices(
    ascending: Mapping[str, NDArray[np.float32]], prices: Mapping[str, float], total: int
) -> dict[str, int]:
    """Return how many each tensor has among the best ``total`` by score over price, ties aside.

    Args:
        ascending: the scores of each tensor, (n,) and sorted.
        prices: what a connection of each tensor costs.
        total: how many are shared out.
    """

    def above(cut: float) -> dict[str, int]:
        places = {n: np.searchsorted(s, np.float32(cut * prices[n])) for n, s in ascending.items()}
        return {name: len(ascending[name]) - int(place) for name, place in places.items()}

    high = max(float(s[-1]) / prices[name] for name, s in ascending.items() if len(s))
    low = high * 2.0**-64
    for _ in range(48):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if sum(above(middle).values()) > total else (low, middle)
    return above(high)


ALLOCATIONS: dict[str, Allocation] = {"global": global_, "erk": erk}


def _towards_erk(shapes: Shapes, kept: Mapping[str, int], added: int) -> dict[str, float]:
    """Return what each tensor lacks of its ERK share of all that is kept afterwards."""
    wanted = _erk(shapes, sum(kept.values()) + added)
    return {name: float(max(0, wanted[name] - kept[name])) for name in shapes}


# (shapes, connections kept, how many are added) -> each tensor's share of those.
GROWTH_ALLOCATIONS: dict[
    str, Callable[[Shapes, Mapping[str, int], int], Mapping[str, float]] | None
] = {
    # None: the best of all pruned ones, wherever they lie.
    "global": None,
    # In proportion to the connections that are kept: each tensor's density stays, nearly.
    "proportional": lambda shapes, kept, added: {n: float(c) for n, c in kept.items()},
    # So that the kept and the new together are shared out as ``erk`` would.
    "towards-erk": _towards_erk,
}


def growth(share: str, alive: Masks, total: int) -> dict[str, int]:
    """Return how many of ``total`` new connections each tensor gets: never more than are pruned.

    Args:
        share: a name in GROWTH_ALLOCATIONS other than ``global``.
        alive: the present masks.
        total: how many are added; all pruned ones, where there are fewer.
    """
    rule = GROWTH_ALLOCATIONS[share]
    assert rule is not None
    kept = {name: int(np.count_nonzero(alive[name])) for name in alive}
    room = {name: alive[name].size - kept[name] for name in alive}
    shapes = {name: alive[name].shape for name in alive}
    # No share is zero: a tensor without a connection would never get one.
    shares = {n: max(1e-9, share) for n, share in rule(shapes, kept, total).items()}
    return _apportion(shares, room, _checked(total))


def _checked(total: int) -> int:
    if total < 0:
        raise UsageError(f"{total} connections to allocate", hint="a count is zero or more")
    return total


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
