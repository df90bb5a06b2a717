"""benchmarks/results/NAME.json: one row per configuration and seed, written as they are measured.

A benchmark can be stopped and started again: rows that are there are kept, a row that is measured
anew takes the place of the old one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
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


class Row(BaseModel):
    """One configuration with one seed; further fields are the benchmark's own measurements."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    config: dict[str, JsonValue]
    seed: int
    status: Literal["run", "not-run"]
    cost: Cost | None
    accuracy: float | None = Field(ge=0, le=1, default=None)

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
    """The whole file; ``experiment`` is its stem."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = 1
    experiment: str
    rows: tuple[Row, ...]
    environment: Mapping[str, str | int | float | bool | None]
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
    row: Row | Mapping[str, Any],
    *,
    environment: Mapping[str, Any],
    command: str,
) -> BenchRecord:
    """Put a row into a record (a new one where there is none) and write it, whole or not at all.

    A measured row is never replaced by one that was not run.

    Raises:
        InputError: what is there is not a benchmark record, or the row is not one.
        OutputError: the folder cannot be written.
    """
    file = Path(path)
    try:
        new = row if isinstance(row, Row) else Row.model_validate(dict(row))
    except ValidationError as error:
        raise InputError(describe(error, str(file), "given a valid row")) from None
    old = read(file)
    rows = {each.key: each for each in (old.rows if old is not None else ())}
    if new.status == "run" or new.key not in rows or rows[new.key].status == "not-run":
        rows[new.key] = new
    record = BenchRecord(
        experiment=file.stem, rows=tuple(rows.values()), environment=environment, command=command
    )
    write_text(record.model_dump_json(indent=2) + "\n", file)
    return record
