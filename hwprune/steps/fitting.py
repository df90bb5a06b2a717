"""What ``hwprune plan`` says: what fits a device, before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hwprune.errors import UsageError
from hwprune.export.deployment import chosen
from hwprune.ir import Data, Model, Plan, SkippedTensor, ValueType
from hwprune.steps.deployment import metadata_of
from hwprune.steps.firmware import ImagePlan, planned_image
from hwprune.steps.planning import (
    FrontierPoint,
    auto_strategy,
    candidates_of,
    check_budget,
    fits_dense,
    frontier,
    left_unshared,
    module_weights,
    plan_shared,
    prepare,
    value_types,
)
from hwprune.steps.sharing import resolve_sharing
from hwprune.steps.time_limit import planned_limits
from hwprune.targets import Target
from hwprune.verify.limits import parse_limit

# Further limits of time that a frontier shows, as parts of what bytes alone take.
_PARTS = (0.75, 0.5, 0.35)


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
        times: what each plan is predicted to take, as a multiple of the dense network's; empty
            where no kernels run it.
        frontier: with a limit on latency, what more and less time and bytes give, with the values
            of which most fit.
        core: whose constants the prediction has, and where they are from.
    """

    budget_bytes: int
    dense_bytes: int
    fits_dense: bool
    weights: int
    plans: Mapping[ValueType, Plan]
    skipped: tuple[SkippedTensor, ...]
    notes: tuple[str, ...]
    image: ImagePlan | None = None
    times: Mapping[ValueType, float] = field(default_factory=dict)
    frontier: tuple[FrontierPoint, ...] = ()
    core: str = ""

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
    limits: Sequence[str] = (),
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
        limits: as ``--require`` spells them; those on latency are planned for.

    Raises:
        UsageError, ExportError, InfeasibleError.
    """
    target = target.in_form(form)
    kinds = value_types(target, values)
    budget = check_budget(target, budget_bytes)
    sharing = resolve_sharing(share_weights, "", trains=True)
    deployment = chosen(metadata_of(target, budget, data), budget)
    wanted = [parse_limit(text) for text in limits]
    if unplanned := sorted(
        {each.text for each in wanted} - {e.text for e in planned_limits(wanted)}
    ):
        raise UsageError(
            f"--require {unplanned[0]}: nothing can be planned for that",
            hint="plan takes upper limits on latency.p50, such as latency.p50<=0.3x",
        )
    prepared = prepare(model, target, deployment=deployment, limits=wanted)
    fits = fits_dense(prepared.dense_bytes, target, budget) and prepared.time is None
    if fits:  # then that is what compile writes
        found = candidates_of(prepared, kinds, budget)
        notes = left_unshared(model, sharing)
    else:
        asked = bool(share_weights)
        prepared, found, notes = plan_shared(prepared, target, budget, kinds, sharing, asked=asked)
    image, why_not = planned_image(prepared, found, target)
    network, points = prepared.network, list[FrontierPoint]()
    if wanted and network is not None:
        fullest = max(found.values(), key=lambda each: each.plan.max_nonzeros)
        weights = module_weights(prepared.model.module, prepared.template)
        points = frontier(prepared, fullest, weights, parts=_PARTS)
    return Fitting(
        budget,
        prepared.dense_bytes,
        fits,
        prepared.template.weights,
        {kind: each.plan for kind, each in found.items()},
        prepared.skipped,
        (*prepared.notes, *notes, *why_not),
        image,
        {} if network is None else {kind: network.share(e.plan) for kind, e in found.items()},
        tuple(points),
        "" if network is None else network.core,
    )
