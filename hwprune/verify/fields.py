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


def _at(dotted: str) -> Path:
    return tuple(dotted.split("."))


def _fields() -> list[Field]:
    fields = [
        Field("size", "bytes", "file", (_at("artifact.bytes"),)),
        Field("nonzeros", "count", "file", (_at("result.nonzeros"),)),
        Field("weights", "count", "file", (_at("result.weights"),)),
        Field("sparsity", "fraction", "file", (_at("result.sparsity"),)),
        Field("accuracy", "fraction", "labels", (_at("accuracy.final"),)),
        Field(
            "accuracy_drop", "fraction", "labels", (_at("accuracy.final"),), _at("accuracy.dense")
        ),
        Field("accuracy.final", "fraction", "labels", (_at("accuracy.final"),)),
        Field("accuracy.dense", "fraction", "labels", (_at("accuracy.dense"),)),
        Field("accuracy.extreme", "fraction", "labels", (_at("accuracy.extreme"),)),
        Field("parity", "number", "parity", (_at("parity.relative_error"),)),
        Field("parity.relative_error", "number", "parity", (_at("parity.relative_error"),)),
        Field("parity.top1_agreement", "fraction", "parity", (_at("parity.top1_agreement"),)),
        Field("artifact.bytes", "bytes", "file", (_at("artifact.bytes"),)),
        Field("result.nonzeros", "count", "file", (_at("result.nonzeros"),)),
        Field("result.weights", "count", "file", (_at("result.weights"),)),
        Field("result.sparsity", "fraction", "file", (_at("result.sparsity"),)),
        Field("result.artifact", "bytes", "file", (_at("result.artifact_bytes"),)),
        Field("budget.used", "bytes", "run", (_at("budget.used_bytes"),)),
        Field("budget.slack", "bytes", "run", (_at("budget.slack_bytes"),)),
        Field("budget.floor", "bytes", "run", (_at("budget.floor_bytes"),)),
        Field("budget.max_nonzeros", "count", "run", (_at("budget.max_nonzeros"),)),
        Field("epochs", "count", "run", (_at("epochs"),)),
        Field("seconds", "number", "run", (_at("seconds"),)),
        # The RAM that a device needs: known once firmware was linked or emulated, not before.
        Field("ram", "bytes", "firmware", (_at("ram_bytes"),)),
    ]
    for name, key, kind in (
        ("p50", "p50_ms", "duration"),
        ("p90", "p90_ms", "duration"),
        ("load", "load_ms", "duration"),
    ):
        # The kernels' number where they ran, else that of stock onnxruntime.
        either = tuple(("latency", label, key) for label in ("kernels", "stock"))
        fields.append(Field(f"latency.{name}", kind, "latency", either))  # type: ignore[arg-type]
        fields += [
            Field(f"latency.{label}.{name}", kind, "latency", (("latency", label, key),))  # type: ignore[arg-type]
            for label in ("dense", "stock", "kernels")
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
