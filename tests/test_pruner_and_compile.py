"""One engine, two loops: in the same recipe a Pruner takes the very steps of ``compile``."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import hwprune
from hwprune.frontend import load_data
from hwprune.training import Recipe
from hwprune.training.batches import Batches, augment, epoch_order, steps_per_epoch
from hwprune.training.module_state import place
from hwprune.training.optimizer import sgd

OPTIONS: dict[str, Any] = {
    "target": "raspberry-pi-zero-2w", "budget": 6144, "values": "int8", "strategy": "cubic",
}  # fmt: skip


def watch(optimizer: torch.optim.Optimizer, seen: list[list[torch.Tensor]]) -> Any:
    """Let a list hold the parameters after each step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.register_step_post_hook(
        lambda *_: seen.append([p.detach().clone() for p in parameters])
    )
    return optimizer


def test_it_takes_the_steps_of_compile_until_masks_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the first change leads to the same masks: compile prunes before a step's forward pass.

    A Pruner does after it, when the gradients of the caller's loop are there.
    """
    data = load_data("digits", seed=0)
    recipe = Recipe(epochs=1, batch_size=32, precision="fp32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(24, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip
    compiled: list[list[torch.Tensor]] = []
    finetune = sys.modules["hwprune.training.finetune"]
    monkeypatch.setattr(finetune, "sgd", lambda *given: watch(sgd(*given), compiled))
    hwprune.compile(
        dense, data=data, output=tmp_path / "out", device="cpu", **OPTIONS,
        recipe={"epochs": 1, "batch_size": 32, "precision": "fp32"},
    )  # fmt: skip

    model, teacher = copy.deepcopy(dense), dense.eval()
    for each in (model, teacher):
        place(each, "cpu", channels_last=True)
    batches = Batches(data.train, device="cpu", resident_bytes=2**30, channels_last=True)
    steps = steps_per_epoch(batches.size, 32)
    ours: list[list[torch.Tensor]] = []
    optimizer = sgd(model, recipe)
    pruner = hwprune.Pruner(
        model, optimizer, example_input=torch.zeros(1, 1, 8, 8), steps=steps, **OPTIONS
    )
    watch(optimizer, ours)
    first = pruner._engine.pending[0][0]
    generator = torch.Generator().manual_seed(0)
    for step, batch in enumerate(batches.take(epoch_order(batches.size, 32, generator))):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step / steps)
        batch = augment(batch, data.augment, generator)
        optimizer.zero_grad()
        logits = model(*batch.inputs)
        with torch.no_grad():
            wanted = functional.log_softmax(teacher(*batch.inputs) / 3.0, dim=1)
        soft = functional.log_softmax(logits / 3.0, dim=1)
        far = functional.kl_div(soft, wanted, reduction="batchmean", log_target=True)
        (0.5 * functional.cross_entropy(logits, batch.labels) + 0.5 * (9.0 * far)).backward()
        optimizer.step()
    assert len(ours) == len(compiled) == steps
    assert 0 < first < steps
    for step in range(first):
        assert all(torch.equal(a, b) for a, b in zip(ours[step], compiled[step], strict=True))
    pruned = 0
    for mine, other in zip(ours[first], compiled[first], strict=True):
        assert torch.equal(mine == 0, other == 0)
        pruned += int((mine == 0).sum())
    assert pruned > 0
    assert np.isfinite(float(ours[-1][0].sum()))
