"""Small questions about masks: how dense, what changed, and is a layer empty?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwprune.ir import Masks
from hwprune.sparsity.streaming import parts_of, shapes_of, size_of


@dataclass(frozen=True, slots=True)
class Change:
    """How one mask differs from the one before: connections per tensor."""

    grown: Mapping[str, int]
    pruned: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Repair:
    """Masks without an empty tensor, and the names of the tensors that had collapsed."""

    masks: Masks
    collapsed: tuple[str, ...]


def full(shapes: Mapping[str, tuple[int, ...]]) -> Masks:
    """Return masks in which every connection lives."""
    return Masks({name: np.ones(shape, dtype=np.bool_) for name, shape in shapes.items()})


def counts(masks: Masks) -> dict[str, int]:
    """Return the living connections per tensor."""
    return {name: int(np.count_nonzero(masks[name])) for name in masks}


def densities(masks: Masks) -> dict[str, float]:
    """Return the fraction that lives, per tensor (0 for one without elements)."""
    return {name: int(np.count_nonzero(masks[name])) / max(1, masks[name].size) for name in masks}


def masks_equal(first: Masks, second: Masks) -> bool:
    """Return whether both have the same tensors, in any order, and the same connections live."""
    return set(first) == set(second) and all(
        np.array_equal(first[name], second[name]) for name in first
    )


def compare(before: Masks, after: Masks) -> Change:
    """Return what was grown and what was pruned on the way from one mask to the other."""
    return Change(
        grown={name: int(np.count_nonzero(after[name] & ~before[name])) for name in after},
        pruned={name: int(np.count_nonzero(before[name] & ~after[name])) for name in after},
    )


def champions(scores: Mapping[str, NDArray[np.float32]]) -> Masks:
    """Return masks with the single best connection of each tensor (none where all are -inf).

    Passed as ``keep`` to ``rank``, they make every prefix that is as long as the number of
    tensors free of empty ones, at no cost in connections.
    """
    best = {}
    for name, shape in shapes_of(scores).items():
        winner, highest = -1, -np.inf
        for start, part in parts_of(scores, name):
            at = int(np.argmax(part))
            if part[at] > highest:
                winner, highest = start + at, float(part[at])
        mask = np.zeros(size_of(shape), dtype=np.bool_)
        if winner >= 0:
            mask[winner] = True
        best[name] = mask.reshape(shape)
    return Masks(best)


def repair_empty(masks: Masks, scores: Mapping[str, NDArray[np.float32]]) -> Repair:
    """Give every tensor without a connection its best one, and say which had none.

    One empty layer cuts a network in two (layer collapse, arXiv 2006.05467). The number of
    connections stays: for each one given, the worst of a tensor that has others is taken. Where no
    tensor has one to spare, the count grows. Bytes may change, so a budget has to be filled anew.

    Args:
        masks: which connections live.
        scores: one array per tensor, higher is better.
    """
    collapsed = tuple(name for name in masks if masks[name].size and not np.any(masks[name]))
    if not collapsed:
        return Repair(masks, ())
    repaired = {name: masks[name].copy() for name in masks}
    for name in collapsed:
        repaired[name].reshape(-1)[int(np.argmax(scores[name]))] = True
        donor = _worst(repaired, scores)
        if donor is not None:
            repaired[donor[0]].reshape(-1)[donor[1]] = False
    return Repair(Masks(repaired), collapsed)


def _worst(
    masks: Mapping[str, NDArray[np.bool_]], scores: Mapping[str, NDArray[np.float32]]
) -> tuple[str, int] | None:
    """Return tensor and position of the worst connection whose tensor has another one."""
    worst: tuple[float, str, int] | None = None
    for name, mask in masks.items():
        alive = np.flatnonzero(mask)
        if alive.size < 2:
            continue
        values = scores[name].reshape(-1)[alive]
        # Of equals the last one goes, as in the ranking.
        at = alive.size - 1 - int(np.argmin(values[::-1]))
        if worst is None or float(values[at]) <= worst[0]:
            worst = (float(values[at]), name, int(alive[at]))
    return None if worst is None else worst[1:]
