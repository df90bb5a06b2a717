"""Files that appear whole or not at all, also where two write one file at once."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hwprune.files import read_ordinary, replacing


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
