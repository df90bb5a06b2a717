"""What callbacks do by themselves: no trainer has to be installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import hwprune
from hwprune.integrations.ultralytics import YoloPruner


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Our own file, on a stand-in for Lightning that has a base class and nothing else."""
    stand_in = ModuleType("lightning.pytorch")
    stand_in.Callback = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", stand_in)
    place = Path(hwprune.__file__).parent / "integrations" / "lightning.py"
    spec = importlib.util.spec_from_file_location("our_lightning", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_second_training_takes_the_place_of_the_first(lightning: Any) -> None:
    network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    callback = lightning.PrunerCallback(
        target="raspberry-pi-zero-2w", budget=3072, values="int8", example_input=torch.zeros(1, 16)
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = SimpleNamespace(estimated_stepping_batches=40, optimizers=[optimizer])
    callback.on_train_start(trainer, network)
    first = callback.pruner
    callback.on_train_start(trainer, network)
    network(torch.ones(2, 16)).sum().backward()
    optimizer.step()
    assert (first.step, callback.pruner.step) == (0, 1)


def test_progress_never_falls_where_an_epoch_is_gone_through_once_more() -> None:
    callbacks = YoloPruner({})
    trainer = SimpleNamespace(epoch=1, epochs=4, train_loader=range(10))
    callbacks._trainer = trainer
    for _ in range(5):
        callbacks.on_train_batch_end(trainer)
    assert callbacks._progress() == 1.5 / 4
    callbacks.on_train_epoch_start(trainer)  # the same epoch anew
    assert callbacks._progress() == 1.5 / 4
    trainer.epochs = 5  # and more of them
    assert callbacks._progress() == 1.5 / 4
    trainer.epoch = 6
    assert callbacks._progress() == 1.0
