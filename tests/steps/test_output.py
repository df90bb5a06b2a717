"""output: whose folder it is, one writer at a time, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from hwprune.errors import OutputError
from hwprune.steps.output import MARKER, OutputFolder, opened, write_file


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def _write_half(folder: OutputFolder) -> None:
    write_file(folder.staging / "model.onnx", b"half")
    raise RuntimeError


def test_a_new_folder_is_made_with_its_parents_and_marked(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with opened(path) as folder:
        write_file(folder.staging / "model.onnx", b"new")
        assert not (path / "model.onnx").exists()
        folder.publish("model.onnx", "not made")
    assert _names(path) == {MARKER, "model.onnx"}
    assert (path / "model.onnx").read_bytes() == b"new"


def test_foreign_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with (
        pytest.raises(OutputError, match="not empty and hwprune did not write it") as caught,
        opened(tmp_path),
    ):
        pass
    assert caught.value.exit_code == 2
    assert _names(tmp_path) == {"thesis.tex"}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        write_file(folder.staging / "model.onnx", b"1")
        folder.publish("model.onnx")
    assert "model.onnx" in _names(tmp_path)


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("x")
    with pytest.raises(OutputError, match="is a file"), opened(path):
        pass
    with pytest.raises(OutputError), opened(path / "below"):
        pass


def test_old_files_stay_until_they_are_replaced(tmp_path: Path) -> None:
    with opened(tmp_path / "o") as folder:
        write_file(folder.staging / "model.onnx", b"old")
        folder.publish("model.onnx")
    with pytest.raises(RuntimeError), opened(tmp_path / "o") as folder:
        _write_half(folder)
    assert (tmp_path / "o" / "model.onnx").read_bytes() == b"old"
    with opened(tmp_path / "o") as folder:
        write_file(folder.staging / "model.onnx", b"new")
        assert (tmp_path / "o" / "model.onnx").read_bytes() == b"old"
        folder.publish("model.onnx")
    assert (tmp_path / "o" / "model.onnx").read_bytes() == b"new"
    assert _names(tmp_path / "o") == {MARKER, "model.onnx"}


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with opened(tmp_path / "o") as folder:
            (folder.staging / "checkpoint").mkdir()
            write_file(folder.staging / "checkpoint" / content, content.encode())
            folder.publish("checkpoint")
    assert _names(tmp_path / "o" / "checkpoint") == {"new"}


def _stage(folder: OutputFolder, content: str) -> None:
    (folder.staging / "checkpoint").mkdir()
    write_file(folder.staging / "checkpoint" / "weights", content.encode())
    for name in ("model.onnx", "report.json"):
        write_file(folder.staging / name, content.encode())


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_stops_half_way_is_undone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: bool,
    step: int,
    error: type[BaseException],
) -> None:
    path, names = tmp_path / "o", ("model.onnx", "checkpoint", "report.json")
    with opened(path) as folder:
        _stage(folder, "old")
        folder.publish(*names if there else ())
    before = {name: name.read_bytes() for name in path.rglob("*") if name.is_file()}
    real, calls = os.replace, iter(range(100))

    def replace(*paths: Path) -> None:
        if next(calls) == step:
            raise error("stopped")
        real(*paths)

    monkeypatch.setattr("hwprune.steps.output.os.replace", replace)
    stopped = (OutputError, KeyboardInterrupt)
    if step == 3 and not there:  # nothing to set aside: three steps, and none is stopped
        stopped = ()
    with pytest.raises(stopped) if stopped else nullcontext(), opened(path) as folder:
        _stage(folder, "new")
        folder.publish(*names)
    after = {name: name.read_bytes() for name in path.rglob("*") if name.is_file()}
    assert (after == before) == bool(stopped)


def test_a_run_that_fails_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), opened(tmp_path / "a" / "b"):
        raise RuntimeError
    assert _names(tmp_path) == set()


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "o"
    with opened(path) as folder:
        write_file(folder.staging / "model.onnx", b"first")
        with pytest.raises(OutputError, match="another hwprune is writing"), opened(path):
            pass
        assert (folder.staging / "model.onnx").exists()
        folder.publish("model.onnx")
    assert (path / "model.onnx").read_bytes() == b"first"


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib\n"
        "from hwprune.steps.output import opened, write_file\n"
        "with opened(pathlib.Path(sys.argv[1])) as folder:\n"
        "    write_file(folder.staging / 'model.onnx', b'half')\n"
        "    os._exit(9)\n"
    )
    path = tmp_path / "o"
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=60)
    assert done.returncode == 9
    assert any(name.startswith(".staging-") for name in _names(path))
    with opened(path) as folder:
        assert [name for name in _names(path) if name.startswith(".staging-")] == [
            folder.staging.name
        ]
    assert not (path / "model.onnx").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "locked"
    path.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot be written"), opened(path / "o"):
        pass


def test_where_nobody_can_write_is_refused() -> None:
    with pytest.raises(OutputError, match="cannot be written"), opened(Path("/proc/hwprune")):
        pass


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OutputError, match="cannot be written"):
        write_file(full, b"x" * 10)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_anywhere_in_a_run_is_said(tmp_path: Path, number: int) -> None:
    path = tmp_path / "out"
    error = OSError(number, os.strerror(number))  # as a write says it: of no file
    with pytest.raises(OutputError, match=f"out cannot be written: {error.strerror}"), opened(path):
        raise error
    assert not path.exists()


def test_files_below_that_are_gone_are_said_and_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(OutputError, match="x cannot be written: No such file"), opened(path) as out:
        (out.staging / "a" / "x").write_bytes(b"")
    with pytest.raises(FileNotFoundError), opened(path):
        (tmp_path / "x").read_bytes()


@pytest.mark.parametrize("left_by_a_kill", [False, True])
def test_staging_is_taken_away_where_the_disk_fails_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_by_a_kill: bool
) -> None:
    real, calls = os.rmdir, iter(range(10))

    def fails_once(*args: Any, **options: Any) -> None:
        if next(calls) == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(*args, **options)

    path = tmp_path / "out"
    with opened(path) as folder:
        (folder.staging / "model.onnx").write_bytes(b"x")
        folder.publish("model.onnx")
        if not left_by_a_kill:
            monkeypatch.setattr("os.rmdir", fails_once)
    if left_by_a_kill:
        (path / ".staging-killed").mkdir()
        monkeypatch.setattr("os.rmdir", fails_once)
        with opened(path):
            pass
    assert _names(path) == {MARKER, "model.onnx"}
