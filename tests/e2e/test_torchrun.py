"""``torchrun -m hwprune.cli compile``: one of the processes speaks, all end alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from e2e_tools import WRITTEN, files_in

from hwprune.training.precision import choose

pytestmark = pytest.mark.slow

WORDS = (
    "--target", "nrf52840", "--budget", "12KiB", "--data", "digits", "--values", "int8",
    "--no-firmware", "--max-drop", "off", "--epochs", "1", "--device", "cpu",
)  # fmt: skip


def torchrun(*words: object, logs: Path) -> tuple[int, list[str], list[str], list[int]]:
    """Run a command in two processes: torchrun's code, what each said, and each one's exit code."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--redirects", "3", "--log-dir", str(logs), "-m", "hwprune.cli", *map(str, words),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    texts: dict[str, list[str]] = {}
    for name in ("stdout", "stderr"):
        found = sorted(logs.rglob(f"{name}.log"), key=lambda path: path.parent.name)
        texts[name] = [path.read_text() for path in found]
    codes = [int(line.split(":")[1].split("(")[0]) for line in ended.stderr.splitlines()
             if line.strip().startswith("exitcode")]  # fmt: skip
    return ended.returncode, texts["stdout"], texts["stderr"], codes


def test_two_processes_compile_one_network(digits_pt: Path, tmp_path: Path) -> None:
    words = ("compile", digits_pt, *WORDS, "--json", "-o", tmp_path / "o")
    code, out, err, _ = torchrun(*words, logs=tmp_path / "logs")
    assert code == 0, err
    assert json.loads(out[0])["verdict"]["verified"] is True
    assert "train" in err[0]
    assert (out[1], err[1]) == ("", "")
    assert files_in(tmp_path / "o") == WRITTEN
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    arithmetic = choose("auto", "cpu")
    assert f"trained in {arithmetic} on cpu, by 2 processes" in report["notes"]
    assert report["budget"]["used_bytes"] <= 12 * 1024


def test_what_only_the_first_can_find_out_ends_both(digits_pt: Path, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "thesis.tex").write_text("years of work")
    words = ("compile", digits_pt, *WORDS, "-o", tmp_path / "o")
    code, out, err, codes = torchrun(*words, logs=tmp_path / "logs")
    assert code != 0
    # torchrun ends what is left when the first has gone: both were on their way out then.
    assert 2 in codes
    assert set(codes) <= {2, -15, 143}
    assert "hwprune did not write it" in err[0]
    assert (out[1], err[1]) == ("", "")
    assert files_in(tmp_path / "o") == {"thesis.tex"}
