"""The compiler: its stages, readable from top to bottom. The only file that knows their order.

load -> prepare (trace, fixed cost) -> plan -> choose values -> prune and regrow while training
     -> pack -> write -> verify -> measure -> judge -> report -> publish
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hwprune.errors import LimitError, ModelError, UsageError, VerificationError, worst_exit_code
from hwprune.ir import Artifact, Data, Masks, Model, Plan, ValueType, Verdict
from hwprune.sparsity import check_options
from hwprune.steps.checkpoint import save_checkpoint
from hwprune.steps.choosing import RACING_VALUE_TYPES, Choice, choose_value_type, may_race
from hwprune.steps.matching import check_batch, match
from hwprune.steps.output import OutputFolder, opened, write_file
from hwprune.steps.packing import PackedModel, pack_model
from hwprune.steps.planning import (
    Prepared,
    check_budget,
    module_weights,
    nothing_to_prune,
    prepare,
    value_types,
)
from hwprune.steps.pruning import (
    Say,
    Status,
    Trained,
    Training,
    all_alive,
    prune_and_regrow,
    recipe_of,
    strategy_for,
)
from hwprune.steps.recording import Outcome, record_of, with_verdict, write_reports
from hwprune.steps.resuming import checkpoint_of, discard_checkpoint
from hwprune.steps.sharing import left_unshared, planned, unshared_sparsity, wishes_of
from hwprune.steps.verifying import measure_files, verify_file
from hwprune.targets import Target
from hwprune.training import ALONE, World
from hwprune.training.devices import resolve
from hwprune.training.recipe_file import load as load_recipe
from hwprune.units import format_bytes, format_percent
from hwprune.verify import limits as limit_rules
from hwprune.verify import speeds

DEFAULT_EPOCHS = 12
# One-way: it was ahead, or level, wherever the two were measured at equal cost (docs/results.md).
DEFAULT_STRATEGY = "cubic"
# What every generator that is seeded takes, torch's and NumPy's.
MAX_SEED = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is asked to do, beside the model, the target and the data.

    Attributes:
        budget_bytes: None for the target's default.
        strategy: a key of ``hwprune.sparsity.STRATEGIES``.
        strategy_options: keyword arguments of that strategy.
        share_weights: which layers share theirs, as ``--share-weights`` spells it; without, as the
            strategy does.
        values: a value type, or ``auto``.
        epochs: passes over the training data; 0 trains nothing.
        seed: of everything that is random.
        limits: limits, as ``--require`` spells them.
        recipe: fields of ``hwprune.training.Recipe`` that differ from their defaults.
        device: where to train: ``auto`` (CUDA, else MPS, else the CPU), ``cpu``, ``cuda``,
            ``cuda:N`` or ``mps``.
        resume: continue the run that was interrupted in this folder; where there is none, start. A
            finished run leaves nothing to continue.
        checkpoint_seconds: the least time between two checkpoints of the training, which are
            written after an epoch.
        world: the processes that compile together, each of which makes the same call; see
            ``hwprune.training.joined``.
        threads: of onnxruntime while measuring latency.
        command: the command line, for the record.
    """

    budget_bytes: int | None = None
    strategy: str = DEFAULT_STRATEGY
    strategy_options: Mapping[str, Any] | None = None
    share_weights: Sequence[str] = ()
    values: str = "auto"
    epochs: int = DEFAULT_EPOCHS
    seed: int = 0
    limits: Sequence[str] = ()
    recipe: Mapping[str, Any] | None = None
    device: str = "auto"
    resume: bool = False
    checkpoint_seconds: float = 30.0
    world: World = ALONE
    threads: int = 1
    command: Sequence[str] = ()

    def following(
        self,
        recipe: str | os.PathLike[str] | None,
        *,
        strategy: str | None = None,
        epochs: int | None = None,
    ) -> Options:
        """Return these options along a recipe file; what was asked for itself comes first.

        Args:
            recipe: a file, or the name of a built-in recipe; None for neither.
            strategy: asked for, or None. Another one than the file's takes no options from there.
            epochs: asked for, or None.

        Raises:
            UsageError: the file is not a recipe; see ``hwprune.training.recipe_file``.
        """
        found = self
        if recipe is not None:
            course = load_recipe(recipe)
            found = replace(
                self,
                strategy=course.strategy or self.strategy,
                strategy_options=course.options if course.strategy else self.strategy_options,
                epochs=self.epochs if course.epochs is None else course.epochs,
                recipe=course.recipe,
                share_weights=self.share_weights or course.share_weights,
            )
        if strategy is not None and strategy != found.strategy:
            found = replace(found, strategy=strategy, strategy_options=None)
        return found if epochs is None else replace(found, epochs=epochs)


def compile_model(
    model: Model,
    target: Target,
    data: Data | None,
    output: Path,
    options: Options,
    say: Say = lambda status: None,
) -> Artifact:
    """Compile a model for a target into a folder.

    The folder gets model.onnx, report.json and report.html; where the result is not verified or
    a limit is not met, the file is kept as rejected.onnx and an older model.onnx stays as it was.

    While it trains, the folder holds a checkpoint that ``Options.resume`` continues from. Of
    several processes the leader alone packs, writes and verifies; all return the same.

    Returns:
        the artifact; its verdict holds the exit code (0, 3 or 5).

    Raises:
        HwpruneError: the run could not reach a file at all; no artifact in the folder changed.
    """
    started = time.perf_counter()
    limits = [limit_rules.parse_limit(text) for text in options.limits]
    _check_options(options, model, data)
    check_budget(target, options.budget_bytes)
    _check_limits(limits, target, data)
    world = options.world
    if not world.leads:
        say = _quiet
    training = Training(
        options.epochs, options.seed, options.recipe or {}, resolve(options.device), world=world
    )
    recipe = recipe_of(training)  # a wrong field is found before any work is done
    trains = data is not None and options.epochs > 0
    wishes = wishes_of(options.share_weights, options.strategy, trains=trains)
    racing = RACING_VALUE_TYPES if may_race(data, recipe) else ()
    kinds = value_types(target, options.values, also=racing)
    with opened(output) if world.leads else nullcontext() as folder:
        matched = match(model, data) if data is not None else ()
        for note in matched:
            say(Status("data", note))
        say(Status("trace", f"tracing {model.name}"))
        prepared = prepare(model, target, options.budget_bytes)
        dense = prepared.template.write_dense()
        notes = [*model.notes, *prepared.traced.notes, *(data.notes if data else ()), *matched]
        plan: Plan | None = None
        masks: Masks | None = None
        if prepared.fits_dense:
            if prepared.has_to_train:
                raise nothing_to_prune(prepared)
            notes += [_fits_dense(prepared), *left_unshared(prepared, wishes)]
            written = dense
            trained = Trained("dense", all_alive(prepared), 0, None, None, (), ())
        else:
            if data is not None:
                check_batch(model)
            say(Status("plan", "solving the budget"))
            asked = bool(options.share_weights)
            prepared, plans, shared = planned(prepared, wishes, kinds, asked=asked)
            notes += shared
            pretrained = {name: array.copy() for name, array in module_weights(prepared).items()}
            if options.strategy == "dense":  # nothing may be pruned: only what holds every weight
                whole = {k: plan for k, plan in plans.items() if plan.limited_by == "weights"}
                plans = whole or plans
            choice = world.lead(
                choose_value_type(prepared, plans, data, options.seed, training=training, say=say)
            )
            notes.append(choice.note)
            plan = plans[choice.value_type]
            strategy = strategy_for(options.strategy, plan, options.strategy_options or {})
            say(Status("plan", _plan_line(plan)))
            checkpoint = checkpoint_of(
                output, prepared, plan,
                resume=options.resume, every_seconds=options.checkpoint_seconds,
            )  # fmt: skip
            training = replace(training, checkpoint=checkpoint)
            trained = prune_and_regrow(prepared, plan, strategy, data, training, say)
            trained = _with_costs(trained, choice, options)
            if folder is None:
                return world.follow(Artifact)
            say(Status("pack", "encoding"))
            packed = pack_model(prepared, trained.masks, choice.value_type, pretrained)
            written, masks = packed.written, packed.masks
            notes += _packing_notes(packed, choice.value_type)
            notes += unshared_sparsity(prepared, masks)
        if folder is None:
            return world.follow(Artifact)
        save_checkpoint(prepared.model.module, masks, folder.staging / "checkpoint")
        path = folder.staging / "model.onnx"
        write_file(path, written.data)
        say(Status("verify", "checking the file in onnxruntime"))
        checked = verify_file(path, written, masks, prepared, data)
        measured = None
        if not checked.problems:
            say(Status("measure", "accuracy and latency on this host"))
            measured = measure_files(
                path,
                None if written is dense else dense,
                data,
                folder=folder.staging,
                threads=options.threads,
                with_latency=_runs_here(target),
                with_kernels=checked.one_speed is None,
            )
        outcome = Outcome(
            prepared, plan, written, masks, checked, trained, measured, data,
            (*notes, *trained.notes),
        )  # fmt: skip
        record = record_of(outcome, seed=options.seed, command=options.command)
        record, verdict = _judge(record, outcome, limits)
        record["seconds"] = time.perf_counter() - started
        return world.lead(_publish(folder, record, verdict, say))


def check_seed(seed: int) -> None:
    """Raise UsageError for a seed that not every random generator takes."""
    if not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed is {seed!r}", hint=f"expected a whole number from 0 to {MAX_SEED}")


def _quiet(status: Status) -> None:
    """Say nothing: another process does."""


# -- the stages that are not one call -------------------------------------------------------------


def _check_options(options: Options, model: Model, data: Data | None) -> None:
    check_options(options.strategy, options.strategy_options or {})
    if not isinstance(options.epochs, int) or options.epochs < 0:
        raise UsageError(f"epochs is {options.epochs!r}", hint="expected a whole number, 0 or more")
    check_seed(options.seed)
    if not model.trained and (data is None or options.epochs == 0):
        raise UsageError(
            f"{model.source} has random weights, and there is nothing to train it with",
            hint="give --data and --epochs above 0, or a trained MODEL",
        )
    if not model.trainable:
        raise ModelError(
            f"{model.source} is a TorchScript archive: it can be planned, not compiled",
            hint="save the state dict: torch.save(model.state_dict(), 'model.pt')",
        )


def _check_limits(limits: Sequence[limit_rules.Limit], target: Target, data: Data | None) -> None:
    labels = data is not None and data.test.labels is not None and len(data.test) > 0
    no_kernels = speeds.why_no_kernels()
    if target.runtime.inline_functions:
        no_kernels = f"the inlined form for {target.name} has one speed"
    context = limit_rules.Context(
        kind=target.kind, labels=labels, latency=_runs_here(target), no_kernels=no_kernels
    )
    limit_rules.require_measurable(limits, context)


def _runs_here(target: Target) -> bool:
    """Return whether a latency on this host says anything about the target's runtime."""
    return target.runtime.kind == "onnxruntime"


def _judge(
    record: dict[str, Any], outcome: Outcome, limits: Sequence[limit_rules.Limit]
) -> tuple[dict[str, Any], Verdict]:
    """Compare the record with the limits and close it with a verdict."""
    results = [limit_rules.evaluate(limit, record) for limit in limits]
    codes = [VerificationError.exit_code] if outcome.checked.problems else []
    codes += [LimitError.exit_code for result in results if not result.met]
    return with_verdict(record, outcome, results, exit_code=worst_exit_code(codes))


def _publish(folder: OutputFolder, record: dict[str, Any], verdict: Verdict, say: Say) -> Artifact:
    """Write the reports and move all into place; a rejected file never takes the good name."""
    name = "model.onnx" if verdict.exit_code == 0 else "rejected.onnx"
    if name != "model.onnx":
        (folder.staging / "model.onnx").rename(folder.staging / name)
    record["artifact"] = {**record["artifact"], "path": name}
    write_reports(record, folder.staging)
    folder.publish(name, "checkpoint", "report.json", "report.html")
    if name == "model.onnx":
        folder.discard("rejected.onnx")
    discard_checkpoint(folder.path)
    say(Status("done", str(folder.path / name)))
    return Artifact(
        path=str(folder.path / name),
        bytes=record["artifact"]["bytes"],
        sha256=record["artifact"]["sha256"],
        verdict=verdict,
        report=record,
    )


def _with_costs(trained: Trained, choice: Choice, options: Options) -> Trained:
    """Add what choosing cost, and what the strategy was told, to what the record says."""
    told = {f"strategy.{key}": value for key, value in (options.strategy_options or {}).items()}
    return replace(
        trained,
        cost_epochs=trained.cost_epochs + choice.cost_epochs,
        recipe={**trained.recipe, **told} if trained.recipe else {},
    )


def _fits_dense(prepared: Prepared) -> str:
    return (
        "the dense fp32 model fits, so it was written as it is; pruning starts at a budget below "
        f"{format_bytes(prepared.dense_bytes)}"
    )


def _packing_notes(packed: PackedModel, value_type: ValueType) -> list[str]:
    notes = []
    if packed.dropped:
        notes.append(f"{packed.dropped:,} survivors were zero as {value_type} and were dropped")
    if packed.useless:
        notes.append(f"{packed.useless:,} survivors led nowhere and were dropped")
    if packed.removed:
        notes.append(
            f"{packed.removed:,} channels were dead and were removed: {packed.removed_bytes:,} B"
        )
    if notes:
        notes.append(f"bytes that were left took {packed.respent:,} connections back")
    return notes


def _plan_line(plan: Plan) -> str:
    return (
        f"{plan.max_nonzeros:,} of {plan.weights:,} weights fit "
        f"{format_bytes(plan.budget_bytes)} with {plan.value_type} values "
        f"({format_percent(1 - plan.max_nonzeros / plan.weights)} sparse)"
    )
