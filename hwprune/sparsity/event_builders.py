"""What strategies are put together from: ways down, ways up, and exchanges in place.

Each builder returns events in order; a strategy puts them one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hwprune.errors import UsageError
from hwprune.sparsity import schedules
from hwprune.sparsity.mask_schedule import Initial, MaskEvent


@dataclass(frozen=True, slots=True)
class Prune:
    """What ranks the connections that are kept, and how they are shared out between tensors.

    Attributes:
        score, allocation, shrink: as in MaskEvent.
    """

    score: str = "lamp"
    allocation: str = "global"
    shrink: float = 0.0

    def at(
        self,
        progress: float,
        *,
        density: float | None = None,
        budget_fraction: float | None = None,
        share: float | None = None,
    ) -> MaskEvent:
        """Return the event that prunes to an aim."""
        return MaskEvent(
            progress, "prune", density, budget_fraction, share,
            score=self.score, allocation=self.allocation, shrink=self.shrink,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Grow:
    """What ranks the pruned connections, from which value they start, and where they may grow.

    Attributes:
        score, initial, allocation: as in MaskEvent.
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
    ) -> MaskEvent:
        """Return the event that regrows to an aim."""
        return MaskEvent(
            progress, "regrow", density, budget_fraction,
            score=self.score, initial=self.initial, allocation=self.allocation,
        )  # fmt: skip


def gradual(
    density: float,
    depth: float,
    *,
    until: float,
    steps: int,
    prune: Prune,
    start: float = 1.0,
    exchange: float = 0.0,
    grow: Grow | None = None,
) -> tuple[MaskEvent, ...]:
    """Return the cubic way from dense to ``depth`` of the budget; the last aim is in bytes.

    Args:
        density: the density that the plan expects at the full budget.
        depth: the fraction of the budget's bytes at the end.
        until: the progress at which it ends.
        steps: prunings on the way; 1 is one-shot, before the first training step.
        prune: what ranks the connections that are kept.
        start: the density that the cubic begins from, met before the first training step; where it
            is less than twice that of the end the way begins dense.
        exchange: the fraction of what is kept that each step prunes beyond its aim and regrows at
            once (GraNet, arXiv 2106.10404, section 3.2).
        grow: what ranks the pruned ones, where ``exchange`` is above 0.

    Raises:
        UsageError: a value outside its range.
    """
    if (
        steps < 1
        or not 0 <= exchange < 1
        or not all(0 < value <= 1 for value in (depth, density, start))
    ):
        raise UsageError(
            f"a way of {steps} steps with exchange {exchange} from density {start} to {depth} of"
            f" the budget (density {density})",
            hint="at least one step, exchange in [0, 1), start, depth and density in (0, 1]",
        )
    # What is exchanged starts from zero: it replaces what training had made small.
    grow = replace(grow or Grow(), initial="zero")
    end = density * depth
    start = start if start >= 2 * end else 1.0
    events: list[MaskEvent] = []
    for number in range(0 if start < 1 else 1, steps):
        aim = schedules.cubic(number / steps, start, end)
        # Positions cost bytes too, so the budget may hold a little more than the plan expects:
        # stay clear of it, or there is nothing left to choose from when the budget is filled.
        if aim < 1.02 * end and exchange == 0:
            break
        time = until * number / steps
        events.append(prune.at(time, density=aim * (1.0 - exchange)))
        if exchange:
            events.append(grow.at(time, density=aim))
    # One step is one-shot: it happens before the first training step.
    time = until if steps > 1 else 0.0
    events.append(prune.at(time, budget_fraction=depth * (1.0 - exchange)))
    if exchange:
        events.append(grow.at(time, budget_fraction=depth))
    return tuple(events)


def rounds(
    aims: Sequence[float], depth: float, times: Sequence[float], prune: Prune
) -> tuple[MaskEvent, ...]:
    """Return prunings to these densities at these times; the last one is to ``depth`` in bytes."""
    events = [prune.at(t, density=a) for t, a in zip(times[:-1], aims[:-1], strict=True)]
    return (*events, prune.at(times[-1], budget_fraction=depth))


def climb(depth: float, times: Sequence[float], grow: Grow) -> tuple[MaskEvent, ...]:
    """Return the way from ``depth`` of the budget to all of it, in equal steps at these times."""
    steps = len(times)
    fractions = [schedules.linear(number / steps, depth, 1.0) for number in range(1, steps)]
    pairs = zip(times, [*fractions, 1.0], strict=True)
    return tuple(grow.at(time, budget_fraction=fraction) for time, fraction in pairs)


def spread(steps: int, start: float, end: float) -> list[float]:
    """Return times from ``start`` to ``end``, both included; one step is at the start."""
    return [schedules.linear(n / max(1, steps - 1), start, end) for n in range(steps)]


def exchanges(
    count: int,
    drop: float,
    until: float,
    *,
    start: float = 0.0,
    falls_from: float = 0.0,
    last: float = 0.0,
    prune: Prune,
    grow: Grow,
) -> tuple[MaskEvent, ...]:
    """Return exchanges at the full budget: a share of what is kept goes, as many bytes come back.

    RigL, arXiv 1911.11134, section 3: the share falls along a cosine to ``until``.

    Args:
        count: how many, evenly spread over (start, until).
        drop: the share that an exchange at ``falls_from`` drops, or would drop.
        until: the progress at which the share reaches ``last``.
        start: the progress after which they begin.
        falls_from: the progress at which the cosine begins: for RigL the start of training, also
            where exchanges begin later.
        last: the share at ``until``.
        prune: what ranks the connections that are kept.
        grow: what ranks the pruned ones.

    Raises:
        UsageError: a value outside its range.
    """
    if count < 1 or not 0 <= last <= drop < 1 or drop == 0 or not start < until <= 1:
        raise UsageError(
            f"{count} exchanges of {drop} to {last} from {start} to {until}",
            hint="at least one, 0 <= last share <= drop < 1, drop above 0, start < until <= 1",
        )
    events: list[MaskEvent] = []
    for number in range(1, count + 1):
        time = start + (until - start) * number / (count + 1)
        share = schedules.cosine((time - falls_from) / (until - falls_from), drop, last)
        events.append(prune.at(time, share=1.0 - share))
        events.append(grow.at(time, budget_fraction=1.0))
    return tuple(events)
