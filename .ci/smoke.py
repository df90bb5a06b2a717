"""What has to work with every supported Python and release of what hwprune needs.

    python .ci/smoke.py

`.ci/versions` runs it in environments of the oldest and the newest releases. It trains nothing: a
small network is planned, compiled, checked, measured, and run with and without the kernels.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SAID = ("numpy", "onnx", "onnxruntime", "pydantic", "click", "rich", "torch", "torchvision",
        "onnxscript", "onnx-ir", "scipy", "scikit-learn", "pillow", "safetensors")  # fmt: skip


def hwprune(*words: str, expected: int = 0) -> str:
    """Run the command line in a process of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "hwprune.cli", *words], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == expected, f"hwprune {' '.join(words)}: {done.returncode}\n{said}"
    assert "Traceback" not in said, said
    return said


def main() -> None:
    """Run each part in a temporary folder."""
    print(f"Python {platform.python_version()},", ", ".join(f"{n} {version(n)}" for n in SAID))
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        import torch

        sys.path.insert(0, str(ROOT))
        sys.path.insert(0, str(ROOT / "examples"))
        from train_digits import train

        torch.save(train(epochs=1, seed=0).state_dict(), "digits.pt")
        hwprune("plan", "digits.pt", "--target", "jetson-nano", "--json")
        compiled = ("--data", "digits", "--epochs", "0", "--max-drop", "off")
        hwprune("compile", "digits.pt", "--target", "raspberry-pi-5", *compiled,
                "--budget", "14KiB", "--values", "int8", "-o", "out")  # fmt: skip
        hwprune("check", "out/model.onnx", "--require", "size<=14KiB")
        hwprune("inspect", "out/model.onnx")
        hwprune("report", "out")
        hwprune("targets")
        hwprune("bench", "out/model.onnx", "--runs", "3")
        import onnxruntime as ort

        import hwprune as library

        feeds = {"x": np.random.default_rng(0).random((2, 1, 8, 8), np.float32)}
        stock = ort.InferenceSession("out/model.onnx", providers=["CPUExecutionProvider"])
        name = stock.get_inputs()[0].name
        (plain,) = stock.run(None, {name: feeds["x"]})
        (ours,) = library.session("out/model.onnx").run(None, {name: feeds["x"]})
        assert np.abs(plain - ours).max() <= 1e-4 * np.abs(plain).max()
        exported = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        library.compile(exported, target="jetson-nano", epochs=0, budget="2KiB",
                        example_input=torch.zeros(1, 1, 8, 8), output="two")  # fmt: skip
    print("all of it works")


if __name__ == "__main__":
    main()
