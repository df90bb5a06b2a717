"""From an event of a strategy to masks: the only place where scores, budget and weights meet.

Scores are worked out tensor by tensor. An aim in connections needs no order of them, so masks are
selected and nothing is held for each connection; an aim in bytes ranks about as many as can fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from hwprune.ir import Masks, Ranking
from hwprune.sparsity import (
    ALLOCATIONS,
    Event,
    Fill,
    Streamed,
    champions,
    followed_by,
    growth,
    rank,
    rank_allocated,
    rank_dead,
    rank_living,
    select,
    select_living,
)
from hwprune.sparsity.rules import pieces
from hwprune.sparsity.scores import pieces as score_pieces
from hwprune.training.evidence import Seen
from hwprune.training.sparse import SparseParameters

# What is ranked beyond the expected count at first, as a part of it and at least: memory is bounded
# by what can fit, not by the size of the network.
_ROOM = 0.125
_LEAST = 1 << 16


def masks_after(
    event: Event,
    parameters: SparseParameters,
    seen: Seen,
    fill: Fill,
    *,
    density: float,
) -> Masks:
    """Return the masks that an event leads to; changes nothing.

    A density is met to the connection: ``round(density * weights)`` live afterwards, unless a
    pruning finds fewer alive. Every tensor keeps at least its best connection, and gets one back
    if it has none.

    Args:
        event: what to do.
        parameters: the weights and the present masks.
        seen: what the event's score needs.
        fill: turns a ranking and a fraction of the byte budget into masks.
        density: what the plan expects at the full budget (bounds memory only).
    """
    work = _Regrowing if event.action == "regrow" else _Pruning
    task = work(event, parameters, seen)
    total = parameters.weights
    if event.budget_fraction is None:
        whole = total if event.density is not None else parameters.masks.nonzeros
        return task.masks(round((event.density or event.share or 1.0) * whole))
    expected = round(density * total * event.budget_fraction)
    living = parameters.masks.nonzeros if event.action == "regrow" else 0
    limit = min(total, max(expected, living) + int(_ROOM * expected) + _LEAST)
    while True:
        masks = task.filled(
            lambda ranking: fill(ranking, event.budget_fraction or 1.0), limit, expected
        )
        if masks is not None:
            return masks
        # More fits than was expected (a plan of another ranking): look further.
        limit = min(total, 4 * limit)


def collapsed(masks: Masks) -> tuple[str, ...]:
    """Return the tensors of which a single connection is left: only the guard kept that one."""
    return tuple(n for n in masks if masks[n].size > 1 and np.count_nonzero(masks[n]) <= 1)


class _Pruning:
    """Ranks the living by score.

    Where bytes are to be filled, the dead may follow to use the rest up: bytes depend on positions,
    so the budget may hold more connections than live. Then the dead with the largest pretrained
    weights come back (from the event's initial value).
    """

    def __init__(self, event: Event, parameters: SparseParameters, seen: Seen) -> None:
        del seen
        self.event, self.parameters = event, parameters
        self.weights, self.alive = parameters.values(), parameters.masks

    def masks(self, count: int) -> Masks:
        """Return the best ``count``."""
        if self.event.allocation == "global":
            guarded = sum(bool(mask.any()) for mask in self.alive.by_name.values())
            if count >= guarded and self.event.score == "lamp":
                return select_living(self.weights, self.alive, min(count, self.alive.nonzeros))
            if count >= guarded:
                scores = self.scores()
                return select(scores, count, champions(scores))
        return self.ranking(count, count).masks(count)

    def filled(self, fill: Callable[[Ranking], Masks], limit: int, expected: int) -> Masks | None:
        """Return what fits; None where ``limit`` was too low to know."""
        first = self.ranking(limit, expected)
        masks = fill(first)
        if not _all_of(first, masks):
            return masks
        if len(first) >= limit and limit < self.parameters.weights:
            return None
        if self.alive.nonzeros == self.alive.weights:
            return masks
        dead = rank_dead(self.parameters.pretrained_values(), self.alive, limit=limit - len(first))
        joined = followed_by(first, dead)
        masks = fill(joined)
        short = limit < self.parameters.weights and len(joined) >= limit
        return None if short and _all_of(joined, masks) else masks

    def ranking(self, limit: int, expected: int) -> Ranking:
        """Rank the best ``limit``; where they are shared out, as ``expected`` of them would be."""
        if self.event.allocation != "global":
            scores = self.scores()
            counts = ALLOCATIONS[self.event.allocation](scores, expected)
            # No tensor is left without a connection.
            counts = {name: max(1, count) for name, count in counts.items()}
            return rank_allocated(scores, counts, limit=limit)
        if self.event.score == "lamp":
            return rank_living(self.weights, self.alive, limit=limit)
        scores = self.scores()
        return rank(scores, limit=limit, keep=champions(scores))

    def scores(self) -> Streamed:
        """Return the scores of what may stay, -inf for the others."""

        def parts(name: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
            living = self.alive[name].reshape(-1)
            for start, found in score_pieces(self.event.score, self.weights[name]):
                found[~living[start : start + found.size]] = -np.inf
                yield start, found

        return Streamed.of_parts(self.parameters.shapes, parts)


class _Regrowing:
    """Ranks the living first, by LAMP, then the dead by the event's rule.

    A tensor that has lost every connection gets its best one back before any other grows.
    """

    def __init__(self, event: Event, parameters: SparseParameters, seen: Seen) -> None:
        self.event, self.parameters, self.seen = event, parameters, seen
        self.alive = parameters.masks

    def masks(self, count: int) -> Masks:
        """Return the living and the best of the dead, ``count`` together."""
        living = self.alive.nonzeros
        if count < living:
            return rank_living(self.parameters.values(), self.alive, limit=count).masks(count)
        gains = self.gains()
        keep = self.guarded(gains)
        if count < keep.nonzeros:
            return keep
        if self.event.allocation == "global":
            return select(gains, count, keep)
        grown = self.dead(count - living, count - living).masks(count - living)
        return Masks({name: grown[name] | mask for name, mask in self.alive.by_name.items()})

    def filled(self, fill: Callable[[Ranking], Masks], limit: int, expected: int) -> Masks | None:
        """Return what fits; None where ``limit`` was too low to know."""
        first = rank_living(self.parameters.values(), self.alive, limit=limit)
        more = max(1, expected - len(first))
        joined = followed_by(first, self.dead(limit - len(first), more))
        masks = fill(joined)
        short = limit < self.parameters.weights and len(joined) >= limit
        return None if short and _all_of(joined, masks) else masks

    def dead(self, limit: int, expected: int) -> Ranking:
        """Rank the best ``limit`` of the dead, shared out as ``expected`` of them would be."""
        gains = self.gains()
        empty = self.guarded(gains, alive=False)
        if self.event.allocation == "global":
            return rank(gains, limit=limit, keep=empty)
        counts = growth(self.event.allocation, self.alive, expected)
        counts = {name: max(count, int(empty[name].any())) for name, count in counts.items()}
        return rank_allocated(gains, counts, limit=limit)

    def gains(self) -> Streamed:
        """Return the gains of the dead, and -inf for the living."""

        def parts(name: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
            living = self.alive[name].reshape(-1)
            seen = self.seen.evidence(self.parameters, name)
            for start, gain in pieces(self.event.score, seen):
                gain[living[start : start + gain.size]] = -np.inf
                yield start, gain

        return Streamed.of_parts(self.parameters.shapes, parts)

    def guarded(self, gains: Streamed, *, alive: bool = True) -> Masks:
        """Return the best dead connection of each empty tensor, with the living or without."""
        kept = {}
        for name, mask in self.alive.by_name.items():
            kept[name] = mask if alive else np.zeros_like(mask)
            if mask.size and not mask.any():
                kept[name] = champions({name: gains[name]})[name]
        return Masks(kept)


def _all_of(ranking: Ranking, masks: Masks) -> bool:
    """Return whether every ranked connection lives: whether a longer ranking might fit too."""
    return all(
        bool(masks[name].reshape(-1)[ranking.position[ranking.tensor == number]].all())
        for number, name in enumerate(ranking.shapes)
    )
