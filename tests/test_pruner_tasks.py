"""``hwprune.Pruner`` whatever the task: the file has its bytes and the metric that torch has."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import hwprune
from hwprune.tasks import METRICS

pytestmark = pytest.mark.usefixtures("no_memory_measured")

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class UNet(nn.Module):
    """Two scales, a skip connection, BN."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = block(1, 8), block(8, 16)
        self.deep, self.join = block(16, 16), block(24, 8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, 1, 16, 16) to (n, 3, 16, 16)."""
        fine = self.fine(x)
        coarse = self.deep(self.coarse(functional.max_pool2d(fine, 2)))
        up = functional.interpolate(coarse, scale_factor=2)
        return self.head(self.join(torch.cat([fine, up], 1)))


def block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def segmentation() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(0)
    row, column = np.mgrid[:16, :16]
    at = draw.integers(4, 12, (4, 256, 1, 1))
    disc = (row - at[0]) ** 2 + (column - at[1]) ** 2 < 10
    classes = np.where(np.maximum(abs(row - at[2]), abs(column - at[3])) < 3, 2, disc)
    images = (classes > 0)[:, None] + draw.normal(0, 0.2, (256, 1, 16, 16))
    return UNet(), torch.tensor(images, dtype=torch.float32), torch.tensor(classes)


def reconstruction() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().data / 16, dtype=torch.float32)[:512]
    return dense(64, 48, 12, 48, 64), images, images


def regression() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    inputs = torch.randn(512, 16)
    targets = torch.stack([inputs[:, :4].sum(1), inputs[:, 4] * inputs[:, 5]], 1)
    return dense(16, 64, 64, 2), inputs, targets


def multilabel() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    inputs = torch.randn(512, 16)
    return dense(16, 64, 64, 4), inputs, (inputs[:, :4] + inputs[:, 4:8] > 0).float()


class Symbols(nn.Module):
    """Convolutions along time, then (n, time, symbols)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(8, 48, 5, padding=2), nn.ReLU(), nn.Conv1d(48, 48, 5, padding=2), nn.ReLU()
        )
        self.head = nn.Linear(48, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, 8, time) to (n, time, 5)."""
        return self.head(self.body(x).transpose(1, 2))


def speech() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Five symbols a sample, each a pattern of 4 of 20 time steps."""
    labels = torch.randint(1, 5, (512, 5))
    patterns = torch.randn(5, 8)
    waves = patterns[labels].repeat_interleave(4, 1).transpose(1, 2)
    return Symbols(), waves + 0.3 * torch.randn(512, 8, 20), labels


def dense(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def ctc(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    count = len(outputs)
    return functional.ctc_loss(
        outputs.log_softmax(2).transpose(0, 1), labels, torch.full((count,), 20),
        torch.full((count,), 5),
    )  # fmt: skip


# Budget, values, what to train, the loss, the metric and what it reaches at least. Seed 0 of the
# autoencoder is the worst of eight: 0.258, of 0.189 to 0.258, mean 0.229. When masks changed at the
# beginning of a step it was 0.237, of 0.193 to 0.248, mean 0.230: another draw, no loss.
CASES: dict[str, tuple[int, str, Any, Loss, str, float]] = {
    "unet-int8": (5120, "int8", segmentation, functional.cross_entropy, "miou", 0.5),
    "unet-int4": (4608, "int4", segmentation, functional.cross_entropy, "miou", 0.5),
    "unet-codebook": (4608, "codebook16", segmentation, functional.cross_entropy, "miou", 0.5),
    "autoencoder": (5120, "int8", reconstruction, functional.mse_loss, "rmse", 0.27),
    "regression": (4096, "int8", regression, functional.mse_loss, "rmse", 1.0),
    "multilabel": (
        4096, "int8", multilabel, functional.binary_cross_entropy_with_logits, "auroc", 0.9,
    ),
    "ctc": (6144, "int8", speech, ctc, "cer", 0.5),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_task_has_its_bytes_and_its_metric(case: str, tmp_path: Path) -> None:
    budget, values, made, loss, name, reached = CASES[case]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs, targets = made()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        epochs = 20
        pruner = hwprune.Pruner(
            model, optimizer, target="raspberry-pi-zero-2w", budget=budget, values=values,
            example_input=inputs[:1], steps=epochs * len(inputs) // 64,
        )  # fmt: skip
        for _ in range(epochs):
            model.train()
            for batch in torch.randperm(len(inputs)).split(64):
                optimizer.zero_grad()
                loss(model(inputs[batch]), targets[batch]).backward()
                optimizer.step()
    metric, labels = METRICS[name], targets.numpy()

    def evaluate(session: Any) -> float:
        (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        return metric.value(metric.rows(found, labels))

    artifact = pruner.export(tmp_path / "out", evaluate=evaluate, metric=name)
    assert artifact.verdict.exit_code == 0
    assert 0.995 * budget <= artifact.bytes <= budget
    with torch.no_grad():
        expected = metric.value(metric.rows(model.eval()(inputs).numpy(), labels))
    assert abs(artifact.report["metric"]["final"] - expected) <= 1e-3
    assert metric.score(expected) >= metric.score(reached)
