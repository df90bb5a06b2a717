"""report.json: the record of one run, as other people's scripts read it.

Accuracies and sparsity are fractions, sizes bytes, times what their names say. What was not
measured is null, and ``notes`` holds a line ``path: reason`` for it (or for its section). A report
of schema 1 is read as one of schema 2 whose metric is accuracy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hwprune.errors import ArtifactError, HwpruneError, OutputError
from hwprune.files import read_ordinary, replacing

REPORT_NAME = "report.json"
# What is null in these explains itself.
_SELF_EXPLAINING = (
    "environment", "recipe", "accuracy.trajectory", "metric.trajectory", "result.layers",
    "verdict.limits", "firmware", "result.dense_bytes", "result.int8_bytes",
)  # fmt: skip

# Bounds that every real number keeps, and that arithmetic on them does not leave.
_LARGEST = 2**53
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=_LARGEST)]
Positive = Annotated[float, Field(ge=0, le=_LARGEST)]
Number = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]


class Section(BaseModel):
    """Base of the record's parts: no unknown field, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LimitOutcome(Section):
    """One ``--require``: durations in ms, sizes in bytes, ``value`` null where not measured."""

    field: str
    op: Literal["<=", ">=", "<", ">", "=="]
    limit: Number
    value: Number | None
    met: bool


class VerdictPart(Section):
    """The answer."""

    fits: bool
    verified: bool
    scope: str
    limits: tuple[LimitOutcome, ...] = ()
    exit_code: int


class ArtifactPart(Section):
    """The file; ``path`` is relative to the report's folder, ``form`` how layers are packed."""

    path: str
    bytes: Count
    sha256: str
    form: Literal["functions", "inlined", "dense"] | None = None


class BudgetPart(Section):
    """What the file could weigh, and what it does."""

    bytes: Count
    floor_bytes: Count | None
    max_nonzeros: Count | None
    used_bytes: Count
    slack_bytes: Annotated[int, Field(ge=-_LARGEST, le=_LARGEST)]


class LayerPart(Section):
    """One prunable tensor.

    ``bytes`` is all that it adds to the graph, its nodes and its bias too; ``packed_bytes`` what
    its packed arrays take in the file, as ``inspect`` counts them. Of these ``index_bytes`` say
    where its nonzeros are and ``value_bytes`` what they are. The bounds are the entropies of both.
    ``stored_shape`` is given where channels were removed and the file holds less than ``shape``.
    """

    name: str
    shape: tuple[Count, ...]
    nonzeros: Count
    codec: str
    value_type: str
    bytes: Count
    packed_bytes: Count | None = None
    index_bytes: Count | None = None
    value_bytes: Count | None = None
    index_bound_bytes: Positive | None = None
    value_bound_bytes: Positive | None = None
    stored_shape: tuple[Count, ...] | None = None


class ResultPart(Section):
    """What was written. ``weights`` counts the elements of prunable tensors, shared ones once.

    ``function_bytes`` are those of the operators' bodies, ``bound_bytes`` the entropy of all
    positions and values; both are 0 where nothing is packed. ``dense_bytes`` is the dense fp32
    file, ``int8_bytes`` one that keeps every weight as int8, whose size is exact and which was not
    written.
    """

    nonzeros: Count
    weights: Count
    sparsity: Fraction
    artifact_bytes: Count
    function_bytes: Count = 0
    bound_bytes: Positive = 0
    dense_bytes: Count | None = None
    int8_bytes: Count | None = None
    layers: tuple[LayerPart, ...]


class Moment(Section):
    """One moment of the run."""

    epoch: Positive
    nonzeros: Count
    action: str | None = None
    step: Count | None = None
    density: Fraction | None = None
    loss: float | None = None
    lr: float | None = None
    seconds: Positive | None = None


class TrajectoryPoint(Moment):
    """With the accuracy on the validation split."""

    accuracy: Fraction | None = None


class MetricPoint(Moment):
    """With the metric on the validation split."""

    value: Number | None = None


class MetricPart(Section):
    """How well the task is done, by its metric.

    By the dense network, in the state with the fewest connections, by the written file. ``split``
    and ``samples`` are null where the caller's own function measured the file.
    """

    name: str | None
    higher_is_better: bool | None
    split: str | None
    samples: Count | None
    dense: Number | None
    extreme: Number | None
    final: Number | None
    trajectory: tuple[MetricPoint, ...] = ()


class AccuracyPart(Section):
    """The same where the metric is accuracy; else null."""

    dense: Fraction | None
    extreme: Fraction | None
    final: Fraction | None
    metric: str | None
    split: str | None
    samples: Count | None
    trajectory: tuple[TrajectoryPoint, ...] = ()


class LatencyRun(Section):
    """One file in one runtime, on the host; times in ms.

    ``load_ms`` and what follows are of loading it in a fresh process: what that process holds, what
    loading added to it, and of that the weights, where native kernels count them.
    """

    p50_ms: Positive
    p90_ms: Positive
    runs: Count
    threads: Count
    batch: Count
    load_ms: Positive | None = None
    resident_bytes: Count | None = None
    added_bytes: Count | None = None
    weight_bytes: Count | None = None


class LatencyPart(Section):
    """The dense file, the artifact in stock onnxruntime, and the artifact with native kernels."""

    dense: LatencyRun | None
    stock: LatencyRun | None
    kernels: LatencyRun | None
    host: str | None
    onnxruntime: str | None


class ParityPart(Section):
    """Against the PyTorch model that holds the decoded weights."""

    relative_error: Annotated[float, Field(ge=0)] | None
    top1_agreement: Fraction | None


class FirmwarePart(Section):
    """The C library of a microcontroller, in the folder ``firmware``.

    ``flash_bytes`` (.text, .rodata, .data) and ``ram_bytes`` (.data, .bss, stack) are those of the
    linked image, ``planned_ram_bytes`` what activations take of them. All ``tensors`` of ``inputs``
    were equal on the emulated ``board``, where ``stack_bytes`` and ``instructions`` are measured;
    of ``activations`` in fp32 equal to the C's reference, which is within a bound of onnxruntime.
    ``estimated_cycles`` are the fewest and the most by what the core's manual says of instructions.
    ``calibration`` is how ranges of activations were found, ``error`` the mean squared error of the
    outputs by their variance, ``formats`` how each layer's weights are stored, ``sha256`` the hash
    of the network that all of it is made from.
    """

    flash_bytes: Count | None
    ram_bytes: Count | None
    planned_ram_bytes: Count | None
    stack_bytes: Count | None
    board: str | None
    inputs: Count
    tensors: Count
    activations: str = "int8"
    instructions: Count | None
    instructions_by_layer: Mapping[str, Count] | None
    estimated_cycles: tuple[Count, Count] | None = None
    constant_bytes: Count
    calibration: str
    error: Positive
    formats: Mapping[str, str]
    sha256: str


class Record(Section):
    """The whole report.

    ``metadata`` is what is to be known of the file, with the keys that it has in the file; those of
    ``left_out`` are not in it, for want of room. ``preprocessing`` and ``classes`` are JSON.

    ``recipe`` is how it was trained: the fields of the recipe and the options of the strategy.
    ``cost_epochs`` is what that cost, in epochs of one forward and backward pass a sample: steps
    that take two, and short trainings that chose between value types, count as what they take.
    """

    schema_version: Literal[2] = 2
    verdict: VerdictPart
    model: str
    target: str
    strategy: str
    epochs: Count
    artifact: ArtifactPart
    budget: BudgetPart
    result: ResultPart
    metric: MetricPart
    accuracy: AccuracyPart
    latency: LatencyPart
    parity: ParityPart
    environment: Mapping[str, str | int | float | bool | None]
    command: str
    seed: int
    seconds: Positive
    notes: tuple[str, ...] = ()
    recipe: Mapping[str, str | int | float | bool | None] = {}
    cost_epochs: Positive = 0
    firmware: FirmwarePart | None = None
    metadata: Mapping[str, str] = {}
    left_out: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes in the order of the outputs; empty if not known."""
        try:
            found = json.loads(self.metadata.get("classes", "[]"))
        except (ValueError, RecursionError):
            return ()
        return tuple(map(str, found)) if isinstance(found, list) else ()

    @model_validator(mode="before")
    @classmethod
    def _as_schema_2(cls, data: Any) -> Any:
        """Return a report of schema 1 with its accuracy as the metric."""
        if not isinstance(data, Mapping) or data.get("schema_version") != 1 or "metric" in data:
            return data
        accuracy = data.get("accuracy")
        found = dict(accuracy) if isinstance(accuracy, Mapping) else {}
        known = found.pop("metric", None) is not None
        found |= {"name": "accuracy", "higher_is_better": True} if known else _NO_METRIC
        if isinstance(found.get("trajectory"), (list, tuple)):
            found["trajectory"] = [as_value(point) for point in found["trajectory"]]
        return {**data, "schema_version": 2, "metric": found}


_NO_METRIC: Mapping[str, None] = {"name": None, "higher_is_better": None}


def as_value(point: Any) -> Any:
    """Return a point of the trajectory of accuracy as one of the metric's."""
    if not isinstance(point, Mapping) or "accuracy" not in point:
        return point
    return {**{k: v for k, v in point.items() if k != "accuracy"}, "value": point["accuracy"]}


def unexplained(record: Record) -> list[str]:
    """Return the dotted paths of nulls for which no note gives the reason.

    A note explains a path when it starts with it, or with a section around it, and a colon.
    """
    heads = {note.partition(":")[0].strip() for note in record.notes if ":" in note}
    # What is null in the one is null in the other for the same reason.
    heads |= {head.replace("accuracy", "metric", 1) for head in heads if head[:8] == "accuracy"}
    heads |= {head.replace("metric", "accuracy", 1) for head in heads if head[:6] == "metric"}

    def explained(path: str) -> bool:
        parts = path.split(".")
        return any(".".join(parts[:count]) in heads for count in range(1, len(parts) + 1))

    return [path for path in _nulls(record.model_dump(mode="json")) if not explained(path)]


def _nulls(value: Any, path: str = "") -> Iterator[str]:
    if path in _SELF_EXPLAINING:
        return
    if value is None:
        yield path
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _nulls(inner, f"{path}.{key}" if path else key)


def read(path: str | os.PathLike[str]) -> Record:
    """Read a report: the file itself, or the folder that holds a ``report.json``.

    Raises:
        ArtifactError: not there, not JSON, or not a report of this version; names the field.
    """
    file = Path(path)
    if file.is_dir():
        file = file / REPORT_NAME
    try:
        text = read_ordinary(file, most=64 << 20).decode("utf-8")
    except FileNotFoundError:
        raise ArtifactError(
            f"there is no {file}",
            hint="give a report.json, or the output folder of `hwprune compile`",
        ) from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ArtifactError(f"{file} cannot be read: {reason}") from None
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        raise ArtifactError(
            describe(error, str(file), "a report of hwprune"),
            hint="it may be cut off, or come from another version of hwprune",
        ) from None


def describe(error: ValidationError, path: str, what: str) -> str:
    """Return pydantic's findings in a few lines: field, what was given, what was expected."""
    lines = []
    for found in error.errors(include_url=False)[:5]:
        place = ".".join(str(part) for part in found["loc"])
        given = "" if found["type"] in ("missing", "json_invalid") else f" (given {_short(found)})"
        lines.append(f"  {place or 'file'}: {found['msg']}{given}")
    more = error.error_count() - len(lines)
    return "\n".join([f"{path} is not {what}:", *lines, *([f"  and {more} more"] if more else [])])


def _short(found: Any) -> str:
    text = repr(found["input"])
    return text if len(text) <= 60 else text[:57] + "..."


def write(record: Record, path: str | os.PathLike[str]) -> None:
    """Write a report, whole or not at all. Nulls that no note explains get one that says so.

    Raises:
        OutputError: the folder cannot be written.
    """
    notes = [*record.notes, *(f"{where}: not measured" for where in unexplained(record))]
    complete = record.model_copy(update={"notes": tuple(notes)})
    write_text(complete.model_dump_json(indent=2) + "\n", path)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write a text file beside its place and rename it, so that no half-written one is ever seen.

    Raises:
        OutputError: the folder cannot be written.
    """
    file = Path(path)
    try:
        with replacing(file) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}") from None


def from_mapping(data: Mapping[str, Any]) -> Record:
    """Return a record of values that this program put together.

    Names and paths that are not UTF-8 are written with their bytes escaped.

    Raises:
        HwpruneError: they are not a report; a defect of hwprune.
    """
    try:
        return Record.model_validate(_encodable(data))
    except ValidationError as error:
        raise HwpruneError(describe(error, "the run's own record", "a report")) from None


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_encodable(key): _encodable(inner) for key, inner in value.items()}
    return [_encodable(inner) for inner in value] if isinstance(value, (list, tuple)) else value
