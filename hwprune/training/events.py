"""From an event of a strategy to masks: the only place where scores, budget and weights meet."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hwprune.ir import Masks, Ranking
from hwprune.sparsity import (
    ALLOCATIONS,
    NEEDS_GRADIENT,
    SCORES,
    Event,
    Fill,
    champions,
    followed_by,
    rank,
    rank_allocated,
)
from hwprune.training.sparse import SparseParameters

Arrays = Mapping[str, NDArray[np.float32]]

# How much of the expected count is ranked beyond it, and the least that is ranked: memory is
# bounded by what can fit, not by the size of the network.
_ROOM = 4
_LEAST = 1 << 16


def needs_gradient(event: Event) -> bool:
    """Return whether an event's score needs gradients."""
    return event.score in NEEDS_GRADIENT


def masks_after(
    event: Event,
    parameters: SparseParameters,
    gradients: Arrays | None,
    fill: Fill,
    *,
    density: float,
) -> Masks:
    """Return the masks that an event leads to; changes nothing.

    A density is met to the connection: ``round(density * weights)`` live afterwards, unless a
    pruning finds fewer alive. Every tensor keeps at least its best connection.

    Args:
        event: what to do.
        parameters: the weights and the present masks.
        gradients: dense gradients, where the event's score needs them.
        fill: turns a ranking and a fraction of the byte budget into masks.
        density: what the plan expects at the full budget (bounds memory only).
    """
    total = parameters.weights
    if event.density is not None:
        count = round(event.density * total)
        return _ranking(event, parameters, gradients, count, limit=count).masks(count)
    fraction = event.budget_fraction or 1.0
    expected = round(density * total * fraction)
    limit = max(_LEAST, parameters.masks.nonzeros if event.action == "regrow" else 0)
    limit = min(total, limit + _ROOM * expected)
    masks = fill(_ranking(event, parameters, gradients, expected, limit=limit), fraction)
    if limit < total and masks.nonzeros >= limit:
        # More fits than was expected (a plan of another ranking): look at everything.
        masks = fill(_ranking(event, parameters, gradients, expected, limit=None), fraction)
    return masks


def collapsed(masks: Masks) -> tuple[str, ...]:
    """Return the tensors of which a single connection is left: only the guard kept that one."""
    return tuple(n for n in masks if masks[n].size > 1 and np.count_nonzero(masks[n]) <= 1)


def _ranking(
    event: Event,
    parameters: SparseParameters,
    gradients: Arrays | None,
    expected: int,
    *,
    limit: int | None,
) -> Ranking:
    ranking = _regrow if event.action == "regrow" else _prune
    return ranking(event, parameters, gradients, expected, limit)


def _prune(
    event: Event,
    parameters: SparseParameters,
    gradients: Arrays | None,
    expected: int,
    limit: int | None,
) -> Ranking:
    """Rank the living by score. Where bytes are to be filled, the dead follow, to use the rest up.

    Bytes depend on positions: the budget may hold more connections than live. Then the dead with
    the largest pretrained weights come back (from the event's initial value).
    """
    masks, weights = parameters.masks, parameters.values()
    scores = {
        name: _where(masks[name], _score(event.score, name, weight, gradients))
        for name, weight in weights.items()
    }
    if event.allocation == "global":
        ranking = rank(scores, limit=limit, keep=champions(scores))
    else:
        counts = ALLOCATIONS[event.allocation](
            weights if event.allocation == "lamp" else scores, expected
        )
        # No tensor is left without a connection.
        counts = {name: max(1, count) for name, count in counts.items()}
        ranking = rank_allocated(scores, counts, limit=limit)
    if event.density is not None or masks.nonzeros == masks.weights:
        return ranking
    pretrained = parameters.pretrained_values()
    dead = {
        name: _where(~masks[name], SCORES["lamp"](weight, None))
        for name, weight in pretrained.items()
    }
    return followed_by(ranking, rank(dead, limit=_rest(limit, len(ranking))))


def _regrow(
    event: Event,
    parameters: SparseParameters,
    gradients: Arrays | None,
    expected: int,
    limit: int | None,
) -> Ranking:
    """Rank the living first, by LAMP, then the dead by the event's score.

    The dead have no value of their own: scores of weights see their pretrained one.
    """
    del expected
    masks, weights = parameters.masks, parameters.values()
    pretrained = parameters.pretrained_values()
    living = {
        name: _where(masks[name], SCORES["lamp"](weight, None)) for name, weight in weights.items()
    }
    dead = {
        name: _where(~masks[name], _score(event.score, name, weight, gradients))
        for name, weight in pretrained.items()
    }
    first = rank(living, limit=limit)
    return followed_by(first, rank(dead, limit=_rest(limit, len(first))))


def _score(
    score: str, name: str, weight: NDArray[np.float32], gradients: Arrays | None
) -> NDArray[np.float32]:
    return SCORES[score](weight, None if gradients is None else gradients[name])


def _where(mask: NDArray[np.bool_], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scores inside the mask; outside it nothing is ranked."""
    return np.where(mask, scores, np.float32(-np.inf))


def _rest(limit: int | None, used: int) -> int | None:
    return None if limit is None else limit - used
