"""The compiler: its stages, readable from top to bottom. The only file that knows their order.

prepare (trace, fixed cost) -> plan -> choose values -> prune and regrow while training
     -> pack -> write -> verify -> measure -> judge -> report -> publish
"""

from __future__ import annotations

import math
import shlex
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from hwprune.errors import LimitError, VerificationError, worst_exit_code
from hwprune.export.deployment import NOTHING_TO_SAY
from hwprune.export.template import Written
from hwprune.firmware.reference import quantize
from hwprune.ir import Artifact, Data, Masks, Plan, Say, Status, ValueType, Verdict
from hwprune.job import Job
from hwprune.sparsity import STRATEGIES
from hwprune.steps.check_data import check_batch, check_data
from hwprune.steps.checkpoint import discard_training_state, refuse_unfinished, save_checkpoint
from hwprune.steps.firmware import (
    Firmware,
    firmware_layers,
    fits_ram,
    make_firmware,
    packed_for_image,
    with_fitted_budget,
)
from hwprune.steps.output import OutputFolder, opened, write_file
from hwprune.steps.packing import PackedModel, pack_model
from hwprune.steps.planning import (
    Prepared,
    fits_dense,
    left_unshared,
    module_weights,
    nothing_to_prune,
    plan_shared,
    prepare,
    time_notes,
)
from hwprune.steps.pruning import nothing_pruned, prune_and_regrow, strategy_for
from hwprune.steps.recording import (
    CARD_NAME,
    Compiled,
    Outcome,
    record_of,
    with_verdict,
    write_reports,
)
from hwprune.steps.value_type_selection import choose_value_type
from hwprune.steps.verifying import (
    Evaluation,
    check_export,
    measure_files,
    sized_inputs,
    verify_file,
)
from hwprune.units import format_bytes, format_percent
from hwprune.verify import limits as limit_rules
from hwprune.verify.firmware import FIRMWARE_NAME, FirmwareCheck, check_firmware, network_file

# What goes with a file, in this order: the report, which holds the file's hash, after the file.
_PUBLISHED = ("checkpoint", FIRMWARE_NAME, "report.json", "report.html", CARD_NAME)


def compile_model(job: Job, say: Say = lambda status: None) -> Artifact:
    """Compile a model for a target into a folder.

    The folder gets model.onnx, report.json, report.html and README.md, a model card; where the
    result is not verified or a limit is not met, the file is kept as rejected.onnx. Beside a
    model.onnx of an earlier run, which stays as it was with its report and its checkpoint, all of
    it goes into rejected/.

    While it trains, the folder holds a checkpoint that ``Job.resume`` continues from. Of several
    processes the leader alone packs, writes and verifies; all return the same.

    Returns:
        the artifact; its verdict holds the exit code (0, 3 or 5).

    Raises:
        HwpruneError: the run could not reach a file at all; no artifact in the folder changed.
    """
    started = time.perf_counter()
    if not job.world.leads:
        say = _quiet
    with opened(job.output) if job.world.leads else nullcontext() as folder:
        if folder is not None and not (job.resume or job.restart):
            refuse_unfinished(folder.path)
        matched = () if job.data is None else check_data(job.model, job.data, job.task)
        for note in matched:
            say(Status("data", note))
        say(Status("trace", f"tracing {job.model.name}"))
        prepared = prepare(job.model, job.target, deployment=job.deployment, limits=job.limits)
        layers, why_not = firmware_layers(job, prepared.template)
        dense = prepared.template.write_dense()
        if folder is not None:
            bare = replace(prepared.template, deployment=NOTHING_TO_SAY)
            check_export(job.model, bare.write_dense(), folder.staging / "dense.onnx")
        notes = [*prepared.notes, *(job.data.notes if job.data else ()), *matched]
        notes += [why_not] if why_not else []
        whole = fits_dense(prepared.dense_bytes, job.target, job.budget_bytes)
        whole = whole and (layers is None or fits_ram(layers, job.target))
        whole = whole and prepared.time is None
        firmware = layers is not None
        if whole:
            made: Compiled | None = _as_it_is(job, prepared, dense, firmware)
        else:
            made = _pruned(job, prepared, say, firmware)
        if folder is None or made is None:
            return job.world.receive(Artifact)
        return job.world.broadcast(
            finish(job, folder, replace(made, notes=(*notes, *made.notes)), dense, say, started)
        )


def finish(
    job: Job,
    folder: OutputFolder,
    made: Compiled,
    dense: Written,
    say: Say = lambda status: None,
    started: float | None = None,
    evaluation: Evaluation | None = None,
) -> Artifact:
    """Write what was made, verify, measure, judge and publish it.

    Args:
        job: what was asked for.
        folder: where to.
        made: the file's content and how it came about.
        dense: the dense network's.
        say: told about each stage.
        started: ``time.perf_counter()`` when the job began; now without.
        evaluation: the caller's own metric of the verified file; what it raises ends the run with
            nothing published.
    """
    started = time.perf_counter() if started is None else started
    model, written = made.prepared.model, made.written
    save_checkpoint(model.module, made.masks, folder.staging / "checkpoint")
    path = folder.staging / "model.onnx"
    write_file(path, written.data)
    say(Status("verify", "checking the file in onnxruntime"))
    checked = verify_file(
        path, written, made.masks, model, made.prepared.template,
        # Of firmware it is the image that has to fit.
        target=job.target, budget_bytes=len(written.data) if made.firmware else job.budget_bytes,
        data=job.data,
    )  # fmt: skip
    measured, firmware, shipped = None, None, path
    if made.firmware and not checked.problems:
        firmware = _firmware(job, folder, made, say)
        shipped = network_file(folder.staging / FIRMWARE_NAME)
    if not checked.problems:
        say(Status("measure", "accuracy and latency on this host"))
        measured = measure_files(
            shipped,
            None if written is dense and firmware is None else dense,
            job.data,
            job.task,
            folder=folder.staging,
            inputs=sized_inputs(model),
            threads=job.threads,
            with_latency=job.runs_here,
            with_kernels=checked.no_kernels is None,
            evaluation=evaluation,
        )
    outcome = Outcome(job, made, checked, measured, firmware)
    record, verdict = _judge(record_of(outcome), outcome)
    record["seconds"] = time.perf_counter() - started
    return _publish(folder, record, verdict, say)


def _firmware(
    job: Job, folder: OutputFolder, made: Compiled, say: Say
) -> tuple[Firmware, FirmwareCheck]:
    """Write a microcontroller's C, link it and run it on an emulated board."""
    template = made.prepared.template if made.template is None else made.template
    if job.data is not None:
        say(Status("calibrate", "int8 activations"))
    place = folder.staging / FIRMWARE_NAME
    found = make_firmware(
        template, made.written, job.data, job.target, place, job.model.name, job.budget_bytes
    )
    say(Status("link", f"for {job.target.name}, and running it on an emulated board"))
    inputs, budget = None, job.budget_bytes
    if job.data is not None:
        x, validation = found.network.tensors[found.network.input], job.data.validation
        inputs = quantize(np.asarray(validation.batch(np.arange(min(2, len(validation))))[0]), x)
    return found, check_firmware(str(place), target=job.target, budget_bytes=budget, inputs=inputs)


def _quiet(status: Status) -> None:
    """Say nothing: another process does."""


def _as_it_is(job: Job, prepared: Prepared, dense: Written, firmware: bool) -> Compiled:
    """Take the dense network, which fits."""
    if prepared.has_to_train:
        raise nothing_to_prune(prepared, job.budget_bytes)
    go_on = _with_budget(job, prepared.dense_bytes // 2)
    fits = (
        "the dense fp32 model fits, so it was written as it is; pruning starts at a budget below "
        f"{format_bytes(prepared.dense_bytes)}: go on with {go_on}"
    )
    notes = (fits, *left_unshared(prepared.model, job.sharing))
    return Compiled(prepared, None, nothing_pruned(prepared), dense, None, notes, firmware=firmware)


def _with_budget(job: Job, size: int) -> str:
    """Return the command, or what to give the function, once more with another budget."""
    half = f"{max(1, size // 1024)}KiB"
    if len(job.command) == 1:  # hwprune.compile
        return f"budget={half!r}" + ("" if job.data is not None else ", data=...")
    kept: list[str] = []
    given = iter(job.command)
    for word in given:
        if word.partition("=")[0] != "--budget":
            kept.append(word)
        elif "=" not in word:
            next(given, None)  # its value
    data = [] if job.data is not None else ["--data", "SPEC"]
    return shlex.join([*kept, "--budget", half, *data])


def _pruned(job: Job, prepared: Prepared, say: Say, firmware: bool) -> Compiled | None:
    """Plan, prune, train and pack; None in a process that only trains with others."""
    if job.data is not None:
        check_batch(job.model)
    say(Status("plan", "solving the budget"))
    asked = job
    if firmware:
        job = with_fitted_budget(job, prepared)
    prepared, candidates, shared = plan_shared(
        prepared, job.target, job.budget_bytes, job.value_types, job.sharing,
        asked=job.sharing_asked,
    )  # fmt: skip
    model, template = prepared.model, prepared.template
    weights = module_weights(model.module, template)
    pretrained = {name: weight.copy() for name, weight in weights.items()}
    if not STRATEGIES[job.strategy].prunes:  # nothing may be pruned: only what holds every weight
        whole = {k: each for k, each in candidates.items() if each.plan.limited_by == "weights"}
        candidates = whole or candidates
    choice = job.world.broadcast(choose_value_type(job, prepared, candidates, say))
    chosen = candidates[choice.value_type]
    strategy = strategy_for(job, chosen)
    say(Status("plan", _plan_line(chosen.plan)))
    pruned = prune_and_regrow(job, prepared, chosen, strategy, say)
    pruned = replace(pruned, cost_epochs=pruned.cost_epochs + choice.cost_epochs)
    if not job.world.leads:
        return None
    say(Status("pack", "encoding"))
    pack = partial(
        pack_model, model.module, template, value_type=choice.value_type, pretrained=pretrained,
        revive=not prepared.has_to_train, time=chosen.time, prices=chosen.prices,
    )  # fmt: skip
    if firmware:
        packed = packed_for_image(
            model.module, pack, pruned.masks,
            budget_bytes=job.budget_bytes, goal=asked.budget_bytes, target=job.target,
        )  # fmt: skip
    else:
        packed = pack(pruned.masks, budget_bytes=job.budget_bytes)
    notes = (
        *shared, choice.note, *packing_notes(packed, choice.value_type),
        *time_notes(prepared, chosen, pretrained, packed.masks),
        *_unshared_sparsity(prepared, packed.masks), *pruned.notes,
    )  # fmt: skip
    return Compiled(
        prepared, chosen.plan, pruned, packed.written, packed.masks, notes, packed.template,
        firmware,
    )  # fmt: skip


def _judge(record: dict[str, Any], outcome: Outcome) -> tuple[dict[str, Any], Verdict]:
    """Compare the record with the limits and close it with a verdict."""
    job = outcome.job
    limits = list(job.limits)
    own = limit_rules.guard(record, limits, job.max_drop, _classes(job.data))
    if own is not None and own.value < math.inf:
        limits.append(own)
    results = [limit_rules.evaluate(limit, record) for limit in limits]
    codes = [VerificationError.exit_code] if outcome.checked.problems else []
    codes += (
        [step.exit_code for step in outcome.firmware[1].result.failures] if outcome.firmware else []
    )
    codes += [LimitError.exit_code for result in results if not result.met]
    return with_verdict(record, outcome, results, exit_code=worst_exit_code(codes))


def _classes(data: Data | None) -> int:
    """Return how many classes the test labels have; 0 where labels are no classes."""
    labels = None if data is None else data.test.labels
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        return 0
    return len(np.unique(labels))


def _publish(folder: OutputFolder, record: dict[str, Any], verdict: Verdict, say: Say) -> Artifact:
    """Write the reports and move all into place; a rejected file never takes the good name."""
    name = "model.onnx" if verdict.exit_code == 0 else "rejected.onnx"
    if name != "model.onnx":
        (folder.staging / "model.onnx").rename(folder.staging / name)
    record["artifact"] = {**record["artifact"], "path": name}
    write_reports(record, folder.staging)
    place = folder.path
    if name != "model.onnx" and (place / "model.onnx").exists():
        place = folder.set_apart("rejected", *_PUBLISHED, name)
    else:
        folder.publish(name, *_PUBLISHED)
        if record["firmware"] is None:
            folder.discard(FIRMWARE_NAME)
    if name == "model.onnx":
        folder.discard("rejected.onnx", "rejected")
    discard_training_state(folder.path)
    say(Status("done", str(place / name)))
    return Artifact(
        path=str(place / name),
        bytes=record["artifact"]["bytes"],
        sha256=record["artifact"]["sha256"],
        verdict=verdict,
        report=record,
    )


# -- sentences ------------------------------------------------------------------------------------


def packing_notes(packed: PackedModel, value_type: ValueType) -> list[str]:
    """Return sentences about what packing dropped, removed and took back."""
    notes = []
    if packed.dropped:
        notes.append(f"{packed.dropped:,} kept weights were zero as {value_type} and were dropped")
    if packed.useless:
        notes.append(f"{packed.useless:,} kept weights led nowhere and were dropped")
    if packed.removed:
        notes.append(
            f"{packed.removed:,} channels did nothing and were removed: {packed.removed_bytes:,} B"
        )
    if notes:
        notes.append(f"bytes that were left took {packed.respent:,} connections back")
    return notes


def _unshared_sparsity(prepared: Prepared, masks: Masks) -> tuple[str, ...]:
    """Return a sentence that counts what is kept against the network before it shared."""
    if not prepared.saved_weights:
        return ()
    every = prepared.template.weights + prepared.saved_weights
    kept = f"{masks.nonzeros:,} of the {every:,} weights before sharing are kept"
    return (f"{kept} ({format_percent(1 - masks.nonzeros / every)} sparse)",)


def _plan_line(plan: Plan) -> str:
    return (
        f"{plan.max_nonzeros:,} of {plan.weights:,} weights fit "
        f"{format_bytes(plan.budget_bytes)} with {plan.value_type} values "
        f"({format_percent(1 - plan.max_nonzeros / plan.weights)} sparse)"
    )
