"""The fields that a limit may name: the numbers of report.json, without their units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hwprune.units import format_bytes, format_percent

Kind = Literal["bytes", "count", "fraction", "duration", "metric", "number"]
# What has to be there before a field can be measured.
Need = Literal["file", "labels", "metric", "parity", "latency", "run", "firmware"]
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """One number of the report.

    Attributes:
        name: as a limit writes it.
        kind: what sort of value it is compared with.
        need: what measuring it takes.
        paths: its places in the report; the first that is not null counts.
        minus: places whose value the first path's value is subtracted from, for differences.
            Positive is worse, whichever way the metric is good.
        metric: the name that the report's metric must have.
    """

    name: str
    kind: Kind
    need: Need
    paths: tuple[Path, ...]
    minus: tuple[Path, ...] = ()
    metric: str | None = None

    def value(self, record: Mapping[str, Any]) -> float | None:
        """Return the number from a report, None where it was not measured."""
        metric = record.get("metric")
        metric = metric if isinstance(metric, Mapping) else {}
        if self.metric is not None and self.metric != spelled(str(metric.get("name"))):
            return None
        found = _first(record, self.paths)
        if found is None or not self.minus:
            return found
        dense = _first(record, self.minus)
        if dense is None:
            return None
        # 0.9173 - 0.9073 is 0.01000000000000009 in binary: rounded, so that 0.01 is 0.01.
        drop = round(dense - found, 12)
        return -drop if metric.get("higher_is_better") is False else drop

    def dense(self, record: Mapping[str, Any]) -> float | None:
        """Return the same number of the dense file."""
        if self.need == "latency":
            return lookup(record, ("latency", "dense", self.paths[0][-1]))
        return _first(record, _DENSE)


def _first(record: Mapping[str, Any], paths: tuple[Path, ...]) -> float | None:
    found = (value for path in paths if (value := lookup(record, path)) is not None)
    return next(found, None)


def lookup(record: Mapping[str, Any], path: Path) -> float | None:
    """Return the number at a place of the report, None where there is none."""
    value: Any = record
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


_FINAL: tuple[Path, ...] = (("metric", "final"), ("accuracy", "final"))
_DENSE: tuple[Path, ...] = (("metric", "dense"), ("accuracy", "dense"))


def _fields() -> list[Field]:
    # The short names of the most asked for, then places of the report; without its units.
    table: list[tuple[str, Kind, Need, str]] = [
        ("size", "bytes", "file", "artifact.bytes"),
        ("nonzeros", "count", "file", "result.nonzeros"),
        ("weights", "count", "file", "result.weights"),
        ("sparsity", "fraction", "file", "result.sparsity"),
        ("accuracy", "fraction", "labels", "accuracy.final"),
        ("accuracy_drop", "fraction", "labels", "accuracy.final"),
        ("metric", "metric", "metric", "metric.final"),
        ("metric_drop", "metric", "metric", "metric.final"),
        ("accuracy.final", "fraction", "labels", "accuracy.final"),
        ("accuracy.dense", "fraction", "labels", "accuracy.dense"),
        ("accuracy.extreme", "fraction", "labels", "accuracy.extreme"),
        ("parity", "number", "parity", "parity.relative_error"),
        ("parity.relative_error", "number", "parity", "parity.relative_error"),
        ("parity.top1_agreement", "fraction", "parity", "parity.top1_agreement"),
        ("artifact.bytes", "bytes", "file", "artifact.bytes"),
        ("result.nonzeros", "count", "file", "result.nonzeros"),
        ("result.weights", "count", "file", "result.weights"),
        ("result.sparsity", "fraction", "file", "result.sparsity"),
        ("result.artifact", "bytes", "file", "result.artifact_bytes"),
        ("budget.used", "bytes", "run", "budget.used_bytes"),
        ("budget.slack", "bytes", "run", "budget.slack_bytes"),
        ("budget.floor", "bytes", "run", "budget.floor_bytes"),
        ("budget.max_nonzeros", "count", "run", "budget.max_nonzeros"),
        ("epochs", "count", "run", "epochs"),
        ("seconds", "number", "run", "seconds"),
        # Of the image that was linked, and run on an emulated board.
        ("ram", "bytes", "firmware", "firmware.ram_bytes"),
        ("flash", "bytes", "firmware", "firmware.flash_bytes"),
        ("instructions", "count", "firmware", "firmware.instructions"),
    ]
    fields = []
    for name, kind, need, place in table:
        # A report of schema 1 has no metric but accuracy.
        paths = _FINAL if need == "metric" else (tuple(place.split(".")),)
        minus = {"accuracy_drop": _DENSE[1:], "metric_drop": _DENSE}.get(name, ())
        fields.append(Field(name, kind, need, paths, minus))
    for name in ("p50", "p90", "load"):
        places = {
            label: ("latency", label, f"{name}_ms") for label in ("dense", "stock", "kernels")
        }
        # The kernels' number where they ran, else that of stock onnxruntime.
        either = (places["kernels"], places["stock"])
        fields.append(Field(f"latency.{name}", "duration", "latency", either))
        fields += [
            Field(f"latency.{label}.{name}", "duration", "latency", (place,))
            for label, place in places.items()
        ]
    return fields


FIELDS: Mapping[str, Field] = {field.name: field for field in _fields()}


def spelled(name: str) -> str:
    """Return a field's or metric's name as limits compare it."""
    return name.lower().replace("-", "_")


def field_of(name: str) -> Field:
    """Return a field; any other name is that of the metric."""
    return FIELDS.get(name) or Field(name, "metric", "metric", _FINAL[:1], metric=name)


_FORMATS: Mapping[Kind, Callable[[float], str]] = {
    "bytes": lambda value: format_bytes(round(value)),
    "count": lambda value: f"{round(value):,}",
    "fraction": lambda value: format_percent(value),
    "duration": lambda value: f"{value:.3f} ms",
    "metric": lambda value: f"{value:.4g}",
    "number": lambda value: f"{value:.3g}",
}


def show(kind: Kind, value: float) -> str:
    """Format a value of a field for people."""
    return _FORMATS[kind](value)
