"""Runs that are stopped: by the user, by the system, by the power cut that SIGKILL stands for."""

from __future__ import annotations

import os
import pkgutil
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from e2e_tools import Runner, files_in, snapshot

pytestmark = pytest.mark.slow

SHORT = ("--target", "nrf52840", "--budget", "12KiB")
TRAIN = ("--data", "digits", "--epochs", "2", "--values", "int8")


def kill_self_at(
    monkeypatch: pytest.MonkeyPatch, owner: str, number: signal.Signals, *, call: int = 1
) -> None:
    """Let the function ``owner`` send this process a signal when it is called for the n-th time."""
    module, _, name = owner.rpartition(".")
    holder: Any = pkgutil.resolve_name(module)
    real = getattr(holder, name)
    calls = iter(range(1, 10_000))

    def at(*args: Any, **options: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return real(*args, **options)

    monkeypatch.setattr(holder, name, at)


STAGES = {
    "training": ("hwprune.training.finetune.Run._step", 15),
    "packing": ("hwprune.compiler.pack_model", 1),
    "writing": ("hwprune.compiler.write_file", 1),
    "reporting": ("hwprune.compiler.write_reports", 1),
}


@pytest.fixture(scope="module")
def finished(hwprune: Runner, digits_pt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that went well."""
    out = tmp_path_factory.mktemp("finished") / "o"
    assert hwprune("compile", digits_pt, *SHORT, "-o", out).code == 0
    return out


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    ids=["ctrl-c", "sigterm"],
)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_run_changes_nothing(
    hwprune: Runner,
    digits_pt: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    number: signal.Signals,
    code: int,
    word: str,
) -> None:
    words = ("compile", digits_pt, *SHORT)
    shutil.copytree(finished, tmp_path / "old")
    more = TRAIN if stage == "training" else ()
    old, new = tmp_path / "old", tmp_path / "deep" / "new"
    before = snapshot(tmp_path)
    for out in (old, new):
        with monkeypatch.context() as patch:
            owner, call = STAGES[stage]
            kill_self_at(patch, owner, number, call=call)
            ran = hwprune.refused(*words, *more, "-o", out, code=code, says=[word])
            assert ran.out == ""
        assert snapshot(tmp_path) == before
    assert not new.parent.exists()


@contextmanager
def training(digits_pt: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that has begun to train, and would go on for minutes."""
    command = [sys.executable, "-m", "hwprune.cli", "compile", str(digits_pt), *SHORT]
    command += ["--data", "digits", "--values", "int8", "--epochs", "9999", "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.strip().startswith("train"):
                break
        else:
            pytest.fail("it ended before it trained")
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_on_a_process(digits_pt: Path, tmp_path: Path) -> None:
    with training(digits_pt, tmp_path / "o") as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not (tmp_path / "o").exists()


def test_two_at_once_and_then_a_power_cut(hwprune: Runner, digits_pt: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    words = ("compile", digits_pt, *SHORT, "-o", out)
    with training(digits_pt, out) as process:
        staged = [path for path in out.iterdir() if path.name.startswith(".staging-")]
        assert len(staged) == 1
        hwprune.refused(*words, says=["another hwprune is writing"])
        assert staged[0].exists()  # the second run took nothing away from the first
        process.kill()
        process.wait(timeout=60)
    assert staged[0].exists()
    assert not (out / "model.onnx").exists()
    assert hwprune(*words).code == 0
    assert not staged[0].exists()
    assert {"model.onnx", "report.json", "report.html"} <= files_in(out)


def test_an_empty_folder_of_the_user_stays_empty(
    hwprune: Runner, digits_pt: Path, tmp_path: Path
) -> None:
    words = ("compile", digits_pt, "--target", "nrf52840", "-o", tmp_path, "--budget")
    hwprune.refused(*words, "1", code=4)
    assert os.listdir(tmp_path) == []
    assert hwprune(*words, "12KiB").code == 0


def test_a_folder_that_is_taken_away_meanwhile(
    hwprune: Runner, digits_pt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwprune import compiler

    real = compiler.pack_model

    def pack(*args: Any, **given: Any) -> Any:
        shutil.rmtree(tmp_path / "o")
        return real(*args, **given)

    monkeypatch.setattr(compiler, "pack_model", pack)
    words = ("compile", digits_pt, *SHORT, "-o", tmp_path / "o")
    hwprune.refused(*words, says=["cannot be written"])
