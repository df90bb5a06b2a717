"""What ``hwprune plan`` says: what fits a device, before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hwprune.export.deployment import chosen
from hwprune.ir import Data, Model, Plan, SkippedTensor, ValueType
from hwprune.steps.deployment import metadata_of
from hwprune.steps.firmware import ImagePlan, planned_image
from hwprune.steps.planning import (
    auto_strategy,
    candidates_of,
    check_budget,
    fits_dense,
    left_unshared,
    plan_shared,
    prepare,
    value_types,
)
from hwprune.steps.sharing import resolve_sharing
from hwprune.targets import Target


@dataclass(frozen=True, slots=True)
class Fitting:
    """What fits a target: what ``hwprune plan`` says.

    Attributes:
        budget_bytes: what the file may weigh.
        dense_bytes: the dense fp32 file.
        fits_dense: whether that fits, on this target.
        weights: how many may be pruned.
        plans: by value type.
        skipped: parameters that stay dense.
        notes: sentences for people.
        image: of the int8 plan, for a microcontroller; None where none would be made.
    """

    budget_bytes: int
    dense_bytes: int
    fits_dense: bool
    weights: int
    plans: Mapping[ValueType, Plan]
    skipped: tuple[SkippedTensor, ...]
    notes: tuple[str, ...]
    image: ImagePlan | None = None

    @property
    def strategies(self) -> dict[ValueType, str]:
        """Return what ``--strategy auto`` takes in a run of enough steps, and why."""
        return {kind: " ".join(auto_strategy(each).notes) for kind, each in self.plans.items()}


def plan_model(
    model: Model,
    target: Target,
    *,
    budget_bytes: int | None = None,
    values: str = "auto",
    share_weights: Sequence[str] = (),
    form: str | None = None,
    data: Data | None = None,
) -> Fitting:
    """Return what fits a target, before any training.

    Args:
        model: the trained network; its module is not changed.
        target: the device.
        budget_bytes: of the file; None for the target's own.
        values: a value type, or ``auto`` for all that the target can decode without training.
        share_weights: which layers are to share theirs, as ``--share-weights`` spells it.
        form: ``functions`` or ``inlined``; the target's without.
        data: what the file says of them counts.

    Raises:
        UsageError, ExportError, InfeasibleError.
    """
    target = target.in_form(form)
    kinds = value_types(target, values)
    budget = check_budget(target, budget_bytes)
    sharing = resolve_sharing(share_weights, "", trains=True)
    deployment = chosen(metadata_of(target, budget, data), budget)
    prepared = prepare(model, target, deployment=deployment)
    fits = fits_dense(prepared.dense_bytes, target, budget)
    if fits:  # then that is what compile writes
        found = candidates_of(prepared, kinds, budget)
        notes = left_unshared(model, sharing)
    else:
        asked = bool(share_weights)
        prepared, found, notes = plan_shared(prepared, target, budget, kinds, sharing, asked=asked)
    image, why_not = planned_image(prepared, found, target)
    return Fitting(
        budget,
        prepared.dense_bytes,
        fits,
        prepared.template.weights,
        {kind: each.plan for kind, each in found.items()},
        prepared.skipped,
        (*prepared.notes, *notes, *why_not),
        image,
    )
