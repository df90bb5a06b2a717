"""From a model and a target to plans: trace once, measure the fixed cost, solve."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.budget import Prefixes, plan, ranking_limit
from hwprune.encoding import FileCost
from hwprune.encoding.values import rounded
from hwprune.errors import InfeasibleError, UsageError
from hwprune.export.pipeline import template_of
from hwprune.export.template import Template
from hwprune.export.trace import Traced, tensors_of, trace
from hwprune.ir import Model, Plan, SkippedTensor, ValueType
from hwprune.sparsity import rank_weights
from hwprune.targets import Target
from hwprune.units import format_bytes

# Four bits and codebooks lose accuracy that depends on the network: they are used when asked for.
AUTO_VALUE_TYPES: tuple[ValueType, ...] = ("fp32", "fp16", "int8")
_NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that was traced for a target.

    Attributes:
        model: the network.
        target: the device.
        budget_bytes: what the file may weigh.
        traced: its structure.
        template: its artifact without masks, over the weights as loaded.
        skipped: parameters that stay dense.
        dense_bytes: the dense fp32 file.
        unshared: the module before its layers shared weights, where they do; see ``sharing.py``.
        saved_weights: what it has fewer than that.
    """

    model: Model
    target: Target
    budget_bytes: int
    traced: Traced
    template: Template
    skipped: tuple[SkippedTensor, ...]
    dense_bytes: int
    unshared: Any = None
    saved_weights: int = 0

    def teacher(self) -> Any:
        """Return a copy of the dense network, None where its weights are random: nothing to teach.

        Of a network that shares weights it is the one before: the other is not trained yet.
        """
        if not self.model.trained:
            return None
        return copy.deepcopy(self.model.module if self.unshared is None else self.unshared)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the prunable tensors."""
        return tuple(tensor.name for tensor in self.template.prunable)

    @property
    def weights(self) -> int:
        """Return the number of prunable weights."""
        return sum(tensor.weights for tensor in self.template.prunable)

    @property
    def fits_dense(self) -> bool:
        """Return whether the dense fp32 file fits, on a target that reads fp32 weights."""
        return self.dense_bytes <= self.budget_bytes and "fp32" in self.target.value_types

    @property
    def has_to_train(self) -> bool:
        """Return whether its weights mean nothing yet: random ones, or layers that just share."""
        return bool(self.saved_weights) or not self.model.trained

    def template_now(self) -> Template:
        """Return the template over the module's weights as they are now."""
        return _template(self.traced, self.model, self.target)[0]


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


def prepare(model: Model, target: Target, budget_bytes: int | None) -> Prepared:
    """Trace a model for a target.

    Raises:
        UsageError: the budget cannot be.
        ExportError: the network cannot be expressed for the target, or nothing can be pruned.
    """
    budget = check_budget(target, budget_bytes)
    traced = trace(model)
    template, skipped = _template(traced, model, target)
    return Prepared(model, target, budget, traced, template, skipped, template.dense_bytes())


def _template(
    traced: Traced, model: Model, target: Target
) -> tuple[Template, tuple[SkippedTensor, ...]]:
    return template_of(
        traced,
        model.module,
        opset=target.runtime.opset,
        ir_version=target.runtime.ir_version,
        inline=target.runtime.inline_functions,
        codecs=target.codecs,
        # One node per layer is for native kernels; firmware compiles the file and has its own.
        fuse=target.runtime.kind == "onnxruntime",
    )


def module_weights(prepared: Prepared) -> dict[str, NDArray[np.float32]]:
    """Return the prunable weights as the module holds them (BN not folded)."""
    values = tensors_of(prepared.model.module)
    return {name: values[name] for name in prepared.names}


def cost_of(prepared: Prepared, value_type: ValueType) -> FileCost:
    """Return the exact size model for one value type."""
    return prepared.template.cost((value_type,))


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


def plans_of(prepared: Prepared, kinds: tuple[ValueType, ...]) -> dict[ValueType, Plan]:
    """Return a plan per value type, for the ranking that LAMP scores of the weights give.

    Raises:
        InfeasibleError: the floor is above the budget for every one of them.
    """
    weights = module_weights(prepared)
    costs = {kind: cost_of(prepared, kind) for kind in kinds}
    prefixes = _prefixes(weights, costs, prepared.budget_bytes)
    found = {kind: _attempt(prepared, cost, prefixes, kind) for kind, cost in costs.items()}
    plans = {kind: result for kind, result in found.items() if isinstance(result, Plan)}
    if not plans:
        # Name the lowest floor: the budget that would do.
        empty = {name: _NOTHING for name in weights}
        lowest = min(kinds, key=lambda kind: costs[kind].encoding(empty, kind).file_bytes)
        failure = found[lowest]
        assert isinstance(failure, InfeasibleError)
        raise failure
    return plans


def pruning_plans(prepared: Prepared, kinds: tuple[ValueType, ...]) -> dict[ValueType, Plan]:
    """Return a plan per value type, of those that can be compiled.

    What is not pruned is not trained: where weights have to be, plans in which all of them fit are
    left out; it may be all of the plans.

    Raises:
        InfeasibleError: the floor is above the budget for every one of them.
    """
    plans = plans_of(prepared, kinds)
    if not prepared.has_to_train:
        return plans
    return {kind: plan for kind, plan in plans.items() if plan.limited_by != "weights"}


def nothing_to_prune(prepared: Prepared) -> UsageError:
    """Return the refusal of weights that have to be trained where all of them fit."""
    return UsageError(
        f"every weight of {prepared.model.source} fits {format_bytes(prepared.budget_bytes)}:"
        " nothing would be pruned, and what is not pruned is not trained",
        hint="lower --budget, or give a trained network that shares no weights",
    )


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


def _attempt(
    prepared: Prepared, cost: FileCost, prefixes: Prefixes, kind: ValueType
) -> Plan | InfeasibleError:
    try:
        return plan(cost, prefixes, prepared.budget_bytes, kind, dense_bytes=prepared.dense_bytes)
    except InfeasibleError as error:
        return error


def reconstruction_error(
    weights: Mapping[str, NDArray[np.float32]],
    masks: Mapping[str, NDArray[np.bool_]],
    axes: Mapping[str, int],
    value_type: ValueType,
) -> float:
    """Return the squared error of the stored weights over the squared norm of the dense ones."""
    error = norm = 0.0
    for name, weight in weights.items():
        masked = np.where(masks[name], weight, np.float32(0))
        decoded = rounded(masked, value_type, axes[name])
        error += float(np.square(weight - decoded, dtype=np.float64).sum())
        norm += float(np.square(weight, dtype=np.float64).sum())
    return error / norm if norm else 0.0
