"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_LFS_POINTER = b"version https://git-lfs."
POINTER = "it is a Git LFS pointer, run git lfs pull"


def is_pointer(head: bytes) -> bool:
    """Return whether a file that begins so only stands for one that Git LFS holds."""
    return head.startswith(_LFS_POINTER)


def read_ordinary(path: Path, *, most: int) -> bytes:
    """Return what an ordinary file of at most ``most`` bytes holds.

    A pipe would be waited for, a device has no end, and a Git LFS pointer stands for another file.

    Raises:
        OSError: it is none, or cannot be read; ``strerror`` says why.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is not an ordinary file")
    with path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most >> 20:,} MiB")
        content = stream.read()
    if is_pointer(content[:64]):
        raise OSError(errno.EINVAL, POINTER)
    return content


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
            if os.name == "nt":  # which renames no file that is open
                stream.close()
            os.replace(partial, path)  # before another writer may go on
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
    if os.name == "nt":  # which opens no folder
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def lock(handle: int, *, wait: bool) -> None:
    """Hold an open file until it is closed: no other process that asks for it gets it meanwhile.

    Raises:
        OSError: another one has it; where that is to be waited for, on Windows only, after 10 s.
    """
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 0, os.SEEK_SET)  # its locks are of bytes: the first, for everybody
        msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _opened_alone(path: Path) -> BinaryIO:
    """Return the file, empty; another process that writes it, too, is waited for."""
    while True:
        stream = path.open("ab")
        try:
            lock(stream.fileno(), wait=True)
            with suppress(FileNotFoundError):  # whoever was waited for has given it its name
                if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                    stream.truncate(0)
                    return stream
        except BaseException:  # which may be kept, and with it a file that nobody else could open
            stream.close()
            raise
        stream.close()
