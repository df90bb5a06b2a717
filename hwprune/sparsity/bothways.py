"""Strategies that go below the budget and grow back to it: bidirectional pruning-regrowth."""

from __future__ import annotations

from hwprune.errors import UsageError
from hwprune.sparsity import schedules
from hwprune.sparsity.course import Initial, Strategy
from hwprune.sparsity.pieces import Growing, Pruning, climb, gradual, rounds, spread


def bidirectional(
    density: float,
    *,
    depth: float = 0.95,
    steps: int = 4,
    prune_until: float = 0.5,
    regrow_from: float = 0.55,
    regrow_until: float = 0.65,
    prune_steps: int = 30,
    exchange: float = 0.0,
    rewind: bool = False,
    score: str = "lamp",
    allocation: str = "global",
    regrow_score: str = "gradient",
    regrow_allocation: str = "global",
    initial: Initial = "zero",
) -> Strategy:
    """Prune gradually to an extreme state below the budget, then regrow until it is full.

    arXiv 2511.11675, section 3. The defaults are shallow: a deep overshoot that is regrown while
    the learning rate falls does not recover in a short run. Depth and initial value are those of
    the best bidirectional row of benchmarks/results/resnet20_defaults.json (one seed).

    Args:
        density: the density the plan expects at the full budget.
        depth: the fraction of the budget's bytes that the extreme state uses.
        steps: regrowth steps; the budget fraction rises linearly from ``depth`` to 1.
        prune_until: the progress at which the extreme state is reached.
        regrow_from: the progress of the first regrowth step.
        regrow_until: the progress of the last one.
        prune_steps: pruning steps on the way down; 1 is one-shot.
        exchange: as for ``cubic``, on the way down.
        rewind: begin the learning-rate schedule anew at each regrowth step.
        score: what ranks the living.
        allocation: how they are shared out.
        regrow_score: what ranks the dead.
        regrow_allocation: how what is grown is shared out.
        initial: the value that a regrown connection starts from.

    Raises:
        UsageError: regrowth before the extreme state, or no regrowth step.
    """
    _check_climb("bidirectional", steps, prune_until, regrow_from, regrow_until)
    growing = Growing(regrow_score, initial, regrow_allocation)
    down = gradual(
        density,
        depth,
        until=prune_until,
        steps=prune_steps,
        pruning=Pruning(score, allocation),
        exchange=exchange,
        growing=growing,
    )
    times = spread(steps, regrow_from, regrow_until)
    restarts = tuple(times) if rewind else ()
    return Strategy("bidirectional", down + climb(depth, times, growing), density, restarts)


def bidirectional_one_shot(
    density: float,
    *,
    depth: float = 0.5,
    steps: int = 4,
    rewind: bool = True,
    score: str = "lamp",
    allocation: str = "global",
    regrow_score: str = "gradient",
    regrow_allocation: str = "global",
    initial: Initial = "zero",
) -> Strategy:
    """Prune to the extreme state at once, then regrow in steps, each retrained in full.

    arXiv 2511.11675, one-shot mode: the state after the pruning and after each step is trained for
    equally many epochs.

    Args:
        density: the density the plan expects at the full budget.
        depth: the fraction of the budget's bytes that the extreme state uses.
        steps: regrowth steps.
        rewind: begin the learning-rate schedule anew at each step (arXiv 2003.02389).
        score: what ranks the living.
        allocation: how they are shared out.
        regrow_score: what ranks the dead.
        regrow_allocation: how what is grown is shared out.
        initial: the value that a regrown connection starts from.

    Raises:
        UsageError: no regrowth step, or a depth outside (0, 1].
    """
    return _in_rounds(
        "bidirectional-one-shot",
        density,
        (density,),
        depth,
        steps,
        1 / (1 + max(1, steps)),
        rewind,
        Pruning(score, allocation),
        Growing(regrow_score, initial, regrow_allocation),
    )


def bidirectional_iterative(
    density: float,
    *,
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

    arXiv 2511.11675, iterative mode; the rounds are LAMP's (arXiv 2010.07611).

    Args:
        density: the density the plan expects at the full budget.
        depth: the fraction of the budget's bytes that the extreme state uses.
        steps: regrowth steps.
        removed: what one pruning round removes of what is left.
        prune_until: the progress at which the first regrowth step comes; pruning rounds and
            regrowth steps each share their time equally. 0 gives all rounds the same length.
        rewind: begin the learning-rate schedule anew in each round (arXiv 2003.02389).
        score: what ranks the living.
        allocation: how they are shared out.
        regrow_score: what ranks the dead.
        regrow_allocation: how what is grown is shared out.
        initial: the value that a regrown connection starts from.

    Raises:
        UsageError: no regrowth step, or a depth or time outside its range.
    """
    aims = schedules.iterative(max(density * depth, 1e-9), removed=removed)
    return _in_rounds(
        "bidirectional-iterative",
        density,
        aims,
        depth,
        steps,
        prune_until or len(aims) / (len(aims) + max(1, steps)),
        rewind,
        Pruning(score, allocation),
        Growing(regrow_score, initial, regrow_allocation),
    )


def _in_rounds(
    name: str,
    density: float,
    aims: tuple[float, ...],
    depth: float,
    steps: int,
    turn: float,
    rewind: bool,
    pruning: Pruning,
    growing: Growing,
) -> Strategy:
    """Prune to ``aims`` until ``turn``, the last of them in bytes, then climb until the end."""
    if steps < 1 or not 0 < depth <= 1 or not 0 < turn < 1:
        raise UsageError(
            f"{name}: {steps} regrowth steps from {turn} on, depth {depth}",
            hint="at least one step, depth in (0, 1], prune_until in (0, 1)",
        )
    before = [turn * number / len(aims) for number in range(len(aims))]
    after = [turn + (1 - turn) * number / steps for number in range(steps)]
    down = rounds(aims, depth, before, pruning)
    restarts = tuple([*before[1:], *after]) if rewind else ()
    return Strategy(name, down + climb(depth, after, growing), density, restarts)


def _check_climb(name: str, steps: int, turn: float, first: float, last: float) -> None:
    if steps < 1 or not turn <= first <= last:
        raise UsageError(
            f"{name}: {steps} regrowth steps from {first} to {last} after pruning until {turn}",
            hint="at least one step, and prune_until <= regrow_from <= regrow_until",
        )
