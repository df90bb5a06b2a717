"""The record of a run: what report.json says, put together in one place."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwprune.encoding import bound_of
from hwprune.export.deployment import NONZEROS, SHARE
from hwprune.export.template import Template, Written
from hwprune.firmware.cycles import no_table
from hwprune.ir import LimitResult, Masks, Packed, Plan, SkippedTensor, Verdict
from hwprune.job import Job
from hwprune.report import record as reports
from hwprune.report.card import card
from hwprune.report.html import html
from hwprune.steps.firmware import Firmware
from hwprune.steps.planning import Prepared
from hwprune.steps.pruning import Pruned
from hwprune.steps.verifying import Measured
from hwprune.units import format_count, format_percent
from hwprune.verify import SCOPE_HOST, SCOPE_UNLINKED, CheckResult, environment
from hwprune.verify.firmware import FirmwareCheck, core_of

CARD_NAME = "README.md"


@dataclass(frozen=True, slots=True)
class Compiled:
    """What is to be written, and how it came about.

    Attributes:
        prepared: the network.
        plan: what the file was planned as; None where the dense model fits.
        pruned: what pruning and training found.
        written: the file's content.
        masks: what it stores; None for a dense file.
        notes: sentences for people.
        template: what the file was made of, without the channels that are gone.
        firmware: whether firmware is made of it.
    """

    prepared: Prepared
    plan: Plan | None
    pruned: Pruned
    written: Written
    masks: Masks | None
    notes: tuple[str, ...]
    template: Template | None = None
    firmware: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that a run found out.

    Attributes:
        job: what was asked for.
        compiled: what was made.
        checked: what verification found.
        measured: accuracy and latency; None where the file does not run.
        firmware: the C that was made and what was found of it; None where none is made.
    """

    job: Job
    compiled: Compiled
    checked: CheckResult
    measured: Measured | None
    firmware: tuple[Firmware, FirmwareCheck] | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Return what is wrong, in sentences."""
        wrong = () if self.firmware is None else self.firmware[1].result.problems
        return (*self.checked.problems, *(f"firmware: {problem}" for problem in wrong))

    @property
    def used_bytes(self) -> int:
        """Return what the budget counts: the file, or the image that is made of it."""
        if self.firmware is None:
            return len(self.compiled.written.data)
        made, found = self.firmware
        return found.facts.flash_bytes or made.constant_bytes


def record_of(outcome: Outcome) -> dict[str, Any]:
    """Return the record of a run as plain values; ``with_verdict`` closes it."""
    job, made, metric = outcome.job, outcome.compiled, _metric(outcome)
    plan, pruned, written, masks = made.plan, made.pruned, made.written, made.masks
    size = len(written.data)
    weights = made.prepared.template.weights
    nonzeros = weights if masks is None else masks.nonzeros
    notes = list(made.notes)
    notes += [f"problem: {problem}" for problem in outcome.problems]
    notes += _skipped_notes(made.prepared.skipped)
    left_out = [key for key in job.metadata if key not in job.deployment.metadata]
    if left_out:
        notes.append(
            f"not in the file, where metadata take at most {format_percent(SHARE, 0)} of the "
            f"budget, but in the report: {', '.join(left_out)}"
        )
    notes += _reasons(outcome)
    return {
        "schema_version": 2,
        "verdict": None,
        "model": job.model.name,
        "target": job.target.name,
        "strategy": pruned.strategy,
        "epochs": pruned.epochs,
        "recipe": dict(pruned.recipe),
        "cost_epochs": pruned.cost_epochs,
        "artifact": {
            "path": "model.onnx",
            "bytes": size,
            "sha256": hashlib.sha256(written.data).hexdigest(),
            "form": _form(made),
        },
        "budget": {
            "bytes": job.budget_bytes,
            "floor_bytes": None if plan is None else plan.floor_bytes,
            "max_nonzeros": None if plan is None else plan.max_nonzeros,
            "used_bytes": outcome.used_bytes,
            "slack_bytes": job.budget_bytes - outcome.used_bytes,
        },
        "result": {
            "nonzeros": nonzeros,
            "weights": weights,
            "sparsity": 1 - nonzeros / weights,
            "artifact_bytes": size,
            "function_bytes": 0 if written.encoding is None else written.encoding.function_bytes,
            "bound_bytes": _bound_bytes(written),
            "dense_bytes": made.prepared.dense_bytes,
            "int8_bytes": _int8_bytes(made.prepared.template),
            "layers": _layers(made, outcome.checked),
        },
        "metric": metric,
        "accuracy": _accuracy(metric, pruned),
        "latency": _latency(outcome.measured),
        "parity": dict.fromkeys(("relative_error", "top1_agreement"))
        if outcome.checked.parity is None
        else asdict(outcome.checked.parity),
        "environment": environment(),
        "command": shlex.join([Path(job.command[0]).name, *job.command[1:]]) if job.command else "",
        "seed": job.seed,
        "seconds": 0.0,
        "notes": notes,
        "firmware": _firmware(outcome),
        # As the file has them: what is embedded says so.
        "metadata": {**job.metadata, **job.deployment.metadata, NONZEROS: str(nonzeros)},
        "left_out": left_out,
    }


def with_verdict(
    record: Mapping[str, Any], outcome: Outcome, limits: Sequence[LimitResult], *, exit_code: int
) -> tuple[dict[str, Any], Verdict]:
    """Return the record with its verdict, and the verdict."""
    target = outcome.job.target
    scope = SCOPE_UNLINKED if target.runtime.kind == "firmware" else SCOPE_HOST
    if outcome.firmware is not None:
        scope = outcome.firmware[1].facts.scope
    verdict = Verdict(
        fits=outcome.used_bytes <= outcome.job.budget_bytes,
        verified=not outcome.problems,
        scope=scope,
        limits=tuple(limits),
        exit_code=exit_code,
    )
    return {**record, "verdict": asdict(verdict)}, verdict


def _firmware(outcome: Outcome) -> dict[str, Any] | None:
    if outcome.firmware is None:
        return None
    made, found = outcome.firmware
    return {
        **found.facts.as_record(),
        "constant_bytes": made.constant_bytes,
        "calibration": made.method or "none: fp32",
        "error": made.error,
        "formats": dict(made.formats),
        "sha256": made.sha256,
    }


def write_reports(record: Mapping[str, Any], folder: Path) -> None:
    """Write report.json, report.html and the model card into a folder."""
    checked = reports.from_mapping(record)
    reports.write(checked, folder / "report.json")
    written = reports.read(folder / "report.json")
    reports.write_text(html(written), folder / "report.html")
    reports.write_text(card(written), folder / CARD_NAME)


def _form(made: Compiled) -> str:
    if not made.written.packed:
        return "dense"
    return "inlined" if made.prepared.template.inline else "functions"


def _int8_bytes(template: Template) -> int:
    """Return what the file would weigh with every weight as int8."""
    nothing = dict.fromkeys(template.names, np.zeros(0, np.int64))  # dense forms need none
    dense = replace(template, codecs=("dense",))
    return dense.cost("int8").encoding(nothing, "int8").file_bytes


def _layers(made: Compiled, checked: CheckResult) -> list[dict[str, Any]]:
    written, masks = made.written, made.masks
    read = {} if checked.artifact is None else {e.name: e.bytes for e in checked.artifact.layers}
    layers = []
    for tensor in made.prepared.template.prunable:
        packed = written.packed.get(tensor.name)
        if packed is None or written.encoding is None or masks is None:
            count, codec, kind, size = tensor.weights, "dense", "fp32", 4 * tensor.weights
        else:
            codec, kind = packed.codec, packed.value_type
            size = written.encoding.tensor_bytes[tensor.name]
            count = int(np.count_nonzero(masks[tensor.name]))
        layers.append(
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "nonzeros": count,
                "codec": codec,
                "value_type": kind,
                "bytes": size,
                "packed_bytes": read.get(tensor.name),
                **_bounds(packed),
                **_stored_shape(packed, tensor.shape),
            }
        )
    return layers


def _bound_bytes(written: Written) -> float:
    return round(sum(bound_of(packed).total for packed in written.packed.values()), 1)


def _bounds(packed: Packed | None) -> dict[str, Any]:
    """Return what a tensor's positions and values take, and could take at least."""
    if packed is None:
        return {}
    bound = bound_of(packed)
    index = packed.arrays.get("index")
    return {
        "index_bytes": 0 if index is None else index.nbytes,
        "value_bytes": packed.arrays["values"].nbytes,
        "index_bound_bytes": round(bound.index, 1),
        "value_bound_bytes": round(bound.values, 1),
    }


def _stored_shape(packed: Packed | None, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the shape in the file where channels were removed."""
    return {} if packed is None or packed.shape == shape else {"stored_shape": packed.shape}


def _metric(outcome: Outcome) -> dict[str, Any]:
    found = None if outcome.measured is None else outcome.measured.metric
    pruned, task = outcome.compiled.pruned, outcome.job.task
    part: dict[str, Any] = dict.fromkeys(("split", "samples", "dense", "final"))
    name, better = pruned.metric, True
    if found is not None:
        name, better = found.name, found.higher_is_better
        part = {
            "split": None if found.samples is None else "test",
            "samples": found.samples,
            # Without a plan the dense file is the one that is shipped.
            "dense": _finite(found.final if outcome.compiled.plan is None else found.dense),
            "final": _finite(found.final),
        }
    elif name == task.metric.name:
        better = task.metric.higher_is_better
    return {
        "name": name,
        "higher_is_better": None if name is None else better,
        **part,
        "extreme": _finite(pruned.extreme_metric),
        "trajectory": _trajectory(pruned, "value"),
    }


def _accuracy(metric: Mapping[str, Any], pruned: Pruned) -> dict[str, Any]:
    """Return the same where the metric is accuracy, or agreement with the dense network."""
    names = ("dense", "extreme", "final", "split", "samples")
    shares = all(0 <= (metric[name] or 0) <= 1 for name in names[:3])
    if metric["name"] not in (None, "accuracy", "agreement") or not shares:
        return {**dict.fromkeys((*names, "metric")), "trajectory": []}
    return {
        **{name: metric[name] for name in names},
        "metric": None if metric["final"] is None else "top-1 accuracy",
        "trajectory": _trajectory(pruned, "accuracy"),
    }


def _trajectory(pruned: Pruned, name: str) -> list[dict[str, Any]]:
    """Return the trajectory with the metric under that name."""
    return [
        {**{k: v for k, v in point.items() if k != "metric"}, name: _finite(point["metric"])}
        for point in pruned.trajectory
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _latency(measured: Measured | None) -> dict[str, Any]:
    found = {} if measured is None else measured.latency
    one = next(iter(found.values()), None)
    return {
        "dense": _run(measured, "dense" if "dense" in found else "stock"),
        "stock": _run(measured, "stock"),
        "kernels": _run(measured, "kernels"),
        "host": None if one is None else one.host,
        "onnxruntime": None if one is None else one.onnxruntime,
    }


def _run(measured: Measured | None, label: str) -> dict[str, Any] | None:
    if measured is None or label not in measured.latency:
        return None
    sizes = ("resident_bytes", "added_bytes", "weight_bytes")
    used = dict.fromkeys(sizes) if label not in measured.memory else asdict(measured.memory[label])
    found = asdict(measured.latency[label]) | used
    return {key: value for key, value in found.items() if key not in ("host", "onnxruntime")}


def _skipped_notes(skipped: tuple[SkippedTensor, ...]) -> list[str]:
    """Return what stays dense and why, grouped by reason."""
    groups: dict[str, list[int]] = {}
    for tensor in skipped:
        groups.setdefault(tensor.reason, []).append(tensor.bytes)
    return [
        f"not pruned: {format_count(len(sizes), 'tensor')}, {sum(sizes):,} B as fp32: {reason}"
        for reason, sizes in groups.items()
    ]


def _reasons(outcome: Outcome) -> list[str]:
    """Return why the nulls of the record are null."""
    notes = []
    target, measured, pruned = outcome.job.target, outcome.measured, outcome.compiled.pruned
    if outcome.compiled.plan is None:
        notes.append("budget.floor_bytes: not computed, the dense model fits")
        notes.append("budget.max_nonzeros: every weight")
    if measured is None:
        notes.append("latency: not measured, the file failed verification")
    elif not measured.latency:
        notes.append(f"latency: not measured, {target.name} runs firmware and not onnxruntime")
    elif outcome.checked.no_kernels is not None:
        notes.append(f"latency.kernels: {outcome.checked.no_kernels}")
    if measured is not None and measured.latency:
        notes += [
            f"latency.{label}.weight_bytes: onnxruntime does not count them, and decodes them at "
            "load; added_bytes is what loading added to a fresh process"
            for label in ("dense", "stock")
        ]
    if outcome.firmware is not None and outcome.firmware[1].facts.board is not None:
        core, facts = core_of(target), outcome.firmware[1].facts
        if facts.instructions is None:
            notes.append("firmware.instructions: not counted, as this QEMU loads no plugins")
        elif (why := no_table(core)) is not None:
            notes.append(f"firmware.estimated_{why}")
    if outcome.checked.speeds is not None:
        notes.append(f"native kernels against stock onnxruntime: {outcome.checked.speeds}")
    found = None if measured is None else measured.metric
    section = "accuracy" if found is None or found.name == "accuracy" else "metric"
    if pruned.extreme_metric is None:
        notes.append(f"{section}.extreme: the strategy did not go below the budget")
    else:
        notes.append(
            f"{section}.extreme: of the validation split while training, the other two of the test "
            "split: the difference between them is not what regrowth gained"
        )
    if found is None:
        if outcome.job.data is None:
            notes.append("accuracy: no --data was given")
        elif measured is not None:
            notes.append("accuracy: the test split has no labels")
        return notes
    if section == "metric":
        notes.append(f"accuracy: what is measured is {found.name}; see metric")
    if not math.isfinite(found.final):
        notes.append(f"metric.final: {found.name} of the file is no finite number")
    if found.samples is None:
        whose = "on what the caller's function takes"
        notes += [f"metric.split: measured {whose}", f"metric.samples: measured {whose}"]
    before, after, show = pruned.validation_metric, found.validation, outcome.job.task.metric.show
    if before is not None and after is not None:
        notes.append(
            f"quantising: validation {found.name} {show(before)} in torch before packing, "
            f"{show(after)} in the file"
        )
    return notes
