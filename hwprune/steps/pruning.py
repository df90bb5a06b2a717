"""Prune and regrow: from a plan to masks, training the module in place where there are data."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from hwprune.budget import fit
from hwprune.errors import InfeasibleError, UsageError
from hwprune.ir import Data, Masks, Plan, Ranking
from hwprune.sparsity import Strategy, make
from hwprune.sparsity.masks import full
from hwprune.steps.planning import Prepared, cost_of
from hwprune.steps.storing import store_of
from hwprune.units import format_bytes, format_percent

if TYPE_CHECKING:
    from hwprune.least_squares import OneShot
    from hwprune.training import Checkpoint, Recipe, World

Say = Callable[["Status"], None]
Fill = Callable[[Ranking, float], Masks]

# What the project's own record says (a test compares the two); one run cannot know it by itself.
ONE_WAY_NOTE = (
    "one-way pruning (--strategy cubic, the default) was ahead or level at the same cost wherever "
    "we measured both with three seeds or more, on ResNet-20: see docs/results.md"
)


@dataclass(frozen=True, slots=True)
class Status:
    """A sign of life for whoever watches.

    Attributes:
        stage: the stage in progress.
        message: a short line.
        done: steps of the stage that are done, where it has any.
        of: steps of the stage.
    """

    stage: str
    message: str
    done: int = 0
    of: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """What the stage hands on.

    Attributes:
        strategy: the name of the strategy that ran.
        masks: what lives.
        epochs: epochs spent.
        extreme_accuracy: on validation, in the state with the fewest connections.
        validation_accuracy: on validation at the end, in torch, before packing.
        trajectory: one dict per change of the masks and per epoch.
        notes: sentences for the report.
        recipe: how it was trained; empty where nothing was.
        cost_epochs: what that cost, in epochs of one forward and backward pass a sample.
    """

    strategy: str
    masks: Masks
    epochs: int
    extreme_accuracy: float | None
    validation_accuracy: float | None
    trajectory: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    cost_epochs: float = 0.0


def strategy_for(name: str, plan: Plan, given: Mapping[str, Any]) -> Strategy:
    """Return the strategy of a run; none is needed where every weight fits.

    Args:
        name: a key of ``hwprune.sparsity.STRATEGIES``.
        plan: says how dense the result will be.
        given: keyword arguments of the strategy.

    Raises:
        InfeasibleError: nothing may be pruned and the quantised weights do not fit.
    """
    if plan.limited_by == "weights":
        return make("dense", density=1.0)
    if name == "dense":
        raise InfeasibleError(
            f"nothing may be pruned (--strategy dense), but as {plan.value_type} only "
            f"{plan.max_nonzeros:,} of {plan.weights:,} weights fit "
            f"{format_bytes(plan.budget_bytes)}",
            hint="choose another strategy, or raise --budget",
        )
    density = max(1, plan.max_nonzeros) / plan.weights  # at the floor nothing lives
    return make(name, density=density, **given)


@dataclass(frozen=True, slots=True)
class Training:
    """How to train.

    Attributes:
        epochs: passes over the training data.
        seed: of everything that is random.
        recipe: fields of ``hwprune.training.Recipe`` that differ from their defaults.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        checkpoint: where the state of the training is kept, None for nowhere.
        world: the processes that train together; None for this one alone.
    """

    epochs: int
    seed: int
    recipe: Mapping[str, Any]
    device: str
    checkpoint: Checkpoint | None = None
    world: World | None = None


def prune_and_regrow(
    prepared: Prepared,
    plan: Plan,
    strategy: Strategy,
    data: Data | None,
    training: Training,
    say: Say,
) -> Trained:
    """Find the masks, training the module in place where there are data.

    Ensures: the file of these masks takes at most the budget.
    """
    if not strategy.events:
        note = "every weight is alive: quantising alone meets the budget"
        return Trained("dense", all_alive(prepared), 0, None, None, (), (note,))
    fill = filler(prepared, plan)
    if data is None or training.epochs == 0:
        return _untrained(prepared, fill, data, training, say)
    return _train(prepared, plan, strategy, fill, data, training, say)


def _untrained(
    prepared: Prepared, fill: Fill, data: Data | None, training: Training, say: Say
) -> Trained:
    """Prune once and fit by least squares, on data or on what stands in for them."""
    one_shot = _one_shot(prepared, fill, training, say)
    if data is None:
        specs = prepared.model.inputs
        floats = all(s.dtype == "float32" and s.shape[:1] == (None,) for s in specs)
        shapes = tuple(spec.with_batch(1)[1:] for spec in specs) if floats else None
        fitted = one_shot.without_data(shapes)
    else:
        fitted = one_shot.on_data(data, recalibrates=not prepared.model.batchnorm_frozen)
    return Trained(
        "one-shot", fitted.masks, 0, None, fitted.accuracy, fitted.trajectory, fitted.notes
    )


def _one_shot(prepared: Prepared, fill: Fill, training: Training, say: Say) -> OneShot:
    from hwprune.least_squares import OneShot

    return OneShot(
        prepared.model.module, prepared.names, fill, seed=training.seed, device=training.device,
        tell=lambda message, done, of: say(Status("train", message, done, of)),
    )  # fmt: skip


def _fixed(masks: Masks) -> Fill:
    """Return what gives masks that are chosen already, whatever the ranking."""
    return lambda ranking, fraction: masks


def filler(prepared: Prepared, plan: Plan) -> Fill:
    """Return what turns a ranking and a fraction of the budget into masks."""
    cost = cost_of(prepared, plan.value_type)

    def fill(ranking: Ranking, fraction: float) -> Masks:
        # Next to the floor, a fraction of the budget would not even hold the empty network.
        budget = max(plan.floor_bytes, int(prepared.budget_bytes * fraction))
        return fit(cost, ranking, budget, plan.value_type).masks

    return fill


def recipe_of(training: Training) -> Recipe:
    """Return the recipe of a run.

    Raises:
        UsageError: a field that it does not have, or a value that cannot be.
    """
    from hwprune.training import Recipe

    known = {each.name for each in fields(Recipe)} - {"epochs"}
    for name in training.recipe:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise UsageError(
                f"recipe: {name!r} is not one of its fields",
                hint=f"did you mean {close[0]!r}?" if close else f"use {', '.join(sorted(known))}",
            )
    return replace(Recipe(), epochs=training.epochs, **training.recipe)


def _train(
    prepared: Prepared,
    plan: Plan,
    strategy: Strategy,
    fill: Fill,
    data: Data,
    training: Training,
    say: Say,
) -> Trained:
    from hwprune.training import ALONE, finetune

    world = training.world or ALONE
    recipe = recipe_of(training)

    def progress(event: Any) -> None:
        accuracy = (
            "" if event.accuracy is None else f", validation {format_percent(event.accuracy)}"
        )
        loss = "" if event.loss is None else f", loss {event.loss:.3f}"
        say(Status("train", f"{event.message}{loss}{accuracy}", event.step, event.of))

    teacher = prepared.teacher()
    started: list[str] = []
    # Where weights are shared there is no dense network of the same layers to be fitted to.
    fits = strategy.name == "one-shot" and prepared.unshared is None
    if data.train.labels is None and fits:
        masks, note = _one_shot(prepared, fill, training, say).before_training(data.train)
        started.append(note)
        fill = _fixed(masks)
    result = finetune(
        prepared.model.module,
        data=data,
        names=prepared.names,
        strategy=strategy,
        fill=fill,
        recipe=recipe,
        teacher=teacher,
        seed=training.seed,
        device=training.device,
        progress=progress,
        train_batchnorm=not prepared.model.batchnorm_frozen,
        checkpoint=training.checkpoint,
        world=world,
        store=store_of(prepared, prepared.model.module, plan.value_type),
    )
    where = f"on {training.device}"
    if world.size > 1:
        where += f", by {world.size} processes"
    notes = [*started, *result.notes, f"trained in {result.precision} {where}"]
    if strategy.name == "bidirectional":
        notes.append(ONE_WAY_NOTE)
    if prepared.model.batchnorm_frozen:
        notes.append("BN was frozen: an exported program keeps the mode that it was exported in")
    return Trained(
        strategy.name,
        result.masks,
        result.epochs,
        result.extreme_accuracy,
        result.final_accuracy if result.metric == "accuracy" else None,
        result.trajectory,
        tuple(notes),
        asdict(recipe),
        result.cost_epochs,
    )


def all_alive(prepared: Prepared) -> Masks:
    """Return masks in which every connection lives."""
    return full({tensor.name: tensor.shape for tensor in prepared.template.prunable})
