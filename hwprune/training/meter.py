"""How good the network is now, on the validation split: the only split that choices may see."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from hwprune.training.evaluate import predictions
from hwprune.training.modes import batchnorms, set_mode
from hwprune.training.setting import Setting


class Meter:
    """Measures against labels, or against the dense model's answers where there are none.

    Made before anything is pruned: without a teacher the answers are the module's own.

    Attributes:
        metric: ``accuracy`` against labels, ``agreement`` with the dense model without them.
    """

    def __init__(self, setting: Setting) -> None:
        """Hold the validation split and what its samples should be."""
        self._setting = setting
        self._validation = setting.batches(setting.data.validation)
        world, size = setting.world, self._validation.size
        # Each process measures its share.
        self._rows = slice(size * world.rank // world.size, size * (world.rank + 1) // world.size)
        self.metric: Literal["accuracy", "agreement"] = "accuracy"
        if self._validation.labels is not None:
            self._targets = self._validation.labels[self._rows]
        else:
            self.metric = "agreement"
            self._targets = self._answers(setting.teacher or setting.module)

    def measure(self) -> float:
        """Return the metric of the module; leaves it in training mode.

        Where several processes train, their BN statistics are averaged first.
        """
        setting = self._setting
        if setting.train_batchnorm:
            setting.world.mean(statistics(setting.module))
        correct = int((self._answers(setting.module) == self._targets).sum())
        set_mode(setting.module, training=True, train_batchnorm=setting.train_batchnorm)
        return setting.world.total(correct) / self._validation.size

    def _answers(self, module: nn.Module) -> torch.Tensor:
        return predictions(module, self._validation, self._rows)


def statistics(module: nn.Module) -> list[torch.Tensor]:
    """Return the running statistics of a module's BN layers."""
    kept = [(layer.running_mean, layer.running_var) for layer in batchnorms(module)]
    return [tensor for pair in kept for tensor in pair if tensor is not None]
