"""The gate: everything about an artifact that can be checked without the network it came from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hwprune.errors import ArtifactError, HwpruneError, LimitError, UsageError, VerificationError
from hwprune.export.artifact import ArtifactFile, read_artifact
from hwprune.ir import LimitResult
from hwprune.units import format_bytes, format_count
from hwprune.verify import integrity, latency, runner, sidecar_report, speeds
from hwprune.verify.fields import FIELDS
from hwprune.verify.limits import Context, Limit, evaluate, explain, why_not
from hwprune.verify.outcome import SCOPE_HOST, SCOPE_UNLINKED, CheckResult, Log, TargetFacts


def check(
    path: str,
    *,
    target: TargetFacts | None = None,
    limits: Sequence[Limit] = (),
    threads: int = 1,
    runs: int = 50,
) -> CheckResult:
    """Check one artifact. Findings are returned, never raised.

    Args:
        path: the file. A report.json beside it that speaks of it is held against it.
        target: its budget, opset, IR version, codecs and value types become part of the gate.
        limits: size, nonzeros and sparsity are counted in the file, latency is measured here (with
            native kernels too, where they can run the file), the rest comes from the report beside
            it, where that was written for exactly this file.
        threads: for latency limits.
        runs: for latency limits.
    """
    log = Log()
    scope = SCOPE_UNLINKED if target and target.kind == "microcontroller" else SCOPE_HOST
    found: list[ArtifactFile] = []

    def readable() -> str:
        found.append(read_artifact(path))
        return f"{format_bytes(found[0].bytes)}, {found[0].form} form"

    if not log.step("readable", readable):
        return CheckResult(path, tuple(log.steps), (), scope, None)
    artifact = found[0]
    report, unreadable = None, None
    try:
        report = sidecar_report.find(path, artifact.sha256)
    except ArtifactError as error:
        unreadable = error
    matching = report if report is not None and report.matches(artifact) else None
    log.step("one file", lambda: _one_file(artifact))
    sound = log.step("onnx checker", lambda: _onnx_checker(artifact))
    genuine = log.step("function bodies", lambda: _bodies(artifact))
    log.step("packed weights", lambda: _packed(artifact, matching))
    if report is not None:
        log.step("report beside", lambda: _report(artifact, report))
    elif unreadable is not None:
        log.failed("report beside", unreadable)
    else:
        log.skip("report beside", f"no {sidecar_report.REPORT_NAME} beside it speaks of this file")
    if sound:
        ran = log.step("runs in onnxruntime", lambda: _runs(path))
    else:
        ran = False
        log.skip("runs in onnxruntime", "the onnx checker refuses the file")
    alone = speeds.why_one_speed(artifact)
    if alone is None and not (ran and genuine):
        alone = "the file does not run, or its functions are not those that the kernels stand for"
    if alone is None:
        log.step("native kernels agree", lambda: speeds.describe(speeds.compare_speeds(path)))
    else:
        log.skip("native kernels agree", alone)
    if target is not None:
        log.step("target's runtime", lambda: _suits(artifact, target))
    budget = _budget(target, matching)
    if budget is not None:
        log.step("budget", lambda: _within(artifact, *budget))
    results = _limits(log, artifact, limits, target, matching, threads=threads, runs=runs)
    return CheckResult(path, tuple(log.steps), results, scope, artifact)


# -- the checks ---------------------------------------------------------------------------------


def _one_file(artifact: ArtifactFile) -> str:
    names = integrity.external_tensors(artifact.model)
    if names:
        raise VerificationError(
            f"{format_count(len(names), 'tensor')} in another file, the first is {names[0]!r}",
            hint="save the model with its data inside",
        )
    return "no external data"


def _onnx_checker(artifact: ArtifactFile) -> str:
    try:
        onnx.checker.check_model(artifact.model, full_check=True)
    except Exception as error:  # checker and shape inference raise unrelated classes
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise VerificationError(f"onnx.checker refuses it: {first[:400]}") from None
    return f"opset {artifact.opset}, IR version {artifact.ir_version}, full check"


def _bodies(artifact: ArtifactFile) -> str:
    altered = integrity.altered_bodies(artifact.model)
    if altered:
        listed = ", ".join(altered[:5]) + (" ..." if len(altered) > 5 else "")
        raise VerificationError(
            f"not what hwprune writes: {listed}",
            hint="the file computes something else than its operators' names say; compile it again",
        )
    if artifact.form == "dense":
        return "none: no layer is packed"
    return "as hwprune writes them, byte for byte"


def _packed(artifact: ArtifactFile, matching: sidecar_report.SidecarReport | None) -> str:
    sign = integrity.densified(artifact)
    # A report for exactly this file that promises no packed layer: it was written dense on purpose.
    meant = matching is not None and matching.packed_layers <= len(artifact.layers)
    if sign is not None and not meant:
        raise VerificationError(
            f"re-densified: {sign}",
            hint="an optimiser that ran after hwprune folds packed weights back; ship its own file",
        )
    nonzeros = sum(layer.nonzeros for layer in artifact.layers)
    weights = sum(layer.weights for layer in artifact.layers)
    if not weights:
        return "no packed layers, and no sign that there were any"
    layers = format_count(len(artifact.layers), "layer")
    return f"{layers}, {nonzeros:,} nonzeros of {weights:,} weights"


def _report(artifact: ArtifactFile, report: sidecar_report.SidecarReport) -> str:
    difference = report.differences(artifact)
    if difference:
        lost = report.packed_layers > len(artifact.layers)
        raise VerificationError(
            f"{'re-densified' if lost else 'not the file that its report is about'}: {difference}",
            hint="ship the file that hwprune wrote, or compile again",
        )
    verdict = report.record.get("verdict")
    if isinstance(verdict, Mapping) and verdict.get("verified") is False:
        raise VerificationError(
            "the run that wrote it rejected it: its report says verified: false"
        )
    return "size and sha256 as promised"


def _runs(path: str) -> str:
    session = runner.open_session(path)
    try:
        inputs = runner.random_inputs(session)
    except HwpruneError as error:
        return f"loads; not run: {error.message}"
    for entry, output in zip(session.get_outputs(), runner.run(session, inputs), strict=True):
        is_float = isinstance(output, np.ndarray) and output.dtype.kind == "f"
        if is_float and not np.isfinite(output).all():
            raise VerificationError(f"output {entry.name!r} holds NaN or infinity")
    return "loads, runs, outputs are finite"


def _suits(artifact: ArtifactFile, target: TargetFacts) -> str:
    runtime = target.runtime
    problems = [
        f"{what} {given}, {target.name} reads up to {most}"
        for what, given, most in (
            ("opset", artifact.opset, runtime.opset),
            ("IR version", artifact.ir_version, runtime.ir_version),
        )
        if given > most
    ]
    if runtime.inline_functions and artifact.form == "functions":
        problems.append(f"its functions are not inlined, and {target.name} cannot fold functions")
    for what, used, known in (
        ("codec", {layer.codec for layer in artifact.layers}, target.codecs),
        ("value type", {layer.value_type for layer in artifact.layers}, target.value_types),
    ):
        problems += [
            f"{what} {one} is not one of {target.name}" for one in sorted(used - set(known))
        ]
    dense = [] if "fp32" in target.value_types else _dense_weights(artifact)
    if dense:
        listed = ", ".join(dense[:3]) + (f" and {len(dense) - 3} more" if len(dense) > 3 else "")
        problems.append(f"value type fp32 (the dense weights {listed}) is not one of {target.name}")
    if problems:
        raise VerificationError("; ".join(problems), hint=f"compile with --target {target.name}")
    return f"opset, IR version, codecs and value types are those of {target.name}"


_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _dense_weights(artifact: ArtifactFile) -> list[str]:
    """Return the fp32 matrices and filters that layers read as they are; biases do not count."""
    graph = artifact.model.graph
    matrices = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1
    }
    turned = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose"}
    read = (
        turned.get(name, name)
        for node in graph.node
        if node.op_type in _WEIGHTED
        for name in node.input[:2]
    )
    return [name for name in dict.fromkeys(read) if name in matrices]


def _budget(
    target: TargetFacts | None, matching: sidecar_report.SidecarReport | None
) -> tuple[int, str] | None:
    if target is not None:
        return target.budget_bytes, f"the budget of {target.name}"
    budget = matching.record.get("budget") if matching is not None else None
    size = budget.get("bytes") if isinstance(budget, Mapping) else None
    return (size, "the budget of its report") if sidecar_report.is_size(size) else None


def _within(artifact: ArtifactFile, size: int, whose: str) -> str:
    text = f"{format_bytes(artifact.bytes)}; {whose} is {format_bytes(size)}"
    if artifact.bytes > size:
        raise LimitError(
            f"over budget by {artifact.bytes - size:,} B: {text}",
            hint="compile for a smaller --budget",
        )
    return text


# -- limits -------------------------------------------------------------------------------------


def _limits(
    log: Log,
    artifact: ArtifactFile,
    wanted: Sequence[Limit],
    target: TargetFacts | None,
    matching: sidecar_report.SidecarReport | None,
    *,
    threads: int,
    runs: int,
) -> tuple[LimitResult, ...]:
    promised: Mapping[str, Any] = matching.record if matching is not None else {}
    record = _counted(artifact, promised)
    live: dict[str, Any] = {}
    results: list[LimitResult] = []

    def judge(limit: Limit) -> str:
        reason = _unmeasurable(limit, artifact, target, matching)
        if reason is not None:
            keep = (
                f"keep {sidecar_report.REPORT_NAME} beside the artifact, or "
                if matching is None
                else ""
            )
            raise UsageError(
                f"cannot be measured by check: {reason}", hint=f"{keep}leave the limit out"
            )
        if _is_live(limit) and not live:
            live.update(_measured(artifact, threads=threads, runs=runs))
        result = evaluate(limit, {**record, "latency": live} if _is_live(limit) else record)
        results.append(result)
        sentence = explain(limit, result)
        if not result.met:
            raise LimitError(sentence, hint=None)
        return sentence

    for limit in wanted:
        log.step(f"require {limit.text}", lambda limit=limit: judge(limit))  # type: ignore[misc]
    return tuple(results)


def _is_live(limit: Limit) -> bool:
    """Return whether a limit is about this file's own latency, which is measured here and now."""
    if FIELDS[limit.field].need != "latency" or limit.relative:
        return False
    return not limit.field.startswith("latency.dense")


def _unmeasurable(
    limit: Limit,
    artifact: ArtifactFile,
    target: TargetFacts | None,
    matching: sidecar_report.SidecarReport | None,
) -> str | None:
    known = matching is not None
    context = Context(
        kind=target.kind if target else None,
        labels=known,
        parity=known,
        dense=known,
        run=known,
        layers=known or bool(artifact.layers),
        no_kernels=speeds.why_one_speed(artifact),
    )
    reason = why_not(limit, context)
    if reason is not None and not known and FIELDS[limit.field].need in ("labels", "parity"):
        name = Path(artifact.path).name
        return f"no {sidecar_report.REPORT_NAME} beside it was written for exactly this {name}"
    if reason is None and known and not _is_live(limit) and matching is not None:
        value = evaluate(limit, _counted(artifact, matching.record)).value
        if value is None or math.isnan(value):
            return "the report beside it does not have it"
    return reason


def _counted(artifact: ArtifactFile, promised: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report with what can be counted in the file itself put in its place."""
    given = promised.get("result")
    result = dict(given) if isinstance(given, Mapping) else {}
    result["artifact_bytes"] = artifact.bytes
    if artifact.layers:
        weights = sum(layer.weights for layer in artifact.layers)
        nonzeros = sum(layer.nonzeros for layer in artifact.layers)
        result |= {"weights": weights, "nonzeros": nonzeros, "sparsity": 1 - nonzeros / weights}
    return {**promised, "artifact": {"bytes": artifact.bytes}, "result": result}


def _measured(artifact: ArtifactFile, *, threads: int, runs: int) -> dict[str, Any]:
    """Return the latency of a file at each of its speeds, as a report has it."""
    files = {"stock": artifact.path}
    if speeds.why_one_speed(artifact) is None:
        files["kernels"] = artifact.path
    found = latency.measure(files, threads=threads, runs=runs, kernels={"kernels"})
    return {
        label: {"p50_ms": result.p50_ms, "p90_ms": result.p90_ms, "load_ms": result.load_ms}
        for label, result in found.items()
    }
