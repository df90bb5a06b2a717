"""hwprune.toml: which artifacts a repository ships, and what each is held to.

    [[artifact]]
    path = "models/keywords"    # a file, a folder, or a pattern: models/*/model.onnx
    target = "raspberry-pi-zero-2w"
    require = ["size<=64KiB", "accuracy>=91%"]
    baseline = "released/keywords"
    may_worsen = { size = "1KiB", accuracy = "0.5%" }

Paths are relative to the file's own folder. Raising a limit is an edit of a committed file.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwprune import toml
from hwprune.errors import HwpruneError, UsageError
from hwprune.targets import Target, load
from hwprune.verify.baseline import parse_allowances
from hwprune.verify.firmware import FIRMWARE_NAME, is_firmware
from hwprune.verify.limits import Limit, parse_limit

NAME = "hwprune.toml"
_HINT = "docs/ci.md has a complete example"
# A run's own name for a file that missed a limit: kept to be looked at, never shipped.
_REJECTED = "rejected.onnx"


@dataclass(frozen=True, slots=True)
class Gated:
    """One artifact and what it is held to.

    Attributes:
        path: the file.
        target: the device, None for none.
        limits: limits on it.
        baseline: what it is compared with: a file or folder; None for nothing.
        may_worsen: by how much a field may be worse than the baseline's, in the field's unit.
    """

    path: str
    target: Target | None = None
    limits: tuple[Limit, ...] = ()
    baseline: str | None = None
    may_worsen: Mapping[str, float] = field(default_factory=dict)


def read(path: str | os.PathLike[str]) -> list[Gated]:
    """Read a gate file.

    Raises:
        UsageError: it is absent or not valid (the entry, what stands there and what is expected are
            named), or an entry names nothing that is there.
    """
    file = Path(path)
    table = toml.read(file, "the artifacts to check", UsageError, hint=_HINT)
    entries = table.pop("artifact", [])
    if table:
        raise _wrong(file, f"{_listed(table)}: expected [[artifact]] entries only")
    if not isinstance(entries, list) or not entries or not all(map(_is_table, entries)):
        raise _wrong(file, "expected one or more [[artifact]] entries")
    gated = [
        one
        for number, entry in enumerate(entries, 1)
        for one in _entry(entry, file.parent, f"{file}, artifact {number}")
    ]
    paths = [os.path.realpath(one.path) for one in gated]
    twice = next((one.path for one in gated if paths.count(os.path.realpath(one.path)) > 1), None)
    if twice is not None:
        raise _wrong(file, f"{twice} belongs to two entries; expected one for each artifact")
    return gated


def files_of(path: str) -> list[str]:
    """Return the artifacts that a path stands for: itself, or those in a folder.

    A run's folder stands for its model.onnx and its firmware, a firmware folder for itself, any
    other one for all .onnx files below it.

    Raises:
        UsageError: a folder without one.
    """
    folder = Path(path)
    if not folder.is_dir():
        return [path]
    if is_firmware(path):
        return [path]
    if (folder / "model.onnx").is_file():
        parts = [str(folder / "model.onnx"), str(folder / FIRMWARE_NAME)]
        return [part for part in parts if part.endswith(".onnx") or is_firmware(part)]
    found = sorted(str(file) for file in folder.rglob("*.onnx") if file.name != _REJECTED)
    if not found:
        raise UsageError(
            f"there is no .onnx file in the folder {path}",
            hint="give an artifact, or the output folder of `hwprune compile`",
        )
    return found


def _entry(entry: Mapping[str, Any], folder: Path, where: str) -> list[Gated]:
    try:
        return _artifacts(dict(entry), folder)
    except HwpruneError as error:
        raise UsageError(f"{where}: {error.message}", hint=error.hint or _HINT) from None


def _artifacts(left: dict[str, Any], folder: Path) -> list[Gated]:
    pattern = _text(left, "path")
    if pattern is None:
        raise UsageError("path is missing; expected a file, a folder or a pattern")
    target, baseline = _text(left, "target"), _text(left, "baseline")
    require = left.pop("require", [])
    texts = [require] if isinstance(require, str) else require
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"require = {require!r}: expected limits, such as ['size<=64KiB']")
    limits = tuple(parse_limit(text) for text in texts)
    may_worsen = parse_allowances(left.pop("may_worsen", {}))
    if may_worsen and baseline is None:
        raise UsageError("may_worsen without a baseline; expected baseline = a file or a folder")
    if left:
        known = "path, target, require, baseline, may_worsen"
        raise UsageError(f"{_listed(left)}: expected {known}")
    return [
        Gated(
            path=os.path.relpath(path),
            target=None if target is None else load(_beside(target, folder)),
            limits=limits,
            baseline=None if baseline is None else str(folder / baseline),
            may_worsen=may_worsen,
        )
        for path in _matches(pattern, folder)
    ]


def _matches(pattern: str, folder: Path) -> Sequence[str]:
    exact = folder / pattern
    if exact.exists():
        return files_of(str(exact))
    found = sorted(glob.glob(pattern, root_dir=folder, recursive=True))
    if not found:
        what = "matches nothing" if glob.has_magic(pattern) else "is not there"
        raise UsageError(
            f"path = {pattern!r} {what} in {folder.resolve()}",
            hint="a gate that checks nothing passes for ever: mend the path or take the entry out",
        )
    return [file for name in found for file in files_of(str(folder / name))]


def _beside(target: str, folder: Path) -> str:
    """Return a target's name, or the path of its profile, which is relative to the gate file."""
    return str(folder / target) if target.endswith(".toml") else target


def _text(entry: dict[str, Any], name: str) -> str | None:
    value = entry.pop(name, None)
    if value is not None and (not isinstance(value, str) or not value):
        raise UsageError(f"{name} = {value!r}: expected a text")
    return value


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _listed(table: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, list(table)[:5])) + (" ..." if len(table) > 5 else "")


def _wrong(file: Path, message: str) -> UsageError:
    return UsageError(f"{file}: {message}", hint=_HINT)
