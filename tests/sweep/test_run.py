"""A sweep's runs: each once, what failed once more, what was done not again."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwprune.errors import OutputError, UsageError
from hwprune.sweep import Planned, grid, sweep
from hwprune.sweep.run import Processes, command, report_of

RUNS = grid(["net.pt"], {"--seed": ["0", "1", "2"]})


class Fake:
    """An engine that writes reports and returns the codes it is given."""

    def __init__(self, **codes: list[int]) -> None:
        self.codes = codes
        self.started: list[str] = []

    def __call__(self, run: Planned, folder: Path) -> int:
        self.started.append(run.name)
        codes = self.codes.get(run.name.rpartition("-")[2], [])
        code = codes.pop(0) if codes else 0
        if code in (0, 3):
            place = folder / "rejected" if code else folder
            place.mkdir(parents=True, exist_ok=True)
            (place / "report.json").write_text("{}")
        return code


def run_all(folder: Path, engine: Callable[[Planned, Path], int], **more: Any) -> list[int]:
    outcomes = sweep(RUNS, folder, engine, jobs=1, retries=1, say=lambda _: None, **more)
    assert [one.name for one in outcomes] == [run.name for run in RUNS]
    return [one.exit_code for one in outcomes]


def test_each_run_once_and_not_again(tmp_path: Path) -> None:
    first = Fake(seed1=[3], seed2=[4])
    assert run_all(tmp_path, first) == [0, 3, 4]
    assert len(first.started) == 3
    again = Fake()
    assert run_all(tmp_path, again) == [0, 3, 4]
    assert again.started == []
    (tmp_path / RUNS[0].name / "report.json").unlink()
    assert run_all(tmp_path, again) == [0, 3, 4]
    assert again.started == [RUNS[0].name]
    (tmp_path / RUNS[1].name / "rejected" / "report.json").unlink()
    missed = Fake(seed1=[3])
    assert run_all(tmp_path, missed) == [0, 3, 4]
    assert missed.started == [RUNS[1].name]


def test_a_crash_is_tried_again_and_told(tmp_path: Path) -> None:
    said: list[str] = []
    engine = Fake(seed0=[-9, 0], seed1=[1, 1], seed2=[2])
    outcomes = sweep(RUNS, tmp_path, engine, jobs=1, retries=1, say=said.append)
    assert [one.exit_code for one in outcomes] == [0, 1, 2]
    assert [one.attempts for one in outcomes] == [2, 2, 1]
    assert any("ended by signal 9; it is tried again" in line for line in said)
    assert any("exit code 1; see " in line for line in said)
    later = Fake()
    assert run_all(tmp_path, later) == [0, 0, 0]  # what failed, the crash and the bad input
    assert later.started == [RUNS[1].name, RUNS[2].name]


def test_runs_are_at_work_side_by_side(tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=60)

    def engine(run: Planned, folder: Path) -> int:
        together.wait()
        return 4

    outcomes = sweep(RUNS, tmp_path, engine, jobs=3, retries=0, say=print)
    assert [one.exit_code for one in outcomes] == [4, 4, 4]


def test_two_sweeps_do_not_share_a_folder(tmp_path: Path) -> None:
    with (tmp_path / ".sweep.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another sweep works in"):
            run_all(tmp_path, Fake())
    assert run_all(tmp_path, Fake()) == [0, 0, 0]


def test_a_folder_of_another_sweep(tmp_path: Path) -> None:
    run_all(tmp_path, Fake())
    for arguments in ((*RUNS[0].arguments, "--epochs", "1"), ("net.pt", "--seed", "7")):
        other = [Planned(RUNS[0].name, arguments)]
        with pytest.raises(UsageError, match=r"with other options: net\.pt --seed 0"):
            sweep(other, tmp_path, Fake(), jobs=1, retries=0, say=print)
    for text in ("{", "[]", '{"runs": [{"name": 1}]}'):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(UsageError, match="cannot be read"):
            run_all(tmp_path, Fake())


def test_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        run_all(tmp_path / "file" / "below", Fake())


def test_an_error_of_the_engine_ends_the_sweep_and_keeps_what_came_out(tmp_path: Path) -> None:
    def engine(run: Planned, folder: Path) -> int:
        if run is RUNS[1]:
            raise KeyboardInterrupt
        return 4

    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, engine)
    kept = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert kept[0]["name"] == RUNS[0].name


def test_processes_are_ended(tmp_path: Path) -> None:
    engine = Processes(threads=1)
    found: list[int] = []
    planned = Planned("net", ("gone.pt", "--target", "raspberry-pi-5"))
    worker = threading.Thread(target=lambda: found.append(engine(planned, tmp_path / "net")))
    worker.start()
    while not engine._running:
        time.sleep(0.01)
    engine.stop()
    worker.join(60)
    assert found[0] in (-15, 143)
    assert engine(planned, tmp_path / "net") == -2  # none is started after that


def test_the_command_and_the_report_of_a_run(tmp_path: Path) -> None:
    line = command(RUNS[0], tmp_path / "x")
    assert line[-6:] == ["net.pt", "--seed", "0", "--resume", "-o", str(tmp_path / "x")]
    assert report_of(tmp_path) is None
    (tmp_path / "rejected").mkdir()
    (tmp_path / "rejected" / "report.json").write_text("{}")
    assert report_of(tmp_path) == tmp_path / "rejected" / "report.json"
    (tmp_path / "report.json").write_text("{}")
    assert report_of(tmp_path) == tmp_path / "report.json"


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / f"{RUNS[0].name}.log").mkdir()
    with pytest.raises(OutputError, match=r"seed0\.log cannot be written: Is a directory"):
        run_all(tmp_path, Processes(threads=1))
