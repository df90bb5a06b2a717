"""Strategies that go below the budget and grow back to it: bidirectional pruning-regrowth."""

from __future__ import annotations

from hwprune.errors import UsageError
from hwprune.sparsity import schedules
from hwprune.sparsity.event_builders import Grow, Prune, climb, gradual, rounds, spread
from hwprune.sparsity.event_builders import exchanges as _exchanges
from hwprune.sparsity.mask_schedule import Initial, Strategy

# What the project's own record says (a test compares the two); one run cannot know it by itself.
_ONE_WAY = (
    "one-way pruning (--strategy cubic) was ahead or level, beside one dip at the same cost, "
    "wherever we measured both with three seeds or more, on ResNet-20: see docs/results.md"
)


def bidirectional(
    density: float,
    *,
    prune_until: float = 0.3,
    prune_steps: int = 60,
    start: float = 0.5,
    shrink: float = 1.0,
    exchanges: int = 30,
    drop: float = 0.1,
    until: float = 0.75,
    score: str = "magnitude",
    allocation: str = "global",
    regrow_score: str = "signal-to-noise",
    regrow_allocation: str = "global",
) -> Strategy:
    """Prune gradually to the budget, shrinking; then dip below it and regrow, many times a little.

    Each dip is an exchange within one step: the smallest weights go, and as many bytes return
    where the gradients of the last batches agree most. Its depth falls along a cosine, and the
    masks rest from ``until`` on.

    Args:
        density: the density the plan expects.
        prune_until: the progress at which the budget is reached.
        prune_steps: pruning steps on the way.
        start: the density that is met at once, before the first step.
        shrink: how far what stays is pulled towards zero at each of them.
        exchanges: dips, evenly spread over (prune_until, until).
        drop: the share of what is kept that the first one would drop at ``prune_until``.
        until: the progress from which the masks rest.
        score: what ranks the connections that are kept.
        allocation: how they are shared out.
        regrow_score: what ranks the pruned ones.
        regrow_allocation: how what is regrown is shared out.

    Raises:
        UsageError: a value outside its range, or times out of order.
    """
    down = gradual(
        density, 1.0, until=prune_until, steps=prune_steps, start=start,
        prune=Prune(score, allocation, shrink),
    )  # fmt: skip
    swaps = _exchanges(
        exchanges, drop, until, start=prune_until, falls_from=prune_until,
        prune=Prune(score, allocation), grow=Grow(regrow_score, allocation=regrow_allocation),
    )  # fmt: skip
    return Strategy("bidirectional", down + swaps, density)


def bidirectional_single(
    density: float,
    *,
    depth: float = 0.95,
    steps: int = 4,
    prune_until: float = 0.5,
    regrow_from: float = 0.55,
    regrow_until: float = 0.65,
    prune_steps: int = 30,
    exchange: float = 0.0,
    shrink: float = 0.0,
    rewind: bool = False,
    score: str = "lamp",
    allocation: str = "global",
    regrow_score: str = "gradient",
    regrow_allocation: str = "global",
    initial: Initial = "zero",
) -> Strategy:
    """Prune gradually to an extreme state below the budget, then regrow until it is full: one dip.

    arXiv 2511.11675, section 3. The defaults are shallow: a deep overshoot that is regrown while
    the learning rate falls does not recover in a short run. Depth and initial value are those of
    the best such row of benchmarks/results/resnet20_defaults.json (one seed).

    Args:
        density: the density the plan expects at the full budget.
        depth: the fraction of the budget's bytes that the extreme state uses.
        steps: regrowth steps; the budget fraction rises linearly from ``depth`` to 1.
        prune_until: the progress at which the extreme state is reached.
        regrow_from: the progress of the first regrowth step.
        regrow_until: the progress of the last one.
        prune_steps: pruning steps on the way down; 1 is one-shot.
        exchange: as for ``cubic``, on the way down.
        shrink: how far what stays is pulled towards zero at each pruning step.
        rewind: begin the learning-rate schedule anew at each regrowth step.
        score: what ranks the connections that are kept.
        allocation: how they are shared out.
        regrow_score: what ranks the pruned ones.
        regrow_allocation: how what is grown is shared out.
        initial: the value that a regrown connection starts from.

    Raises:
        UsageError: regrowth before the extreme state, or no regrowth step.
    """
    if steps < 1 or not prune_until <= regrow_from <= regrow_until:
        raise UsageError(
            f"bidirectional-single: {steps} regrowth steps from {regrow_from} to {regrow_until}"
            f" after pruning until {prune_until}",
            hint="at least one step, and prune_until <= regrow_from <= regrow_until",
        )
    grow = Grow(regrow_score, initial, regrow_allocation)
    down = gradual(
        density, depth, until=prune_until, steps=prune_steps,
        prune=Prune(score, allocation, shrink), exchange=exchange, grow=grow,
    )  # fmt: skip
    times = spread(steps, regrow_from, regrow_until)
    restarts = tuple(times) if rewind else ()
    events = down + climb(depth, times, grow)
    return Strategy("bidirectional-single", events, density, restarts, notes=(_ONE_WAY,))


def bidirectional_iterative(
    density: float,
    *,
    name: str = "bidirectional-iterative",
    depth: float = 0.5,
    steps: int = 4,
    removed: float = 0.2,
    prune_until: float = 0.0,
    rewind: bool = True,
    score: str = "lamp",
    allocation: str = "global",
    regrow_score: str = "gradient",
    regrow_allocation: str = "global",
    initial: Initial = "zero",
) -> Strategy:
    """Prune in rounds to the extreme state, then regrow in steps, each retrained in full.

    arXiv 2511.11675: its iterative mode, and with a single round, which removes 1, its one-shot
    mode. The rounds are LAMP's (arXiv 2010.07611), and each rewinds the rate (arXiv 2003.02389).

    Args:
        density: the density the plan expects at the full budget.
        name: of the strategy.
        depth: the fraction of the budget's bytes that the extreme state uses.
        steps: regrowth steps; the budget fraction rises linearly from ``depth`` to 1.
        removed: what one round removes; 1 is all that goes, at once.
        prune_until: the progress at which the first regrowth step comes: pruning rounds and
            regrowth steps each share their time equally, and 0 gives all the same length.
        rewind: begin the learning-rate schedule anew in each round and at each regrowth step.
        score: what ranks the connections that are kept.
        allocation: how they are shared out.
        regrow_score: what ranks the pruned ones.
        regrow_allocation: how what is grown is shared out.
        initial: the value that a regrown connection starts from.

    Raises:
        UsageError: no regrowth step, or a depth or time outside its range.
    """
    if steps < 1 or not 0 < depth <= 1 or not 0 <= prune_until < 1:
        raise UsageError(
            f"{name}: {steps} regrowth steps from {prune_until} on, depth {depth}",
            hint="at least one step, depth in (0, 1], prune_until in [0, 1)",
        )
    aims = schedules.iterative(max(density * depth, 1e-9), removed=removed)
    turn = prune_until or len(aims) / (len(aims) + steps)
    before = [turn * number / len(aims) for number in range(len(aims))]
    after = [turn + (1 - turn) * number / steps for number in range(steps)]
    restarts = tuple([*before[1:], *after]) if rewind else ()
    grow = Grow(regrow_score, initial, regrow_allocation)
    events = rounds(aims, depth, before, Prune(score, allocation)) + climb(depth, after, grow)
    return Strategy(name, events, density, restarts, notes=(_ONE_WAY,))
