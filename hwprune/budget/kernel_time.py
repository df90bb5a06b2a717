"""Nonzeros -> time: what a network's kernels are predicted to take, and what a connection adds.

A model and not a stopwatch: cycles of one thread for one sample, from shapes, counts and a core's
constants. So it says the same on every machine, and what is measured afterwards may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwprune.ir import Masks, Plan, Ranking

# Time never counts alone: where it did, a layer that takes none would cost nothing.
_MOST_SHARE = 0.999
_STEPS = 10


@dataclass(frozen=True, slots=True)
class TensorTime:
    """What the layers that use a tensor take, in cycles.

    Attributes:
        weights: its elements.
        fixed: with nothing kept.
        each: what a kept connection adds.
        dense: with all kept, as onnxruntime's dense operator.
        densest: the share of the weights up to which a kernel runs.
    """

    weights: int
    fixed: float
    each: float
    dense: float
    densest: float

    def cycles(self, nonzeros: int) -> float:
        """Return what they take; never less with one connection more."""
        if nonzeros > self.densest * self.weights:
            return self.dense
        return min(self.dense, self.fixed + self.each * nonzeros)


@dataclass(frozen=True, slots=True)
class NetworkTime:
    """What a network takes, in cycles of one thread.

    Attributes:
        tensors: by the name of each prunable tensor.
        rest: of all that uses none of them.
        clock_hz: the core's cycles a second.
        core: whose constants these are, and where they are from.
    """

    tensors: Mapping[str, TensorTime]
    rest: float
    clock_hz: int
    core: str

    @property
    def dense(self) -> float:
        """Return what the dense network takes."""
        return self.rest + sum(each.dense for each in self.tensors.values())

    def cycles(self, counts: Mapping[str, int]) -> float:
        """Return what a network takes with so many connections kept of each tensor."""
        return self.rest + sum(t.cycles(counts[name]) for name, t in self.tensors.items())

    def of(self, masks: Masks) -> float:
        """Return what a network takes with these masks."""
        return self.cycles({name: int(np.count_nonzero(masks[name])) for name in masks})

    def share(self, plan: Plan) -> float:
        """Return what a plan takes, as a multiple of the dense network's time."""
        return self.cycles({each.name: each.nonzeros for each in plan.layers}) / self.dense

    def prices(self, share: float) -> dict[str, float]:
        """Return what a connection of each tensor costs: bytes and time with a multiplier each.

        Args:
            share: the multiplier of time, between 0 (bytes alone) and 1; that of bytes is the rest.
        """
        share *= _MOST_SHARE
        mean = sum(t.each for t in self.tensors.values()) / len(self.tensors)
        if not mean:
            return dict.fromkeys(self.tensors, 1.0)
        return {name: 1 - share + share * t.each / mean for name, t in self.tensors.items()}


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """How long a network may take.

    Attributes:
        network: what it takes.
        most: the cycles that it may take.
        text: the limits that this comes from, as they were written.
    """

    network: NetworkTime
    most: float
    text: str = ""

    def holds(self, masks: Masks) -> bool:
        """Return whether a network with these masks is predicted to be fast enough."""
        return self.network.of(masks) <= self.most

    def arranged(self, ranking: Ranking, count: int) -> Ranking:
        """Return a ranking in the order in which its best ``count`` are fast enough.

        Places are multiplied by prices, with the least share of time that does; a tensor's order
        and its first connection stay.
        """
        numbers = range(len(ranking.shapes))
        first = np.array([np.argmax(ranking.tensor == n) for n in numbers], dtype=np.int64)
        names = tuple(ranking.shapes)

        def order(share: float) -> NDArray[np.int64]:
            prices = self.network.prices(share)
            place = np.arange(1.0, len(ranking) + 1)
            place *= np.array([prices[name] for name in names])[ranking.tensor]
            place[first] = 0
            return np.argsort(place, kind="stable")

        def holds(share: float) -> bool:
            kept = np.bincount(ranking.tensor[order(share)[:count]], minlength=len(names))
            return self.network.cycles(dict(zip(names, kept.tolist(), strict=True))) <= self.most

        best = order(least_share(holds))
        return Ranking(ranking.shapes, ranking.tensor[best], ranking.position[best])


def least_share(holds: Callable[[float], bool]) -> float:
    """Return the least multiplier of time, of those with ten binary places, that is enough.

    Args:
        holds: whether the network is fast enough with it. 1 where none is.
    """
    if holds(0.0):
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
