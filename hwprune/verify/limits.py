"""Limits such as ``size<=512KiB`` or ``latency.p50<=0.5x``: read, judged, and explained.

A limit is FIELD OP VALUE; the fields are those of ``fields.FIELDS``, and the metric by its own name
(``rmse<=0.19``). A duration or a metric may be given as a multiple of the dense file's (``0.5x``).
``latency.p50`` alone is the kernels' where they ran, else that of stock onnxruntime.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hwprune.errors import UsageError
from hwprune.ir import LimitResult
from hwprune.tasks.metrics import METRICS
from hwprune.units import parse_bytes, parse_fraction, parse_milliseconds
from hwprune.verify.fields import FIELDS, Field, Kind, field_of, lookup, show, spelled

OPS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
# What the metric may lose without being asked: points of accuracy, and a share of what there was.
GUARD_POINTS, GUARD_SHARE = 0.02, 0.1
_FORM = re.compile(r"\s*([^\s<>=!~]+)\s*([<>=!~]+)\s*(.*?)\s*", re.DOTALL)
_RELATIVE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*[xX×]")
_EXAMPLE = "write FIELD OP VALUE, such as 'size<=512KiB', 'accuracy>=91%' or 'latency.p50<=0.5x'"


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit.

    Attributes:
        field: a key of ``FIELDS``, or the name of a metric.
        op: a key of ``OPS``.
        value: in bytes, milliseconds or as a fraction; a multiple of dense where ``relative``.
        relative: whether ``value`` multiplies the dense file's.
        text: as it was written.
    """

    field: str
    op: str
    value: float
    relative: bool
    text: str

    @property
    def needs_firmware(self) -> bool:
        """Return whether it is about a linked image."""
        return FIELDS[self.field].need == "firmware"


@dataclass(frozen=True, slots=True)
class Context:
    """What a run will be able to measure.

    Attributes:
        kind: of the target: ``linux`` or ``microcontroller``; None without a target.
        labels: whether accuracy is measured: the data carry labels, which are classes.
        metric: the name of what is measured on the data; None for nothing.
        latency: whether latency is measured on this host.
        parity: whether outputs are compared with the PyTorch model.
        dense: whether a dense file is measured beside (limits such as ``0.5x``).
        run: whether a run's own numbers are known: budget, epochs, seconds.
        layers: whether there are packed layers to count nonzeros in.
        no_kernels: why native kernels will not run, None where they will.
        firmware: whether firmware may be made.
    """

    kind: Literal["linux", "microcontroller"] | None = None
    labels: bool = False
    metric: str | None = None
    latency: bool = True
    parity: bool = True
    dense: bool = True
    run: bool = True
    layers: bool = True
    no_kernels: str | None = "no native kernels are installed"
    firmware: bool = True


def parse_limit(text: str, metric: str | None = None) -> Limit:
    """Read a limit.

    Args:
        text: the limit.
        metric: the name of the caller's own metric; those of the built-in ones are known.

    Raises:
        UsageError: names what is wrong (field, operator or value) and what was expected.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a limit", hint=_EXAMPLE)
    name, op, value = match.groups()
    known = spelled(name)
    if known not in (*FIELDS, *METRICS, spelled(metric or "")):
        raise UsageError(f"{text!r}: {name!r} is not a field of the report", hint=_suggest(name))
    field = field_of(known)
    if op not in OPS:
        raise UsageError(
            f"{text!r}: {op!r} is not a comparison, expected one of {', '.join(OPS)}", hint=_EXAMPLE
        )
    relative = _RELATIVE.fullmatch(value)
    if relative is not None and (field.need not in ("latency", "metric") or field.minus):
        raise UsageError(
            f"{text!r}: only a latency or a metric can be given as a multiple of dense",
            hint=_EXAMPLE,
        )
    try:
        number = float(relative[1]) if relative else _VALUES[field.kind](value)
    except UsageError as error:
        raise UsageError(f"{text!r}: {error.message}", hint=error.hint) from None
    if field.kind == "fraction" and not -1 <= number <= 1:
        raise UsageError(
            f"{text!r}: {value} is not a fraction",
            hint=f"write {value}% or {number / 100:g}" if "%" not in value else "at most 100%",
        )
    return Limit(field.name, op, number, relative is not None, text.strip())


def why_not(limit: Limit, context: Context) -> str | None:
    """Return why a run cannot measure what a limit asks for, None where it can."""
    field = field_of(limit.field)
    if field.need == "firmware" and (context.kind == "linux" or not context.run):
        return "flash, RAM and instructions are those of an image for a microcontroller"
    if field.need == "firmware" and not context.firmware:
        return "they are those of linked firmware, which needs --data (and no --no-firmware)"
    if field.need == "labels" and not context.labels:
        if context.metric is not None:
            return f"the metric of this task is {context.metric}, not accuracy"
        return "accuracy needs data with labels"
    if field.need == "metric" and context.metric is None:
        return f"{limit.field} needs data with labels, and a task that says what is measured"
    if field.metric not in (None, spelled(context.metric or "")):
        return f"the metric of this task is {context.metric}, not {field.metric}"
    if field.need == "latency":
        if context.kind == "microcontroller":
            return "this host's latency says nothing about a microcontroller"
        if not context.latency:
            return "latency is not measured in this run"
        if limit.field.startswith("latency.kernels") and context.no_kernels is not None:
            return context.no_kernels
        if (limit.relative or limit.field.startswith("latency.dense")) and not context.dense:
            return "there is no dense file to measure beside it"
    if field.need == "parity" and not context.parity:
        return "there is no PyTorch model to compare outputs with"
    if field.need == "run" and not context.run:
        return "it is a number of the run that made the file, and its report is not beside it"
    if limit.field.rpartition(".")[2] in ("nonzeros", "weights", "sparsity") and not context.layers:
        return "the file has no packed layers to count in"
    return None


def require_measurable(limits: Iterable[Limit], context: Context) -> None:
    """Refuse limits that a run cannot measure, before any work is done.

    Raises:
        UsageError: the first such limit, and why.
    """
    for limit in limits:
        reason = why_not(limit, context)
        if reason is not None:
            raise UsageError(
                f"--require {limit.text}: cannot be measured in this run: {reason}",
                hint="leave this limit out, or give what it needs",
            )


def evaluate(limit: Limit, record: Mapping[str, Any]) -> LimitResult:
    """Judge a limit by a report (the dict of report.json). What was not measured is not met.

    A multiple of dense comes out as the number it stands for.
    """
    field = field_of(limit.field)
    value, bound = field.value(record), limit.value
    if limit.relative:
        dense = field.dense(record)
        if dense is None:
            return LimitResult(limit.field, limit.op, bound, None, False)
        bound *= dense
    met = value is not None and OPS[limit.op](value, bound)
    return LimitResult(limit.field, limit.op, bound, value, met)


def guard(
    record: Mapping[str, Any], limits: Sequence[Limit], allowed: float | None, classes: int
) -> Limit | None:
    """Return the limit on what the metric may lose, where nobody set one on it.

    Two points of accuracy, or a tenth of what the dense network has above chance where that is
    less; a tenth of the dense network's value of any other metric.

    Args:
        record: the report.
        limits: those that were asked for: one on the metric, or on what it lost, comes first.
        allowed: what it may lose, in the metric's own unit; None for the above.
        classes: how many there are, for chance; 0 where that is not known.
    """
    section = record.get("metric")
    name = section.get("name") if isinstance(section, Mapping) else None
    drop = field_of("metric_drop")
    if drop.value(record) is None or any(_is_quality(limit.field) for limit in limits):
        return None
    if allowed is None:
        dense = lookup(record, ("metric", "dense")) or 0.0
        if name == "accuracy":
            above = dense - 1 / classes if classes else dense
            if above <= 0:  # there is nothing to lose
                return None
            allowed = min(GUARD_POINTS, GUARD_SHARE * above)
        else:
            allowed = GUARD_SHARE * abs(dense)
    text = f"metric_drop<={allowed:.4g}"
    return Limit("metric_drop", "<=", allowed, False, text)


def _is_quality(name: str) -> bool:
    """Return whether a limit is on how well the task is done."""
    field = field_of(name)
    return field.need in ("labels", "metric") and not name.endswith((".dense", ".extreme"))


def explain(limit: Limit, result: LimitResult) -> str:
    """Return a sentence with field, value and limit."""
    field = field_of(limit.field)
    if result.value is None:
        return f"{limit.field} was not measured; the limit is {limit.text}"
    bound = f" ({show(field.kind, result.limit)})" if limit.relative else ""
    met = "met" if result.met else "not met"
    return f"{limit.field} is {_precise(field, result)}; the limit {limit.text}{bound} is {met}"


def _precise(field: Field, result: LimitResult) -> str:
    """Show a value; in full where rounding would make it look like the limit it misses."""
    assert result.value is not None
    shown = show(field.kind, result.value)
    close = shown == show(field.kind, result.limit) and result.value != result.limit
    return f"{result.value:.10g}" if close else shown


def _count(text: str) -> float:
    if not re.fullmatch(r"\d[\d_]*", text):
        raise UsageError(f"{text!r} is not a whole number", hint="write it like 40000 or 40_000")
    return float(text.replace("_", ""))


_VALUES: Mapping[Kind, Callable[[str], float]] = {
    "bytes": parse_bytes,
    "count": _count,
    "fraction": parse_fraction,
    "duration": parse_milliseconds,
    "metric": parse_fraction,
    "number": parse_fraction,
}


def _suggest(name: str) -> str:
    wanted = name.lower()
    for unit in ("_ms", "_bytes", "_kib"):
        wanted = wanted.removesuffix(unit)
    names = {**FIELDS, **METRICS}
    close = [wanted] if wanted in FIELDS else difflib.get_close_matches(wanted, names, n=3)
    known = ", ".join(field for field in FIELDS if field.count(".") == 0 or field == "latency.p50")
    return f"did you mean {' or '.join(close)}?" if close else f"expected one of {known}, ..."
