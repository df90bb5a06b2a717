"""The course of a run: an ordered tuple of events, each of which replaces the masks once.

A strategy knows fractions only. An event aims either at a density (a fraction of the prunable
weights: the approach from dense) or at a fraction of the byte budget, which a ``Fill`` handed in
by the caller turns into masks. The last event always fills the budget. All strategies but ``dense``
spend exactly the epochs they are given, so that two of them with the same recipe cost the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from hwprune.errors import UsageError
from hwprune.ir import Masks, Ranking
from hwprune.sparsity import schedules
from hwprune.sparsity.allocation import ALLOCATIONS
from hwprune.sparsity.scores import SCORES

Fill = Callable[[Ranking, float], Masks]
"""(ranking, fraction of the byte budget) -> the longest prefix of the ranking whose file fits."""

Action = Literal["prune", "regrow"]
Initial = Literal["zero", "pretrained"]


@dataclass(frozen=True, slots=True)
class Event:
    """One change of the masks.

    Attributes:
        progress: when, as a fraction of all training steps, in [0, 1].
        action: ``prune`` ranks the living connections and keeps the best; ``regrow`` keeps all
            living connections and adds the best of the dead.
        density: the fraction of all prunable weights that live afterwards; exact to the connection.
        budget_fraction: or the fraction of the byte budget that the file takes afterwards.
        score: a name in SCORES; for ``regrow`` it ranks the dead connections.
        initial: the value that a regrown connection starts from.
        allocation: a name in ALLOCATIONS; how the living are shared out between tensors (prune).

    Raises:
        UsageError: a value outside its range, or not exactly one of the two aims.
    """

    progress: float
    action: Action
    density: float | None = None
    budget_fraction: float | None = None
    score: str = "lamp"
    initial: Initial = "zero"
    allocation: str = "global"

    def __post_init__(self) -> None:
        if (self.density is None) == (self.budget_fraction is None):
            raise UsageError(
                "an event aims at a density or at a fraction of the budget, not both or none",
                hint="set exactly one of density and budget_fraction",
            )
        aim = self.density if self.density is not None else self.budget_fraction
        if aim is None or not 0 < aim <= 1 or not 0 <= self.progress <= 1:
            raise UsageError(
                f"an event at progress {self.progress} aims at {aim}",
                hint="progress lies in [0, 1], a density or budget fraction in (0, 1]",
            )
        _among("action", self.action, ("prune", "regrow"))
        _among("initial value", self.initial, ("zero", "pretrained"))
        _among("score", self.score, SCORES)
        _among("allocation", self.allocation, ALLOCATIONS)


@dataclass(frozen=True, slots=True)
class Strategy:
    """A named, ordered course of events.

    Attributes:
        name: as ``--strategy`` spells it.
        events: in the order in which they happen; the last one fills the budget.
        density: the density that the plan expects at the full budget: it shapes gradual
            approaches and bounds memory, it never decides the final count.
        restarts: progress values at which the learning-rate schedule begins anew.

    Raises:
        UsageError: events out of order, or a last one that does not fill the budget.
    """

    name: str
    events: tuple[Event, ...]
    density: float = 1.0
    restarts: tuple[float, ...] = ()

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
        """Return how many of the given epochs are spent: all, or none where nothing is pruned."""
        return given if self.events else 0

    @property
    def regrows(self) -> bool:
        """Return whether connections are ever added: whether there is an extreme state."""
        return any(event.action == "regrow" for event in self.events)


def dense() -> Strategy:
    """Prune nothing, train nothing."""
    return Strategy("dense", ())


def one_shot(density: float, *, score: str = "lamp", allocation: str = "global") -> Strategy:
    """Prune to the budget at once, before the first step; then train."""
    event = Event(0.0, "prune", budget_fraction=1.0, score=score, allocation=allocation)
    return Strategy("one-shot", (event,), density)


def iterative(
    density: float,
    *,
    removed: float = 0.2,
    rewind: bool = True,
    score: str = "lamp",
    allocation: str = "global",
) -> Strategy:
    """Remove a fraction of what is left in rounds of equal length, each followed by training.

    Args:
        density: the density the plan expects.
        removed: what one round removes (arXiv 2010.07611 uses 20 %).
        rewind: begin the learning-rate schedule anew in each round (LR rewinding, arXiv
            2003.02389, section 2), rather than run one schedule over all rounds.
        score: what ranks the connections.
        allocation: how they are shared out.
    """
    aims = schedules.iterative(density, removed=removed)
    times = [number / len(aims) for number in range(len(aims))]
    events = [
        Event(time, "prune", density=aim, score=score, allocation=allocation)
        for time, aim in zip(times[:-1], aims[:-1], strict=True)
    ]
    last = Event(times[-1], "prune", budget_fraction=1.0, score=score, allocation=allocation)
    restarts = tuple(times[1:]) if rewind else ()
    return Strategy("iterative", (*events, last), density, restarts)


def cubic(
    density: float,
    *,
    until: float = 0.6,
    steps: int = 30,
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
        exchange: the fraction of the living connections that each step prunes beyond its aim and
            regrows at once (GraNet, arXiv 2106.10404, section 3.2); 0 for plain pruning.
        score: what ranks the connections.
        allocation: how they are shared out.
        grow_score: what ranks the dead ones, where ``exchange`` is above 0.
    """
    events = _approach(
        density,
        1.0,
        until=until,
        steps=steps,
        exchange=exchange,
        score=score,
        allocation=allocation,
        grow_score=grow_score,
    )
    return Strategy("cubic", events, density)


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
    score: str = "lamp",
    allocation: str = "global",
    regrow_score: str = "gradient",
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
        score: what ranks the living.
        allocation: how they are shared out.
        regrow_score: what ranks the dead.
        initial: the value that a regrown connection starts from.

    Raises:
        UsageError: regrowth before the extreme state, or no regrowth step.
    """
    if steps < 1 or not prune_until <= regrow_from <= regrow_until:
        raise UsageError(
            f"bidirectional: {steps} regrowth steps from {regrow_from} to {regrow_until}"
            f" after pruning until {prune_until}",
            hint="at least one step, and prune_until <= regrow_from <= regrow_until",
        )
    down = _approach(
        density,
        depth,
        until=prune_until,
        steps=prune_steps,
        exchange=exchange,
        score=score,
        allocation=allocation,
        grow_score=regrow_score,
    )
    up = tuple(
        Event(
            schedules.linear(number / max(1, steps - 1), regrow_from, regrow_until),
            "regrow",
            budget_fraction=1.0
            if number == steps - 1
            else schedules.linear((number + 1) / steps, depth, 1.0),
            score=regrow_score,
            initial=initial,
        )
        for number in range(steps)
    )
    return Strategy("bidirectional", down + up, density)


def cyclic(
    density: float,
    *,
    rounds: int = 3,
    amplitude: float = 0.3,
    prune_until: float = 0.4,
    until: float = 0.75,
    dwell: float = 0.5,
    prune_steps: int = 30,
    score: str = "lamp",
    allocation: str = "global",
    regrow_score: str = "gradient",
    initial: Initial = "zero",
) -> Strategy:
    """Prune gradually to the budget, then prune below it and regrow, less deep each round.

    Args:
        density: the density the plan expects at the full budget.
        rounds: how many times to prune and regrow.
        amplitude: the fraction of the budget given up in the first round; it falls to zero along a
            cosine (as the exchange of arXiv 1911.11134 does).
        prune_until: the progress at which the budget is first reached.
        until: the progress at which the last round ends.
        dwell: the fraction of a round spent below the budget; 0 exchanges within one step.
        prune_steps: pruning steps on the way down.
        score: what ranks the living.
        allocation: how they are shared out.
        regrow_score: what ranks the dead.
        initial: the value that a regrown connection starts from.

    Raises:
        UsageError: no round, a depth of nothing or everything, or times out of order.
    """
    if rounds < 1 or not 0 < amplitude < 1 or not prune_until <= until or not 0 <= dwell <= 1:
        raise UsageError(
            f"cyclic: {rounds} rounds of amplitude {amplitude} between {prune_until} and {until}",
            hint="at least one round, amplitude in (0, 1), dwell in [0, 1], prune_until <= until",
        )
    events = list(
        _approach(
            density, 1.0, until=prune_until, steps=prune_steps, score=score, allocation=allocation
        )
    )
    length = (until - prune_until) / rounds
    for number in range(rounds):
        # The first pruning of the rounds comes one dwell after the approach has ended.
        end = prune_until + (number + 1) * length
        below = 1.0 - schedules.cosine(number / rounds, amplitude, 0.0)
        events.append(
            Event(
                end - dwell * length,
                "prune",
                budget_fraction=below,
                score=score,
                allocation=allocation,
            )
        )
        events.append(
            Event(end, "regrow", budget_fraction=1.0, score=regrow_score, initial=initial)
        )
    return Strategy("cyclic", tuple(events), density)


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "bidirectional": bidirectional,
    "iterative": iterative,
    "one-shot": one_shot,
    "cubic": cubic,
    "cyclic": cyclic,
    "dense": dense,
}


def make(name: str, *, density: float, **options: Any) -> Strategy:
    """Return the strategy of that name.

    Args:
        name: a key of STRATEGIES.
        density: the density the plan expects at the full budget (max_nonzeros / weights).
        options: the strategy's own keyword arguments.

    Raises:
        UsageError: an unknown name, or options that do not go together.
    """
    _among("strategy", name, STRATEGIES)
    if name == "dense":
        return dense()
    return STRATEGIES[name](density, **options)


def _approach(
    density: float,
    depth: float,
    *,
    until: float,
    steps: int,
    score: str,
    allocation: str,
    exchange: float = 0.0,
    grow_score: str = "gradient",
) -> tuple[Event, ...]:
    """Return the cubic way from dense to ``depth`` of the budget; the last aim is in bytes."""
    if steps < 1 or not 0 <= exchange < 1 or not 0 < depth <= 1 or not 0 < density <= 1:
        raise UsageError(
            f"a way of {steps} steps with exchange {exchange} to {depth} of the budget"
            f" (density {density})",
            hint="at least one step, exchange in [0, 1), depth and density in (0, 1]",
        )
    end = density * depth
    events: list[Event] = []
    for number in range(1, steps):
        aim = schedules.cubic(number / steps, 1.0, end)
        # Positions cost bytes too, so the budget may hold a little more than the plan expects:
        # stay clear of it, or there is nothing left to choose from when the budget is filled.
        if aim < 1.02 * end and exchange == 0:
            break
        time = until * number / steps
        deeper = aim * (1.0 - exchange)
        events.append(Event(time, "prune", density=deeper, score=score, allocation=allocation))
        if exchange:
            events.append(Event(time, "regrow", density=aim, score=grow_score))
    # One step is one-shot: it happens before the first training step.
    time = until if steps > 1 else 0.0
    below = depth * (1.0 - exchange)
    events.append(Event(time, "prune", budget_fraction=below, score=score, allocation=allocation))
    if exchange:
        events.append(Event(time, "regrow", budget_fraction=depth, score=grow_score))
    return tuple(events)


def _among(what: str, value: str, known: Any) -> None:
    if value not in known:
        raise UsageError(f"unknown {what} {value!r}", hint=f"one of {', '.join(known)}")
