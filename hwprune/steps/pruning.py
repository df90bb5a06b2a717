"""Prune and regrow: from a plan to masks, training the module in place where there are data."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from hwprune.errors import InfeasibleError
from hwprune.export.template import Template
from hwprune.extreme import extreme_hooks
from hwprune.ir import Data, Masks, Say, Status, ValueType
from hwprune.job import Job
from hwprune.least_squares import OneShot
from hwprune.sparsity import STRATEGIES, Fill, Strategy, full, make
from hwprune.steps.checkpoint import training_state
from hwprune.steps.planning import Candidate, Prepared, auto_strategy
from hwprune.steps.weight_quantizer import weight_quantizer
from hwprune.tasks import Task
from hwprune.training import FinetuneConfig, Progress, finetune
from hwprune.training.batches import steps_per_epoch
from hwprune.training.hooks import HookMaker
from hwprune.training.int8_activations import Int8Activations
from hwprune.units import format_bytes

# The largest norm of a gradient in training that goes on from least squares.
_GENTLE = 1.0


@dataclass(frozen=True, slots=True)
class Pruned:
    """What the stage hands on; the weights are in the module.

    Attributes:
        strategy: the name of the strategy that ran.
        masks: what is kept.
        epochs: epochs spent.
        metric: the name of what was measured on validation; None where nothing was.
        extreme_metric: on validation, in the state with the fewest connections.
        validation_metric: on validation at the end, in torch, before packing.
        trajectory: one dict per change of the masks and per epoch.
        notes: sentences for the report.
        recipe: how it was trained; empty where nothing was.
        cost_epochs: what that cost, in epochs of one forward and backward pass a sample.
    """

    strategy: str
    masks: Masks
    epochs: int = 0
    metric: str | None = None
    extreme_metric: float | None = None
    validation_metric: float | None = None
    trajectory: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    cost_epochs: float = 0.0


def nothing_pruned(prepared: Prepared, *notes: str) -> Pruned:
    """Return the masks that keep every connection."""
    masks = full({tensor.name: tensor.shape for tensor in prepared.template.prunable})
    return Pruned("dense", masks, notes=notes)


def strategy_for(
    job: Job, candidate: Candidate, *, steps: int | None = None, density: float | None = None
) -> Strategy:
    """Return the strategy of a run, with its prices; none is needed where every weight fits.

    Args:
        job: names it.
        candidate: what fits.
        steps: optimiser steps of the run; those of the job's recipe and data without.
        density: what an earlier plan of the same run found, in place of the candidate's.

    Raises:
        InfeasibleError: nothing may be pruned and the quantised weights do not fit.
    """
    return replace(_strategy(job, candidate, steps, density), prices=candidate.prices)


def _strategy(job: Job, candidate: Candidate, steps: int | None, density: float | None) -> Strategy:
    plan = candidate.plan
    if plan.limited_by == "weights" and density is None:
        return make("dense", density=1.0)
    if not STRATEGIES[job.strategy].prunes:
        raise InfeasibleError(
            f"nothing may be pruned (--strategy dense), but as {plan.value_type} only "
            f"{plan.max_nonzeros:,} of {plan.weights:,} weights fit "
            f"{format_bytes(plan.budget_bytes)}",
            hint="choose another strategy, or raise --budget",
        )
    adapts = STRATEGIES[job.strategy].adapts and not job.strategy_options
    trains = job.data is not None and job.recipe.epochs > 0
    if adapts and density is None and trains and job.model.kind == "onnx":
        note = "--strategy auto takes one-shot, as whenever an ONNX file is trained"
        return replace(make("one-shot", density=candidate.density), notes=(note,))
    if adapts and density is None and job.data is not None and job.recipe.epochs > 0:
        flat = all(len(layer.shape) == 2 for layer in plan.layers)
        if flat and not job.task.measurable(job.data.train):
            note = (
                "--strategy auto takes one-shot: without labels, training a fully connected network"
                " goes on best from the weights that least squares gives (docs/tasks.md)"
            )
            return replace(make("one-shot", density=candidate.density), notes=(note,))
    if adapts:
        if steps is None:
            size = 0 if job.data is None else len(job.data.train)
            steps = job.recipe.epochs * steps_per_epoch(size, job.recipe.batch_size)
        return auto_strategy(plan, steps=steps, density=density)
    density = candidate.density if density is None else density
    return make(job.strategy, density=density, **job.strategy_options)


def prune_and_regrow(
    job: Job, prepared: Prepared, candidate: Candidate, strategy: Strategy, say: Say
) -> Pruned:
    """Find the masks, training the module in place where there are data.

    Ensures: the file of these masks takes at most the budget.
    """
    if not strategy.events:
        return nothing_pruned(prepared, "every weight is kept: quantising alone meets the budget")
    if job.data is not None and job.recipe.epochs:
        return _train(job, job.data, prepared, candidate, strategy, say)
    one_shot = _one_shot(job, prepared.model.module, prepared.template, candidate, say)
    if job.data is None:
        specs = prepared.model.inputs
        floats = all(s.dtype == "float32" and s.shape[:1] == (None,) for s in specs)
        shapes = tuple(spec.with_batch(1)[1:] for spec in specs) if floats else None
        fitted = one_shot.without_data(shapes)
    else:
        fitted = one_shot.on_data(
            job.data, task=job.task, recalibrates=not prepared.model.batchnorm_frozen
        )
    return Pruned(
        "one-shot",
        fitted.masks,
        metric=None if fitted.metric is None else job.task.metric.name,
        validation_metric=fitted.metric,
        trajectory=fitted.trajectory,
        notes=fitted.notes,
    )


def _train(
    job: Job,
    data: Data,
    prepared: Prepared,
    candidate: Candidate,
    strategy: Strategy,
    say: Say,
) -> Pruned:
    model, template = prepared.model, prepared.template
    fill: Fill = candidate.masks
    notes: list[str] = []
    teacher = copy.deepcopy(prepared.teacher)
    # Where weights are shared there is no dense network of the same layers to be fitted to.
    fits = STRATEGIES[strategy.name].starts_from_fit and prepared.unshared is None
    recipe, fitted = job.recipe, None
    if fits and (model.kind == "onnx" or not job.task.measurable(data.train)):
        one_shot = _one_shot(job, model.module, template, candidate, say)
        store = partial(_store, template, candidate.plan.value_type)
        fitted = one_shot.before_training(data, task=job.task, store=store)
        chosen, fit = fitted.masks, copy.deepcopy(model.module.state_dict())
        notes += fitted.notes
        fill = lambda ranking, fraction: chosen  # noqa: E731 (they are chosen already)
        if recipe.grad_clip is None:  # the first steps would undo what was fitted
            recipe = replace(recipe, grad_clip=_GENTLE)
    result = finetune(
        FinetuneConfig(
            module=model.module,
            data=data,
            names=template.names,
            strategy=strategy,
            fill=fill,
            recipe=recipe,
            teacher=teacher,
            seed=job.seed,
            task=job.task,
            device=job.device,
            progress=_progress(say, job.task, candidate),
            train_batchnorm=not model.batchnorm_frozen,
            checkpoint=training_state(job, candidate.plan),
            world=job.world,
            hooks=_hooks(job),
            store=weight_quantizer(template, model.module, candidate.plan.value_type),
        )
    )
    final = result.final_metric if result.metric == job.task.metric.name else None
    if fitted is not None:
        behind, note = one_shot.is_behind(fitted, store=store)
        notes.append(note)
        if behind:
            model.module.load_state_dict(fit)
            final = None if final is None else fitted.metric
    where = f"on {job.device}"
    if job.world.size > 1:
        where += f", by {job.world.size} processes"
    notes += [*result.notes, f"trained in {result.precision} {where}"]
    notes += strategy.notes
    if model.batchnorm_frozen:
        notes.append("BN was frozen: an exported program keeps the mode that it was exported in")
    options = {f"strategy.{name}": value for name, value in job.strategy_options.items()}
    masks, trajectory = result.masks, result.trajectory
    compares = job.task.imitation == "values" and prepared.unshared is None and not job.firmware
    if compares and fitted is None and teacher is not None and job.world.leads:
        # Values are what least squares is for: a run shall be no worse than without training.
        dense = copy.deepcopy(teacher)
        instead, note = _one_shot(job, dense, template, candidate, say).instead_of(
            model.module, data, task=job.task, recalibrates=not model.batchnorm_frozen,
            store=partial(_store, template, candidate.plan.value_type),
        )  # fmt: skip
        notes.append(note)
        if instead is not None:
            model.module.load_state_dict(dense.state_dict())
            masks, final = instead.masks, None if final is None else instead.metric
            last = {**instead.trajectory[-1], "epoch": float(result.epochs), "step": result.steps}
            trajectory = (*trajectory, {**last, "metric": instead.metric})
    return Pruned(
        strategy.name,
        masks,
        result.epochs,
        result.metric,
        result.extreme_metric,
        final,
        trajectory,
        tuple(notes),
        {**asdict(recipe), **options},
        result.cost_epochs,
    )


def _store(template: Template, kind: ValueType, module: Any) -> None:
    """Let a module's weights be as a value type stores them."""
    if (quantizer := weight_quantizer(template, module, kind)) is not None:
        known = dict(module.named_parameters(remove_duplicate=False))  # an ONNX file's have dots
        weights = {name: known[name].detach() for name in template.names}
        for name, value in quantizer(weights, final=True).items():
            weights[name].copy_(value)


def _hooks(job: Job) -> HookMaker:
    """Return what takes part in training; for firmware, activations are int8 as weights are."""
    start = job.recipe.quantise_from
    if job.model.kind == "onnx":  # they know modules
        return lambda stage: {}
    if not job.firmware or start >= 1:
        return extreme_hooks
    return lambda stage: {
        **extreme_hooks(stage),
        "int8_activations": Int8Activations(stage, start),
    }


def _one_shot(job: Job, module: Any, template: Template, candidate: Candidate, say: Say) -> OneShot:
    return OneShot(
        module, template.names, candidate.masks,
        seed=job.seed, device=job.device, prices=candidate.prices,
        tell=lambda message, done, of: say(Status("train", message, done, of)),
    )  # fmt: skip


def _progress(say: Say, task: Task, candidate: Candidate) -> Any:
    """Return what reports the progress of a training."""
    budget = format_bytes(candidate.plan.budget_bytes)

    def progress(event: Progress) -> None:
        parts, values = [event.message], dict[str, float]()
        if event.loss is not None:
            parts.append(f"loss {event.loss:.3f}")
            values |= {"epoch": event.epoch, "loss": event.loss}
        if event.metric is not None:
            parts.append(f"validation {task.metric.show(event.metric)}")
            values[task.metric.name] = event.metric
        if event.masks is not None:
            size = candidate.file_bytes(event.masks)
            parts.append(f"{event.masks.nonzeros:,} nonzeros, {size:,} B of {budget}")
            values |= {"nonzeros": event.masks.nonzeros, "bytes": size}
        done = values if event.masks is not None else {}
        say(Status("train", ", ".join(parts), event.step, event.of, done))

    return progress
