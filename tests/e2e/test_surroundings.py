"""What a run lives in: memory, shared memory, folders of others, disks that are read alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from e2e_tools import Runner, snapshot

TARGET = ("--target", "jetson-nano")
TRAINED = ("--data", "digits", "--epochs", "1", "--max-drop", "off", "--values", "int8")
INTERPOSE = Path(__file__).resolve().parents[1] / "faults" / "interpose.c"


def in_a_process(
    script: str, *words: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_memory_that_runs_out_leaves_the_older_artifact(digits_pt: Path, tmp_path: Path) -> None:
    """The limit is drawn once the libraries are loaded: some wait for ever where they cannot be."""
    script = """
import resource, sys
import hwprune.training.finetune, sklearn.datasets, onnxruntime
from hwprune.cli.main import main
words = ["compile", *sys.argv[1:], "--budget"]
assert main([*words, "12KiB"]) == 0
taken = 1024 * int(open("/proc/self/status").read().partition("VmSize:")[2].split()[0])
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**20, taken + 2**20))
import numpy, hwprune.frontend.sources.arrays as arrays
real = arrays.read_digits
def read(*given):
    numpy.ones(2**27)  # as a data set that is too large
    return real(*given)
for module in list(sys.modules.values()):
    if getattr(module, "read_digits", None) is real:
        module.read_digits = read
sys.exit(main([*words, "11KiB"]))
"""
    ran = in_a_process(script, digits_pt, *TARGET, *TRAINED, "-o", tmp_path / "o")
    assert ran.returncode == 2, ran.stderr
    assert "error: memory ran out: this process had taken" in ran.stderr
    assert "batch_size" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert f'"bytes": {12 * 1024}' in (tmp_path / "o" / "report.json").read_text(encoding="utf-8")
    assert not [*(tmp_path / "o").glob(".staging-*")]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to build what interposes")
def test_a_run_needs_no_shared_memory(digits_pt: Path, tmp_path: Path) -> None:
    """A small /dev/shm, as containers have it: each request that would write there fails.

    Libraries make some: joblib tries out whether there are locks.
    """
    library = tmp_path / "interpose.so"
    build = ["gcc", "-shared", "-fPIC", str(INTERPOSE), "-o", str(library), "-ldl"]
    subprocess.run(build, check=True)
    script = """
import ctypes, sys
from hwprune.cli.main import main
library = ctypes.CDLL(None)
library.fault_arm(b"/dev/shm", 2, ctypes.c_long(1))
sys.exit(main(["compile", *sys.argv[1:]]))
"""
    words = (digits_pt, *TARGET, *TRAINED, "--budget", "12KiB", "-o", tmp_path / "o")
    ran = in_a_process(script, *words, LD_PRELOAD=str(library))
    assert ran.returncode == 0, ran.stderr


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder that belongs to another user, who keeps it to himself, with a file in it."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root, and setpriv, to be somebody else")
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("model.onnx", "data.npz", "net.py"):
        (folder / name).write_bytes(b"x")
    (folder / "images").mkdir()
    for path in (folder, folder / "images"):
        os.chown(path, 65534, 65534)
        path.chmod(0o700)
    return folder


PERMITTED = ("--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")


@pytest.mark.parametrize(
    "words",
    [
        ("check", "THEIRS/model.onnx"),
        ("inspect", "THEIRS/model.onnx"),
        ("report", "THEIRS"),
        ("targets", "check", "THEIRS/profile.toml"),
        ("sweep", "MODEL", "--target", "jetson-nano", "--budget", "12KiB", "-o", "THEIRS/o"),
        *(
            pytest.param(words, marks=pytest.mark.slow)
            for words in (
                ("compile", "MODEL", *TARGET, "--budget", "12KiB", "-o", "THEIRS"),
                ("compile", "MODEL", *TARGET, "--budget", "12KiB", "--data", "npz:THEIRS/data.npz"),
                ("compile", "MODEL", *TARGET, "--budget", "9KiB", "--data", "imagefolder:THEIRS"),
                ("plan", "THEIRS/model.onnx", *TARGET, "--budget", "12KiB"),
                ("plan", "MODEL", "--arch", "THEIRS/net.py:net", *TARGET, "--budget", "12KiB"),
            )
        ),
    ],
)
def test_what_belongs_to_another_user(
    digits_pt: Path, theirs: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    places = {"MODEL": str(digits_pt)}
    given = [places.get(word, word).replace("THEIRS", str(theirs)) for word in words]
    output = ["-o", str(tmp_path / "o")] if words[0] == "compile" and "-o" not in words else []
    before = snapshot(theirs)
    ran = subprocess.run(
        ["setpriv", *PERMITTED, sys.executable, "-m", "hwprune", *given, *output],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert "ermission denied" in ran.stderr or "not readable" in ran.stderr
    assert "internal error" not in ran.stderr
    assert "Traceback" not in ran.stderr
    assert snapshot(theirs) == before


@pytest.mark.slow
def test_a_disk_that_can_only_be_read(hwprune: Runner, digits_pt: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "hwprune-test", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        words = ("compile", digits_pt, *TARGET, "--budget", "12KiB", "-o", disk / "o")
        assert hwprune(*words).code == 0
        before = snapshot(disk)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        hwprune.refused(*words, says=["cannot be written: Read-only file system"])
        hwprune.refused("sweep", *words[1:], says=["cannot be written: Read-only file system"])
        assert hwprune("check", disk / "o").code == 0
        assert snapshot(disk) == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_folder_that_somebody_puts_in_place_of_it(
    hwprune: Runner, digits_pt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwprune import compiler

    out, real = tmp_path / "o", compiler.pack_model

    def pack(*args: Any, **given: Any) -> Any:
        shutil.rmtree(out)
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")
        return real(*args, **given)

    monkeypatch.setattr(compiler, "pack_model", pack)
    words = ("compile", digits_pt, *TARGET, "--budget", "12KiB", "-o", out)
    hwprune.refused(*words, says=["cannot be written"])
    assert snapshot(out) == {"thesis.tex": b"years of work"}
