"""``hwprune.Pruner`` in the trainer of ultralytics, by its callbacks."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch

from hwprune.errors import UsageError
from hwprune.ir import Artifact
from hwprune.pruner import Pruner

# Beside last.pt, of which the optimiser's state is kept as float16: no place for ours.
STATE_NAME = "hwprune.pt"


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
        self.pruner = Pruner(trainer.model, trainer.optimizer, **options)
        if trainer.start_epoch:
            state = Path(trainer.wdir) / STATE_NAME
            if not state.is_file():
                raise UsageError(
                    f"training goes on at epoch {trainer.start_epoch}, and there is no {state}",
                    hint="resume a run that had a Pruner, or train anew",
                )
            self.pruner.load_state_dict(torch.load(state, weights_only=True))
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
        """Save the Pruner's state beside last.pt."""
        torch.save(self.pruner.state_dict(), Path(trainer.wdir) / STATE_NAME)

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
