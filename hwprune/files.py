"""Files that appear whole or not at all."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def partial_of(path: Path) -> Path:
    """Return where a file is written: always there, so that what a kill left is overwritten."""
    return path.with_name(f".{path.name}.new")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that takes the name ``path`` when it is whole and on the disk.

    What was there stays until then, and where anything goes wrong. What is no ordinary file, such
    as a pipe or /dev/null, is written to as it is.

    Raises:
        OSError: no space, no permission.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            yield stream
        return
    partial = partial_of(path)
    with _opened_alone(partial) as stream:
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(partial, path)  # before another writer may go on
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _opened_alone(path: Path) -> BinaryIO:
    """Return the file, empty; another process that writes it, too, is waited for."""
    while True:
        stream = path.open("ab")
        fcntl.flock(stream, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):  # whoever was waited for has given it its name
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                stream.truncate(0)
                return stream
        stream.close()
