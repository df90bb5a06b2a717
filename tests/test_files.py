"""Files that appear whole or not at all, also where two write one file at once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hwprune import files
from hwprune.files import lock, partial_of, read_ordinary, replacing


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(b"older")

    def fail() -> None:
        with replacing(path) as stream:
            stream.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == b"older"
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_what_a_kill_has_left_is_not_in_the_next_file(tmp_path: Path) -> None:
    (tmp_path / ".state.new").write_bytes(b"left by a kill")
    with replacing(tmp_path / "state") as stream:
        stream.write(b"new")
    assert (tmp_path / "state").read_bytes() == b"new"


def test_a_file_that_cannot_be_emptied_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that is kept, as a future keeps it, kept the file open: the next write waited."""

    def broken(*_: object) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write() -> None:
        with replacing(tmp_path / "sweep.json") as stream:
            stream.write(b"{}")

    with monkeypatch.context() as patch:
        patch.setattr("os.path.samestat", broken)
        with pytest.raises(OSError, match="Input/output") as kept:
            write()
    with partial_of(tmp_path / "sweep.json").open("ab") as stream:
        lock(stream.fileno(), wait=False)
    write()
    assert kept.value.errno == errno.EIO
    assert [each.name for each in tmp_path.iterdir()] == ["sweep.json"]


def test_of_two_writers_the_second_waits_and_wins(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    order: list[str] = []

    def second() -> None:
        with replacing(path) as stream:
            order.append("second")
            stream.write(b"bbbb")

    waiting = threading.Thread(target=second)
    with replacing(path) as stream:
        stream.write(b"aa")
        waiting.start()
        waiting.join(0.2)
        order.append("first")
        stream.write(b"aa")
    waiting.join()
    assert order == ["first", "second"]
    assert path.read_bytes() == b"bbbb"


def test_many_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"

    def write(number: int) -> None:
        with replacing(path) as stream:
            stream.write(b"%d " % number * 5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(100)))  # each call's error, if any, is raised here
    assert len(set(path.read_bytes().split())) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pipe", "not an ordinary file"),
        ("device", "not an ordinary file"),
        ("folder", "directory"),
        ("large", "larger than 1 MiB"),
        ("pointer", "Git LFS"),
        ("absent", "No such file"),
        ("loop", "symbolic links"),
    ],
)
def test_what_has_no_end_or_is_none_is_not_read(tmp_path: Path, kind: str, said: str) -> None:
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in ("device", "loop"):
        path.symlink_to("/dev/zero" if kind == "device" else path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "absent":
        path.write_bytes(
            bytes(2**20 + 1) if kind == "large" else b"version https://git-lfs.github.com/spec/v1"
        )
    with pytest.raises(OSError, match=said):
        read_ordinary(path, most=2**20)


def test_on_windows_the_first_byte_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []
    other = types.ModuleType("msvcrt")
    other.LK_LOCK, other.LK_NBLCK = 1, 2  # type: ignore[attr-defined]

    def locking(handle: int, how: int, count: int) -> None:
        asked.append((how, os.lseek(handle, 0, os.SEEK_CUR), count))

    other.locking = locking  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "msvcrt", other)
    monkeypatch.setattr(files.sys, "platform", "win32")
    with (tmp_path / "file").open("ab") as stream:
        stream.write(b"some")
        stream.flush()
        lock(stream.fileno(), wait=True)
        lock(stream.fileno(), wait=False)
    assert asked == [(1, 0, 1), (2, 0, 1)]


def test_nothing_that_windows_lacks_is_imported(tmp_path: Path) -> None:
    """The commands that need no torch, and what writes files, where POSIX's modules are not."""
    program = """
import os, signal, sys
import psutil, onnxruntime  # which have forms of their own there
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
del signal.SIGHUP, os.sched_getaffinity
import hwprune.sweep.run, hwprune.steps.output, hwprune.gate, hwprune.remote
from hwprune.cli.main import main
for words in (["--help"], ["targets", "show", "nrf52840"], ["check", "--help"], ["bench", "-h"]):
    assert main(words) == 0, words
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
