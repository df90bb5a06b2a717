"""From a model and a target to plans: trace once, measure the fixed cost, solve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.budget import NetworkTime, Prefixes, TimeLimit, fit, plan, ranking_limit
from hwprune.encoding import VALUE_BITS, FileCost
from hwprune.errors import InfeasibleError, UsageError
from hwprune.export.deployment import NOTHING_TO_SAY, SHARE, Deployment
from hwprune.export.pipeline import removable_channels, renewed, template_of
from hwprune.export.removal import gather_channels
from hwprune.export.template import Template, Written
from hwprune.export.trace import tensors_of, trace
from hwprune.ir import Masks, Model, Plan, Ranking, SkippedTensor, ValueType
from hwprune.sparsity import Strategy, lamp, make, priced, rank, rank_weights
from hwprune.steps.sharing import with_shared_weights
from hwprune.steps.time_limit import network_time, shown, solved_prices, time_limit
from hwprune.targets import Target
from hwprune.units import format_bytes, format_percent
from hwprune.verify.limits import Limit

# At least this part of the budget is used, unless every weight is alive.
FULL_FRACTION = 0.995
# Four bits and codebooks lose accuracy that depends on the network: they are used when asked for.
AUTO_VALUE_TYPES: tuple[ValueType, ...] = ("fp32", "fp16", "int8")
# How many dense tensors a refused budget is explained by, and from how many bytes on.
_NAMED, _WORTH_NAMING = 12, 256
_NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A network that was traced for a target.

    Attributes:
        model: the network; its module holds the weights.
        template: its artifact without masks, over the weights as loaded.
        skipped: parameters that stay dense.
        dense_bytes: the dense fp32 file.
        unshared: the module before its layers shared weights, where they do; see ``sharing.py``.
        saved_weights: what it has fewer than that.
        limits: what the result must meet.
        network: what it takes of time, by a model; None where no kernels run it.
        time: what it may take; None where no limit on latency makes masks of its own.
    """

    model: Model
    template: Template
    skipped: tuple[SkippedTensor, ...]
    dense_bytes: int
    unshared: Any = None
    saved_weights: int = 0
    limits: Sequence[Limit] = ()
    network: NetworkTime | None = None
    time: TimeLimit | None = None

    @property
    def teacher(self) -> Any:
        """Return the dense network, None where its weights are random: nothing to teach.

        Of a network that shares weights it is the one before: the other is not trained yet.
        """
        if not self.model.trained:
            return None
        return self.model.module if self.unshared is None else self.unshared

    @property
    def notes(self) -> tuple[str, ...]:
        """Return sentences about what was loaded, and what could not be kept dynamic."""
        traced = self.template.traced
        return (*self.model.notes, *(() if traced is None else traced.notes))

    @property
    def has_to_train(self) -> bool:
        """Return whether its weights mean nothing yet: random ones, or layers that just share."""
        return bool(self.saved_weights) or not self.model.trained

    def write_dense(self) -> Written:
        """Return the dense file of the module's present weights."""
        return renewed(self.template, self.model.module).write_dense()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A value type with what fits the budget, and what any file with it costs.

    Attributes:
        plan: what fits.
        cost: the exact size of files that store this value type.
        template: the network that they hold.
        time: what it may take.
        prices: what a connection of each tensor costs, where time decides as bytes do.
    """

    plan: Plan
    cost: FileCost
    template: Template
    time: TimeLimit | None = None
    prices: Mapping[str, float] = field(default_factory=dict)

    @property
    def density(self) -> float:
        """Return the part of the weights that fits; at the floor nothing lives, but one counts."""
        return max(1, self.plan.max_nonzeros) / self.plan.weights

    def masks(self, ranking: Ranking, fraction: float = 1.0) -> Masks:
        """Return the best connections of a ranking that fit a fraction of the budget.

        Where they would take too long, the ranking is followed less where connections take time.
        A file is without the channels that nothing depends on. Where what is left of the network
        would not use the budget with every weight of it, more connections lead to more channels.
        """
        plan = self.plan
        # Next to the floor, a fraction of the budget would not even hold the empty network.
        budget = max(plan.floor_bytes, int(plan.budget_bytes * fraction))
        found = fit(self.cost, ranking, budget, plan.value_type)
        if not self._is_fast(found.masks):
            assert self.time is not None
            if plan.limited_by != "time":  # else the order is the one that time gives
                ranking = self.time.arranged(ranking, found.count)
            found = fit(self.cost, ranking, budget, plan.value_type, self.time)
        if self._holds(found.masks, budget):
            return found.masks
        low, high = found.count, len(ranking) + 1
        while high - low > 1:
            middle = (low + high) // 2
            masks = ranking.masks(middle)
            if self._bytes_without_dead(masks) <= budget and self._is_fast(masks):
                low = middle
            else:
                high = middle
        return ranking.masks(low)

    def file_bytes(self, masks: Masks) -> int:
        """Return the size of the file with these connections, without what nothing depends on."""
        if any(_has_empty_channel(mask) for mask in masks.by_name.values()):
            return self._bytes_without_dead(masks)
        return self.cost.encoding(masks.positions(), self.plan.value_type).file_bytes

    def _is_fast(self, masks: Masks) -> bool:
        return self.time is None or self.time.holds(masks)

    def _holds(self, masks: Masks, budget: int) -> bool:
        """Return whether all weights of what masks leave of the network take a budget."""
        if not any(_has_empty_channel(mask) for mask in masks.by_name.values()):
            return True
        removal = removable_channels(self.template, masks).removal
        if not removal:
            return True
        small = self.template.without(removal)
        if small.weights * VALUE_BITS[self.plan.value_type] >= 8 * budget:
            return True
        whole = {tensor.name: np.arange(math.prod(tensor.shape)) for tensor in small.prunable}
        return self._bytes(small, whole) >= FULL_FRACTION * budget

    def _bytes_without_dead(self, masks: Masks) -> int:
        """Return the size of the file without what nothing depends on."""
        dead = removable_channels(self.template, masks)
        kept = dead.removal.kept
        left = {name: gather_channels(name, dead.masks[name], kept) for name in masks}
        return self._bytes(self.template.without(dead.removal), Masks(left).positions())

    def _bytes(self, template: Template, positions: Mapping[str, NDArray[np.int64]]) -> int:
        kind = self.plan.value_type
        return template.cost(kind).encoding(positions, kind).file_bytes


def _has_empty_channel(mask: NDArray[np.bool_]) -> bool:
    flat = mask.reshape(*mask.shape[:2], -1)
    return not (flat.any((1, 2)).all() and flat.any((0, 2)).all())


def check_budget(target: Target, budget_bytes: int | None) -> int:
    """Return the budget of a run: the user's, or the target's default.

    Raises:
        UsageError: zero, or more than the device has.
    """
    if budget_bytes is None:
        return target.budget_bytes
    if not isinstance(budget_bytes, int):
        raise UsageError(
            f"the budget is {budget_bytes!r}", hint="give a whole number of bytes, or '64KiB'"
        )
    if budget_bytes < 1:
        raise UsageError(
            f"the budget is {budget_bytes} bytes", hint="give --budget a size such as 64KiB"
        )
    if budget_bytes > target.memory_bytes:
        raise UsageError(
            f"the budget is {format_bytes(budget_bytes)}, {target.name} has "
            f"{format_bytes(target.memory_bytes)}",
            hint=f"leave --budget out for {format_bytes(target.budget_bytes)}, or give less",
        )
    return budget_bytes


def fits_dense(dense_bytes: int, target: Target, budget_bytes: int) -> bool:
    """Return whether the dense fp32 file fits, on a target that reads fp32 weights."""
    return dense_bytes <= budget_bytes and "fp32" in target.value_types


def prepare(
    model: Model,
    target: Target,
    *,
    keep: frozenset[str] = frozenset(),
    deployment: Deployment = NOTHING_TO_SAY,
    limits: Sequence[Limit] = (),
) -> Prepared:
    """Trace a model for a target.

    Args:
        model: the network.
        target: for which the file is.
        keep: parameters that stay as they are.
        deployment: what the file holds beside the network.
        limits: what the result must meet: those on latency are planned for.

    Raises:
        ExportError: the network cannot be expressed for the target, or nothing can be pruned.
        InfeasibleError: a limit on latency that no masks meet.
    """
    traced = trace(model)
    template, skipped = template_of(
        replace(traced, fixed=traced.fixed | keep),
        model.module,
        opset=target.runtime.opset,
        ir_version=target.runtime.ir_version,
        inline=target.runtime.inline_functions,
        codecs=target.codecs,
        # One node per layer is for native kernels; firmware compiles the file and has its own.
        fuse=target.runtime.kind == "onnxruntime",
    )
    template = replace(template, deployment=deployment)
    network = network_time(template, target)
    time = None if network is None else time_limit(network, limits)
    dense_bytes = template.dense_bytes()
    return Prepared(
        model, template, skipped, dense_bytes, limits=limits, network=network, time=time
    )


def module_weights(module: Any, template: Template) -> dict[str, NDArray[np.float32]]:
    """Return the prunable weights as the module holds them (BN not folded): views."""
    values = tensors_of(module)
    return {name: values[name] for name in template.names}


def value_types(
    target: Target, asked: str, *, also: tuple[ValueType, ...] = ()
) -> tuple[ValueType, ...]:
    """Return the value types to consider; ``auto`` leaves out what only retraining makes up for.

    Args:
        target: what can be decoded.
        asked: a value type, or ``auto``.
        also: what ``auto`` takes beside, because there will be training.

    Raises:
        UsageError: the target cannot decode the one that was asked for.
    """
    if asked == "auto":
        wanted = (*AUTO_VALUE_TYPES, *also)
        return tuple(kind for kind in target.value_types if kind in wanted)
    chosen = tuple(kind for kind in target.value_types if kind == asked)
    if not chosen:
        raise UsageError(
            f"{target.name} cannot decode {asked} values",
            hint=f"use {' or '.join(target.value_types)}",
        )
    return chosen


def candidates_of(
    prepared: Prepared, kinds: tuple[ValueType, ...], budget_bytes: int
) -> dict[ValueType, Candidate]:
    """Return what fits per value type, for the ranking that LAMP scores of the weights give.

    Raises:
        InfeasibleError: the floor is above the budget for every one of them.
    """
    weights = module_weights(prepared.model.module, prepared.template)
    costs = {kind: prepared.template.cost(kind) for kind in kinds}
    order: Prefixes | _LampScores
    order = _LampScores(weights) if prepared.time else _prefixes(weights, costs, budget_bytes)
    empty = {name: _NOTHING for name in weights}
    floors = {kind: cost.encoding(empty, kind).file_bytes for kind, cost in costs.items()}
    # Where none fits, the one with the lowest floor: its error names the budget that would do.
    tried = [kind for kind in kinds if floors[kind] <= budget_bytes] or [
        min(kinds, key=floors.__getitem__)
    ]
    try:
        return {kind: _planned(prepared, order, costs[kind], budget_bytes, kind) for kind in tried}
    except InfeasibleError as error:
        raise _naming_dense(error, prepared, tried[0], floors[tried[0]]) from None


class _LampScores:
    """LAMP scores of weights, and what plans at several limits have in common."""

    def __init__(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self._scores = {name: lamp(weight) for name, weight in weights.items()}
        self._ascending = {n: np.sort(score, axis=None) for n, score in self._scores.items()}
        self._held: dict[tuple[ValueType, int], int] = {}

    def prices(
        self, cost: FileCost, budget_bytes: int, kind: ValueType, time: TimeLimit
    ) -> dict[str, float]:
        """Return what a connection costs where bytes are used up in time."""
        key = (kind, budget_bytes)
        if key not in self._held:
            ranking = self.ranking(ranking_limit(cost, budget_bytes, kind), {})
            self._held[key] = fit(cost, ranking, budget_bytes, kind).count
        return solved_prices(time, self._ascending, self._held[key])

    def ranking(self, limit: int, prices: Mapping[str, float]) -> Ranking:
        """Return the best connections at prices."""
        return rank(priced(self._scores, prices), limit=limit)


def _planned(
    prepared: Prepared,
    order: Prefixes | _LampScores,
    cost: FileCost,
    budget_bytes: int,
    kind: ValueType,
) -> Candidate:
    """Return what fits: along one ranking, or by scores at prices that keep to the time."""
    time, prices = prepared.time, dict[str, float]()
    if isinstance(order, _LampScores):
        if time is not None:
            prices = order.prices(cost, budget_bytes, kind, time)
        order = Prefixes(order.ranking(ranking_limit(cost, budget_bytes, kind), prices))
    dense = prepared.dense_bytes
    found = plan(cost, order, budget_bytes, kind, dense_bytes=dense, time=time)
    return Candidate(found, cost, prepared.template, time, prices)


def _naming_dense(
    error: InfeasibleError, prepared: Prepared, kind: ValueType, floor: int
) -> InfeasibleError:
    """Return the error with the largest of the tensors that stay dense, each with its reason.

    And with a budget that is enough: with it metadata grow, too, to their share at most.
    """
    reasons = {tensor.name: tensor.reason for tensor in prepared.skipped}
    sizes = prepared.template.dense_tensors(kind)
    dense = sorted(sizes, key=lambda name: -sizes[name])
    dense = [name for name in dense if sizes[name] >= _WORTH_NAMING]
    lines = [
        f"\n  {sizes[name]:>12,} B  dense: {name}: "
        f"{reasons.get(name, 'a constant of the exported graph')}"
        for name in dense[:_NAMED]
    ]
    if len(dense) > _NAMED:
        rest = sum(sizes[name] for name in dense[_NAMED:])
        lines.append(f"\n  {rest:>12,} B  dense: {len(dense) - _NAMED} more")
    hint = error.hint
    if hint is not None:
        hint = hint.replace(str(floor), str(math.ceil(floor / (1 - SHARE))))
    return InfeasibleError(error.message + "".join(lines), hint=hint)


def _prefixes(
    weights: Mapping[str, NDArray[np.float32]],
    costs: Mapping[ValueType, FileCost],
    budget_bytes: int,
) -> Prefixes:
    """Return one ranking that serves all value types: a longer one begins with the shorter ones."""
    limit = max(ranking_limit(cost, budget_bytes, kind) for kind, cost in costs.items())
    if limit < sum(weight.size for weight in weights.values()):
        # The limit is safe rather than close. Two thirds of it mostly do, in less time.
        prefixes = Prefixes(rank_weights(weights, "lamp", limit * 2 // 3))
        every = prefixes.positions(prefixes.length)
        if all(c.encoding(every, kind).file_bytes > budget_bytes for kind, c in costs.items()):
            return prefixes
    return Prefixes(rank_weights(weights, "lamp", limit))


# -- what more would buy --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """What fits so many bytes and so much time.

    Attributes:
        what: the two, in words.
        file_bytes: of the file.
        nonzeros: what is kept.
        time: predicted, as a multiple of the dense network's.
        kept: the part of a layer's squared weights that is kept, the mean over layers.
    """

    what: str
    file_bytes: int
    nonzeros: int
    time: float
    kept: float


def frontier(
    prepared: Prepared,
    candidate: Candidate,
    weights: Mapping[str, NDArray[np.float32]],
    *,
    parts: Sequence[float] = (),
) -> list[FrontierPoint]:
    """Return what the limits give, what a tenth more of each would, and bytes alone.

    Args:
        prepared: the network.
        candidate: what its limits give.
        weights: those that the plan was made for.
        parts: further limits of time, as parts of what bytes alone take.
    """
    network, budget = prepared.network, candidate.plan.budget_bytes
    assert network is not None
    scores = _LampScores(weights)

    def point(what: str, cycles: float | None, size: int) -> FrontierPoint:
        time = None if cycles is None else TimeLimit(network, cycles)
        found = _planned(
            replace(prepared, time=time), scores, candidate.cost, size, candidate.plan.value_type
        ).plan
        kept = [_kept_share(weights[layer.name], layer.nonzeros) for layer in found.layers]
        mean = sum(kept) / len(kept)
        return FrontierPoint(what, found.used_bytes, found.max_nonzeros, network.share(found), mean)

    alone = point("bytes alone", None, budget)
    most = None if candidate.time is None else candidate.time.most
    points = [alone, point("a tenth more bytes", most, round(1.1 * budget))]
    if most is not None:
        points.insert(1, point("bytes and time", most, budget))
        points.insert(2, point("a tenth more time", 1.1 * most, budget))
    floor = network.cycles(dict.fromkeys(network.tensors, 0))
    for part in parts:
        if part * alone.time * network.dense > floor:
            cycles = part * alone.time * network.dense
            points.append(point(f"at most {part * alone.time:.2f}x", cycles, budget))
    return points


def _kept_share(weight: NDArray[np.float32], count: int) -> float:
    """Return the part of a tensor's squared weights that its largest so many hold."""
    square = np.square(weight.reshape(-1), dtype=np.float64)
    total = float(square.sum())
    square.partition(max(0, square.size - count - 1))
    return float(square[square.size - count :].sum()) / total if total else 1.0


def time_notes(
    prepared: Prepared,
    candidate: Candidate,
    weights: Mapping[str, NDArray[np.float32]],
    masks: Masks,
) -> tuple[str, ...]:
    """Return what masks are predicted to take, and what a tenth more bytes or time would buy."""
    network, time, plan = prepared.network, prepared.time, candidate.plan
    if network is None or plan.limited_by == "weights":
        return ()
    said = f"predicted, not measured: {shown(network, network.of(masks))} on one thread"
    if time is None:
        each = (plan.used_bytes - plan.floor_bytes) / max(1, plan.max_nonzeros)
        more = round(plan.budget_bytes / 10 / each) if each else 0
        bought = f"a tenth more bytes would keep about {more:,} weights more, time is not limited"
        return (f"{said} ({network.core}); {bought}",)
    points = {each.what: each for each in frontier(prepared, candidate, weights)}
    now = points["bytes and time"]
    bought = ", ".join(
        f"{what} {format_percent(each.kept)} ({each.nonzeros - now.nonzeros:+,} weights)"
        for what, each in points.items()
        if what.startswith("a tenth more")
    )
    return (
        f"{said}, planned for {time.text} ({network.core}); of a layer's squared weights "
        f"{format_percent(now.kept)} were planned to stay on average, and {bought} would keep",
    )


# -- with shared weights --------------------------------------------------------------------------


def plan_shared(
    prepared: Prepared,
    target: Target,
    budget_bytes: int,
    kinds: tuple[ValueType, ...],
    sharing: Sequence[str],
    *,
    asked: bool,
) -> tuple[Prepared, dict[ValueType, Candidate], tuple[str, ...]]:
    """Return the network as it will be pruned, what fits per value type, and sentences about it.

    What is not pruned is not trained: where weights have to be, plans in which all fit are left
    out.

    Args:
        prepared: the network as it is; its module is not changed.
        target: the device.
        budget_bytes: what the file may weigh.
        kinds: value types.
        sharing: which layers share weights, as ``resolve_sharing`` returns it.
        asked: whether the user wished that; else nothing is shared where everything would fit then.

    Raises:
        UsageError: a group that cannot share, or nothing would be pruned, and so nothing trained.
        ExportError: the network cannot be expressed for the target.
        InfeasibleError: the floor is above the budget for every value type.
    """
    whole, notes = _shared(prepared, target, sharing) if sharing else (prepared, ())
    found = _that_train(whole, kinds, budget_bytes)
    if not found and whole.saved_weights and not asked:
        whole, notes = prepared, ("weights are not shared: all of them would fit, untrained",)
        found = _that_train(whole, kinds, budget_bytes)
    if not found:
        raise nothing_to_prune(whole, budget_bytes)
    return whole, found, notes


def _shared(
    prepared: Prepared, target: Target, sharing: Sequence[str]
) -> tuple[Prepared, tuple[str, ...]]:
    model, shared = with_shared_weights(prepared.model, sharing)
    if not shared:
        return prepared, ("no stage has three blocks alike: no weights are shared",)
    layers = sum(1 + len(tensor.users) for tensor in shared.tensors)
    note = (
        f"{layers} layers share {len(shared.tensors)} tensors, each layer with a learnt scalar: "
        f"{shared.saved:,} weights fewer; the file holds each shared tensor once"
    )
    whole = replace(
        prepare(model, target, deployment=prepared.template.deployment, limits=prepared.limits),
        dense_bytes=prepared.dense_bytes,  # what the result is compared with
        unshared=prepared.model.module,
        saved_weights=shared.saved,
    )
    return whole, (note,)


def _that_train(
    prepared: Prepared, kinds: tuple[ValueType, ...], budget_bytes: int
) -> dict[ValueType, Candidate]:
    found = candidates_of(prepared, kinds, budget_bytes)
    if not prepared.has_to_train:
        return found
    return {kind: each for kind, each in found.items() if each.plan.limited_by != "weights"}


def nothing_to_prune(prepared: Prepared, budget_bytes: int) -> UsageError:
    """Return the refusal of weights that have to be trained where all of them fit."""
    return UsageError(
        f"every weight of {prepared.model.source} fits {format_bytes(budget_bytes)}:"
        " nothing would be pruned, and what is not pruned is not trained",
        hint="lower --budget, or give a trained network that shares no weights",
    )


def left_unshared(model: Model, sharing: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence where the dense network is written although layers were to share.

    Raises:
        UsageError: as ``with_shared_weights``: a wrong name is one whatever fits.
    """
    if sharing and with_shared_weights(model, sharing)[1]:
        return ("weights are not shared: the dense network fits",)
    return ()


# -- without compiling ----------------------------------------------------------------------------


def auto_strategy(found: Plan, *, steps: int = 0, density: float | None = None) -> Strategy:
    """Return what ``--strategy auto`` takes; nothing is pruned where every weight fits.

    Args:
        found: what fits.
        steps: optimiser steps of the run; 0 where that is not known.
        density: what an earlier plan of the same run found, in place of this one's.
    """
    if density is None:
        if found.limited_by == "weights":
            return make("dense", density=1.0)
        density = max(1, found.max_nonzeros) / found.weights
    convolutional = any(len(layer.shape) > 2 for layer in found.layers)
    return make("auto", density=density, steps=steps, convolutional=convolutional)
