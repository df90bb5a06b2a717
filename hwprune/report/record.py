"""report.json: the record of one run, as other people's scripts read it.

Accuracies and sparsity are fractions, sizes bytes, times what their names say. What was not
measured is null, and ``notes`` holds a line ``path: reason`` for it (or for its section). A report
of schema 1 is read as one of schema 2 whose metric is accuracy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hwprune.errors import ArtifactError, HwpruneError, OutputError
from hwprune.files import read_ordinary, replacing

REPORT_NAME = "report.json"
NEWEST_SCHEMA = 2
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
    """One limit of ``--require``, or of ``--max-drop``."""

    field: str
    """What is limited, as docs/ci.md lists it."""
    op: Literal["<=", ">=", "<", ">", "=="]
    """How they are compared."""
    limit: Number
    """In fractions, bytes or ms."""
    value: Number | None
    """What it came to, in the same unit; null where not measured."""
    met: bool
    """Whether it is kept."""


class VerdictPart(Section):
    """The answer."""

    fits: bool
    """The file is within its budget."""
    verified: bool
    """The file is sound and computes what the network does."""
    scope: str
    """What was done to verify it, and where."""
    limits: tuple[LimitOutcome, ...] = ()
    """Each limit and how it came out."""
    exit_code: int
    """That of the run: 0 only where all of this is good."""


class ArtifactPart(Section):
    """The file."""

    path: str
    """Relative to the report's folder."""
    bytes: Count
    """Its size."""
    sha256: str
    """Its hash: the report is of exactly this file."""
    form: Literal["functions", "inlined", "dense"] | None = None
    """How layers are packed."""


class BudgetPart(Section):
    """What the file could weigh, and what it does."""

    bytes: Count
    """The most that it may weigh."""
    floor_bytes: Count | None
    """What no pruning removes."""
    max_nonzeros: Count | None
    """Weights that there is room for."""
    used_bytes: Count
    """What the file takes."""
    slack_bytes: Annotated[int, Field(ge=-_LARGEST, le=_LARGEST)]
    """What is left of the budget; below 0 where it is passed."""


class LayerPart(Section):
    """One prunable tensor."""

    name: str
    """The parameter."""
    shape: tuple[Count, ...]
    """As it was trained."""
    nonzeros: Count
    """Weights that are kept."""
    codec: str
    """How positions are stored."""
    value_type: str
    """How values are stored."""
    bytes: Count
    """All that it adds to the graph, its nodes and its bias too."""
    packed_bytes: Count | None = None
    """What its packed arrays take in the file, as ``inspect`` counts them."""
    index_bytes: Count | None = None
    """Of these, where its nonzeros are."""
    value_bytes: Count | None = None
    """Of these, what its nonzeros are."""
    index_bound_bytes: Positive | None = None
    """The entropy of the positions."""
    value_bound_bytes: Positive | None = None
    """The entropy of the values."""
    stored_shape: tuple[Count, ...] | None = None
    """Given where channels were removed and the file holds less than ``shape``."""


class ResultPart(Section):
    """What was written."""

    nonzeros: Count
    """Weights that are kept."""
    weights: Count
    """Elements of prunable tensors, shared ones once."""
    sparsity: Fraction
    """Share of the weights that was removed."""
    artifact_bytes: Count
    """Size of the file."""
    function_bytes: Count = 0
    """Of it, the bodies of the operators; 0 where nothing is packed."""
    bound_bytes: Positive = 0
    """The entropy of all positions and values; 0 where nothing is packed."""
    dense_bytes: Count | None = None
    """Size of the dense fp32 file."""
    int8_bytes: Count | None = None
    """Exact size of a file with every weight as int8, which was not written."""
    layers: tuple[LayerPart, ...]
    """Each prunable tensor."""


class Moment(Section):
    """One moment of the run."""

    epoch: Positive
    """How many were trained by then."""
    nonzeros: Count
    """Weights that are kept then."""
    action: str | None = None
    """What was done: prune, regrow, train and so on."""
    step: Count | None = None
    """Optimiser steps by then."""
    density: Fraction | None = None
    """Share of the weights that is kept."""
    loss: float | None = None
    """Mean of the epoch."""
    lr: float | None = None
    """The learning rate."""
    seconds: Positive | None = None
    """Since training began."""


class TrajectoryPoint(Moment):
    """With the accuracy on the validation split."""

    accuracy: Fraction | None = None
    """On the validation split."""


class MetricPoint(Moment):
    """With the metric on the validation split."""

    value: Number | None = None
    """The metric, on the validation split."""


class MetricPart(Section):
    """How well the task is done, by its metric."""

    name: str | None
    """Such as ``accuracy`` or ``miou``."""
    higher_is_better: bool | None
    """Its direction."""
    split: str | None
    """Of the data; null where the caller's own function measured the file."""
    samples: Count | None
    """How many; null likewise."""
    dense: Number | None
    """Of the dense network."""
    extreme: Number | None
    """In the state with the fewest connections, on validation."""
    final: Number | None
    """Of the written file."""
    trajectory: tuple[MetricPoint, ...] = ()
    """Each epoch."""


class AccuracyPart(Section):
    """The same where the metric is accuracy; else null."""

    dense: Fraction | None
    """Of the dense network."""
    extreme: Fraction | None
    """In the state with the fewest connections, on validation."""
    final: Fraction | None
    """Of the written file."""
    metric: str | None
    """In words."""
    split: str | None
    """Of the data."""
    samples: Count | None
    """How many."""
    trajectory: tuple[TrajectoryPoint, ...] = ()
    """Each epoch."""


class LatencyRun(Section):
    """One file in one runtime, on the host."""

    p50_ms: Positive
    """Median of a run."""
    p90_ms: Positive
    """What nine of ten runs keep."""
    runs: Count
    """How many were timed."""
    threads: Count
    """Of the runtime."""
    batch: Count
    """Samples a run."""
    load_ms: Positive | None = None
    """Loading it in a fresh process."""
    resident_bytes: Count | None = None
    """What that process holds then."""
    added_bytes: Count | None = None
    """Of that, what loading added."""
    weight_bytes: Count | None = None
    """Of that, the weights, where native kernels count them."""


class LatencyPart(Section):
    """How fast it is on the host that compiled it, which is no device."""

    dense: LatencyRun | None
    """The dense file."""
    stock: LatencyRun | None
    """The artifact in stock onnxruntime."""
    kernels: LatencyRun | None
    """The artifact with native kernels."""
    host: str | None
    """Who measured."""
    onnxruntime: str | None
    """Its version."""


class ParityPart(Section):
    """Against the PyTorch network that holds the decoded weights."""

    relative_error: Annotated[float, Field(ge=0)] | None
    """The largest difference of an output, by the outputs' range."""
    top1_agreement: Fraction | None
    """Share of samples whose largest output is the same."""


class FirmwarePart(Section):
    """The C library of a microcontroller, in the folder ``firmware``."""

    flash_bytes: Count | None
    """.text, .rodata and .data of the linked image."""
    ram_bytes: Count | None
    """.data, .bss and stack of the linked image."""
    planned_ram_bytes: Count | None
    """Of these, what activations take."""
    stack_bytes: Count | None
    """Measured on the emulated board."""
    board: str | None
    """The emulated board."""
    inputs: Count
    """How many it ran."""
    tensors: Count
    """How many of each run were compared; all were equal: of int8 to onnxruntime, of fp32 to the
    C's reference, which is within a bound of onnxruntime.
    """
    activations: str = "int8"
    """Of which type its tensors are."""
    instructions: Count | None
    """Of one run, counted on the emulated board."""
    instructions_by_layer: Mapping[str, Count] | None
    """The same by layer."""
    estimated_cycles: tuple[Count, Count] | None = None
    """The fewest and the most, by what the core's manual says of instructions."""
    constant_bytes: Count
    """What the network's tables take."""
    calibration: str
    """How ranges of activations were found."""
    error: Positive
    """Mean squared error of the outputs, by their variance."""
    formats: Mapping[str, str]
    """How each layer's weights are stored."""
    sha256: str
    """The hash of the network that all of it is made from."""


class Record(Section):
    """The whole report."""

    schema_version: Literal[2] = 2
    """Of this page."""
    verdict: VerdictPart
    """The answer."""
    model: str
    """Its name: the stem of its file."""
    target: str
    """The device."""
    strategy: str
    """How it was pruned."""
    epochs: Count
    """How many were trained."""
    artifact: ArtifactPart
    """The file."""
    budget: BudgetPart
    """What it could weigh."""
    result: ResultPart
    """What was written."""
    metric: MetricPart
    """How good it is."""
    accuracy: AccuracyPart
    """The same, where the metric is accuracy."""
    latency: LatencyPart
    """How fast it is, on the host."""
    parity: ParityPart
    """How near it is to the PyTorch network."""
    environment: Mapping[str, str | int | float | bool | None]
    """Versions and processor."""
    command: str
    """What was run."""
    seed: int
    """Of everything random."""
    seconds: Positive
    """What the run took."""
    notes: tuple[str, ...] = ()
    """Sentences; one that begins with a field's path says why that is null."""
    recipe: Mapping[str, str | int | float | bool | None] = {}
    """How it was trained: the fields of the recipe and the options of the strategy."""
    cost_epochs: Positive = 0
    """What that cost, in epochs of one forward and backward pass a sample: steps that take two,
    and short trainings that chose between value types, count as what they take.
    """
    firmware: FirmwarePart | None = None
    """Of a microcontroller."""
    metadata: Mapping[str, str] = {}
    """What is to be known of the file, with the keys that it has there; ``preprocessing`` and
    ``classes`` are JSON.
    """
    left_out: tuple[str, ...] = ()
    """Keys of ``metadata`` that are not in the file, for want of room."""

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
        newer = _newer(text)
        if newer is not None:
            raise ArtifactError(
                f"{file} has schema_version {newer}, this hwprune reads up to {NEWEST_SCHEMA}",
                hint="use the hwprune that wrote it, or a newer one",
            ) from None
        raise ArtifactError(
            describe(error, str(file), "a report of hwprune"),
            hint="it may be cut off, or come from another version of hwprune",
        ) from None


def _newer(text: str) -> int | None:
    """Return the schema of a report that a later version wrote."""
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        version = found.get("schema_version") if isinstance(found, dict) else None
        if type(version) is int and version > NEWEST_SCHEMA:
            return version
    return None


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
