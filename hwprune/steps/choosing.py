"""``--values auto``: which value type to store, decided before training by what survives it.

Candidates are compared at the same bytes: fewer wide values against more narrow ones. With data the
dense model's weights are masked and quantised, BN is recalibrated and the validation accuracy is
measured; candidates that it cannot tell apart (within one standard error, as when all are near
chance) are compared by the error of the stored weights, as they are without data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.budget import fit, ranking_limit
from hwprune.encoding.values import rounded
from hwprune.ir import Data, Masks, Plan, Split, ValueType
from hwprune.sparsity import rank_weights
from hwprune.steps.planning import Prepared, cost_of, module_weights, reconstruction_error

_SAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Choice:
    """A value type and how it was chosen."""

    value_type: ValueType
    note: str


def choose_value_type(
    prepared: Prepared, plans: Mapping[ValueType, Plan], data: Data | None, seed: int
) -> Choice:
    """Return the value type to compile with."""
    if len(plans) == 1:
        (only,) = plans
        return Choice(only, f"values: {only}, the only choice")
    masks = {kind: _plan_masks(prepared, kind) for kind in plans}
    axes = {tensor.name: tensor.channel_axis for tensor in prepared.template.prunable}
    weights = module_weights(prepared)
    errors = {
        kind: reconstruction_error(weights, masks[kind].by_name, axes, kind) for kind in plans
    }
    by_error = min(errors, key=errors.__getitem__)
    listed = ", ".join(f"{kind} {100 * error:.2f} %" for kind, error in errors.items())
    if data is None or data.validation.labels is None:
        note = f"values: {by_error}, by the squared error of the stored weights ({listed})"
        return Choice(by_error, note)
    samples = min(_SAMPLES, len(data.validation))
    accuracies = {kind: _screen(prepared, masks[kind], kind, data, samples, seed) for kind in plans}
    best = max(accuracies.values())
    margin = math.sqrt(max(best * (1 - best), 1 / samples) / samples)
    close = [kind for kind in plans if accuracies[kind] >= best - margin]
    chosen = min(close, key=errors.__getitem__)
    measured = ", ".join(f"{kind} {100 * value:.1f} %" for kind, value in accuracies.items())
    how = "validation accuracy before training" if len(close) == 1 else (
        f"error of the stored weights ({listed}), validation before training being level"
    )  # fmt: skip
    return Choice(chosen, f"values: {chosen}, by {how} (screened: {measured})")


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
    """A split cut down to the samples at ``chosen``."""

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
