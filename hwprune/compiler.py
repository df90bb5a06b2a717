"""The compiler: its stages, readable from top to bottom. The only file that knows their order.

load -> prepare (trace, fixed cost) -> plan -> choose values -> prune and regrow while training
     -> pack -> write -> verify -> measure -> judge -> report -> publish
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune.errors import LimitError, ModelError, UsageError, VerificationError, worst_exit_code
from hwprune.ir import Artifact, Data, Masks, Model, Plan, ValueType, Verdict
from hwprune.sparsity import STRATEGIES
from hwprune.steps.checkpoint import save_checkpoint
from hwprune.steps.choosing import choose_value_type
from hwprune.steps.matching import check_batch, match
from hwprune.steps.output import OutputFolder, opened, write_file
from hwprune.steps.packing import PackedModel, pack_model
from hwprune.steps.planning import (
    Prepared,
    check_budget,
    module_weights,
    plans_of,
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
from hwprune.steps.verifying import measure_files, verify_file
from hwprune.targets import Target
from hwprune.units import format_bytes, format_percent
from hwprune.verify import limits as limit_rules
from hwprune.verify import speeds

DEFAULT_EPOCHS = 12
DEFAULT_STRATEGY = "bidirectional"
# What every generator that is seeded takes, torch's and NumPy's.
MAX_SEED = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is asked to do, beside the model, the target and the data.

    Attributes:
        budget_bytes: None for the target's default.
        strategy: a key of ``hwprune.sparsity.STRATEGIES``.
        strategy_options: keyword arguments of that strategy.
        values: a value type, or ``auto``.
        epochs: passes over the training data; 0 trains nothing.
        seed: of everything that is random.
        limits: limits, as ``--require`` spells them.
        recipe: fields of ``hwprune.training.Recipe`` that differ from their defaults.
        device: where to train.
        threads: of onnxruntime while measuring latency.
        command: the command line, for the record.
    """

    budget_bytes: int | None = None
    strategy: str = DEFAULT_STRATEGY
    strategy_options: Mapping[str, Any] | None = None
    values: str = "auto"
    epochs: int = DEFAULT_EPOCHS
    seed: int = 0
    limits: Sequence[str] = ()
    recipe: Mapping[str, Any] | None = None
    device: str = "auto"
    threads: int = 1
    command: Sequence[str] = ()


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

    Returns:
        the artifact; its verdict holds the exit code (0, 3 or 5).

    Raises:
        HwpruneError: the run could not reach a file at all; nothing in the folder changed.
    """
    started = time.perf_counter()
    limits = [limit_rules.parse_limit(text) for text in options.limits]
    _check_options(options, model)
    check_budget(target, options.budget_bytes)
    _check_limits(limits, target, data)
    kinds = value_types(target, options.values)
    training = Training(options.epochs, options.seed, options.recipe or {}, options.device)
    recipe_of(training)  # a wrong field is found before any work is done
    with opened(output) as folder:
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
            notes.append(_fits_dense(prepared))
            written = dense
            trained = Trained("dense", all_alive(prepared), 0, None, None, (), ())
        else:
            if data is not None:
                check_batch(model)
            say(Status("plan", "solving the budget"))
            pretrained = {name: array.copy() for name, array in module_weights(prepared).items()}
            plans = plans_of(prepared, kinds)
            if options.strategy == "dense":  # nothing may be pruned: only what holds every weight
                whole = {k: plan for k, plan in plans.items() if plan.limited_by == "weights"}
                plans = whole or plans
            choice = choose_value_type(prepared, plans, data, options.seed)
            notes.append(choice.note)
            plan = plans[choice.value_type]
            strategy = strategy_for(options.strategy, plan, options.strategy_options or {})
            say(Status("plan", _plan_line(plan)))
            trained = prune_and_regrow(prepared, plan, strategy, data, training, say)
            say(Status("pack", "encoding"))
            packed = pack_model(prepared, trained.masks, choice.value_type, pretrained)
            written, masks = packed.written, packed.masks
            notes += _packing_notes(packed, choice.value_type)
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
        return _publish(folder, record, verdict, say)


def check_seed(seed: int) -> None:
    """Raise UsageError for a seed that not every random generator takes."""
    if not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed is {seed!r}", hint=f"expected a whole number from 0 to {MAX_SEED}")


# -- the stages that are not one call -------------------------------------------------------------


def _check_options(options: Options, model: Model) -> None:
    if options.strategy not in STRATEGIES:
        raise UsageError(
            f"there is no strategy {options.strategy!r}", hint=f"use one of {', '.join(STRATEGIES)}"
        )
    if not isinstance(options.epochs, int) or options.epochs < 0:
        raise UsageError(f"epochs is {options.epochs!r}", hint="expected a whole number, 0 or more")
    check_seed(options.seed)
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
    say(Status("done", str(folder.path / name)))
    return Artifact(
        path=str(folder.path / name),
        bytes=record["artifact"]["bytes"],
        sha256=record["artifact"]["sha256"],
        verdict=verdict,
        report=record,
    )


def _fits_dense(prepared: Prepared) -> str:
    return (
        "the dense fp32 model fits, so it was written as it is; pruning starts at a budget below "
        f"{format_bytes(prepared.dense_bytes)}"
    )


def _packing_notes(packed: PackedModel, value_type: ValueType) -> list[str]:
    if not packed.dropped:
        return []
    return [
        f"{packed.dropped:,} survivors were zero as {value_type} and were dropped; bytes that were "
        f"left took {packed.respent:,} connections back"
    ]


def _plan_line(plan: Plan) -> str:
    return (
        f"{plan.max_nonzeros:,} of {plan.weights:,} weights fit "
        f"{format_bytes(plan.budget_bytes)} with {plan.value_type} values "
        f"({format_percent(1 - plan.max_nonzeros / plan.weights)} sparse)"
    )
