"""How good is it now: accuracy against labels, or agreement with a teacher where there are none."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from hwprune.errors import DataError
from hwprune.ir import Split
from hwprune.training.batches import Batches
from hwprune.training.config import FinetuneConfig
from hwprune.training.modes import batchnorms, logits_of, set_mode


def predictions(module: nn.Module, batches: Batches, rows: slice = slice(None)) -> torch.Tensor:
    """Return the (n,) top class of every sample in ``rows``, with the module in eval mode."""
    set_mode(module, training=False)
    with torch.inference_mode():
        found = [logits_of(module, b.inputs).argmax(dim=1) for b in batches.in_order(rows)]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def share_of(module: nn.Module, batches: Batches, targets: torch.Tensor) -> float:
    """Return the fraction of samples whose top class is the target."""
    return int((predictions(module, batches) == targets).sum()) / batches.size


def accuracy(
    module: nn.Module, split: Split, *, device: str = "cpu", channels_last: bool = True
) -> float:
    """Return the fraction of a split that a module classifies correctly, in eval mode.

    Args:
        module: a classifier; left in eval mode.
        split: the data.
        device: where the module is.
        channels_last: hand 4-D inputs over in NHWC memory order.

    Raises:
        DataError: the split is empty or has no labels.
    """
    batches = Batches(split, device=device, resident_bytes=0, channels_last=channels_last)
    if batches.labels is None:
        raise DataError(
            "accuracy cannot be measured: the data have no labels",
            hint="compare with the dense model instead",
        )
    return share_of(module, batches, batches.labels)


class Validator:
    """Measures on the validation split, the only one that choices may see.

    Against labels, or against the dense model's answers where there are none.

    Made before anything is pruned: without a teacher the answers are the module's own.

    Attributes:
        metric: ``accuracy`` against labels, ``agreement`` with the dense model without them.
    """

    def __init__(self, config: FinetuneConfig) -> None:
        """Hold the validation split and what its samples should be."""
        self._config = config
        self._validation = config.batches(config.data.validation)
        world, size = config.world, self._validation.size
        # Each process measures its share.
        self._rows = slice(size * world.rank // world.size, size * (world.rank + 1) // world.size)
        self.metric: Literal["accuracy", "agreement"] = "accuracy"
        if self._validation.labels is not None:
            self._targets = self._validation.labels[self._rows]
        else:
            self.metric = "agreement"
            self._targets = self._answers(config.teacher or config.module)

    def measure(self) -> float:
        """Return the metric of the module; leaves it in training mode.

        Where several processes train, their BN statistics are averaged first.
        """
        config = self._config
        if config.train_batchnorm:
            config.world.mean(statistics(config.module))
        correct = int((self._answers(config.module) == self._targets).sum())
        set_mode(config.module, training=True, train_batchnorm=config.train_batchnorm)
        return config.world.total(correct) / self._validation.size

    def _answers(self, module: nn.Module) -> torch.Tensor:
        return predictions(module, self._validation, self._rows)


def statistics(module: nn.Module) -> list[torch.Tensor]:
    """Return the running statistics of a module's BN layers."""
    kept = [(layer.running_mean, layer.running_var) for layer in batchnorms(module)]
    return [tensor for pair in kept for tensor in pair if tensor is not None]
