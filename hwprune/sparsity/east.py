"""``--strategy east`` (arXiv 2411.13545): cycles of density, then exchanges, while ReLU returns."""

from __future__ import annotations

import math

from hwprune.errors import UsageError
from hwprune.sparsity.event_builders import Grow, Prune, exchanges
from hwprune.sparsity.mask_schedule import Initial, MaskEvent, Phasing, Strategy


def east(
    density: float,
    *,
    cyclic: bool = True,
    dyrelu: bool = True,
    cycle_count: int = 2,
    cycle_peak: float = 3.0,
    cycle_steps: int = 10,
    cycle_until: float = 0.4,
    dyrelu_hold: float = 0.25,
    dyrelu_gone: float = 0.5,
    updates: int = 18,
    drop: float = 0.5,
    last_drop: float = 0.005,
    until: float = 0.75,
    score: str = "magnitude",
    allocation: str = "erk",
    grow_score: str = "gradient",
    grow_allocation: str = "towards-erk",
    initial: Initial = "zero",
) -> Strategy:
    """Train at an extreme sparsity from the first step: EAST, arXiv 2411.13545.

    To the budget at once, cycles up to three times its density and back, then RigL's exchanges
    until the mask freezes; meanwhile activations that adapt to their input are phased out in favour
    of ReLU. Times are the paper's as fractions (two cycles of 50 of 250 epochs; activations alone
    for a quarter, gone at half). An exchange every 4000 of its 97,750 steps is 18 before 3/4, where
    the mask freezes as in RigL (arXiv 1911.11134).

    With ``cyclic`` and ``dyrelu`` off this is ``rigl`` with ERK, magnitudes and these exchanges.
    The paper's third part, weights that residual blocks share, is not a matter of events: the
    network is made so before (``hwprune.extreme.sharing``).

    Args:
        density: the density the plan expects.
        cyclic: begin with cycles.
        dyrelu: phase DyReLU-B (arXiv 2003.10027) out.
        cycle_count: cycles.
        cycle_peak: the most that they hold, in densities of the budget.
        cycle_steps: changes of the masks in each.
        cycle_until: the progress at which they end.
        dyrelu_hold: the progress until which DyReLU stands alone.
        dyrelu_gone: the progress at which ReLU alone is left.
        updates: exchanges; the cycles take the place of their share of them.
        drop: the share of what is kept that an exchange drops at first; a cosine lets it fall.
        last_drop: that share at ``until``.
        until: the progress at which the mask freezes.
        score: what ranks the connections that are kept.
        allocation: how they are shared out.
        grow_score: what ranks the pruned ones.
        grow_allocation: how what is grown is shared out.
        initial: the value that a grown connection starts from.

    Raises:
        UsageError: a value outside its range, or times out of order.
    """
    start = cycle_until if cyclic else 0.0
    prune, grow = Prune(score, allocation), Grow(grow_score, initial, grow_allocation)
    events: tuple[MaskEvent, ...] = (prune.at(0.0, budget_fraction=1.0),)
    if cyclic:
        events += cycles(
            cycle_count, cycle_peak, cycle_until,
            density=density, steps=cycle_steps, prune=prune, grow=grow,
        )  # fmt: skip
    count = max(1, round(updates * (until - start) / until)) if updates > 0 < until else 0
    events += exchanges(count, drop, until, start=start, last=last_drop, prune=prune, grow=grow)
    phasing = Phasing(dyrelu_hold, dyrelu_gone) if dyrelu else None
    return Strategy("east", events, density, phasing=phasing)


def density_at(place: float, target: float, peak: float) -> float:
    """Return the density at a place in a cycle: ``target`` at both ends, the most in the middle.

    ``target + (peak * target - target) * (1 - cos 2 pi place) / 2``, and never above 1.

    Args:
        place: the fraction of the cycle that is over, in [0, 1].
        target: the density at both ends, in (0, 1].
        peak: how many times the target the middle of the cycle holds.
    """
    return min(1.0, target * (1.0 + (peak - 1.0) * (1.0 - math.cos(2.0 * math.pi * place)) / 2.0))


def cycles(
    count: int,
    peak: float,
    until: float,
    *,
    density: float,
    steps: int,
    prune: Prune,
    grow: Grow,
) -> tuple[MaskEvent, ...]:
    """Return cycles that start and end with a full budget; what is in between may be above it.

    Each cycle ends at the budget itself, so that only the way is a matter of densities.

    Args:
        count: how many cycles, of equal length, over (0, until].
        peak: how many times the density the middle of a cycle holds.
        until: the progress at which the last one ends.
        density: the density that the plan expects at the full budget.
        steps: changes of the masks in a cycle; an even number meets the peak exactly.
        prune: what ranks the connections that are kept, as the density falls.
        grow: what ranks the pruned ones, as it rises.

    Raises:
        UsageError: no cycle, none that rises, or too few steps to rise and fall.
    """
    if count < 1 or steps < 2 or not 1 < peak < math.inf or not 0 < until < 1:
        raise UsageError(
            f"{count} cycles of {steps} steps to {peak} times the density, until {until}",
            hint="at least one cycle and two steps, a peak above 1, until in (0, 1)",
        )
    events: list[MaskEvent] = []
    for number in range(1, count * steps + 1):
        time, place = until * number / (count * steps), (number % steps) / steps
        if place == 0:
            events.append(prune.at(time, budget_fraction=1.0))
            continue
        aim = density_at(place, density, peak)
        events.append((grow if place <= 0.5 else prune).at(time, density=aim))
    return tuple(events)
