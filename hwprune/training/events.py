"""From an event of a strategy to masks: the only place where scores, budget and weights meet.

Scores are worked out tensor by tensor. What an event leads to is a prefix of one order: first the
connections that are kept now, then the pruned ones. A number cuts it, a budget in bytes fills it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from hwprune.ir import Masks, Ranking
from hwprune.sparsity import (
    ALLOCATIONS,
    GROWTH_SCORES,
    SCORES,
    Fill,
    LazyScores,
    MaskEvent,
    followed_by,
    growth,
    priced,
    rank,
    rank_allocated,
    select,
)
from hwprune.training.evidence import GradientStats
from hwprune.training.sparse import SparseParameters

# What is ranked beyond the expected count at first, as a part of it and at least: what filling
# costs is bounded by what can fit, not by the size of the network.
_ROOM = 0.125
_LEAST = 1 << 16


def masks_after(
    event: MaskEvent,
    parameters: SparseParameters,
    stats: GradientStats,
    fill: Fill,
    *,
    density: float,
    prices: Mapping[str, float] | None = None,
) -> Masks:
    """Return the masks that an event leads to; changes nothing.

    A density is met to the connection: ``round(density * weights)`` are kept afterwards, unless a
    pruning finds fewer. Every tensor keeps at least its best connection, and gets one back, before
    any other grows, if it has none.

    Args:
        event: what to do.
        parameters: the weights and the present masks.
        stats: what the event's score needs.
        fill: turns a ranking and a fraction of the byte budget into masks.
        density: what the plan expects at the full budget (bounds the work only).
        prices: what a connection of each tensor costs; without, all cost the same.
    """
    order = _Order(event, parameters, stats, prices or {})
    grows = event.action == "regrow"
    total, kept = parameters.weights, parameters.masks.nonzeros
    if event.budget_fraction is None:
        count = round((event.density or event.share or 1.0) * (total if event.density else kept))
        if not grows or count <= kept:
            return order.kept(min(count, kept), count).masks()
        grown = order.pruned(count - kept, count - kept).masks()
        return Masks({name: grown[name] | mask for name, mask in parameters.masks.by_name.items()})
    expected = round(density * total * event.budget_fraction)
    limit = min(total, max(expected, kept if grows else 0) + int(_ROOM * expected) + _LEAST)
    while True:
        ranking = order.kept(limit, expected).ranking()
        masks = None if grows else fill(ranking, event.budget_fraction)
        if masks is None or (_all_of(ranking, masks) and len(ranking) < min(limit, total)):
            # Bytes depend on positions: the budget may hold more than is kept. Then some return.
            more = order.pruned(limit - len(ranking), max(1, expected - len(ranking))).ranking()
            ranking = followed_by(ranking, more)
            masks = fill(ranking, event.budget_fraction)
        if limit == total or len(ranking) < limit or not _all_of(ranking, masks):
            return masks
        # More fits than was expected (a plan of another ranking): look further.
        limit = min(total, 4 * limit)


def collapsed(masks: Masks) -> tuple[str, ...]:
    """Return the tensors of which a single connection is left: only the guard kept that one."""
    return tuple(n for n in masks if masks[n].size > 1 and np.count_nonzero(masks[n]) <= 1)


class _Best:
    """The best so many connections, in order or as masks."""

    def __init__(
        self,
        scores: Mapping[str, NDArray[np.float32]],
        limit: int,
        guard: Collection[str],
        counts: Mapping[str, int] | None,
    ) -> None:
        self._scores, self._limit, self._guard, self._counts = scores, limit, guard, counts

    def ranking(self) -> Ranking:
        if self._counts is not None:
            return rank_allocated(self._scores, self._counts, limit=self._limit)
        return rank(self._scores, limit=self._limit, guard=self._guard)

    def masks(self) -> Masks:
        if self._counts is not None:
            return self.ranking().masks(self._limit)
        return select(self._scores, self._limit, guard=self._guard)


class _Order:
    """The two halves of an event's order.

    Pruning ranks what is kept by its score, and what may return after it by the LAMP score of its
    pretrained value. Regrowing ranks what is kept by LAMP, and what returns by its growth score.
    """

    def __init__(
        self,
        event: MaskEvent,
        parameters: SparseParameters,
        stats: GradientStats,
        prices: Mapping[str, float],
    ) -> None:
        self._event, self._parameters, self._stats = event, parameters, stats
        self._prices = prices
        self._alive = parameters.masks

    def kept(self, limit: int, expected: int) -> _Best:
        """Return the best ``limit`` of what is kept; shared out as ``expected`` would be."""
        event, weights = self._event, self._parameters.values()
        prunes = event.action == "prune"
        score = SCORES[event.score if prunes else "lamp"]
        scores = self._scores(lambda name: score(weights[name], limit), alive=True)
        counts = None
        if prunes and event.allocation != "global":
            counts = ALLOCATIONS[event.allocation](scores, expected)
            counts = {n: max(1, round(c / self._prices.get(n, 1))) for n, c in counts.items()}
        return _Best(scores, limit, tuple(self._alive), counts)

    def pruned(self, limit: int, expected: int) -> _Best:
        """Return the best ``limit`` of what is pruned; shared out as ``expected`` would be."""
        event, before = self._event, self._parameters.pretrained_values()
        if event.action == "prune":
            scores = self._scores(lambda name: SCORES["lamp"](before[name]), alive=False)
            return _Best(scores, limit, (), None)
        score = GROWTH_SCORES[event.score]
        scores = self._scores(
            lambda name: score(self._stats.evidence(self._parameters, name)), alive=False
        )
        empty = tuple(name for name in self._alive if not self._alive[name].any())
        counts = None
        if event.allocation != "global":
            counts = growth(event.allocation, self._alive, expected)
            counts = {n: round(count / self._prices.get(n, 1)) for n, count in counts.items()}
            counts = {name: max(count, int(name in empty)) for name, count in counts.items()}
        return _Best(scores, limit, empty, counts)

    def _scores(
        self, compute: Callable[[str], NDArray[np.float32]], *, alive: bool
    ) -> Mapping[str, NDArray[np.float32]]:
        """Return scores of what is kept, or of what is pruned, and -inf for the others."""

        def masked(name: str) -> NDArray[np.float32]:
            scores = compute(name)  # an array of its own
            np.copyto(scores, np.float32(-np.inf), where=self._alive[name] != alive)
            return scores

        return priced(LazyScores(self._parameters.shapes, masked), self._prices)


def _all_of(ranking: Ranking, masks: Masks) -> bool:
    """Return whether every ranked connection is kept: whether a longer ranking might fit too."""
    return all(
        bool(masks[name].reshape(-1)[ranking.position[ranking.tensor == number]].all())
        for number, name in enumerate(ranking.shapes)
    )
