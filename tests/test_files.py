"""Files that appear whole or not at all, also where two write one file at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hwprune.files import replacing


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
