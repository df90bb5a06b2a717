"""One engine, two loops: in the same recipe a Pruner writes the very file of ``compile``."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

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

pytestmark = pytest.mark.usefixtures("no_memory_measured")

# Neither asks for a gradient of the whole network, which compile takes of batches of its own.
STRATEGIES: dict[str, dict[str, Any]] = {
    "cubic": {},
    "bidirectional": {"prune_steps": 8, "exchanges": 6},
}


def watch(optimizer: torch.optim.Optimizer, seen: list[list[torch.Tensor]]) -> Any:
    """Let a list hold gradients and master weights as each step finds them, and what it leaves."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def before(*_: Any) -> None:
        seen.append([t.detach().clone() for p in parameters for t in (p, p.grad)])

    def after(*_: Any) -> None:
        momentum = [optimizer.state[p]["momentum_buffer"] for p in parameters]
        seen.append([t.detach().clone() for t in (*parameters, *momentum)])

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer


@pytest.mark.parametrize(("values", "budget"), [("int8", 6144), ("fp32", 9216)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_in_the_same_recipe_the_file_is_the_same(
    strategy: str, values: str, budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte; and so are weights, gradients and momentum, to the bit, at every step."""
    data = load_data("digits", seed=0)
    changed: dict[str, Any] = {"epochs": 1, "batch_size": 32, "precision": "fp32"}
    asked: dict[str, Any] = {
        "target": "raspberry-pi-zero-2w", "values": values, "budget": budget,
    }  # fmt: skip
    recipe, options = Recipe(**changed), STRATEGIES[strategy]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(24, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip
    compiled: list[list[torch.Tensor]] = []
    finetune = sys.modules["hwprune.training.finetune"]
    monkeypatch.setattr(finetune, "sgd", lambda *given: watch(sgd(*given), compiled))
    theirs = hwprune.compile(
        dense, data=data, output=tmp_path / "theirs", device="cpu", max_drop="off", **asked,
        recipe={**changed, "strategy": {"name": strategy, **options}},
    )  # fmt: skip

    model, teacher = copy.deepcopy(dense), dense.eval()
    for each in (model, teacher):
        place(each, "cpu", channels_last=True)
    batches = Batches(data.train, device="cpu", resident_bytes=2**30, channels_last=True)
    steps = steps_per_epoch(batches.size, 32)
    ours: list[list[torch.Tensor]] = []
    optimizer = watch(sgd(model, recipe), ours)
    pruner = hwprune.Pruner(
        model, optimizer, example_input=torch.zeros(1, 1, 8, 8), steps=steps, strategy=strategy,
        data=data, **asked, **options,
    )  # fmt: skip
    pruner.begin()
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
    assert len(ours) == len(compiled) == 2 * steps
    for number, (mine, other) in enumerate(zip(ours, compiled, strict=True)):
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True)), number
    artifact = pruner.export(tmp_path / "ours")
    assert artifact.verdict.exit_code == theirs.verdict.exit_code == 0
    assert Path(artifact.path).read_bytes() == Path(theirs.path).read_bytes()
