"""What a report says, in words and rows that every rendering shares."""

from __future__ import annotations

import math
from collections.abc import Iterator

from hwprune.report.record import FirmwarePart, LatencyRun, Record
from hwprune.units import format_bytes, format_count, format_percent, format_seconds

# Of a scope that leaves something out: an ONNX file alone never fits a microcontroller.
_UNDONE = ("not linked", "not run")
NOT_MEASURED = "not measured"
_KIND_OF_EXIT = {
    0: "fits and verified",
    3: "a limit is not met",
    4: "infeasible",
    5: "verification failed",
}
_LIMIT = 3
RUNTIMES = (
    ("dense", "dense file"),
    ("stock", "artifact, stock onnxruntime"),
    ("kernels", "artifact, native kernels"),
)


def passed(record: Record) -> bool:
    """Return whether the run ended well."""
    return record.verdict.exit_code == 0


def mark(record: Record) -> str:
    """Return ✓ where all was done and is right, ✗ where something is wrong, else ○."""
    if not passed(record):
        return "✗"
    return "○" if any(part in record.verdict.scope for part in _UNDONE) else "✓"


def headline(record: Record) -> str:
    """Return the verdict in one sentence."""
    verdict, artifact, budget = record.verdict, record.artifact, record.budget
    state = _KIND_OF_EXIT.get(verdict.exit_code, f"failed (exit code {verdict.exit_code})")
    if verdict.exit_code == _LIMIT and (fell := _fell(record)) is not None:
        state = f"fits, but {fell}"
    if verdict.exit_code == 0 and record.strategy == "dense" and record.result.sparsity == 0:
        state = f"fits as it is, and nothing was pruned{_unmeasured(record)}"
    elif verdict.exit_code == 0:
        state += _unmeasured(record)
    if mark(record) == "○":
        state = verdict.scope
    used = artifact.bytes if record.firmware is None else budget.used_bytes
    comparison = "of" if used <= budget.bytes else "over the budget of"
    return (
        f"{state[0].upper()}{state[1:]}: {format_bytes(used)} {comparison} "
        f"{format_bytes(budget.bytes)} for {record.target}"
    )


def _fell(record: Record) -> str | None:
    """Return how much worse the file is, where that alone made it miss its limits."""
    metric = record.metric
    missed = [limit.field for limit in record.verdict.limits if not limit.met]
    if not record.verdict.fits or set(missed) != {"metric_drop"}:
        return None
    if metric.dense is None or metric.final is None:
        return None
    name = metric.name or "accuracy"
    before, after = show_metric(record, metric.dense), show_metric(record, metric.final)
    way = "rose" if metric.higher_is_better is False else "fell"
    return f"{name} {way} from {before} to {after}"


def _unmeasured(record: Record) -> str:
    return "" if record.metric.final is not None else "; accuracy unknown"


def facts(record: Record) -> Iterator[tuple[str, str]]:
    """Yield the lines below the headline: (label, text)."""
    result, budget = record.result, record.budget
    yield "model", record.model
    yield "target", f"{record.target} ({record.verdict.scope})"
    yield "artifact", f"{record.artifact.path}, {format_bytes(record.artifact.bytes)}"
    used = budget.used_bytes / budget.bytes if budget.bytes else 0.0
    yield "budget", f"{format_bytes(budget.bytes)}, {format_percent(used, 1)} used"
    if budget.floor_bytes is not None:
        yield "floor", f"{format_bytes(budget.floor_bytes)} that no pruning removes"
    share = f"{result.nonzeros:,} of {result.weights:,} weights"
    yield "nonzeros", f"{share} ({format_percent(result.sparsity)} sparse)"
    yield (
        "strategy",
        f"{record.strategy}, {format_count(record.epochs, 'epoch')}, seed {record.seed}",
    )
    if record.firmware is not None:
        yield "firmware", " ".join(_of_firmware(record.firmware))
    if record.parity.relative_error is not None:
        agreement = record.parity.top1_agreement
        more = f", top-1 agreement {format_percent(agreement)}" if agreement is not None else ""
        yield "parity", f"relative error {record.parity.relative_error:.2g}{more}"
    yield "time", format_seconds(record.seconds)


def _of_firmware(firmware: FirmwarePart) -> Iterator[str]:
    """Yield sentences on the image of a microcontroller."""
    if firmware.flash_bytes is None or firmware.ram_bytes is None:
        yield f"{firmware.constant_bytes:,} B of constants, {firmware.planned_ram_bytes or 0:,} B "
        yield "of RAM for activations by the plan."
    else:
        yield f"{firmware.flash_bytes:,} B of flash, {firmware.ram_bytes:,} B of RAM."
    if firmware.board is not None:
        equal = f"{format_count(firmware.tensors, 'tensor')} of {firmware.inputs} inputs"
        yield f"Equal to onnxruntime on {firmware.board} in {equal}."
    if firmware.instructions is not None:
        yield f"{firmware.instructions:,} instructions an input."


def metric_rows(record: Record) -> list[tuple[str, str]]:
    """Return (state, metric), and the difference where both ends were measured."""
    metric = record.metric
    rows = [
        (state, NOT_MEASURED if value is None else show_metric(record, value))
        for state, value in (
            ("dense", metric.dense),
            ("extreme (validation split)", metric.extreme),
            ("final", metric.final),
        )
    ]
    if metric.dense is not None and metric.final is not None:
        difference = metric.final - metric.dense
        points = f"{100 * difference:+.2f} points"
        rows.append(("final - dense", points if in_percent(record) else f"{difference:+.4g}"))
    return rows


def in_percent(record: Record) -> bool:
    """Return whether the metric is one that people read in per cent."""
    return record.metric.name in (None, "accuracy", "agreement", "fidelity")


def show_metric(record: Record, value: float) -> str:
    """Return a value of the record's metric for people."""
    return format_percent(value) if in_percent(record) else f"{value:.4g}"


def metric_title(record: Record) -> str:
    """Return what the rows of the metric are of."""
    metric = record.metric
    title = (record.accuracy.metric or "accuracy").capitalize()
    if not in_percent(record):
        title = f"{metric.name}, {'higher' if metric.higher_is_better else 'lower'} is better"
    if metric.split is None:
        return title
    samples = f", {format_count(metric.samples, 'sample')}" if metric.samples is not None else ""
    return f"{title} ({metric.split}{samples})"


def moments(record: Record) -> list[tuple[str, ...]]:
    """Return the points of the trajectory: epoch, nonzeros, metric, what was done."""
    return [
        (
            f"{point.epoch:g}",
            f"{point.nonzeros:,}",
            "" if point.value is None else show_metric(record, point.value),
            point.action or "",
        )
        for point in record.metric.trajectory
    ]


def latency_rows(record: Record) -> list[tuple[str, LatencyRun]]:
    """Return (runtime, numbers) for what ran."""
    latency = record.latency
    runs = {"dense": latency.dense, "stock": latency.stock, "kernels": latency.kernels}
    return [(label, run) for key, label in RUNTIMES if (run := runs[key]) is not None]


def latency_title(record: Record) -> str:
    """Return whose numbers these are: the host's, never the target's."""
    latency = record.latency
    parts = [part for part in (latency.host, _runtime(latency.onnxruntime)) if part]
    whose = ", ".join(parts)
    return f"Latency ({whose})" if whose else "Latency"


def _runtime(version: str | None) -> str | None:
    return f"onnxruntime {version}" if version else None


def latency_cells(run: LatencyRun) -> tuple[str, ...]:
    """Return the cells of ``LATENCY_COLUMNS`` after the first."""
    load = f"{run.load_ms:.1f} ms" if run.load_ms is not None else "-"
    resident, added, weights = map(
        _mebibytes, (run.resident_bytes, run.added_bytes, run.weight_bytes)
    )
    how = f"{run.runs} runs, {format_count(run.threads, 'thread')}, batch {run.batch}"
    return f"{run.p50_ms:.3f} ms", f"{run.p90_ms:.3f} ms", load, resident, added, weights, how


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.1f} MiB"


# "by load": what loading added to the process; "weights": of that, as native kernels count it.
LATENCY_COLUMNS = ("file", "p50", "p90", "load", "resident", "by load", "weights", "measured")
LAYER_COLUMNS = ("layer", "shape", "nonzeros", "sparsity", "codec", "values", "bytes")


def layer_rows(record: Record) -> list[tuple[str, ...]]:
    """Return the cells of ``LAYER_COLUMNS`` for each layer, in the network's order."""
    rows: list[tuple[str, ...]] = []
    for layer in record.result.layers:
        weights = math.prod(layer.shape)
        sparsity = format_percent(1 - layer.nonzeros / weights, 1) if weights else "-"
        shape, count = "×".join(map(str, layer.shape)), f"{layer.nonzeros:,}"
        stored = (layer.codec, layer.value_type, f"{layer.bytes:,}")
        rows.append((layer.name, shape, count, sparsity, *stored))
    return rows


LIMIT_COLUMNS = ("limit", "value", "met")


def limit_rows(record: Record) -> list[tuple[str, str, str]]:
    """Return the user's limits: (limit, value, met)."""
    return [
        (
            f"{limit.field} {limit.op} {_with_unit(limit.field, limit.limit)}",
            NOT_MEASURED if limit.value is None else _with_unit(limit.field, limit.value),
            "yes" if limit.met else "NO",
        )
        for limit in record.verdict.limits
    ]


def _with_unit(field: str, value: float) -> str:
    """Show a limit's number with its unit; the record keeps ms, bytes and fractions."""
    head, _, last = field.rpartition(".")
    if head.startswith("latency"):
        return f"{value:.3f} ms"
    if field in ("size", "ram") or last in ("bytes", "artifact", "used", "slack", "floor"):
        return f"{value:,.0f} B"
    if field.startswith("accuracy") or last in ("sparsity", "top1_agreement"):
        return f"{100 * value:.6g} %"
    return f"{value:,.10g}" if value >= 1 else f"{value:.3g}"
