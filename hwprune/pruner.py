"""Pruning in a loop of the caller's own: masks, bytes, regrowth and stored values, around any step.

The optimiser steps on master weights; outside of ``optimizer.step`` the parameters hold what would
be shipped. The module is read, never moved, wrapped or put into another mode; what is traced,
priced, packed and verified is a copy of it on the CPU. See docs/loop.md.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hwprune.api import data_of, example_tensors, model_of
from hwprune.compiler import finish, packing_notes
from hwprune.errors import HwpruneError, UsageError
from hwprune.extreme.reachability import Reachability
from hwprune.ir import Artifact, Data, Masks, Plan, ValueType
from hwprune.job import resolve
from hwprune.sparsity import Strategy
from hwprune.steps.deployment import metadata_of
from hwprune.steps.output import opened
from hwprune.steps.packing import pack_model
from hwprune.steps.planning import (
    Candidate,
    candidates_of,
    check_budget,
    fits_dense,
    prepare,
)
from hwprune.steps.pruning import Pruned, strategy_for
from hwprune.steps.recording import Compiled
from hwprune.steps.value_type_selection import choose_value_type
from hwprune.steps.verifying import Evaluation
from hwprune.steps.weight_quantizer import weight_quantizer
from hwprune.targets import Target
from hwprune.targets import load as load_target
from hwprune.tasks import METRICS, Task
from hwprune.training.engine import Engine, value_phase
from hwprune.training.masters import MasterWeights
from hwprune.training.module_state import average_statistics
from hwprune.training.sparse import SparseParameters
from hwprune.units import format_bytes, parse_bytes

_VERSION = 1
# Every engine that lives, to see whether one is attached to the same parameters.
_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


class Pruner:
    """Prunes a module to a byte budget while the caller trains it.

    Args:
        model: the network; compiled by torch or wrapped for several processes, or plain. Its
            weights are the trained ones: load a checkpoint before, then ``load_state_dict``.
        optimizer: what moves its parameters; several in the order in which they step. It may be
            wrapped (Accelerate, Lightning).
        target: a profile's name, its file, or the profile.
        example_input: one tensor per input of the module; the first axis is the batch.
        steps: how often the optimiser will step, in all; see ``progress``.
        budget: bytes, or a size such as ``"64KiB"``; the target's default without.
        strategy: as ``--strategy`` spells it.
        values: the type of the stored values, or ``auto``.
        form: of the file: ``"inlined"`` for standard operators alone; the target's without.
        quantise_from: the part of the steps from which values are trained as they are stored; 1
            for never.
        gradient_batches: over how many steps the gradients that regrowth asks for are summed.
        prune_frozen: also prune weights that are not trained, which stay dense otherwise.
        data: what is trained on, as ``compile`` takes it: read only for what the file says of it,
            how to make its input and what its classes are called.
        task: what the labels in it are for, as ``compile`` takes it; classes without.
        seed: of what is random.
        require: limits such as ``"latency.p50<=0.3x"``: masks are planned for those on latency
            (docs/latency.md), and ``export`` judges the file by all of them.
        strategy_options: those whose names mean something else here, such as ``steps``.
        options: others of the strategy.

    Raises:
        HwpruneError: this cannot be done, and why, before anything was changed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        target: str | Target,
        example_input: torch.Tensor | Sequence[torch.Tensor],
        steps: int,
        budget: int | str | None = None,
        strategy: str = "auto",
        values: str = "auto",
        form: str | None = None,
        quantise_from: float = 0.75,
        gradient_batches: int = 1,
        prune_frozen: bool = False,
        data: str | Data | None = None,
        task: str | Task | None = None,
        seed: int = 0,
        require: str | Sequence[str] = (),
        strategy_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Plan, and take part in the optimiser's steps from now on."""
        self._module = _plain(model)
        optimizers = _plain_optimizers(optimizer)
        self._check_module()
        copied = model_of(self._module, example_input, None, seed=seed)
        profile = target if isinstance(target, Target) else load_target(target)
        size = check_budget(profile, parse_bytes(budget) if isinstance(budget, str) else budget)
        self._job = resolve(
            copied,
            profile,
            None,
            Path(),
            budget_bytes=size,
            strategy=strategy,
            strategy_options={**options, **(strategy_options or {})},
            values=values,
            form=form,
            seed=seed,
            epochs=0,
            device="cpu",
            command=("hwprune.Pruner",),
            metadata=metadata_of(profile, size, data_of(data, task, seed=seed)),
            limits=(require,) if isinstance(require, str) else tuple(require),
        )
        if not 0 <= quantise_from <= 1 or gradient_batches < 1:
            raise UsageError(
                f"quantise_from is {quantise_from!r}, gradient_batches {gradient_batches!r}",
                hint="quantise_from lies in [0, 1], gradient_batches is 1 or more",
            )
        self._steps, self._quantise_from = steps, quantise_from
        self._gradient_batches = gradient_batches
        parameters = () if prune_frozen else self._module.named_parameters()
        frozen = frozenset(name for name, each in parameters if not each.requires_grad)
        self._prepared = prepare(
            copied, self._job.target, keep=frozen, deployment=self._job.deployment,
            limits=self._job.limits,
        )  # fmt: skip
        fits = fits_dense(self._prepared.dense_bytes, self._job.target, self._job.budget_bytes)
        if fits and self._prepared.time is None:
            raise UsageError(
                f"the dense model fits {format_bytes(self._job.budget_bytes)}: there is nothing to"
                " prune",
                hint=f"give a budget below {format_bytes(self._prepared.dense_bytes)}",
            )
        names = self._prepared.template.names
        self._check_held(optimizers)
        self._candidates = candidates_of(
            self._prepared, self._job.value_types, self._job.budget_bytes
        )
        choice = choose_value_type(self._job, self._prepared, self._candidates, lambda status: None)
        chosen = strategy_for(self._job, self._candidates[choice.value_type], steps=steps)
        if chosen.phasing is not None:
            raise UsageError(
                f"the strategy {strategy!r} swaps activations, which is for hwprune's own loop",
                hint="dyrelu=False",
            )
        if not isinstance(steps, int) or steps < max(1, len(chosen.events)):
            raise UsageError(
                f"{steps!r} steps are too few for the {len(chosen.events)} changes of the masks"
                f" that {chosen.name!r} makes",
                hint="steps is how often the optimiser will step, in all",
            )
        self._sparse = SparseParameters(self._module, names)
        # Of the dense network, what the copy forgets once it holds a trained one.
        self._others = {
            name: value.clone()
            for name, value in copied.module.state_dict().items()
            if name not in self._sparse.parameters
        }
        self._notes = [*copied.notes, choice.note]
        few = tuple(
            part[:2].detach().cpu().float() if part.is_floating_point() else part[:2].cpu()
            for part in example_tensors(example_input)
        )
        self._paths = Reachability(copied.module, self._sparse, lambda: few)
        self._engine = self._engine_for(choice.value_type, chosen)
        for each in optimizers:
            self._engine.attach(each)

    def _engine_for(self, kind: ValueType, strategy: Strategy) -> Engine:
        self._kind, self._strategy = kind, strategy
        quantizer = None
        if self._quantise_from < 1:
            quantizer = weight_quantizer(self._prepared.template, self._module, kind)
        start = 0
        if quantizer is not None:
            start = value_phase(strategy, quantizer, self._quantise_from, self._steps)
        engine = Engine(
            self._sparse,
            MasterWeights(self._module, self._sparse, quantizer, start),
            strategy,
            self._candidate.masks,
            steps=self._steps,
            seed=self._job.seed,
            gradient_batches=self._gradient_batches,
        )
        engine.hooks["reachability"] = self._paths
        _ENGINES.add(engine)
        return engine

    # -- what it knows ----------------------------------------------------------------------------

    @property
    def _candidate(self) -> Candidate:
        return self._candidates[self._kind]

    @property
    def plan(self) -> Plan:
        """Return how many connections fit the budget."""
        return self._candidate.plan

    @property
    def masks(self) -> Masks:
        """Return what is kept now."""
        return self._sparse.masks

    @property
    def step(self) -> int:
        """Return how many steps the optimiser has taken; those that were skipped do not count."""
        return self._engine.step

    @property
    def finished(self) -> bool:
        """Return whether the masks are final."""
        return not self._engine.pending and (self.step > 0 or not self._strategy.events)

    @property
    def progress(self) -> Callable[[], float] | None:
        """Return what says how far training is; None where steps are counted.

        It may be set to a function that returns a number in [0, 1], which never falls. Masks and
        values then change by it, and the optimiser may step more or less often than ``steps``.
        """
        return self._engine.progress

    @progress.setter
    def progress(self, function: Callable[[], float] | None) -> None:
        if function is not None and not callable(function):
            raise UsageError(
                f"progress is {function!r}, which is no function",
                hint="progress = lambda: ..., a function without arguments; None counts steps",
            )
        self._engine.progress = function

    # -- the optimiser ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Change the masks as they are before the first step, which does it by itself otherwise.

        So its forward pass sees them, as in ``hwprune.compile``. Leave it out in a run that is
        resumed.
        """
        self._engine.begin()

    def attach(self, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]) -> None:
        """Take part in the steps of another optimiser from now on, instead of the present one."""
        optimizers = _plain_optimizers(optimizer)
        self._check_held(optimizers)
        self._engine.detach()
        self._check_module()
        for each in optimizers:
            self._engine.attach(each)

    def detach(self) -> None:
        """Leave optimiser and module alone; the parameters stay as they are."""
        self._engine.detach()

    @torch.no_grad()
    def apply_masks(self, model: nn.Module) -> None:
        """Prune another copy of the network, such as an average, as this one is; in place."""
        named = dict(_plain(model).named_parameters(remove_duplicate=False))
        for name, mask in self.masks.by_name.items():
            if name not in named or tuple(named[name].shape) != mask.shape:
                raise UsageError(f"the model has no {name} of the shape {mask.shape}")
            named[name].masked_fill_(torch.from_numpy(~mask).to(named[name].device), 0.0)

    # -- the end ----------------------------------------------------------------------------------

    def export(
        self,
        output: str | PathLike[str],
        *,
        model: nn.Module | None = None,
        calibration: Iterable[Any] | None = None,
        require: str | Sequence[str] = (),
        evaluate: Callable[[Any], float] | None = None,
        metric: str = "metric",
        higher_is_better: bool | None = None,
    ) -> Artifact:
        """Write and verify the file, with its report, into a folder, as ``compile`` does.

        After the last step it also leaves in the module the weights that the file has: where
        channels led nowhere, their bytes have taken other connections back, as small as can be.
        Not with ``quantise_from=1``, which keeps the module as it was trained.

        Args:
            output: the folder.
            model: another copy of the network whose weights to take, such as an average; a copy of
                it is pruned and stored before anything is measured.
            calibration: batches, as a loader yields them, of whose inputs BN's statistics are taken
                anew; the module's own stay without.
            require: limits such as ``"size<=16KiB"``.
            evaluate: called with an ``onnxruntime.InferenceSession`` of the verified file, and of
                the network as it was given; what it returns stands in the report's ``metric``.
            metric: what that is called there, and in ``require``.
            higher_is_better: and which way it is good; that of ``rmse``, ``miou`` and the other
                built-in metrics is known.

        Returns:
            the artifact; ``artifact.verdict.exit_code`` is 0 where it fits and is verified.

        Raises:
            UsageError: the masks are not final, something else than the optimiser has changed
                them, or ``evaluate`` returned no finite number; nothing is published then.
        """
        if evaluate is not None and not callable(evaluate):
            raise UsageError(
                f"evaluate is {evaluate!r}, which is no function",
                hint="evaluate is called with a session and returns a number",
            )
        if higher_is_better is None and metric in METRICS:
            higher_is_better = METRICS[metric].higher_is_better
        if evaluate is not None and higher_is_better is None:
            raise UsageError(
                f"the metric {metric!r} has no direction",
                hint="higher_is_better=True or False says which way it is good",
            )
        if not self.finished:
            raise UsageError(
                f"the masks are not final at step {self.step} of {self._steps}"
                + (": the optimiser has not stepped" if not self.step else ""),
                hint="train on; attach() an optimiser that was made later",
            )
        if model is None:
            self._check_zeros()
        job = resolve(
            self._job.model, self._job.target, None, Path(output),
            budget_bytes=self._job.budget_bytes, strategy=self._job.strategy,
            strategy_options=self._job.strategy_options, values=self._kind, seed=self._job.seed,
            epochs=0, device="cpu", command=self._job.command,
            limits=(
                *(limit.text for limit in self._job.limits),
                *((require,) if isinstance(require, str) else require),
            ),
            metric=None if evaluate is None else metric, max_drop="off",
            metadata=self._job.metadata,
        )  # fmt: skip
        copied, template = self._prepared.model.module, self._prepared.template
        pretrained = {n: _on_cpu(value) for n, value in self._sparse.pretrained.items()}
        copied.load_state_dict({**pretrained, **self._others})
        dense = self._prepared.write_dense()
        self._take(copied, self._module if model is None else model, calibration)
        packed = pack_model(
            copied, template, self.masks, self._kind,
            {n: np.asarray(array) for n, array in self._sparse.pretrained_values().items()},
            budget_bytes=job.budget_bytes, time=self._candidate.time, prices=self._strategy.prices,
        )  # fmt: skip
        trained = f"trained for {self.step} steps in a loop of the caller's own"
        notes = (*self._notes, *packing_notes(packed, self._kind), trained, *self._paths.notes)
        pruned = Pruned(self._strategy.name, self.masks)
        made = Compiled(self._prepared, self.plan, pruned, packed.written, packed.masks, notes)

        evaluation = None
        if evaluate is not None:
            evaluation = Evaluation(
                metric, bool(higher_is_better), lambda session: _finite(evaluate(session), metric)
            )
        with opened(job.output) as folder:
            artifact = finish(job, folder, made, dense, evaluation=evaluation)
        if model is None and self._quantise_from < 1 and self._engine.now >= self._steps:
            self._hold(copied, packed.masks)
        return artifact

    @torch.no_grad()
    def _hold(self, copied: nn.Module, masks: Masks) -> None:
        """Let the module be what was shipped: packing moves bytes from dead channels to others."""
        self._sparse.set_masks(masks)
        shipped = copied.state_dict()
        for name, value in self._module.state_dict().items():
            value.copy_(shipped[name])

    @torch.no_grad()
    def _take(self, copied: nn.Module, model: nn.Module, calibration: Iterable[Any] | None) -> None:
        """Let the copy hold what a model is shipped as: masked, calibrated, stored."""
        state = _plain(model).state_dict()
        copied.load_state_dict({name: _on_cpu(value) for name, value in state.items()})
        self.apply_masks(copied)
        copied.eval()
        named = dict(copied.named_parameters(remove_duplicate=False))
        weights = {name: named[name].detach() for name in self._prepared.template.names}
        quantizer = weight_quantizer(self._prepared.template, copied, self._kind)

        def store() -> None:
            if quantizer is not None:
                for name, value in quantizer(weights, final=True).items():
                    weights[name].copy_(value)

        # BN sees stored weights; a codebook is of weights that BN is folded into.
        before = quantizer is None or not quantizer.holds_norms
        if before:
            store()
        if calibration is not None:
            average_statistics(copied, self._inputs_of(calibration))
        if not before:
            store()

    def _inputs_of(self, batches: Iterable[Any]) -> Iterator[tuple[torch.Tensor, ...]]:
        """Return the network's inputs in what a loader yields: by name, or the first ones."""
        names = [spec.name for spec in self._prepared.model.inputs]
        for batch in batches:
            if isinstance(batch, Mapping):
                parts = [batch.get(name) for name in names]
            else:
                parts = [batch] if isinstance(batch, torch.Tensor) else list(batch)[: len(names)]
            tensors = tuple(_on_cpu(part) for part in parts if isinstance(part, torch.Tensor))
            if len(tensors) < len(names):
                found = ", ".join(batch) if isinstance(batch, Mapping) else type(batch).__name__
                raise UsageError(
                    f"calibration yields {found}, not the network's inputs",
                    hint=f"yield dicts with {', '.join(names)}, or tuples that begin with them",
                )
            yield tensors

    # -- a checkpoint -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes, and what it was planned with: tensors, numbers and strings."""
        return {
            "version": _VERSION,
            "target": self._job.target.name,
            "budget_bytes": self._job.budget_bytes,
            "value_type": self._kind,
            "strategy": self._strategy.name,
            "options": dict(self._job.strategy_options),
            "density": self._strategy.density,
            "prices": dict(self._strategy.prices),
            "limits": [limit.text for limit in self._job.limits],
            "steps": self._steps,
            "pretrained": dict(self._sparse.pretrained),
            "others": dict(self._others),
            "engine": self._engine.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned; module and optimiser were given theirs before.

        Raises:
            UsageError: it is the state of another budget, target, strategy or network.
        """
        here = {
            "version": _VERSION, "target": self._job.target.name, "steps": self._steps,
            "budget_bytes": self._job.budget_bytes, "strategy": self._strategy.name,
            "options": dict(self._job.strategy_options),
            "limits": [limit.text for limit in self._job.limits],
        }  # fmt: skip
        shapes = {name: tuple(t.shape) for name, t in state.get("pretrained", {}).items()}
        state = {"limits": [], "prices": {}, **state}  # one of a release before there were any
        wrong = [
            f"{name} was {state.get(name)!r}, is {value!r}"
            for name, value in here.items()
            if state.get(name) != value
        ]
        if shapes != self._sparse.shapes:
            wrong.append("the prunable parameters are others")
        if state.get("value_type") not in self._candidates:
            wrong.append(f"value_type was {state.get('value_type')!r}")
        if wrong:
            raise UsageError(
                "the state is that of another Pruner: " + "; ".join(wrong),
                hint="make this one with the same arguments",
            )
        for name, tensor in state["pretrained"].items():
            self._sparse.pretrained[name] = torch.empty_like(
                self._sparse.parameters[name].data
            ).copy_(tensor)
        self._others = {name: value.clone() for name, value in state["others"].items()}
        # Planned for the weights before anything was pruned, not for those that are here now.
        strategy = self._strategy
        if strategy.events:
            strategy = strategy_for(
                self._job, self._candidates[state["value_type"]],
                steps=self._steps, density=state["density"],
            )  # fmt: skip
            strategy = replace(strategy, prices=state["prices"])
        optimizers, progress = self._engine.optimizers, self._engine.progress
        self._engine.detach()
        self._engine = self._engine_for(state["value_type"], strategy)
        self._engine.progress = progress
        for optimizer in optimizers:
            self._engine.attach(optimizer)
        before = [parameter.detach().clone() for parameter in self._sparse.parameters.values()]
        self._engine.load_state_dict(state["engine"])
        after = self._sparse.parameters.values()
        if not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            raise UsageError(
                "the module does not hold the weights of the checkpoint: some that are pruned in"
                " the Pruner's state are not zero",
                hint="load the module's state first, then the optimiser's, then the Pruner's",
            )

    # -- what may be wrong ------------------------------------------------------------------------

    def _check_module(self) -> None:
        """Check that nobody else prunes the module, and that its parameters are whole."""
        own = {id(parameter) for parameter in self._module.parameters()}

        def pruned() -> bool:
            return any(
                engine.optimizers and own & {id(p) for p in engine.sparse.parameters.values()}
                for engine in _ENGINES
            )

        # One that nobody holds any more is still there until cycles are collected.
        if pruned():
            gc.collect()
        if pruned():
            raise UsageError(
                "this module has a Pruner already", hint="detach() the other one, or use it"
            )
        for name, parameter in self._module.named_parameters():
            if any(
                type(each).__module__.startswith("torch.distributed")
                for each in (self._module, *self._module.modules(), parameter, parameter.data)
            ):
                raise UsageError(
                    f"{name} is spread over several processes (FSDP, DTensor)",
                    hint="use DistributedDataParallel, or one process",
                )

    def _check_held(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Check that the optimisers step on what is to be pruned."""
        named = dict(self._module.named_parameters(remove_duplicate=False))
        names = self._prepared.template.names
        if missing := [name for name in names if name not in named]:
            raise UsageError(
                f"{missing[0]} is no parameter of the module: it is computed from others",
                hint="remove parametrisations such as weight_norm before training",
            )
        folded = self._job.model.module.state_dict().keys() - self._module.state_dict().keys()
        if computed := [name for name in names if f"{name}_is_plain" in folded]:
            raise UsageError(
                f"{computed[0]} is not what its layer multiplies by: that is computed at each call",
                hint="use a plain layer in a loop of your own; hwprune.compile folds such a weight",
            )
        held = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
        lost = [n for n in names if id(named[n]) not in held and named[n].requires_grad]
        if lost:
            raise UsageError(
                f"the optimiser does not hold {lost[0]}",
                hint="give the optimiser (or all of them) that steps on the model's parameters, or"
                " freeze what is not trained: requires_grad_(False)",
            )

    def _check_zeros(self) -> None:
        try:
            self._sparse.check()
        except HwpruneError as error:
            raise UsageError(
                error.message.replace("after training", "any more"),
                hint="something else than the optimiser's step has changed them: an average that"
                " was copied in, or a checkpoint that was loaded; see apply_masks()",
            ) from None


def _finite(given: Any, metric: str) -> float:
    """Return a measured value as a number."""
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(
            f"evaluate returned {given!r} for {metric}, which is no finite number",
            hint="evaluate(session) returns one number, such as float(correct.mean())",
        )
    return value


def _plain_optimizers(
    given: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
) -> list[torch.optim.Optimizer]:
    """Return the optimisers inside what wraps them (Accelerate, Lightning)."""
    found = list(given) if isinstance(given, Sequence) else [given]
    for place, optimizer in enumerate(found):
        while isinstance(inner := getattr(found[place], "optimizer", None), torch.optim.Optimizer):
            found[place] = inner
        if isinstance(found[place], torch.optim.LBFGS):
            raise UsageError(
                "LBFGS calls its closure several times in a step",
                hint="use an optimiser that takes one gradient a step",
            )
        if not isinstance(found[place], torch.optim.Optimizer):
            raise UsageError(
                f"{type(optimizer).__name__} is no torch.optim.Optimizer",
                hint="give the optimiser that steps on the model's parameters, or a list of them",
            )
    return found


def _plain(model: nn.Module) -> nn.Module:
    """Return the module inside what compiles it, or hands it to several processes."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, (nn.parallel.DistributedDataParallel, nn.DataParallel, _Averaged)
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _on_cpu(value: torch.Tensor) -> torch.Tensor:
    value = value.detach().cpu()
    return value.float() if value.is_floating_point() else value


_Averaged = torch.optim.swa_utils.AveragedModel
