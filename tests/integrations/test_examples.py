"""The examples of docs/loop.md, run as they are printed; each adds eight lines at most."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hwprune

ROOT = Path(__file__).parents[2]
# The heading that an example stands below, by what it shows.
HEADINGS = {
    "plain": "# Your own loop",
    "unet": "### A U-Net, held to its mIoU",
    "ultralytics": "### YOLO, in the trainer of ultralytics",
    "transformers": "### Hugging Face's Trainer",
    "lightning": "### Lightning",
    "processes": "### Several processes",
}


def example(name: str) -> str:
    page = (ROOT / "docs" / "loop.md").read_text()
    found = re.search(r"```python\n(.*?)```", page[page.index(HEADINGS[name] + "\n") :], re.DOTALL)
    assert found is not None
    return found[1]


def run(name: str) -> dict[str, Any]:
    """Run an example in this process and return its names."""
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(compile(example(name), "docs/loop.md", "exec"), names)
    return names


def check(artifact: hwprune.Artifact, budget: int) -> None:
    assert artifact.verdict.exit_code == 0
    assert 0.995 * budget <= artifact.bytes <= budget


@pytest.mark.parametrize("name", HEADINGS)
def test_an_example_adds_eight_lines_at_most(name: str) -> None:
    added = set[int]()
    for node in ast.walk(ast.parse(example(name))):
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign)) and re.search(
            r"hwprune|pruner|Pruner|pruned", ast.unparse(node)
        ):
            added |= set(range(node.lineno, (node.end_lineno or 0) + 1))
        elif isinstance(node, ast.If):
            added.add(node.lineno)  # the one that exports
        elif isinstance(node, ast.FunctionDef) and node.name == "evaluate":
            added |= {node.lineno, node.lineno + 1}
    assert 3 <= len(added) <= 8


def test_the_plain_example() -> None:
    names = run("plain")
    check(names["artifact"], 6144)
    session = hwprune.session(names["artifact"].path)
    inputs, targets = names["inputs"], names["targets"]
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    error = np.square(found - targets.numpy()).mean() / np.square(targets.numpy()).mean()
    assert error < 0.2  # it has learnt something


def test_the_unet() -> None:
    names = run("unet")
    check(names["artifact"], 5120)
    found = names["artifact"].report["metric"]
    with torch.no_grad():
        scores = names["model"].eval()(torch.from_numpy(names["test_images"])).numpy()
    assert abs(found["final"] - names["miou"](scores, names["test_classes"])) <= 1e-3
    assert [limit.met for limit in names["artifact"].verdict.limits] == [True]


@pytest.mark.slow
def test_several_processes(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(example("processes"))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "train.py"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["verdict"]["exit_code"] == 0
    assert 0.995 * 6144 <= report["artifact"]["bytes"] <= 6144


def accuracy(artifact: hwprune.Artifact, names: dict[str, Any]) -> float:
    session = hwprune.session(artifact.path)
    (found,) = session.run(None, {session.get_inputs()[0].name: names["images"].numpy()})
    return float((found.argmax(1) == names["digits"].target).mean())


def test_transformers() -> None:
    pytest.importorskip("transformers", reason="make integrations installs transformers")
    names = run("transformers")
    check(names["artifact"], 20_480)
    assert accuracy(names["artifact"], names) > 0.5


def test_lightning() -> None:
    pytest.importorskip("lightning.pytorch", reason="make integrations installs Lightning")
    names = run("lightning")
    check(names["artifact"], 6144)
    assert accuracy(names["artifact"], names) > 0.8


@pytest.mark.usefixtures("squares")
def test_ultralytics() -> None:
    names = run("ultralytics")
    check(names["artifact"], 600 * 1024)
