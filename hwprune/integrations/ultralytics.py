"""``hwprune.Pruner`` in the trainer of ultralytics, by its callbacks."""

from __future__ import annotations

import random
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwprune.errors import UsageError
from hwprune.ir import Artifact
from hwprune.pruner import Pruner
from hwprune.training.statefile import read_state, write_state

# Beside last.pt, which keeps the average of the weights and the optimiser's state as float16.
STATE_NAME = "hwprune.state"


def add_pruner(yolo: Any, **options: Any) -> YoloPruner:
    """Prune a network while ``yolo.train(...)`` trains it.

    Args:
        yolo: a ``ultralytics.YOLO``, before it is trained.
        options: of ``hwprune.Pruner``; ``example_input`` is a square image of the size that is
            trained with, and ``steps`` is not needed.

    Returns:
        what exports the result.
    """
    pruner = YoloPruner(options)
    for event in (
        "on_train_start", "on_train_epoch_start", "on_train_batch_end", "on_train_epoch_end",
        "on_model_save",
    ):  # fmt: skip
        yolo.add_callback(event, getattr(pruner, event))
    return pruner


class YoloPruner:
    """Prunes what ultralytics trains. Its trainer builds model, optimiser and average late.

    How often the optimiser steps is not known before (batches are accumulated, more of them after
    the warm-up): masks go by the batches that were seen.

    Args:
        options: of ``hwprune.Pruner``.

    Attributes:
        pruner: from the start of the training on.
    """

    pruner: Pruner

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._trainer: Any = None
        self._batch, self._reached = 0, 0.0

    def on_train_start(self, trainer: Any) -> None:
        """Make the Pruner."""
        if hasattr(self, "pruner"):
            self.pruner.detach()
        self._trainer, self._batch, self._reached = trainer, 0, 0.0
        size = trainer.args.imgsz
        steps = trainer.epochs * len(trainer.train_loader)
        options = {"example_input": torch.zeros(1, 3, size, size), "steps": steps, **self._options}
        saved = self._saved() if trainer.start_epoch else None
        if saved is not None:
            trainer.model.load_state_dict(saved["model"])
            trainer.ema.ema.load_state_dict(saved["average"])
            groups = trainer.optimizer.state_dict()["param_groups"]
            trainer.optimizer.load_state_dict({"state": saved["moments"], "param_groups": groups})
        self.pruner = Pruner(trainer.model, trainer.optimizer, **options)
        if saved is not None:
            self.pruner.load_state_dict(saved["pruner"])
            _set_random(saved["random"], trainer.train_loader.generator)
        self.pruner.progress = self._progress

    def on_train_epoch_start(self, trainer: Any) -> None:
        """Begin to count batches."""
        self._batch = 0

    def on_train_batch_end(self, trainer: Any) -> None:
        """Count batches."""
        self._batch += 1

    def on_train_epoch_end(self, trainer: Any) -> None:
        """Prune the average, which remembers more, before it is validated and saved."""
        self.pruner.apply_masks(trainer.ema.ema)

    def on_model_save(self, trainer: Any) -> None:
        """Save beside last.pt, in full precision, all that training goes on from."""
        trainer.train_loader.reset()  # a new epoch draws alike, whether in this process or another
        state = {
            "epoch": trainer.epoch,
            "pruner": self.pruner.state_dict(),
            "model": trainer.model.state_dict(),
            "average": trainer.ema.ema.state_dict(),
            "moments": trainer.optimizer.state_dict()["state"],
            "random": _random(trainer.train_loader.generator),
        }
        write_state(Path(trainer.wdir) / STATE_NAME, state)

    def _saved(self) -> dict[str, Any]:
        """Return what was saved with the checkpoint that the trainer goes on from."""
        path, start = Path(self._trainer.wdir) / STATE_NAME, self._trainer.start_epoch
        if not path.is_file():
            raise UsageError(
                f"training goes on at epoch {start}, and there is no {path}",
                hint="resume a run that had a Pruner, or train anew",
            )
        saved: dict[str, Any] = read_state(path)
        if saved["epoch"] != start - 1:
            raise UsageError(
                f"last.pt was saved after epoch {start - 1}, {path} after epoch {saved['epoch']}",
                hint="resume with both files of one epoch, or train anew",
            )
        return saved

    def _progress(self) -> float:
        trainer = self._trainer
        seen = trainer.epoch + self._batch / len(trainer.train_loader)
        # An epoch may be gone through once more, or their number change.
        self._reached = min(1.0, max(self._reached, seen / trainer.epochs))
        return self._reached

    def export(self, output: str | PathLike[str], **options: Any) -> Artifact:
        """Write and verify the trainer's average of the weights; see ``hwprune.Pruner.export``."""
        if self._trainer is None:
            raise UsageError(
                "the network has not been trained in this process",
                hint="call yolo.train(...) first, on one device",
            )
        return self.pruner.export(output, **{"model": self._trainer.ema.ema, **options})


def _random(order: torch.Generator) -> list[Any]:
    """Return the states of what ultralytics draws from: augmentation, and the order of images."""
    numpys = np.random.get_state(legacy=False)
    numpys["state"]["key"] = numpys["state"]["key"].tolist()
    return [random.getstate(), numpys, torch.get_rng_state(), order.get_state()]


def _set_random(states: list[Any], order: torch.Generator) -> None:
    """Draw from here on what would have been drawn."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    order.set_state(states[3])
