"""What a run computes follows from what it was asked, not from how busy the machine is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# What is measured of this machine, and where the run was told to write.
MEASURED = {
    "seconds", "p50_ms", "p90_ms", "load_ms", "resident_bytes", "added_bytes", "command",
}  # fmt: skip
COMPILE = "import sys; from hwprune.cli.main import main; sys.exit(main(sys.argv[1:]))"
ENVIRONMENTS = (
    {"OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "2"},
    {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
     "HWPRUNE_SIMD": "avx2"},
)  # fmt: skip
# Masks of a Pruner of weights that its loop does not change, so that they follow from magnitudes.
MASKS = """
import torch, hwprune
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(2, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3),
                    nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
pruner = hwprune.Pruner(net, optimizer, target="raspberry-pi-zero-2w", budget=8000, steps=4,
                        example_input=torch.zeros(1, 2, 16, 16), values="int8")
for _ in range(4):
    optimizer.zero_grad()
    net(torch.randn(64, 2, 16, 16)).square().mean().backward()
    optimizer.step()
assert pruner.finished
for name, mask in pruner.masks.by_name.items():
    print(name, mask.flatten().nonzero()[0].tolist())
"""
BUSY = "while True: sum(range(10_000))"


def asked_only(value: Any) -> Any:
    """A report without what was measured of the machine."""
    if isinstance(value, dict):
        return {key: asked_only(part) for key, part in value.items() if key not in MEASURED}
    return [asked_only(part) for part in value] if isinstance(value, list) else value


def compiled(model: Path, folder: Path, **environment: str) -> tuple[bytes, dict[str, Any]]:
    """The file and the report of the command line in a process of its own."""
    folder.mkdir()
    temporary = folder / "temporary"
    temporary.mkdir()
    words = (
        "compile", model, "--target", "jetson-nano", "--data", "digits", "--budget", "12KiB",
        "--epochs", "2", "--max-drop", "off", "-o", folder / "out",
    )  # fmt: skip
    command = [sys.executable, "-c", COMPILE, *map(str, words)]
    subprocess.run(
        command,
        env={**os.environ, **environment, "TMPDIR": str(temporary)},
        check=True,
        capture_output=True,
    )
    report = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    return (folder / "out" / "model.onnx").read_bytes(), asked_only(report)


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes(digits_pt: Path, tmp_path: Path) -> None:
    first = compiled(digits_pt, tmp_path / "idle", LC_ALL="C.UTF-8", PYTHONHASHSEED="1")
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
    try:
        other = tmp_path / "another folder"
        second = compiled(digits_pt, other, LC_ALL="tr_TR.UTF-8", PYTHONHASHSEED="2")
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert first[0] == second[0]
    assert first[1] == second[1]
    assert first[1]["accuracy"]["trajectory"]


@pytest.mark.slow
def test_neither_threads_nor_instruction_sets_change_a_plan(digits_pt: Path) -> None:
    """Magnitudes are compared, never sums of products: as many weights of each layer fit."""
    found = set()
    for environment in ENVIRONMENTS:
        words = "plan", str(digits_pt), "--target", "jetson-nano", "--budget", "12KiB", "--json"
        ran = subprocess.run(
            [sys.executable, "-c", COMPILE, *words], env={**os.environ, **environment}, check=True,
            capture_output=True,
        )  # fmt: skip
        found.add(ran.stdout)
    assert b"layers" in ran.stdout
    assert len(found) == 1


@pytest.mark.slow
def test_neither_threads_nor_instruction_sets_change_masks_by_magnitude() -> None:
    found = set()
    for environment in ENVIRONMENTS:
        ran = subprocess.run(
            [sys.executable, "-c", MASKS], env={**os.environ, **environment}, check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        found.add(ran.stdout)
    assert ran.stdout.count("weight [") == 3
    assert len(found) == 1
