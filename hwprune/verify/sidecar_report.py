"""The report.json that may lie beside an artifact: what it promised about the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from hwprune.errors import ArtifactError
from hwprune.export.artifact import ArtifactFile
from hwprune.files import read_ordinary

REPORT_NAME = "report.json"
NEWEST_SCHEMA = 2


@dataclass(frozen=True, slots=True)
class SidecarReport:
    """A report that speaks of a file of this name, in the same folder.

    Attributes:
        record: the report as it was read.
        bytes: the size it promises.
        sha256: the hash it promises.
        packed_layers: how many layers it says are packed sparse.
    """

    record: Mapping[str, Any]
    bytes: int | None
    sha256: str | None
    packed_layers: int

    def matches(self, artifact: ArtifactFile) -> bool:
        """Return whether the report was written for exactly this file."""
        return self.sha256 == artifact.sha256

    def differences(self, artifact: ArtifactFile) -> str:
        """Return in words how the file differs from what the report promises."""
        if self.matches(artifact):
            return ""
        parts = []
        if self.packed_layers > (now := len(artifact.layers)):
            parts.append(f"{self.packed_layers} layers were packed, {now or 'none'} of them is now")
        if self.bytes != artifact.bytes:
            parts.append(
                f"it had {self.bytes:,} B, it has {artifact.bytes:,} B" if self.bytes else ""
            )
        parts.append(f"its sha256 was {(self.sha256 or '?')[:12]}, it is {artifact.sha256[:12]}")
        return "; ".join(part for part in parts if part)


def find(path: str, sha256: str) -> SidecarReport | None:
    """Return the report beside a file, None where there is none that speaks of it.

    It speaks of a file by name, or, where the file was renamed, by its hash. A field that is not
    what a report has there counts as absent.

    Raises:
        ArtifactError: there is one, and it cannot be read, or a newer hwprune wrote it: what it
            promises is not known.
    """
    file = Path(path)
    try:
        record = load(file.parent / REPORT_NAME)
    except (FileNotFoundError, NotADirectoryError):
        return None
    artifact = record.get("artifact")
    if not isinstance(artifact, dict) or not isinstance(artifact.get("path"), str):
        return None
    promised = artifact.get("sha256")
    if Path(artifact["path"]).name != file.name and promised != sha256:
        return None
    refuse_newer(record, file.parent / REPORT_NAME)
    result = record.get("result")
    layers = result.get("layers") if isinstance(result, dict) else None
    size = artifact.get("bytes")
    return SidecarReport(
        record=record,
        bytes=size if is_size(size) else None,
        sha256=promised if isinstance(promised, str) else None,
        packed_layers=sum(
            isinstance(layer, dict) and layer.get("codec") not in (None, "dense")
            for layer in (layers if isinstance(layers, list) else [])
        ),
    )


def load(place: Path) -> Mapping[str, Any]:
    """Return the JSON object of a report, empty where it is something else.

    Raises:
        FileNotFoundError, NotADirectoryError: it is not there.
        ArtifactError: it cannot be read, or is not JSON.
    """
    try:
        record = json.loads(read_ordinary(place, most=64 << 20).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise ArtifactError(
            f"{place} cannot be read: {reason}",
            hint="make it readable, or take it away where it is not the report of this file",
        ) from None
    return record if isinstance(record, dict) else {}


def refuse_newer(record: Mapping[str, Any], place: Path) -> None:
    """Refuse a report whose fields may mean something else.

    Raises:
        ArtifactError: it is of a schema that is not known here.
    """
    version = record.get("schema_version", NEWEST_SCHEMA)
    if not isinstance(version, int) or version > NEWEST_SCHEMA:
        raise ArtifactError(
            f"{place} has schema_version {json.dumps(version)[:20]}, this hwprune reads up to "
            f"{NEWEST_SCHEMA}",
            hint="use the hwprune that wrote it, or a newer one",
        )


def is_size(value: Any) -> TypeGuard[int]:
    """Return whether a value is a number of bytes that a file can have."""
    return type(value) is int and 0 <= value < 2**63
