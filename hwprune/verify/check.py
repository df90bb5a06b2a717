"""The verifier: is a file what was promised? `check` asks it of any file, `compile` of its own.

`compile` knows more: the network, the masks and the bytes that were written (``Made``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hwprune.errors import (
    ArtifactError,
    ExternalDataError,
    HwpruneError,
    LimitError,
    UsageError,
    VerificationError,
)
from hwprune.export.artifact import ArtifactFile, read_artifact
from hwprune.ir import LimitResult, Split
from hwprune.kernels import library
from hwprune.kernels.session import operator_names
from hwprune.units import format_bytes, format_count
from hwprune.verify import integrity, latency, parity, runner, sidecar_report
from hwprune.verify.baseline import Baseline
from hwprune.verify.fields import field_of
from hwprune.verify.limits import Context, Limit, evaluate, explain, why_not
from hwprune.verify.metric import metric_of
from hwprune.verify.outcome import SCOPE_HOST, SCOPE_UNLINKED, CheckResult, Log, Skipped
from hwprune.verify.parity import Parity
from hwprune.verify.sidecar_report import SidecarReport

if TYPE_CHECKING:
    from hwprune.targets import Target
    from hwprune.tasks import Task

Arrays = Sequence[NDArray[Any]]

_SAMPLES = 16  # random ones, at which native kernels are compared


@dataclass(frozen=True, slots=True)
class Made:
    """What is known of a file by whoever made it.

    Attributes:
        data: the file's bytes.
        budget_bytes: what they may be at most.
        packed_layers: how many layers are packed.
        nonzeros: how many values the masks say are stored, None where nothing was pruned.
        network: the outputs of the network that holds the decoded weights, for given inputs.
        rounding: what rounding does to these outputs; see ``parity.compare``.
        inputs: samples, one array an input: (n, ...); None for 64 random ones.
    """

    data: bytes
    budget_bytes: int
    packed_layers: int
    nonzeros: int | None
    network: Callable[[Arrays], Arrays]
    rounding: Callable[[Arrays], Arrays]
    inputs: Arrays | None = None


def check(
    path: str,
    *,
    target: Target | None = None,
    limits: Sequence[Limit] = (),
    threads: int = 1,
    runs: int = 50,
    made: Made | None = None,
    task: Task | None = None,
    split: Split | None = None,
    baseline: Baseline | None = None,
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
        task: what is measured on ``split``, in place of what the report says.
        split: samples with labels.
        made: what its maker knows; its budget and bytes go before the target's and the report's.
        baseline: what it must not be worse than.
    """
    log = Log()
    scope = SCOPE_UNLINKED if target and target.kind == "microcontroller" else SCOPE_HOST
    try:
        artifact = read_artifact(path)
    except HwpruneError as error:
        log.failed("one file" if isinstance(error, ExternalDataError) else "readable", error)
        return CheckResult(path, tuple(log.steps), (), scope, None)
    log.passed("readable", f"{format_bytes(artifact.bytes)}, {artifact.form} form")
    log.passed("one file", "no external data")
    promise = _Promise(artifact, made)
    matching = promise.matching
    no_kernels = kernels_unavailable_reason(artifact, target)
    outputs = _Outputs(artifact, made, no_kernels)
    sound = log.step("onnx checker", lambda: _onnx_checker(artifact))
    genuine = log.step("function bodies", lambda: _bodies(artifact))
    log.step("packed weights", lambda: _packed(artifact, matching, made))
    log.step("as written" if made is not None else "report beside", promise.kept)
    log.step("runs in onnxruntime", lambda: outputs.run(sound is not None))
    near = None
    if made is not None:
        near = log.step("same as the network", lambda: outputs.like_the_network(made))
    both = log.step("native kernels agree", lambda: outputs.like_the_kernels(genuine is not None))
    if target is not None:
        log.step("target's runtime", lambda: _suits(artifact, target))
    budget = _budget(target, matching, made)
    if budget is not None:
        log.step("budget", lambda: _within(artifact, *budget))
    judge = _Judge(artifact, target, matching, no_kernels, threads, runs)
    if task is not None and split is not None:
        log.step(task.metric.name, lambda: judge.measure(task, split))
    for limit in limits:
        log.step(f"require {limit.text}", lambda limit=limit: judge.sentence(limit))  # type: ignore[misc]
    same = baseline and log.step("baseline", lambda: baseline.same_network(judge.record, artifact))
    if baseline and same:
        for comparison in baseline.comparisons(judge.record):
            log.step(f"baseline {comparison.field.name}", comparison.sentence)
    return CheckResult(
        path, tuple(log.steps), tuple(judge.results), scope, artifact, near, both, no_kernels
    )


def kernels_unavailable_reason(
    artifact: ArtifactFile | None = None, target: Target | None = None
) -> str | None:
    """Return why native kernels cannot run a file (None: any) on this host; None where they can."""
    if target is not None and target.runtime.kind != "onnxruntime":
        return f"{target.name} runs firmware"
    if artifact is not None and artifact.form == "dense":
        return "a dense file has one speed"
    inlines = target is not None and target.runtime.inline_functions
    if inlines if artifact is None else artifact.form == "inlined":
        return "the inlined form has one speed: native kernels run functions, and it has none"
    if library.path() is None:
        return "this installation has no native kernels"
    if artifact is not None and not any(map(library.knows, operator_names(artifact.path))):
        return "no layer of the file is one that a kernel is for"
    return None


def compare_kernels(artifact: ArtifactFile) -> Parity:
    """Run a file with native kernels, which can run it, and in stock onnxruntime, which is right.

    Raises:
        VerificationError: the outputs differ, or the file does not run at one of the speeds.
        UsageError: random inputs cannot be made for this file.
        KernelsError: the library does not load, or onnxruntime refuses it.
    """
    outputs = _Outputs(artifact, None, None)
    outputs.run(sound=True)
    if outputs.not_run is not None:
        raise UsageError(outputs.not_run)
    return outputs.like_the_kernels(genuine=True)


# -- the file's form ------------------------------------------------------------------------------


def _onnx_checker(artifact: ArtifactFile) -> str:
    try:
        onnx.checker.check_model(artifact.model, full_check=True)
    except Exception as error:  # checker and shape inference raise unrelated classes
        raise VerificationError(f"onnx.checker refuses it: {runner.first_line(error)}") from None
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


def _packed(artifact: ArtifactFile, matching: SidecarReport | None, made: Made | None) -> str:
    sign = integrity.densified(artifact)
    # A report for exactly this file that promises no packed layer: it was written dense on purpose.
    meant = matching is not None and matching.packed_layers <= len(artifact.layers)
    if sign is not None and not meant:
        raise VerificationError(
            f"re-densified: {sign}",
            hint="an optimiser that ran after hwprune folds packed weights back; ship its own file",
        )
    nonzeros, weights = artifact.nonzeros, artifact.weights
    if made is not None and made.nonzeros is not None and nonzeros != made.nonzeros:
        raise VerificationError(f"{nonzeros} nonzeros are stored, the masks hold {made.nonzeros}")
    if not weights:
        return "no packed layers, and no sign that there were any"
    layers = format_count(len(artifact.layers), "layer")
    return f"{layers}, {nonzeros:,} nonzeros of {weights:,} weights"


class _Promise:
    """What was promised of a file: by its maker, or by the report beside it."""

    def __init__(self, artifact: ArtifactFile, made: Made | None) -> None:
        """Look for it; where the report cannot be read, ``kept`` says so."""
        self.artifact = artifact
        self.report: SidecarReport | None = None
        self.unreadable: HwpruneError | None = None
        if made is not None:
            digest = hashlib.sha256(made.data).hexdigest()
            self.report = SidecarReport({}, len(made.data), digest, made.packed_layers)
            return
        try:
            self.report = sidecar_report.find(artifact.path, artifact.sha256)
        except ArtifactError as error:
            self.unreadable = error

    @property
    def matching(self) -> SidecarReport | None:
        """Return what was promised of exactly this file."""
        fits = self.report is not None and self.report.matches(self.artifact)
        return self.report if fits else None

    def kept(self) -> str:
        """Hold the file against it."""
        if self.unreadable is not None:
            raise self.unreadable
        report = self.report
        if report is None:
            raise Skipped(f"no {sidecar_report.REPORT_NAME} beside it speaks of this file")
        difference = report.differences(self.artifact)
        if difference:
            lost = report.packed_layers > len(self.artifact.layers)
            what = "re-densified" if lost else "not the file that its report is about"
            raise VerificationError(
                f"{what}: {difference}", hint="ship the file that hwprune wrote, or compile again"
            )
        verdict = report.record.get("verdict")
        if isinstance(verdict, Mapping) and verdict.get("verified") is False:
            raise VerificationError(
                "the run that wrote it rejected it: its report says verified: false"
            )
        return "size and sha256 as promised"


# -- its outputs ----------------------------------------------------------------------------------


class _Outputs:
    """The file's outputs in stock onnxruntime, and what is compared with them."""

    def __init__(self, artifact: ArtifactFile, made: Made | None, no_kernels: str | None) -> None:
        """Choose the samples; ``no_kernels`` says why native kernels are not compared."""
        self.path, self.made, self.no_kernels = artifact.path, made, no_kernels
        self.samples = 64 if made is not None else _SAMPLES if no_kernels is None else 1
        self.not_run: str | None = "the file does not run"

    def run(self, sound: bool) -> str:
        """Run the file on the maker's samples, or on random ones."""
        if not sound:
            raise Skipped("the onnx checker refuses the file")
        session = runner.open_session(self.path)
        self.names = [entry.name for entry in session.get_outputs()]
        given = self.made.inputs if self.made is not None else None
        try:
            count = runner.fixed_batch(session) or self.samples
            self.inputs = given or runner.random_inputs(session, batch=count)
        except HwpruneError as error:
            self.not_run = f"not run: {error.message}"
            return f"loads; {self.not_run}"
        self.session, self.outputs = session, self._of(session, self.inputs)
        self.not_run = None
        if self.made is not None:  # the network says where NaN and infinity are right
            return "loads and runs"
        for name, output in zip(self.names, self.outputs, strict=True):
            is_float = isinstance(output, np.ndarray) and output.dtype.kind == "f"
            if is_float and not np.isfinite(output).all():
                raise VerificationError(f"output {name!r} holds NaN or infinity")
        return "loads, runs, outputs are finite"

    def like_the_network(self, made: Made) -> Parity:
        """Compare them with those of the network that holds the decoded weights."""
        if self.not_run is not None:
            raise Skipped(self.not_run)
        limit, expected = parity.MAX_ERROR_TO_NETWORK, self._expected(made)
        found = parity.compare(
            self.outputs, expected, limit=limit, names=self.names,
            rounding=lambda: made.rounding(self.inputs),
        )  # fmt: skip
        if not found.relative_error <= limit:
            raise VerificationError(
                f"outputs differ from the torch network with the decoded weights by "
                f"{found.relative_error:.1e} of their range, more than {limit:.0e}"
            )
        return found

    def _expected(self, made: Made) -> Arrays:
        """Return the network's outputs; for indices of zero where it refuses those that were drawn.

        A file may take what the network does not: to it -1 is the last row of a table.
        """
        try:
            return made.network(self.inputs)
        except (IndexError, RuntimeError, ValueError):
            if made.inputs is not None or all(array.dtype.kind == "f" for array in self.inputs):
                raise
        self.inputs = [np.zeros_like(a) if a.dtype.kind in "iu" else a for a in self.inputs]
        self.outputs = self._of(self.session, self.inputs)
        return made.network(self.inputs)

    def like_the_kernels(self, genuine: bool) -> Parity:
        """Compare native kernels with them: stock onnxruntime is right."""
        if self.no_kernels is not None:
            raise Skipped(self.no_kernels)
        if not genuine:
            raise Skipped("its functions are not those that the kernels stand for")
        if self.not_run is not None:
            raise Skipped(self.not_run)
        limit = parity.MAX_ERROR_OF_KERNELS
        native = self._of(runner.open_session(self.path, kernels=True), self.inputs)
        found = parity.compare(
            native, self.outputs, limit=limit, names=self.names, each=False,
            rounding=self._rounding,
        )  # fmt: skip
        agrees = found.top1_agreement in (None, 1.0)
        if not (found.relative_error <= limit and agrees):
            classes = "" if agrees else ", and the largest class of some samples is another one"
            raise VerificationError(
                f"with native kernels the outputs differ from stock onnxruntime's by "
                f"{found.relative_error:.1e} of their range (at most {limit:.0e} is right)"
                f"{classes}",
                hint="this is a defect of hwprune's kernels: please report it with the file",
            )
        return found

    def _of(self, session: Any, inputs: Arrays) -> Arrays:
        return runner.run_in_batches(session, inputs, batch=len(inputs[0]) if inputs else 1)

    def _rounding(self) -> Arrays:
        """Return how much one ulp of the inputs moves each element of the outputs."""
        moved = [
            self._of(self.session, [runner.moved_by_ulp(array, side) for array in self.inputs])
            for side in (-1, 1)
        ]
        return parity.changes(self.outputs, moved)


# -- the target -----------------------------------------------------------------------------------


def _suits(artifact: ArtifactFile, target: Target) -> str:
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
    target: Target | None, matching: SidecarReport | None, made: Made | None
) -> tuple[int, str] | None:
    if made is not None:
        return made.budget_bytes, "the budget"
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


# -- limits ---------------------------------------------------------------------------------------


class _Judge:
    """Judges limits by the file, by the report that matches it, and by latencies measured here."""

    def __init__(
        self,
        artifact: ArtifactFile,
        target: Target | None,
        matching: SidecarReport | None,
        no_kernels: str | None,
        threads: int,
        runs: int,
    ) -> None:
        """Count what is in the file; what the report says of that does not matter."""
        self.artifact, self.matching, self.no_kernels = artifact, matching, no_kernels
        self.threads, self.runs = threads, runs
        known = matching is not None
        promised: Mapping[str, Any] = matching.record if matching is not None else {}
        metric = promised.get("metric", {"name": "accuracy"} if known else None)
        name = metric.get("name") if isinstance(metric, Mapping) else None
        self.context = Context(
            kind=target.kind if target else None, labels=known, parity=known, dense=known,
            metric=name if isinstance(name, str) else None,
            run=known, layers=known or bool(artifact.layers), no_kernels=no_kernels,
        )  # fmt: skip
        given = promised.get("result")
        result = dict(given) if isinstance(given, Mapping) else {}
        result["artifact_bytes"] = artifact.bytes
        if artifact.layers:
            weights, nonzeros = artifact.weights, artifact.nonzeros
            result |= {"weights": weights, "nonzeros": nonzeros, "sparsity": 1 - nonzeros / weights}
        self.record = {**promised, "artifact": {"bytes": artifact.bytes}, "result": result}
        self.live: dict[str, Any] = {}
        self.results: list[LimitResult] = []

    def measure(self, task: Task, split: Split) -> str:
        """Measure the metric of the file; limits are judged by that from now on.

        Raises:
            UsageError: it is no finite number.
        """
        metric, value = task.metric, metric_of(self.artifact.path, split, task)
        if not math.isfinite(value):
            raise UsageError(f"{metric.name} of the file is {value}, which is no finite number")
        known = self.record.get("metric")
        old = dict(known) if isinstance(known, Mapping) and known.get("name") == metric.name else {}
        found = {"name": metric.name, "higher_is_better": metric.higher_is_better, "final": value}
        self.record["metric"] = {**old, **found}
        labels = metric.name == "accuracy"
        if labels:
            accuracy = self.record.get("accuracy")
            old = dict(accuracy) if isinstance(accuracy, Mapping) else {}
            self.record["accuracy"] = {**old, "final": value}
        self.context = replace(self.context, metric=metric.name, labels=labels)
        return f"{metric.show(value)} on {format_count(len(split), 'sample')}"

    def sentence(self, limit: Limit) -> str:
        """Judge a limit; what was measured joins ``results``.

        Raises:
            UsageError: it cannot be measured.
            LimitError: it is not met.
        """
        live = _is_live(limit)
        reason = self._unmeasurable(limit)
        if reason is not None:
            absent = self.matching is None
            keep = f"keep {sidecar_report.REPORT_NAME} beside the artifact, or " if absent else ""
            raise UsageError(
                f"cannot be measured by check: {reason}", hint=f"{keep}leave the limit out"
            )
        if live and not self.live:
            self.live = self._measured()
        result = evaluate(limit, {**self.record, "latency": self.live} if live else self.record)
        self.results.append(result)
        if not result.met:
            raise LimitError(explain(limit, result))
        return explain(limit, result)

    def _unmeasurable(self, limit: Limit) -> str | None:
        reason, known = why_not(limit, self.context), self.matching is not None
        needs = field_of(limit.field).need
        if self.context.metric is not None and needs == "metric" and reason is None:
            result, dense = evaluate(limit, self.record), field_of(limit.field).dense(self.record)
            if result.value is None or (limit.relative and dense is None):
                return "what the dense file reaches is in no report beside it"
        elif reason is not None and not known and needs in ("labels", "metric", "parity"):
            name = Path(self.artifact.path).name
            return f"no {sidecar_report.REPORT_NAME} beside it was written for exactly this {name}"
        if reason is None and known and not _is_live(limit):
            value = evaluate(limit, self.record).value
            if value is None or math.isnan(value):
                return "the report beside it does not have it"
        return reason

    def _measured(self) -> dict[str, Any]:
        """Return the latency of the file at each of its speeds, as a report has it."""
        files = dict.fromkeys(("stock", "kernels"), self.artifact.path)
        if self.no_kernels is not None:
            del files["kernels"]
        found = latency.measure(files, threads=self.threads, runs=self.runs, kernels={"kernels"})
        return {label: asdict(result) for label, result in found.items()}


def _is_live(limit: Limit) -> bool:
    """Return whether a limit is about this file's own latency, which is measured here and now."""
    if field_of(limit.field).need != "latency" or limit.relative:
        return False
    return not limit.field.startswith("latency.dense")
