"""The fields that a limit may name: the numbers of report.json, without their units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hwprune.units import format_bytes, format_percent

Kind = Literal["bytes", "count", "fraction", "duration", "number"]
# What has to be there before a field can be measured.
Need = Literal["file", "labels", "parity", "latency", "run", "firmware"]
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """One number of the report.

    Attributes:
        name: as a limit writes it.
        kind: what sort of value it is compared with.
        need: what measuring it takes.
        paths: its places in the report; the first that is not null counts.
        minus: a place whose value the first path's value is subtracted from, for differences.
    """

    name: str
    kind: Kind
    need: Need
    paths: tuple[Path, ...]
    minus: Path | None = None

    def value(self, record: Mapping[str, Any]) -> float | None:
        """Return the number from a report, None where it was not measured."""
        found = next(
            (value for path in self.paths if (value := lookup(record, path)) is not None), None
        )
        if found is None or self.minus is None:
            return found
        whole = lookup(record, self.minus)
        # 0.9173 - 0.9073 is 0.01000000000000009 in binary: rounded, so that 0.01 is 0.01.
        return None if whole is None else round(whole - found, 12)


def lookup(record: Mapping[str, Any], path: Path) -> float | None:
    """Return the number at a place of the report, None where there is none."""
    value: Any = record
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _fields() -> list[Field]:
    # The short names of the most asked for, then places of the report; without its units.
    table: list[tuple[str, Kind, Need, str]] = [
        ("size", "bytes", "file", "artifact.bytes"),
        ("nonzeros", "count", "file", "result.nonzeros"),
        ("weights", "count", "file", "result.weights"),
        ("sparsity", "fraction", "file", "result.sparsity"),
        ("accuracy", "fraction", "labels", "accuracy.final"),
        ("accuracy_drop", "fraction", "labels", "accuracy.final"),
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
        # The RAM that a device needs: known once firmware was linked or emulated, not before.
        ("ram", "bytes", "firmware", "ram_bytes"),
    ]
    minus = {"accuracy_drop": ("accuracy", "dense")}
    fields = [
        Field(name, kind, need, (tuple(place.split(".")),), minus.get(name))
        for name, kind, need, place in table
    ]
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

_FORMATS: Mapping[Kind, Callable[[float], str]] = {
    "bytes": lambda value: format_bytes(round(value)),
    "count": lambda value: f"{round(value):,}",
    "fraction": lambda value: format_percent(value),
    "duration": lambda value: f"{value:.3f} ms",
    "number": lambda value: f"{value:.3g}",
}


def show(kind: Kind, value: float) -> str:
    """Format a value of a field for people."""
    return _FORMATS[kind](value)
