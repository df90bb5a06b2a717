"""TOML files that people write: device profiles, recipes, what a gate checks."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from hwprune.errors import HwpruneError
from hwprune.files import POINTER, is_pointer

# By name: tomli is installed on Python 3.10 only, and a type checker would ask for it anywhere.
_toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

_LARGEST_BYTES = 1 << 20  # what people write is a page of text
_MOST_PARTS = 64


def read(path: Path, what: str, error: type[HwpruneError], *, hint: str) -> dict[str, Any]:
    """Return what a TOML file holds, whatever it turns out to be.

    Args:
        path: the file.
        what: what is expected in it, for messages: "a device profile".
        error: what is raised.
        hint: what to do where there is no such file, or nothing in it.

    Raises:
        HwpruneError: of the class ``error``: it is absent, no file, empty, too large, not UTF-8 or
            not TOML.
    """
    try:
        if not path.exists():
            raise error(f"{path} does not exist; expected {what}", hint=hint)
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise error(f"{path} is {kind}; expected a TOML file with {what}")
        with path.open("rb") as file:
            raw = file.read(_LARGEST_BYTES + 1)
    except (OSError, ValueError) as problem:  # ValueError: a NUL inside the path
        reason = getattr(problem, "strerror", None) or str(problem)
        raise error(f"{str(path)!r} cannot be read: {reason}", hint=hint) from None
    if is_pointer(raw):
        raise error(f"{path}: {POINTER}")
    if not raw.strip():
        raise error(f"{path} is empty; expected {what}", hint=hint)
    if len(raw) > _LARGEST_BYTES or b"\0" in raw:
        raise error(f"{path} is not a text file of at most 1 MiB; expected TOML with {what}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(
            f"{path}: byte {problem.start} is not UTF-8; expected TOML, which is UTF-8 text",
            hint="save the file as UTF-8",
        ) from None
    # Its reader takes a key's parts squared, in time and memory.
    if any(line.partition("=")[0].count(".") > _MOST_PARTS for line in text.splitlines()):
        raise error(f"{path} is not TOML that people write: a key of more than {_MOST_PARTS} parts")
    try:
        table: dict[str, Any] = _toml.loads(text)
    except (ValueError, RecursionError) as problem:
        reason = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        raise error(
            f"{path} is not TOML: {reason}", hint="https://toml.io shows the syntax"
        ) from None
    return table
