"""A task file whose metric is an object of torchmetrics, as it comes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hwprune
from hwprune.cli.main import main
from hwprune.frontend import load_data
from hwprune.frontend.task_file import load_task

pytest.importorskip("torchmetrics", reason="make integrations installs torchmetrics")

TASK = """
import torch
import torchmetrics


def loss(outputs, batch):
    return torch.nn.functional.mse_loss(outputs, batch.labels)


metric = torchmetrics.MeanSquaredError(squared=False)
"""


def test_a_metric_of_torchmetrics_is_used_as_it_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its direction, too; over the whole split, and in ``check``."""
    draw = np.random.default_rng(0)
    x = draw.random((300, 8), np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=x[:, :2])
    (tmp_path / "task.py").write_text(TASK)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                            nn.Linear(64, 2))  # fmt: skip
    task, data = str(tmp_path / "task.py"), f"npz:{tmp_path / 'data.npz'}?normalize=none"
    artifact = hwprune.compile(
        network, target="raspberry-pi-5", budget=4096, values="int8", epochs=1, task=task,
        data=data, output=tmp_path / "out", device="cpu", require=["metric<=99"],
    )  # fmt: skip
    found = artifact.report["metric"]
    assert (found["name"], found["higher_is_better"]) == ("meansquarederror", False)
    split = load_data(data, task=load_task(task)).test
    images, labels = split.batch(np.arange(len(split)))[0], split.labels
    session = hwprune.session(artifact.path)
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images})
    assert found["final"] == pytest.approx(np.sqrt(np.square(outputs - labels).mean()), rel=1e-4)
    capsys.readouterr()
    limit = f"metric<={found['final'] + 1e-6}"
    code = main(["check", artifact.path, "--task", task, "--data", data, "--require", limit,
                 "--json"])  # fmt: skip
    assert code == 0, json.loads(capsys.readouterr().out)
