"""When masks change: an ordered tuple of events, each of which replaces the masks once.

A schedule knows fractions only. An event aims at a density (a fraction of the prunable weights), at
a share of what is kept, or at a fraction of the byte budget, which a ``Fill`` handed in by the
caller turns into masks. The last event always fills the budget. All strategies but ``dense`` spend
exactly the epochs they are given, so that two of them with the same recipe cost the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from hwprune.errors import UsageError
from hwprune.ir import Masks, Ranking
from hwprune.sparsity.allocation import ALLOCATIONS, GROWTH_ALLOCATIONS
from hwprune.sparsity.growth_scores import GROWTH_SCORES
from hwprune.sparsity.scores import SCORES

Fill = Callable[[Ranking, float], Masks]
"""(ranking, fraction of the byte budget) -> the longest prefix of the ranking whose file fits."""

Action = Literal["prune", "regrow"]
Initial = Literal["zero", "pretrained"]
ACTIONS: tuple[Action, ...] = ("prune", "regrow")
INITIALS: tuple[Initial, ...] = ("zero", "pretrained")


@dataclass(frozen=True, slots=True)
class MaskEvent:
    """One change of the masks.

    Attributes:
        progress: when, as a fraction of all training steps, in [0, 1].
        action: ``prune`` ranks the connections that are kept and keeps the best of them;
            ``regrow`` keeps them all and adds the best of the pruned ones.
        density: the fraction of all prunable weights that is kept afterwards; exact to the
            connection.
        budget_fraction: or the fraction of the byte budget that the file takes afterwards.
        share: or the fraction of what was kept before that is kept afterwards (prune).
        score: a name in SCORES; for ``regrow`` one in GROWTH_SCORES.
        initial: the value that a regrown connection starts from.
        allocation: how connections are shared out between tensors: those that stay, a name in
            ALLOCATIONS; for ``regrow`` those that are added, a name in GROWTH_ALLOCATIONS.
        shrink: how far what stays is pulled towards zero, in units of the largest weight that the
            event removes from the same tensor (prune): a proximal step, so that weights leave at
            zero and the function does not jump. 0 for plain pruning.

    Raises:
        UsageError: a value outside its range, or not exactly one aim.
    """

    progress: float
    action: Action
    density: float | None = None
    budget_fraction: float | None = None
    share: float | None = None
    score: str = "lamp"
    initial: Initial = "zero"
    allocation: str = "global"
    shrink: float = 0.0

    def __post_init__(self) -> None:
        aims = [a for a in (self.density, self.budget_fraction, self.share) if a is not None]
        if len(aims) != 1:
            raise UsageError(
                "an event has one aim: a density, a budget fraction or a share of what is kept",
                hint="set exactly one of density, budget_fraction and share",
            )
        if not 0 < aims[0] <= 1 or not 0 <= self.progress <= 1:
            raise UsageError(
                f"an event at progress {self.progress} aims at {aims[0]}",
                hint="progress lies in [0, 1], an aim in (0, 1]",
            )
        among("action", self.action, ACTIONS)
        grows = self.action == "regrow"
        among("initial value", self.initial, INITIALS)
        among("growth score" if grows else "score", self.score, GROWTH_SCORES if grows else SCORES)
        among("allocation", self.allocation, GROWTH_ALLOCATIONS if grows else ALLOCATIONS)
        if grows and (self.share is not None or self.shrink):
            raise UsageError(
                f"a regrow event with share {self.share}, shrink {self.shrink}",
                hint="only pruning takes a share of what is kept, or shrinks it",
            )
        if not 0 <= self.shrink < math.inf:
            raise UsageError(f"shrink is {self.shrink}", hint="0 or more; 1 is the proximal step")


@dataclass(frozen=True, slots=True)
class Phasing:
    """When activations that adapt to their input stand in for every ReLU (arXiv 2411.13545).

    Attributes:
        hold: the progress until which they stand alone.
        gone: the progress from which plain ReLU is all there is; their share falls linearly
            between the two.

    Raises:
        UsageError: times out of order, or activations that would stay.
    """

    hold: float = 0.25
    gone: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.hold <= self.gone < 1 or self.gone == 0:
            raise UsageError(
                f"activations phased out from {self.hold} to {self.gone}",
                hint="0 <= hold <= gone < 1, and gone above 0: what is exported holds plain ReLU",
            )


@dataclass(frozen=True, slots=True)
class Strategy:
    """What happens to the masks of one run, and what that needs.

    Attributes:
        name: as ``--strategy`` spells it.
        events: in the order in which they happen; the last one fills the budget.
        density: the density that the plan expects at the full budget: it shapes gradual
            approaches and bounds memory, it never decides the final count.
        restarts: progress values at which the learning-rate schedule begins anew.
        trains: spend the epochs although nothing is pruned: ordinary dense training.
        phasing: when adaptive activations stand in for ReLU; None where never.
        notes: sentences for the report of a run.
        prices: what a connection of each tensor costs, by which its score is divided; empty where
            all cost the same.

    Raises:
        UsageError: events out of order, or a last one that does not fill the budget.
    """

    name: str
    events: tuple[MaskEvent, ...]
    density: float = 1.0
    restarts: tuple[float, ...] = ()
    trains: bool = False
    phasing: Phasing | None = None
    notes: tuple[str, ...] = ()
    prices: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        times = [event.progress for event in self.events]
        if times != sorted(times):
            raise UsageError(
                f"the events of {self.name!r} are out of order", hint="sort them by progress"
            )
        if self.events and self.events[-1].budget_fraction != 1.0:
            raise UsageError(
                f"the last event of {self.name!r} does not fill the budget",
                hint="end with budget_fraction=1.0",
            )

    def epochs(self, given: int) -> int:
        """Return how many of the given epochs are spent: all, or none where nothing happens."""
        return given if self.events or self.trains else 0

    @property
    def regrows(self) -> bool:
        """Return whether connections are ever added."""
        return any(event.action == "regrow" for event in self.events)


def among(what: str, value: str, known: Iterable[str]) -> None:
    """Raise UsageError where a name is not among the known ones."""
    if value not in known:
        raise UsageError(f"unknown {what} {value!r}", hint=f"one of {', '.join(known)}")
