"""``--values auto``: which value type to store, decided by validation accuracy at the same bytes.

Fewer wide values stand against more narrow ones. First, without training: the dense model's weights
are masked and quantised, BN is recalibrated and the validation accuracy is measured. Those that
this cannot tell apart (within one standard error, as when all are near chance), and the four-bit
types, which only training makes up for, then race: each is trained for a short while at its own
number of connections, with its values in the loop. The best validation accuracy wins; within one
standard error of it the smaller error of the stored weights does, as it does without data.

What the race may cost is a part of the run's epochs (``Recipe.race``), shared by all who take part.
Where that is too little to learn anything, it is not held.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwprune.budget import fit, ranking_limit
from hwprune.encoding.values import rounded
from hwprune.ir import Data, Masks, Plan, Split, ValueType
from hwprune.sparsity import make, rank_weights
from hwprune.steps.planning import (
    AUTO_VALUE_TYPES,
    Prepared,
    cost_of,
    module_weights,
    reconstruction_error,
)
from hwprune.steps.pruning import Say, Status, Training, filler, recipe_of
from hwprune.steps.storing import store_of

if TYPE_CHECKING:
    from hwprune.training import Recipe

# Those that join where there is a race: a codebook of 256 is as wide as int8, and its table larger.
RACING_VALUE_TYPES: tuple[ValueType, ...] = ("int4", "codebook16")
_SAMPLES = 1000
# Of the types that are compared before training, the most that race.
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


def may_race(data: Data | None, recipe: Recipe) -> bool:
    """Return whether value types may be compared by training: then the four-bit ones join."""
    labels = data is not None and data.validation.labels is not None
    return labels and recipe.epochs > 0 and recipe.race > 0 and recipe.quantise_from < 1


def choose_value_type(
    prepared: Prepared,
    plans: Mapping[ValueType, Plan],
    data: Data | None,
    seed: int,
    *,
    training: Training | None = None,
    say: Say = lambda status: None,
) -> Choice:
    """Return the value type to compile with.

    Args:
        prepared: the traced model; it is not changed.
        plans: the candidates; four-bit ones are left out where there is no race.
        data: what is measured on, None to go by the weights alone.
        seed: of everything that is random.
        training: of the run; None for no race.
        say: told about each candidate.
    """
    if len(plans) == 1:
        (only,) = plans
        return Choice(only, f"values: {only}, the only choice")
    masks = {kind: _plan_masks(prepared, kind) for kind in plans}
    axes = {tensor.name: tensor.channel_axis for tensor in prepared.template.prunable}
    weights = module_weights(prepared)
    errors = {
        kind: reconstruction_error(weights, masks[kind].by_name, axes, kind) for kind in plans
    }
    plain = [kind for kind in plans if kind in AUTO_VALUE_TYPES] or list(plans)
    by_error = min(plain, key=errors.__getitem__)
    listed = ", ".join(f"{kind} {100 * errors[kind]:.2f} %" for kind in plain)
    if data is None or data.validation.labels is None:
        note = f"values: {by_error}, by the squared error of the stored weights ({listed})"
        return Choice(by_error, note)
    samples = min(_SAMPLES, len(data.validation))
    accuracies = {kind: _screen(prepared, masks[kind], kind, data, samples, seed) for kind in plain}
    close = _level(accuracies, samples)
    chosen = min(close, key=errors.__getitem__)
    measured = ", ".join(f"{kind} {100 * value:.1f} %" for kind, value in accuracies.items())
    if training is not None and may_race(data, recipe_of(training)):
        entrants = sorted(close, key=errors.__getitem__)[:_WIDE]
        entrants += [kind for kind in plans if kind not in plain]
        raced = _race(prepared, plans, entrants, errors, data, training, say)
        if raced is not None:
            return raced
    how = "validation accuracy before training" if len(close) == 1 else (
        f"error of the stored weights ({listed}), validation before training being level"
    )  # fmt: skip
    return Choice(chosen, f"values: {chosen}, by {how} (screened: {measured})")


def _level(accuracies: Mapping[ValueType, float], samples: int) -> list[ValueType]:
    """Return the candidates within one standard error of the best."""
    best = max(accuracies.values())
    margin = math.sqrt(max(best * (1 - best), 1 / samples) / samples)
    return [kind for kind, accuracy in accuracies.items() if accuracy >= best - margin]


def _race(
    prepared: Prepared,
    plans: Mapping[ValueType, Plan],
    entrants: Sequence[ValueType],
    errors: Mapping[ValueType, float],
    data: Data,
    training: Training,
    say: Say,
) -> Choice | None:
    """Train the entrants for a short while and return the winner; None where that is too short."""
    recipe = recipe_of(training)
    share = recipe.race * recipe.epochs / max(1, len(entrants))
    size = len(data.train)
    samples = size if share >= 1 else round(share * size)
    epochs = max(1, round(share))
    if len(entrants) < 2 or epochs * samples < _LEAST_STEPS * recipe.batch_size:
        return None
    picked = np.random.default_rng(training.seed).permutation(size)[:samples]
    part = replace(data, train=Part(data.train, np.sort(picked)))
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
    accuracies: dict[ValueType, float] = {}
    for number, kind in enumerate(entrants):
        say(Status("values", f"trying {kind}", number, len(entrants)))
        accuracies[kind] = _try(prepared, plans[kind], part, short, training)
    close = _level(accuracies, len(data.validation))
    chosen = min(close, key=errors.__getitem__)
    spent = len(entrants) * epochs * samples / size
    measured = ", ".join(f"{kind} {100 * value:.1f} %" for kind, value in accuracies.items())
    how = "validation accuracy" if len(close) == 1 else "error of the weights, validation level,"
    note = (
        f"values: {chosen}, by {how} after a short training of each ({measured}; {spent:.2g} "
        "epochs in all, beside those of the run)"
    )
    return Choice(chosen, note, spent)


def _try(prepared: Prepared, plan: Plan, data: Data, recipe: Recipe, training: Training) -> float:
    """Return the validation accuracy of one candidate after a short training."""
    from hwprune.training import ALONE, finetune
    from hwprune.training.devices import resolve

    module = copy.deepcopy(prepared.model.module)
    strategy = make("one-shot", density=max(1, plan.max_nonzeros) / plan.weights)
    result = finetune(
        module,
        data=data,
        names=prepared.names,
        strategy=strategy,
        fill=filler(prepared, plan),
        recipe=recipe,
        teacher=prepared.teacher(),
        seed=training.seed,
        device=resolve(training.device),
        train_batchnorm=not prepared.model.batchnorm_frozen,
        store=store_of(prepared, module, plan.value_type),
        world=training.world or ALONE,
    )
    return result.final_accuracy


def _plan_masks(prepared: Prepared, kind: ValueType) -> Masks:
    cost = cost_of(prepared, kind)
    limit = ranking_limit(cost, prepared.budget_bytes, kind)
    ranking = rank_weights(module_weights(prepared), "lamp", limit)
    return fit(cost, ranking, prepared.budget_bytes, kind).masks


def _screen(
    prepared: Prepared, masks: Masks, kind: ValueType, data: Data, samples: int, seed: int
) -> float:
    import torch

    from hwprune.training import recalibrate_batchnorm
    from hwprune.training.batches import Batches
    from hwprune.training.evaluate import share_of

    module = copy.deepcopy(prepared.model.module)
    axes = {tensor.name: tensor.channel_axis for tensor in prepared.template.prunable}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, weight in module_weights(prepared).items():
        masked = np.where(masks[name], weight, np.float32(0))
        decoded = rounded(masked, kind, axes[name])
        with torch.no_grad():
            parameters[name].copy_(torch.from_numpy(decoded))
    if not prepared.model.batchnorm_frozen:
        recalibrate_batchnorm(module, data.train, samples=_SAMPLES, batch=128, seed=seed)
    # Spread over the split: some data sets are sorted by class.
    chosen = np.linspace(0, len(data.validation) - 1, samples).astype(np.int64)
    part = Part(data.validation, chosen)
    batches = Batches(part, device="cpu", resident_bytes=0, channels_last=False)
    labels = batches.labels
    assert labels is not None
    return share_of(module, batches, labels)


@dataclass(frozen=True, slots=True)
class Part:
    """A split cut down to the samples at ``chosen``; as bytes where the whole has them."""

    whole: Split
    chosen: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Return their labels."""
        return None if self.whole.labels is None else self.whole.labels[self.chosen]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.chosen)

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return their inputs."""
        return self.whole.batch(self.chosen[indices])

    def stored(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return their images as bytes; only where ``affine`` says what these mean."""
        whole: Any = self.whole
        found: NDArray[np.uint8] = whole.stored(self.chosen[indices])
        return found

    def affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return (factor, shift) per channel of the whole; None where it has no bytes."""
        of_whole: Any = getattr(self.whole, "affine", None)
        found: tuple[NDArray[np.float32], NDArray[np.float32]] | None
        found = None if of_whole is None else of_whole()
        return found
