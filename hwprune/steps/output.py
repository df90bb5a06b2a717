"""The output folder: whose it is, one writer at a time, files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hwprune.errors import OutputError
from hwprune.files import lock

# The file that says "hwprune wrote this folder"; it is also the lock.
MARKER = ".hwprune"
_STAGING_PREFIX = ".staging-"
# What a write says that a disk refuses; it may name no file.
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class OutputFolder:
    """A folder that hwprune owns for the length of a run. Made by ``opened``.

    Attributes:
        path: the folder.
        staging: a folder inside it for what is not verified yet; gone afterwards.
    """

    def __init__(self, path: Path, staging: Path) -> None:
        """Take the two folders; use ``opened``."""
        self.path, self.staging = path, staging

    def publish(self, *names: str) -> None:
        """Move files (or folders) from staging into place, each in one step, in this order.

        Where that fails or is interrupted, what was there before comes back. A power cut may leave
        new files beside old ones: so a report, which holds the model's hash, goes after the model.
        """
        with ExitStack() as undo:
            for name in names:
                source, destination = self.staging / name, self.path / name
                if not source.exists():
                    continue
                retired = self.staging / f"{name}.retired"
                if destination.exists():
                    undo.callback(_bring_back, retired, destination)
                else:
                    undo.callback(_remove, destination)
                with _as_output_error(destination):
                    if destination.is_dir():
                        os.replace(destination, retired)
                    elif destination.exists():
                        with suppress(OSError):  # not every file system has hard links
                            os.link(destination, retired)
                    os.replace(source, destination)
            undo.pop_all()

    def set_apart(self, folder: str, *names: str) -> Path:
        """Move files (or folders) from staging into a folder of their own, in one step."""
        apart = self.staging / folder
        apart.mkdir()
        for name in names:
            if (self.staging / name).exists():
                os.replace(self.staging / name, apart / name)
        self.publish(folder)
        return self.path / folder

    def discard(self, *names: str) -> None:
        """Remove files and folders of an earlier run that this one made obsolete."""
        for name in names:
            _remove(self.path / name)


def _remove(path: Path) -> None:
    if path.is_dir():
        for _ in range(2):  # a disk that fails once may work again
            shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _bring_back(retired: Path, destination: Path) -> None:
    """Undo one step of publishing, as far as it went."""
    with suppress(OSError):
        if retired.is_dir():
            _remove(destination)
        if retired.exists():
            os.replace(retired, destination)


@contextmanager
def opened(path: Path) -> Iterator[OutputFolder]:
    """Open an output folder for one run.

    A folder that is new, empty or of our own making is taken; its old files stay until ``publish``
    replaces them.  What was made here and is still empty at the end is removed again.

    Raises:
        OutputError: it is a file, holds somebody else's files, cannot be written, or another run
            has it.
    """
    made: list[Path] = []
    new_marker = False
    with _as_output_error(path):
        existed = path.exists()
        if existed and not path.is_dir():
            raise OutputError(f"{path} is a file", hint="give a folder with -o")
        if existed and not (path / MARKER).exists() and any(path.iterdir()):
            raise OutputError(
                f"{path} is not empty and hwprune did not write it",
                hint="give another folder with -o, or move its files away",
            )
        missing = [parent for parent in (path, *path.parents) if not parent.exists()]
        path.mkdir(parents=True, exist_ok=True)
        made, new_marker = missing, not (path / MARKER).exists()
        handle = os.open(path / MARKER, os.O_RDWR | os.O_CREAT, 0o644)
    staging: Path | None = None
    try:
        try:
            lock(handle, wait=False)
        except OSError:
            made, new_marker = [], False
            raise _busy(path) from None
        if not _same_file(handle, path / MARKER):  # it was removed by a run that just ended
            made, new_marker = [], False
            raise _busy(path)
        for leftover in path.glob(f"{_STAGING_PREFIX}*"):  # of a run that was killed
            _remove(leftover)
        with _as_output_error(path):
            staging = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=path))
        with _as_output_error(path, only_its_own=True):
            yield OutputFolder(path, staging)
    finally:
        if staging is not None:
            with suppress(OSError):
                _remove(staging)
        # Somebody else may have put a file there meanwhile, or taken the folder away.
        with suppress(OSError):
            if new_marker and {entry.name for entry in path.iterdir()} <= {MARKER}:
                (path / MARKER).unlink(missing_ok=True)
                for folder in made:
                    folder.rmdir()
        os.close(handle)


def _busy(path: Path) -> OutputError:
    return OutputError(
        f"another hwprune is writing {path}", hint="wait for it, or give another folder with -o"
    )


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


@contextmanager
def _as_output_error(path: Path, *, only_its_own: bool = False) -> Iterator[None]:
    """Say what cannot be written; ``only_its_own``: of errors of a disk, or of files below it."""
    try:
        yield
    except OSError as error:
        shown = path
        if only_its_own:
            shown = Path(os.fsdecode(error.filename or path))
            if error.errno not in _OF_DISKS and path not in shown.parents:
                raise
        raise OutputError(
            f"{shown} cannot be written: {error.strerror or error}",
            hint="check permissions and free space, or give another folder with -o",
        ) from None


def write_file(path: Path, data: bytes) -> None:
    """Write a file and see it reach the disk.

    Raises:
        OutputError: no space, no permission.
    """
    with _as_output_error(path), path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
