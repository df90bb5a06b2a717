"""What strategies are composed of: ways down, ways up, and exchanges in place.

Each piece returns events in order; a strategy puts pieces one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hwprune.errors import UsageError
from hwprune.sparsity import schedules
from hwprune.sparsity.course import Event, Initial


@dataclass(frozen=True, slots=True)
class Pruning:
    """What ranks the living, and how they are shared out between tensors.

    Attributes:
        score: a name in SCORES.
        allocation: a name in ALLOCATIONS.
    """

    score: str = "lamp"
    allocation: str = "global"

    def at(
        self,
        progress: float,
        *,
        density: float | None = None,
        budget_fraction: float | None = None,
        share: float | None = None,
    ) -> Event:
        """Return the event that prunes to an aim."""
        return Event(
            progress,
            "prune",
            density,
            budget_fraction,
            share,
            score=self.score,
            allocation=self.allocation,
        )


@dataclass(frozen=True, slots=True)
class Growing:
    """What ranks the dead, from which value they start, and where they may grow.

    Attributes:
        score: a name in RULES.
        initial: the value that a regrown connection starts from.
        allocation: a name in GROWTHS.
    """

    score: str = "gradient"
    initial: Initial = "zero"
    allocation: str = "global"

    def at(
        self,
        progress: float,
        *,
        density: float | None = None,
        budget_fraction: float | None = None,
    ) -> Event:
        """Return the event that regrows to an aim."""
        return Event(
            progress,
            "regrow",
            density,
            budget_fraction,
            score=self.score,
            initial=self.initial,
            allocation=self.allocation,
        )


def gradual(
    density: float,
    depth: float,
    *,
    until: float,
    steps: int,
    pruning: Pruning,
    exchange: float = 0.0,
    growing: Growing | None = None,
) -> tuple[Event, ...]:
    """Return the cubic way from dense to ``depth`` of the budget; the last aim is in bytes.

    Args:
        density: the density that the plan expects at the full budget.
        depth: the fraction of the budget's bytes at the end.
        until: the progress at which it ends.
        steps: prunings on the way; 1 is one-shot, before the first training step.
        pruning: what ranks the living.
        exchange: the fraction of the living that each step prunes beyond its aim and regrows at
            once (GraNet, arXiv 2106.10404, section 3.2).
        growing: what ranks the dead, where ``exchange`` is above 0.

    Raises:
        UsageError: a value outside its range.
    """
    if steps < 1 or not 0 <= exchange < 1 or not 0 < depth <= 1 or not 0 < density <= 1:
        raise UsageError(
            f"a way of {steps} steps with exchange {exchange} to {depth} of the budget"
            f" (density {density})",
            hint="at least one step, exchange in [0, 1), depth and density in (0, 1]",
        )
    # What is exchanged starts from zero: it replaces what training had made small.
    growing = replace(growing or Growing(), initial="zero")
    end = density * depth
    events: list[Event] = []
    for number in range(1, steps):
        aim = schedules.cubic(number / steps, 1.0, end)
        # Positions cost bytes too, so the budget may hold a little more than the plan expects:
        # stay clear of it, or there is nothing left to choose from when the budget is filled.
        if aim < 1.02 * end and exchange == 0:
            break
        time = until * number / steps
        events.append(pruning.at(time, density=aim * (1.0 - exchange)))
        if exchange:
            events.append(growing.at(time, density=aim))
    # One step is one-shot: it happens before the first training step.
    time = until if steps > 1 else 0.0
    events.append(pruning.at(time, budget_fraction=depth * (1.0 - exchange)))
    if exchange:
        events.append(growing.at(time, budget_fraction=depth))
    return tuple(events)


def rounds(
    aims: Sequence[float], depth: float, times: Sequence[float], pruning: Pruning
) -> tuple[Event, ...]:
    """Return prunings to these densities at these times; the last one is to ``depth`` in bytes."""
    events = [pruning.at(t, density=a) for t, a in zip(times[:-1], aims[:-1], strict=True)]
    return (*events, pruning.at(times[-1], budget_fraction=depth))


def climb(depth: float, times: Sequence[float], growing: Growing) -> tuple[Event, ...]:
    """Return the way from ``depth`` of the budget to all of it, in equal steps at these times."""
    return tuple(
        growing.at(time, budget_fraction=fraction)
        for time, fraction in zip(times, rising(depth, len(times)), strict=True)
    )


def rising(depth: float, steps: int) -> list[float]:
    """Return fractions of the budget that rise from above ``depth`` to 1 in equal steps."""
    return [
        1.0 if number == steps else schedules.linear(number / steps, depth, 1.0)
        for number in range(1, steps + 1)
    ]


def spread(steps: int, start: float, end: float) -> list[float]:
    """Return times from ``start`` to ``end``, both included; one step is at the start."""
    return [schedules.linear(n / max(1, steps - 1), start, end) for n in range(steps)]


def exchanges(
    count: int,
    drop: float,
    until: float,
    *,
    start: float = 0.0,
    last: float = 0.0,
    pruning: Pruning,
    growing: Growing,
) -> tuple[Event, ...]:
    """Return exchanges at the full budget: a share of the living goes, as many bytes come back.

    RigL, arXiv 1911.11134, section 3: the share falls along a cosine from the start of training to
    ``until``, also where exchanges begin later.

    Args:
        count: how many, evenly spread over (start, until).
        drop: the share of the living that an exchange at the very start of training would drop.
        until: the progress at which the share reaches ``last``.
        start: the progress after which they begin.
        last: the share at ``until``.
        pruning: what ranks the living.
        growing: what ranks the dead.
    """
    events: list[Event] = []
    for number in range(1, count + 1):
        time = start + (until - start) * number / (count + 1)
        share = schedules.cosine(time / until, drop, last)
        events.append(pruning.at(time, share=1.0 - share))
        events.append(growing.at(time, budget_fraction=1.0))
    return tuple(events)
