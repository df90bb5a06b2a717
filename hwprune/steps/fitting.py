"""What fits a target, before any training: what ``hwprune plan`` says."""

from __future__ import annotations

from collections.abc import Sequence

from hwprune.ir import Model, Plan, ValueType
from hwprune.steps.planning import Prepared, check_budget, plans_of, prepare, value_types
from hwprune.steps.sharing import left_unshared, planned, wishes_of
from hwprune.targets import Target


def plan_model(
    model: Model,
    target: Target,
    *,
    budget_bytes: int | None = None,
    values: str = "auto",
    share_weights: Sequence[str] = (),
) -> tuple[Prepared, dict[ValueType, Plan], tuple[str, ...]]:
    """Return the network as it would be pruned, a plan per value type, and sentences about it.

    Args:
        model: the trained network; its module is not changed.
        target: the device.
        budget_bytes: of the file; None for the target's own.
        values: a value type, or ``auto`` for all that the target can decode without training.
        share_weights: which layers are to share theirs, as ``--share-weights`` spells it.

    Raises:
        UsageError, ExportError, InfeasibleError.
    """
    kinds = value_types(target, values)
    check_budget(target, budget_bytes)
    wishes = wishes_of(share_weights, "", trains=True)
    prepared = prepare(model, target, budget_bytes)
    if prepared.fits_dense:  # then that is what compile writes
        return prepared, plans_of(prepared, kinds), left_unshared(prepared, wishes)
    return planned(prepared, wishes, kinds, asked=bool(share_weights))
