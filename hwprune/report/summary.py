"""What a report says, in words and rows that every rendering shares."""

from __future__ import annotations

import math
from collections.abc import Iterator

from hwprune.preprocessing import parse
from hwprune.report.record import FirmwarePart, LatencyRun, LayerPart, Record
from hwprune.units import format_bytes, format_count, format_percent, format_seconds

# Of a scope that leaves something out: an ONNX file alone never fits a microcontroller.
_UNDONE = ("not linked", "not run")
NOT_MEASURED = "not measured"
NEXT = ": go on with "  # in a note: what follows is a command, which stands with the verdict
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
        state = f"fits as it is, and nothing was pruned, which starts below {artifact.bytes:,} B"
        state += _unmeasured(record)
    elif verdict.exit_code == 0:
        state += _unmeasured(record)
    if mark(record) == "○":
        state = scope(record)
    used = artifact.bytes if record.firmware is None else budget.used_bytes
    comparison = "of" if used <= budget.bytes else "over the budget of"
    return (
        f"{state[0].upper()}{state[1:]}: {format_bytes(used)} {comparison} "
        f"{format_bytes(budget.bytes)} for {record.target}"
    )


def scope(record: Record) -> str:
    """Return what was verified, and where."""
    return record.verdict.scope.replace("onnx", "ONNX", 1)


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
    if record.metric.final is None:
        return "; accuracy unknown"
    # As good as a dense network that guesses is no praise: the hint of `steps.check_data`.
    guesses = any("near chance" in note for note in record.notes)
    return ", but the dense network's accuracy is near chance" if guesses else ""


def facts(record: Record) -> Iterator[tuple[str, str]]:
    """Yield the lines below the headline: (label, text)."""
    result, budget = record.result, record.budget
    for note in record.notes:
        _, said, command = note.partition(NEXT)
        if said:
            yield "go on with", command
    yield "model", record.model
    yield "target", f"{record.target} ({scope(record)})"
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
    if (how := parse(record.metadata.get("preprocessing"))) is not None:
        yield "input", "; ".join(how.sentences())
    if "data" in record.metadata:
        yield "data", record.metadata["data"]
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
        how = "Equal to" if firmware.activations == "int8" else "In fp32 within 1e-05 of"
        yield f"{how} onnxruntime on {firmware.board} in {equal}."
    if firmware.instructions is not None:
        yield f"{firmware.instructions:,} instructions an input."
    if firmware.estimated_cycles is not None:
        least, most = firmware.estimated_cycles
        yield f"{least:,} to {most:,} cycles, estimated by the core's manual."


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
        if value is not None or not state.startswith("extreme")  # not every run has such a state
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


def size_columns(record: Record) -> tuple[str, ...]:
    """Return what ``size_rows`` has; the second to last is the metric."""
    return ("file", "size", "smaller", record.metric.name or "accuracy", "p50")


def size_rows(record: Record) -> list[tuple[str, ...]]:
    """Return the dense file, int8 alone and what was written: size, ratio, metric, latency."""
    result, metric, latency = record.result, record.metric, record.latency
    if not result.dense_bytes:
        return []
    used = record.artifact.bytes if record.firmware is None else record.budget.used_bytes
    best = latency.kernels or latency.stock
    what = "this file" if record.firmware is None else "this image, int8"
    files = [("dense fp32", result.dense_bytes, metric.dense, latency.dense)]
    if result.int8_bytes is not None:
        files.append(("int8 alone", result.int8_bytes, None, None))
    files.append((what, used, metric.final, best))
    return [
        (
            name,
            f"{size:,} B",
            f"{result.dense_bytes / size:.3g}x",
            "-" if value is None else show_metric(record, value),
            "-" if run is None else f"{run.p50_ms:.3f} ms",
        )
        for name, size, value, run in files
    ]


def latency_reasons(record: Record) -> list[str]:
    """Return why the latency moved, or did not, in sentences; none where nothing was measured."""
    dense, stock, kernels = record.latency.dense, record.latency.stock, record.latency.kernels
    if dense is None or stock is None or not dense.p50_ms:
        return []
    whole = record.artifact.form == "dense" or not record.result.sparsity
    if whole:
        return ["Nothing was pruned: the file runs as the dense network does."]
    found = [
        f"Stock onnxruntime takes {stock.p50_ms / dense.p50_ms:.2f} times as long as the dense "
        "file: it decodes packed weights when it loads and multiplies by every weight, zero or "
        "not. What pruning changes there is the size."
    ]
    if kernels is None:
        return found
    ratio = kernels.p50_ms / dense.p50_ms
    sparse = [one for one in record.result.layers if one.nonzeros < 0.3 * math.prod(one.shape)]
    share = f"{len(sparse)} of {format_count(len(record.result.layers), 'layer')}"
    found.append(
        f"Native kernels take {ratio:.2f} times as long as the dense file: they skip weights that "
        f"were removed, which gains where few are kept; {share} keep less than 30 %. Small layers "
        "cost what a call costs, however sparse they are."
    )
    return found


# What a note that explains a null of report.json is about, for people.
_ABOUT = {
    "accuracy": "accuracy", "metric": "metric", "latency": "latency",
    "latency.kernels": "native kernels", "budget.floor_bytes": "floor",
    "budget.max_nonzeros": "weights that fit", "metric.final": "final", "metric.split": "split",
    "metric.samples": "samples",
}  # fmt: skip


def notes(record: Record) -> list[str]:
    """Return the notes for people: places of report.json in words, not where a table has a dash."""
    found = []
    for note in record.notes:
        place, colon, rest = note.partition(": ")
        if colon and place in _ABOUT:
            found.append(f"{_ABOUT[place]}: {rest}")
        elif not (colon and place.partition(".")[0] in type(record).model_fields and "." in place):
            found.append(note.partition(NEXT)[0])
    return found


def environment_rows(record: Record) -> list[tuple[str, str]]:
    """Return what the numbers depend on."""
    rows = []
    for key, value in record.environment.items():
        name = {"cpu": "processor", "cpu_cores": "cores", "memory_bytes": "memory"}.get(key, key)
        memory = key == "memory_bytes" and isinstance(value, int)
        text = "not installed" if value is None else str(value)
        rows.append((name, format_bytes(int(text)) if memory else text))
    return rows


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
    return f"{run.p50_ms:.3f} ms", f"{run.p90_ms:.3f} ms", load, resident, added, weights


def latency_how(record: Record) -> str:
    """Return how each file was timed."""
    return "; ".join(
        dict.fromkeys(
            f"{run.runs} runs, {format_count(run.threads, 'thread')}, batch {run.batch}"
            for _, run in latency_rows(record)
        )
    )


def _mebibytes(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"


# "by load": what loading added to the process; "weights": of that, as native kernels count it.
LATENCY_COLUMNS = ("file", "p50", "p90", "load", "resident", "by load", "weights")
LAYER_COLUMNS = ("layer", "shape", "nonzeros", "kept", "codec", "values", "bytes")


def layer_rows(record: Record) -> list[tuple[str, ...]]:
    """Return the cells of ``LAYER_COLUMNS`` for each layer, in the network's order."""
    rows: list[tuple[str, ...]] = []
    for layer in record.result.layers:
        shape, count = "×".join(map(str, layer.shape)), f"{layer.nonzeros:,}"
        stored = (layer.codec, layer.value_type, f"{packed_bytes(layer):,}")
        rows.append((layer.name, shape, count, density(layer), *stored))
    return rows


def packed_bytes(layer: LayerPart) -> int:
    """Return a layer's bytes as ``hwprune inspect`` counts them, where the report has that."""
    return layer.bytes if layer.packed_bytes is None else layer.packed_bytes


def density(layer: LayerPart) -> str:
    """Return the part of a layer's weights that is kept."""
    weights = math.prod(layer.shape)
    return format_percent(layer.nonzeros / weights, 1) if weights else "-"


LIMIT_COLUMNS = ("limit", "value", "met")
_MET = {True: "yes", False: "NO"}


def limit_rows(record: Record) -> list[tuple[str, str, str]]:
    """Return the user's limits: (limit, value, met)."""
    rows = []
    for one in record.verdict.limits:
        limit, value = (
            NOT_MEASURED if number is None else _with_unit(record, one.field, number)
            for number in (one.limit, one.value)
        )
        rows.append((f"{_named(record, one.field)} {one.op} {limit}", value, _MET[one.met]))
    return rows


def _named(record: Record, field: str) -> str:
    return f"drop of {record.metric.name or 'accuracy'}" if field.endswith("_drop") else field


def _with_unit(record: Record, field: str, value: float) -> str:
    """Show a limit's number with its unit; the record keeps ms, bytes and fractions."""
    if field == "accuracy_drop" or (field == "metric_drop" and in_percent(record)):
        points = f"{100 * value:.3g}"
        return f"{points} point{'' if points == '1' else 's'}"
    head, _, last = field.rpartition(".")
    if head.startswith("latency"):
        return f"{value:.3f} ms"
    if field in ("size", "ram") or last in ("bytes", "artifact", "used", "slack", "floor"):
        return f"{value:,.0f} B"
    if field.startswith("accuracy") or last in ("sparsity", "top1_agreement"):
        return f"{100 * value:.6g} %"
    return f"{value:,.10g}" if value >= 1 else f"{value:.3g}"
