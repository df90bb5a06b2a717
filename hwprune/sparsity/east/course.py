"""``--strategy east``: the paper's parts, each of which can be left out."""

from __future__ import annotations

from hwprune.errors import UsageError
from hwprune.sparsity.course import Event, Initial, Phasing, Strategy
from hwprune.sparsity.east.cycles import cycles
from hwprune.sparsity.pieces import Growing, Pruning, exchanges


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
        cyclic: go through the cycles; without them exchanges begin at once.
        dyrelu: let DyReLU-B (arXiv 2003.10027) stand in for every ReLU at first.
        cycle_count: cycles.
        cycle_peak: how many times the density the middle of a cycle holds.
        cycle_steps: changes of the masks in a cycle.
        cycle_until: the progress at which the last cycle ends.
        dyrelu_hold: the progress until which DyReLU stands alone.
        dyrelu_gone: the progress at which plain ReLU is all that is left.
        updates: exchanges from the start to ``until``; cycles take the place of their share.
        drop: the share of the living that an exchange drops at the start; a cosine lets it fall.
        last_drop: that share at ``until``.
        until: the progress at which the mask freezes.
        score: what ranks the living.
        allocation: how they are shared out between tensors.
        grow_score: what ranks the dead.
        grow_allocation: how what is grown is shared out.
        initial: the value that a grown connection starts from.

    Raises:
        UsageError: a value outside its range, or times out of order.
    """
    start = cycle_until if cyclic else 0.0
    if updates < 1 or not 0 <= last_drop <= drop < 1 or drop == 0 or not start < until <= 1:
        raise UsageError(
            f"east: {updates} exchanges of {drop} to {last_drop} from {start} to {until}",
            hint="at least one exchange, 0 <= last_drop <= drop < 1, cycle_until < until <= 1",
        )
    pruning = Pruning(score, allocation)
    growing = Growing(grow_score, initial, grow_allocation)
    events: tuple[Event, ...] = (pruning.at(0.0, budget_fraction=1.0),)
    if cyclic:
        events += cycles(
            cycle_count,
            cycle_peak,
            cycle_until,
            density=density,
            steps=cycle_steps,
            pruning=pruning,
            growing=growing,
        )
    events += exchanges(
        max(1, round(updates * (until - start) / until)),
        drop,
        until,
        start=start,
        last=last_drop,
        pruning=pruning,
        growing=growing,
    )
    phasing = Phasing(dyrelu_hold, dyrelu_gone) if dyrelu else None
    return Strategy("east", events, density, phasing=phasing)
