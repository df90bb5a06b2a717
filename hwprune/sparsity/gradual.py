"""Strategies that approach the budget from above: one-way pruning, and what exchanges at it."""

from __future__ import annotations

from hwprune.sparsity import schedules
from hwprune.sparsity.event_builders import Grow, Prune, exchanges, gradual, rounds
from hwprune.sparsity.mask_schedule import Initial, Strategy


def dense() -> Strategy:
    """Prune nothing, train nothing."""
    return Strategy("dense", ())


def iterative(
    density: float,
    *,
    name: str = "iterative",
    removed: float = 0.2,
    rewind: bool = True,
    score: str = "lamp",
    allocation: str = "global",
    shrink: float = 0.0,
) -> Strategy:
    """Remove a fraction of what is left in rounds of equal length, each followed by training.

    Args:
        density: the density the plan expects.
        name: of the strategy.
        removed: what one round removes (arXiv 2010.07611 uses 20 %); 1 is all that goes, at once.
        rewind: begin the learning-rate schedule anew in each round (LR rewinding, arXiv
            2003.02389, section 2), rather than run one schedule over all rounds.
        score: what ranks the connections.
        allocation: how they are shared out.
        shrink: how far what stays is pulled towards zero at each round.
    """
    aims = schedules.iterative(density, removed=removed)
    times = [number / len(aims) for number in range(len(aims))]
    events = rounds(aims, 1.0, times, Prune(score, allocation, shrink))
    return Strategy(name, events, density, tuple(times[1:]) if rewind else ())


def cubic(
    density: float,
    *,
    until: float = 0.6,
    steps: int = 30,
    start: float = 1.0,
    shrink: float = 0.0,
    exchange: float = 0.0,
    score: str = "lamp",
    allocation: str = "global",
    grow_score: str = "gradient",
) -> Strategy:
    """Prune gradually from dense to the budget, then train with fixed masks: one-way pruning.

    Args:
        density: the density the plan expects.
        until: the progress at which the budget is reached.
        steps: pruning steps on the way (arXiv 1710.01878).
        start: the density that is met at once, before the first step.
        shrink: how far what stays is pulled towards zero at each step.
        exchange: the fraction of what is kept that each step prunes beyond its aim and regrows at
            once (GraNet, arXiv 2106.10404, section 3.2); 0 for plain pruning.
        score: what ranks the connections.
        allocation: how they are shared out.
        grow_score: what ranks the pruned ones, where ``exchange`` is above 0.
    """
    events = gradual(
        density, 1.0, until=until, steps=steps, prune=Prune(score, allocation, shrink),
        start=start, exchange=exchange, grow=Grow(grow_score),
    )  # fmt: skip
    return Strategy("cubic", events, density)


def rigl(
    density: float,
    *,
    name: str = "rigl",
    updates: int = 20,
    drop: float = 0.3,
    last_drop: float = 0.0,
    until: float = 0.75,
    score: str = "lamp",
    allocation: str = "global",
    grow_score: str = "gradient",
    grow_allocation: str = "proportional",
    initial: Initial = "zero",
) -> Strategy:
    """Prune to the budget at once, then exchange connections while training goes on: a control.

    RigL's exchange (arXiv 1911.11134, section 3), from pretrained weights instead of random ones;
    SET's (arXiv 1707.04780) is the same where what grows is ``random``.

    Args:
        density: the density the plan expects.
        name: of the strategy.
        updates: exchanges.
        drop: the share of what is kept that an exchange drops at first; a cosine lets it fall.
        last_drop: that share at ``until``.
        until: the progress at which the mask freezes.
        score: what ranks the connections that are kept.
        allocation: how they are shared out.
        grow_score: what ranks the pruned ones.
        grow_allocation: how what is grown is shared out; RigL keeps each layer's density, which
            ``proportional`` does nearly.
        initial: the value that a grown connection starts from.
    """
    prune, grow = Prune(score, allocation), Grow(grow_score, initial, grow_allocation)
    swaps = exchanges(updates, drop, until, last=last_drop, prune=prune, grow=grow)
    return Strategy(name, (prune.at(0.0, budget_fraction=1.0), *swaps), density)
