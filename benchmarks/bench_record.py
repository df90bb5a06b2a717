"""benchmarks/results/NAME.json: one row per configuration and seed, written as they are measured.

A benchmark can be stopped and started again: rows that are there are kept, a row that is measured
anew takes the place of the old one. Processes that write the same record wait for each other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from hwprune.errors import InputError
from hwprune.report.record import describe, write_text


class Cost(BaseModel):
    """What a row cost."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: float = Field(ge=0)
    seconds: float = Field(ge=0)


Surroundings = Mapping[str, str | int | float | bool | None]
"""Versions, processor, memory: what a result depends on."""


class Row(BaseModel):
    """One configuration with one seed; further fields are the benchmark's own measurements.

    ``environment`` and ``hwprune`` (the version and the commit, or a digest of the code) are those
    of the moment when the row was measured; null in rows of builds that did not write them down.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    config: dict[str, JsonValue]
    seed: int
    status: Literal["run", "not-run"]
    cost: Cost | None
    accuracy: float | None = Field(ge=0, le=1, default=None)
    environment: Surroundings | None = None
    hwprune: str | None = None

    @model_validator(mode="after")
    def _run_has_cost(self) -> Row:
        if self.status == "run" and self.cost is None:
            raise ValueError("a row that was run says what it cost")
        return self

    @property
    def key(self) -> str:
        """Return what makes a row the same row: its configuration and seed."""
        return json.dumps([self.config, self.seed], sort_keys=True)


class BenchRecord(BaseModel):
    """The whole file; ``experiment`` is its stem, ``environment`` that of its last measured row."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = 1
    experiment: str
    rows: tuple[Row, ...]
    environment: Surroundings
    command: str

    def row(self, config: Mapping[str, Any], seed: int) -> Row | None:
        """Return the row of a configuration and seed, None where it was never run."""
        wanted = json.dumps([config, seed], sort_keys=True)
        found = (row for row in self.rows if row.key == wanted and row.status == "run")
        return next(found, None)


def read(path: str | os.PathLike[str]) -> BenchRecord | None:
    """Read a record; None where there is none yet.

    Raises:
        InputError: it is there and not a benchmark record of this version.
    """
    file = Path(path)
    if not file.exists():
        return None
    try:
        record = BenchRecord.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise InputError(
            describe(error, str(file), "a benchmark record"), hint="move it away to start afresh"
        ) from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    if record.experiment != file.stem:
        raise InputError(f"{file} is the record of {record.experiment!r}, expected {file.stem!r}")
    return record


def update(
    path: str | os.PathLike[str],
    row: Row | Mapping[str, Any] | Iterable[Row | Mapping[str, Any]],
    *,
    environment: Mapping[str, Any],
    command: str,
) -> BenchRecord:
    """Put a row, or several, into a record and write it, whole or not at all.

    A record is made where there is none. A measured row is never replaced by one that was not run,
    and rows that were not run leave the record's environment as it is.

    Raises:
        InputError: what is there is not a benchmark record, or a row is not one.
        OutputError: the folder cannot be written.
    """
    file = Path(path)
    given = [row] if isinstance(row, (Row, Mapping)) else list(row)
    try:
        new = [each if isinstance(each, Row) else Row.model_validate(dict(each)) for each in given]
    except ValidationError as error:
        raise InputError(describe(error, str(file), "given a valid row")) from None
    with _alone(file):
        old = read(file)
        rows = {each.key: each for each in (old.rows if old is not None else ())}
        for each in new:
            there = rows.get(each.key)
            if each.status == "run" or there is None or there.status == "not-run":
                rows[each.key] = each
        measured = any(each.status == "run" for each in new)
        record = BenchRecord(
            experiment=file.stem,
            rows=tuple(rows.values()),
            environment=environment if old is None or measured else old.environment,
            command=command,
        )
        write_text(record.model_dump_json(indent=2) + "\n", file)
    return record


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Let no other process that writes into the same folder in between reading and writing.

    The folder itself is locked: nothing is left lying beside the record. Where the system knows no
    such locks (Windows, some network file systems), nothing is locked.
    """
    descriptor = None
    with suppress(ImportError, OSError):
        import fcntl

        descriptor = os.open(file.parent, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)  # which unlocks it
