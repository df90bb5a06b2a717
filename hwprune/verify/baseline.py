"""An artifact against an earlier one of the same network: what has become worse?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwprune.errors import ArtifactError, LimitError, UsageError
from hwprune.export.artifact import ArtifactFile, read_artifact
from hwprune.units import parse_bytes, parse_fraction
from hwprune.verify import sidecar_report
from hwprune.verify.fields import FIELDS, Field, show
from hwprune.verify.outcome import Skipped

# The fields that are compared, and whether more is better; of a metric its report says it.
COMPARED: Mapping[str, bool | None] = {
    "size": False, "accuracy": True, "metric": None, "ram": False, "latency.p50": False,
}  # fmt: skip
# Two runs on one machine differ by some percent: a latency is worse when it is beyond this.
_LATENCY_NOISE = 0.1


@dataclass(frozen=True, slots=True)
class Baseline:
    """What an artifact is compared with.

    Attributes:
        path: where it was read, for messages.
        record: its report; of a file without one, only what is counted in the file.
        may_worsen: by how much a field may be worse: in the field's unit, a latency as a share.
        artifact: the file, where the path is one.
    """

    path: str
    record: Mapping[str, Any]
    may_worsen: Mapping[str, float] = field(default_factory=dict)
    artifact: ArtifactFile | None = None

    def same_network(self, record: Mapping[str, Any], artifact: ArtifactFile) -> str:
        """Return what is compared.

        Raises:
            UsageError: they are of different networks: by their layers where both have a report,
                else by the shapes of inputs and outputs.
        """
        was, now, what = _layers(self.record), _layers(record), "layers"
        if not (was and now) and self.artifact is not None:
            was, now, what = _ends(self.artifact), _ends(artifact), "inputs or outputs"
        if was and now and was != now:
            raise UsageError(
                f"the baseline {self.path} is of another network: it has other {what}",
                hint="compare artifacts of one network",
            )
        return f"compared with {self.path}"

    def comparisons(self, record: Mapping[str, Any]) -> Iterator[Comparison]:
        """Yield each field that both could have."""
        for name, more_is_better in COMPARED.items():
            if more_is_better is None:
                if _text_at(record, "metric", "name") in (None, "accuracy"):
                    continue
                more_is_better = _text_at(record, "metric", "higher_is_better") is not False
            yield Comparison(self, record, FIELDS[name], more_is_better)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One field, before and now."""

    baseline: Baseline
    record: Mapping[str, Any]
    field: Field
    more_is_better: bool

    def sentence(self) -> str:
        """Return how it changed.

        Raises:
            Skipped: it was not measured on both sides, or not on the same machine.
            LimitError: it has become worse by more than it may.
        """
        name, kind = self.field.name, self.field.kind
        old, new = self.field.value(self.baseline.record), self.field.value(self.record)
        if old is None or new is None:
            sides = [side for side, value in (("before", old), ("now", new)) if value is None]
            raise Skipped(f"not measured {' and '.join(sides)}")
        if kind == "metric":
            was, now = (_text_at(one, "metric", "name") for one in self._both())
            if was != now:
                raise Skipped(f"the metric was {was or 'accuracy'}, it is {now}")
        if kind == "duration":
            for place in ("host", "onnxruntime"):
                was, now = (_text_at(one, "latency", place) for one in self._both())
                if was != now:
                    raise Skipped(f"measured on different machines: {place} {was}, now {now}")
        change = new - old
        sentence = f"{show(kind, new)}, was {show(kind, old)}"
        if change:
            share = f", {change / old:+.1%}" if old and kind != "fraction" else ""
            sentence += f" ({'+' if change > 0 else '-'}{show(kind, abs(change))}{share})"
        allowed = self.baseline.may_worsen.get(name, _LATENCY_NOISE if kind == "duration" else 0.0)
        worse = -change if self.more_is_better else change
        if kind == "duration":
            worse /= old or 1.0
        if worse > allowed + 1e-12:
            limit = f"{allowed:.0%}" if kind == "duration" else show(kind, allowed)
            raise LimitError(
                f"worse than the baseline: {sentence}",
                hint=f"it may worsen by {limit}; may_worsen in hwprune.toml allows more",
            )
        return sentence

    def _both(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return self.baseline.record, self.record


def read(place: str, artifact: str, may_worsen: Mapping[str, float] | None = None) -> Baseline:
    """Read a baseline.

    Args:
        place: a report.json, an artifact, a run's folder, or a folder in which the artifact's
            path leads to its older self.
        artifact: the path of the artifact, as given.
        may_worsen: see ``Baseline``.

    Raises:
        UsageError: nothing is there, or nothing that can be read; or a newer hwprune wrote it.
    """
    here = Path(place)
    older = here / artifact
    if here.is_dir() and older.is_file() and not Path(artifact).is_absolute():
        here = older
    elif here.is_dir():
        here = here / sidecar_report.REPORT_NAME
    if not here.exists():
        raise UsageError(
            f"there is no baseline at {here}",
            hint="give a report.json, an artifact, or a folder with the artifact's older self",
        )
    file = None
    try:
        if here.suffix == ".onnx":
            file = read_artifact(str(here))
            record = _of_artifact(file)
        else:
            record = sidecar_report.load(here)
            sidecar_report.refuse_newer(record, here)
    except ArtifactError as error:
        raise UsageError(f"the baseline {error.message}", hint=error.hint) from None
    if not isinstance(record.get("artifact"), Mapping):
        raise UsageError(
            f"the baseline {here} is not a report of hwprune",
            hint="give the report.json that `hwprune compile` wrote",
        )
    return Baseline(str(here), record, may_worsen or {}, file)


def parse_allowances(given: Any) -> dict[str, float]:
    """Read by how much fields may worsen: a size, a fraction, or for a latency a share.

    Raises:
        UsageError: not a table, an unknown field, or a value of another kind.
    """
    if not isinstance(given, dict):
        raise UsageError(f"may_worsen = {given!r}: expected a table, such as {{ size = '1KiB' }}")
    found: dict[str, float] = {}
    for name, value in given.items():
        if name not in COMPARED:
            raise UsageError(f"may_worsen: {name!r} is not one of {', '.join(COMPARED)}")
        parse = parse_bytes if FIELDS[name].kind == "bytes" else parse_fraction
        try:
            found[name] = float(parse(str(value)))
        except UsageError as error:
            raise UsageError(f"may_worsen: {name}: {error.message}", hint=error.hint) from None
    return found


def _of_artifact(artifact: ArtifactFile) -> Mapping[str, Any]:
    report = sidecar_report.find(artifact.path, artifact.sha256)
    promised = report.record if report is not None and report.matches(artifact) else {}
    return {**promised, "artifact": {"bytes": artifact.bytes}}


def _layers(record: Mapping[str, Any]) -> Any:
    result = record.get("result")
    layers = result.get("layers") if isinstance(result, Mapping) else None
    if not isinstance(layers, list):
        return None
    return sorted(
        (str(one.get("name")), str(one.get("shape"))) for one in layers if isinstance(one, Mapping)
    )


def _ends(artifact: ArtifactFile) -> list[tuple[int, list[int]]]:
    """Return type and shape of each input and output: without the batch, 0 for what may vary."""
    tensors = [
        entry.type.tensor_type
        for entry in (*artifact.model.graph.input, *artifact.model.graph.output)
    ]
    return [
        (tensor.elem_type, [size.dim_value for size in tensor.shape.dim[1:]]) for tensor in tensors
    ]


def _text_at(record: Mapping[str, Any], *path: str) -> Any:
    value: Any = record
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
