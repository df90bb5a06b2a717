"""``compile --resume``: what a kill -9 leaves is enough to end as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from e2e_tools import Ran, Runner, files_in

from hwprune.training.finetune import Run

pytestmark = pytest.mark.slow

WORDS = (
    "--target", "nrf52840", "--budget", "12KiB", "--data", "digits", "--values", "int8",
    "--no-firmware", "--epochs", "3", "--checkpoint-every", "0",
)  # fmt: skip


def words_with(*change: str) -> tuple[str, ...]:
    """Return the words with an option's value changed, or an option more."""
    place = WORDS.index(change[0]) if change and change[0] in WORDS else None
    return (*WORDS, *change) if place is None else (*WORDS[:place], *change, *WORDS[place + 2 :])


CHECKPOINT = Path(".resume") / "run.safetensors"
STEPS_PER_EPOCH = (1797 - 359 - 144) // 128

# The command line, in a process that is killed in the middle of its third epoch.
KILLED = f"""
import os, signal, sys
from hwprune.cli.main import main
from hwprune.training.finetune import Run
step, left = Run._step, [{2 * STEPS_PER_EPOCH + 5}]
def counted(*args):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*args)
Run._step = counted
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def whole(
    hwprune: Runner, digits_pt: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Ran]:
    """The folder of a run that nobody interrupted, and what it said."""
    out = tmp_path_factory.mktemp("whole") / "o"
    ran = hwprune("compile", digits_pt, *WORDS, "--resume", "-o", out)
    assert ran.code == 0, ran
    return out, ran


@pytest.fixture(scope="module")
def killed(digits_pt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a killed run leaves; it held an artifact before."""
    out = tmp_path_factory.mktemp("killed") / "o"
    out.mkdir()
    (out / ".hwprune").touch()
    (out / "model.onnx").write_bytes(b"of an earlier run")
    command = [sys.executable, "-c", KILLED, "compile", str(digits_pt), *WORDS, "-o", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return out


def course_of(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What happened when, without the seconds."""
    points = report["accuracy"]["trajectory"]
    return [(point["step"], point["action"], point["accuracy"]) for point in points]


def test_without_a_checkpoint_it_starts_and_says_so(whole: tuple[Path, Ran]) -> None:
    out, ran = whole
    assert "no checkpoint to resume from: starting from the beginning" in ran.err
    assert not (out / ".resume").exists()


def test_a_killed_run_ends_byte_for_byte_as_the_whole_one(
    hwprune: Runner, digits_pt: Path, whole: tuple[Path, Ran], killed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    shutil.copytree(killed, out)
    assert (out / CHECKPOINT).is_file()
    assert (out / "model.onnx").read_bytes() == b"of an earlier run"
    ran = hwprune("compile", digits_pt, *WORDS, "--resume", "-o", out)
    assert ran.code == 0, ran
    assert "continued after epoch 2 of 3, from a checkpoint" in ran.err
    for name in ("model.onnx", "checkpoint/weights.safetensors", "checkpoint/masks.safetensors"):
        assert (out / name).read_bytes() == (whole[0] / name).read_bytes(), name
    assert files_in(out) == files_in(whole[0])  # neither checkpoint nor staging is left
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (whole[0], out))
    assert second["artifact"] == first["artifact"]
    assert course_of(first) == course_of(second)
    assert "continued after epoch 2 of 3, from a checkpoint" in second["notes"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("--seed", "1"), "seed was 0 in the checkpoint, is 1 in this run"),
        (("--budget", "13KiB"), "the budget in bytes was 12288 in the checkpoint, is 13312"),
        (("--epochs", "4"), "recipe.epochs was 3 in the checkpoint, is 4 in this run"),
        (("--strategy", "one-shot"), "strategy was cubic"),
        (("--values", "fp16"), "values was int8 in the checkpoint, is fp16"),
        (("--target", "stm32f746"), "the target was nrf52840 in the checkpoint, is stm32f746"),
        (("--form", "inlined"), "the form was functions in the checkpoint, is inlined"),
        ((), "cannot be read: it was cut off"),
    ],
)
def test_another_run_and_a_damaged_checkpoint_are_refused(
    hwprune: Runner,
    digits_pt: Path,
    killed: Path,
    tmp_path: Path,
    change: tuple[str, ...],
    says: str,
) -> None:
    out = tmp_path / "o"
    shutil.copytree(killed, out)
    if not change:
        os.truncate(out / CHECKPOINT, 10_000)
    before = (out / CHECKPOINT).read_bytes()
    words = ("compile", digits_pt, *words_with(*change), "--resume", "-o", out)
    hwprune.refused(*words, says=[says, "--resume"])
    assert (out / CHECKPOINT).read_bytes() == before


def test_ctrl_c_keeps_the_checkpoint_which_only_restart_replaces(
    hwprune: Runner, digits_pt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "o", Run._step
    calls = iter(range(10_000))

    def step(*args: object) -> object:
        if next(calls) == STEPS_PER_EPOCH + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_step", step)
        stopped = hwprune.refused("compile", digits_pt, *WORDS, "-o", out, code=130)
    assert "repeat the command with --resume" in stopped.err
    assert files_in(out) == {".hwprune", str(CHECKPOINT)}
    words = ("compile", digits_pt, *words_with("--epochs", "1"), "--max-drop", "off", "-o", out)
    refused = hwprune.refused(*words, says=["interrupted", "--resume", "--restart"])
    assert refused.out == ""
    assert files_in(out) == {".hwprune", str(CHECKPOINT)}
    hwprune.refused(*words, "--resume", "--restart", says=["give one of them"])
    ran = hwprune(*words, "--restart")
    assert ran.code == 0
    assert not (out / ".resume").exists()


def test_a_device_that_is_not_here(hwprune: Runner, digits_pt: Path, tmp_path: Path) -> None:
    words = ("compile", digits_pt, *WORDS, "-o", tmp_path / "o", "--device")
    hwprune.refused(*words, "tpu", says=["there is no device 'tpu'", "cuda:N"])
    hwprune.refused(*words, "cuda:99", says=["device cuda:99"])
    assert not (tmp_path / "o").exists()
