"""``--values auto``: which value type to store, decided by validation accuracy at the same bytes.

Fewer wide values stand against more narrow ones. First, without training: the dense model's weights
are masked and quantised, BN is recalibrated and the validation accuracy is measured. Those that
this cannot tell apart (within one standard error, as when all are near chance), and the four-bit
types, which only training makes up for, are then tried: each is trained for a short while at its
own number of connections, with its values in the loop. The best validation accuracy wins; within
one standard error of it the smaller error of the stored weights does, as it does without data.

What the trials may cost is a part of the run's epochs (``Recipe.race``), shared by all who take
part. Where that is too little to learn anything, there are none.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.budget import ranking_limit
from hwprune.encoding.values import rounded
from hwprune.extreme import extreme_hooks
from hwprune.ir import Data, Masks, Say, Status, ValueType
from hwprune.job import Job, may_try
from hwprune.sampling import Sampled, evenly_spread
from hwprune.sparsity import make, rank_weights
from hwprune.steps.planning import AUTO_VALUE_TYPES, Candidate, Prepared, module_weights
from hwprune.steps.weight_quantizer import weight_quantizer
from hwprune.tasks import Metric
from hwprune.training import FinetuneConfig, Recipe, finetune, recalibrate_batchnorm
from hwprune.training.batches import Batches
from hwprune.training.evaluate import Judge

_SAMPLES = 1000
# Of the types that are compared before training, the most that are tried.
_WIDE = 2
# A training of fewer steps says nothing.
_LEAST_STEPS = 30


@dataclass(frozen=True, slots=True)
class Choice:
    """A value type and how it was chosen.

    Attributes:
        value_type: what to compile with.
        note: a sentence for the report.
        cost_epochs: what choosing cost, in epochs of the run's training data.
    """

    value_type: ValueType
    note: str
    cost_epochs: float = 0.0


def choose_value_type(
    job: Job, prepared: Prepared, candidates: Mapping[ValueType, Candidate], say: Say
) -> Choice:
    """Return the value type to compile with; the network is not changed.

    Args:
        job: what is measured on (by the weights alone without labels), and how to train.
        prepared: the network.
        candidates: what fits; four-bit types are left out where nothing is tried.
        say: told about each trial.
    """
    if len(candidates) == 1:
        (only,) = candidates
        return Choice(only, f"values: {only}, the only choice")
    data = job.data
    weights = module_weights(prepared.model.module, prepared.template)
    masks = _masks(weights, candidates)
    axes = prepared.template.channel_axes
    errors = {kind: reconstruction_error(weights, masks[kind], axes, kind) for kind in candidates}
    plain = [kind for kind in candidates if kind in AUTO_VALUE_TYPES] or list(candidates)
    by_error = min(plain, key=errors.__getitem__)
    listed = ", ".join(f"{kind} {100 * errors[kind]:.2f} %" for kind in plain)
    if data is None or not job.task.measurable(data.validation):
        note = f"values: {by_error}, by the squared error of the stored weights ({listed})"
        return Choice(by_error, note)
    screened = {kind: _screen(job, data, prepared, masks[kind], kind) for kind in plain}
    close = _level(job.task.metric, screened)
    chosen = min(close, key=errors.__getitem__)
    measured = _listed(job.task.metric, screened)
    if may_try(data, job.task, job.recipe):
        entrants = sorted(close, key=errors.__getitem__)[:_WIDE]
        entrants += [kind for kind in candidates if kind not in plain]
        tried = _trials(job, data, prepared, candidates, entrants, errors, say)
        if tried is not None:
            return tried
    how = f"validation {job.task.metric.name} before training" if len(close) == 1 else (
        f"error of the stored weights ({listed}), validation before training being level"
    )  # fmt: skip
    return Choice(chosen, f"values: {chosen}, by {how} (screened: {measured})")


def _masks(
    weights: Mapping[str, NDArray[np.float32]], candidates: Mapping[ValueType, Candidate]
) -> dict[ValueType, Masks]:
    """Return what fits for each type; the longest ranking begins with the shorter ones."""
    plans = {kind: each.plan for kind, each in candidates.items()}
    limits = [ranking_limit(candidates[k].cost, plan.budget_bytes, k) for k, plan in plans.items()]
    ranking = rank_weights(weights, "lamp", max(limits))
    return {kind: each.masks(ranking) for kind, each in candidates.items()}


def reconstruction_error(
    weights: Mapping[str, NDArray[np.float32]],
    masks: Masks,
    axes: Mapping[str, int],
    value_type: ValueType,
) -> float:
    """Return the squared error of the stored weights over the squared norm of the dense ones."""
    error = norm = 0.0
    for name, weight in weights.items():
        decoded = _as_stored(weight, masks[name], value_type, axes[name])
        error += float(np.square(weight - decoded, dtype=np.float64).sum())
        norm += float(np.square(weight, dtype=np.float64).sum())
    return error / norm if norm else 0.0


def _as_stored(
    weight: NDArray[np.float32], mask: NDArray[np.bool_], kind: ValueType, axis: int
) -> NDArray[np.float32]:
    return rounded(np.where(mask, weight, np.float32(0)), kind, axis)


def _level(metric: Metric, rows: Mapping[ValueType, Any]) -> list[ValueType]:
    """Return the candidates within one standard error of the best."""
    scores = {kind: metric.score(metric.value(each)) for kind, each in rows.items()}
    best = max(scores, key=scores.__getitem__)
    margin = metric.standard_error(rows[best])
    return [kind for kind, score in scores.items() if score >= scores[best] - margin]


def _listed(metric: Metric, rows: Mapping[ValueType, Any]) -> str:
    values = {kind: metric.value(each) for kind, each in rows.items()}
    return ", ".join(
        f"{kind} {100 * value:.1f} %" if metric.percent else f"{kind} {value:.4g}"
        for kind, value in values.items()
    )


def _trials(
    job: Job,
    data: Data,
    prepared: Prepared,
    candidates: Mapping[ValueType, Candidate],
    entrants: Sequence[ValueType],
    errors: Mapping[ValueType, float],
    say: Say,
) -> Choice | None:
    """Train the entrants for a short while and return the winner; None where that is too short."""
    recipe = job.recipe
    share = recipe.race * recipe.epochs / max(1, len(entrants))
    size = len(data.train)
    samples = size if share >= 1 else round(share * size)
    epochs = max(1, round(share))
    if len(entrants) < 2 or epochs * samples < _LEAST_STEPS * recipe.batch_size:
        return None
    picked = np.random.default_rng(job.seed).permutation(size)[:samples]
    part = replace(data, train=Sampled(data.train, np.sort(picked)))
    short = replace(
        recipe,
        epochs=epochs,
        per_round=False,
        quantise_from=min(0.5, recipe.quantise_from),
        checkpoint="final",
        sharpness=0.0,
        ema_decay=0.0,
        interpolate=0,
    )
    metric, found = job.task.metric, dict[ValueType, Any]()
    for number, kind in enumerate(entrants):
        say(Status("values", f"trying {kind}", number, len(entrants)))
        found[kind] = _try(job, part, prepared, candidates[kind], short)
    close = _level(metric, found)
    chosen = min(close, key=errors.__getitem__)
    spent = len(entrants) * epochs * samples / size
    measured = _listed(metric, found)
    how = (
        f"validation {metric.name}"
        if len(close) == 1
        else "error of the weights, validation level,"
    )
    note = (
        f"values: {chosen}, by {how} after a short training of each ({measured}; {spent:.2g} "
        "epochs in all, beside those of the run)"
    )
    return Choice(chosen, note, spent)


def _try(job: Job, data: Data, prepared: Prepared, candidate: Candidate, recipe: Recipe) -> Any:
    """Return what the metric of one candidate is taken of, after a short training."""
    module = copy.deepcopy(prepared.model.module)
    result = finetune(
        FinetuneConfig(
            module=module,
            data=data,
            names=prepared.template.names,
            strategy=replace(make("one-shot", density=candidate.density), prices=candidate.prices),
            fill=candidate.masks,
            recipe=recipe,
            teacher=copy.deepcopy(prepared.teacher),
            seed=job.seed,
            task=job.task,
            device=job.device,
            train_batchnorm=not prepared.model.batchnorm_frozen,
            hooks=extreme_hooks,
            store=weight_quantizer(prepared.template, module, candidate.plan.value_type),
            world=job.world,
        )
    )
    return result.rows


def _screen(job: Job, data: Data, prepared: Prepared, masks: Masks, kind: ValueType) -> Any:
    """Return what the metric of a type is taken of before training, on part of validation."""
    import torch

    module = copy.deepcopy(prepared.model.module)
    axes = prepared.template.channel_axes
    parameters = dict(module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name in masks:
            weight = parameters[name].detach().numpy()
            stored = _as_stored(weight, masks[name], kind, axes[name])
            parameters[name].copy_(torch.from_numpy(stored))
    if not prepared.model.batchnorm_frozen:
        recalibrate_batchnorm(module, data.train, samples=_SAMPLES, batch=128, seed=job.seed)
    batches = Batches(data.validation, device="cpu", resident_bytes=0, channels_last=False)
    chosen = evenly_spread(batches.size, min(_SAMPLES, batches.size))
    return Judge(job.task, batches, torch.from_numpy(chosen), None).rows(module)
