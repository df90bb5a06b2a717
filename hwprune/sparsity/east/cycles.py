"""Cycles of density: above the target and back, along a cosine (arXiv 2411.13545)."""

from __future__ import annotations

import math

from hwprune.errors import UsageError
from hwprune.sparsity.course import Event
from hwprune.sparsity.pieces import Growing, Pruning


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
    pruning: Pruning,
    growing: Growing,
) -> tuple[Event, ...]:
    """Return cycles that start and end with a full budget; what is in between may be above it.

    Rising, the dead with the largest gain are grown; falling, the living with the lowest score are
    pruned. Each cycle ends at the budget itself, so that only the way is a matter of densities.

    Args:
        count: how many cycles, of equal length, over (0, until].
        peak: how many times the density the middle of a cycle holds.
        until: the progress at which the last one ends.
        density: the density that the plan expects at the full budget.
        steps: changes of the masks in a cycle; an even number meets the peak exactly.
        pruning: what ranks the living.
        growing: what ranks the dead.

    Raises:
        UsageError: no cycle, none that rises, or too few steps to rise and fall.
    """
    if count < 1 or steps < 2 or not 1 < peak < math.inf or not 0 < until < 1:
        raise UsageError(
            f"{count} cycles of {steps} steps to {peak} times the density, until {until}",
            hint="at least one cycle and two steps, a peak above 1, until in (0, 1)",
        )
    events: list[Event] = []
    for number in range(1, count * steps + 1):
        time, place = until * number / (count * steps), (number % steps) / steps
        if place == 0:
            events.append(pruning.at(time, budget_fraction=1.0))
            continue
        rises = place <= 0.5
        aim = density_at(place, density, peak)
        events.append((growing if rises else pruning).at(time, density=aim))
    return tuple(events)
