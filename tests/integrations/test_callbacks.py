"""What callbacks do by themselves: no trainer has to be installed."""

from __future__ import annotations

import importlib.util
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import UsageError
from hwprune.integrations.ultralytics import YoloPruner
from hwprune.training.statefile import read_state


def ours(name: str, monkeypatch: pytest.MonkeyPatch, *stand_ins: ModuleType) -> Any:
    """Return our own file, on stand-ins for its library that have a base class and little else."""
    for each in stand_ins:
        monkeypatch.setitem(sys.modules, each.__name__, each)
    place = Path(hwprune.__file__).parent / "integrations" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"our_{name}", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_second_training_takes_the_place_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("lightning.pytorch")
    stand_in.Callback = object  # type: ignore[attr-defined]
    lightning = ours("lightning", monkeypatch, ModuleType("lightning"), stand_in)
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


class Loader:
    """What ultralytics draws from."""

    generator = torch.Generator()

    def reset(self) -> None:
        """Begin anew with the next epoch."""


def in_transformers(folder: Path, state: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what saves a state in the Trainer's checkpoint, and where it goes."""
    stand_in = ModuleType("transformers")
    for name in ("TrainerControl", "TrainerState", "TrainingArguments", "TrainerCallback"):
        setattr(stand_in, name, object)
    module = ours("transformers", monkeypatch, stand_in)
    (folder / "checkpoint-7").mkdir()
    callback = module.PrunerCallback()
    callback.pruner = SimpleNamespace(state_dict=lambda: state)
    run = SimpleNamespace(global_step=7, is_world_process_zero=True)
    place = folder / "checkpoint-7" / module.STATE_NAME
    return place, lambda: callback.on_save(SimpleNamespace(output_dir=folder), run, None)


def in_ultralytics(folder: Path, state: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    network = nn.Linear(4, 4)
    trainer = SimpleNamespace(
        wdir=folder, epoch=2, train_loader=Loader(), model=network, start_epoch=3,
        ema=SimpleNamespace(ema=network), optimizer=torch.optim.AdamW(network.parameters()),
    )  # fmt: skip
    callbacks = YoloPruner({})
    callbacks._trainer = trainer
    callbacks.pruner = SimpleNamespace(state_dict=lambda: state)  # type: ignore[assignment]
    return folder / "hwprune.state", lambda: callbacks.on_model_save(trainer)


@pytest.mark.parametrize("made", [in_transformers, in_ultralytics])
def test_a_write_that_fails_leaves_the_state_that_was_there(
    made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state: dict[str, Any] = {"step": 1}
    place, save = made(tmp_path, state, monkeypatch)
    save()
    before = place.read_bytes()
    state |= {"step": 2, "masters": torch.zeros(100_000)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, limits[1]))  # as on a disk that is full
    try:
        with pytest.raises(OSError, match="File too large"):
            save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert place.read_bytes() == before
    assert [each.name for each in place.parent.iterdir()] == [place.name]
    save()
    saved = read_state(place)
    assert saved.get("pruner", saved)["step"] == 2


def test_states_of_two_epochs_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed between two files has last.pt of one epoch and our state of another."""
    place, save = in_ultralytics(tmp_path, {"step": 1}, monkeypatch)
    save()
    callbacks = YoloPruner({})
    callbacks._trainer = SimpleNamespace(wdir=place.parent, start_epoch=3)
    assert callbacks._saved()["pruner"] == {"step": 1}
    callbacks._trainer.start_epoch = 4
    with pytest.raises(UsageError, match=r"last\.pt was saved after epoch 3, .* after epoch 2"):
        callbacks._saved()
