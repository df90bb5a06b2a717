"""How good is it now: by the task's metric, or against the dense network without labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from hwprune.errors import DataError
from hwprune.ir import Split
from hwprune.tasks import CLASSIFICATION, IMITATION, Metric, Task
from hwprune.tasks.metrics import answers_of, joined
from hwprune.training.batches import Batch, Batches
from hwprune.training.config import FinetuneConfig
from hwprune.training.losses import forward
from hwprune.training.module_state import batchnorms, set_mode
from hwprune.trees import leaves, tree_map

# Samples in one forward pass where nothing is learnt, and numbers that come out of it.
_SAMPLES, _NUMBERS = 500, 1 << 22


class Judge:
    """Measures networks on the same samples.

    Against labels by the task's metric; without labels by how far they agree with the dense
    network: on the class, where labels would be that, else by the variance of its outputs kept.

    Args:
        task: what the network is for.
        batches: the samples.
        chosen: which of them, in which order.
        dense: whose answers stand in for labels.

    Attributes:
        metric: which it is.
        name: what that is called: ``agreement`` where labels are the dense network's classes.
    """

    def __init__(
        self, task: Task, batches: Batches, chosen: torch.Tensor, dense: nn.Module | None
    ) -> None:
        """Ask the dense network where there are no labels."""
        self._task, self._batches, self._chosen = task, batches, chosen
        self._answers: Any = None
        # Samples in one forward pass; None before it is known how large outputs are.
        self._step: int | None = None if len(chosen) else 1
        self.metric: Metric = task.metric
        self.name = task.metric.name
        if batches.labels is None and not task.takes_inputs and len(chosen):
            assert dense is not None
            self._ask(dense)

    def _ask(self, dense: nn.Module) -> None:
        classes = self._task.takes_classes
        self.name = "agreement" if classes else IMITATION.metric.name
        self.metric = self._task.metric if classes else IMITATION.metric
        parts = [outputs for _, outputs in self._run(dense)]
        if classes:
            self._answers = [outputs.argmax(axis=1) for outputs in parts]
            return
        values = answers_of(joined(parts)) if parts else ()
        ends = np.cumsum([len(next(leaves(part))[1]) for part in parts])[:-1]
        split = [[np.split(each, ends) for each in pair] for pair in values]
        self._answers = [
            tuple((dense[number], spread[number]) for dense, spread in split)
            for number in range(len(parts))
        ]

    def rows(self, module: nn.Module) -> Any:
        """Return the metric's rows of a module, which is left in eval mode; None for no samples."""
        parts = []
        for number, (batch, outputs) in enumerate(self._run(module)):
            targets = self._task.targets(batch.inputs, batch.labels)
            targets = tree_map(_array, targets) if self._answers is None else self._answers[number]
            parts.append(self.metric.rows(outputs, targets))
        return joined(parts) if parts else None

    def __call__(self, module: nn.Module) -> float:
        """Return the metric of a module."""
        return self.metric.value(self.rows(module))

    def _run(self, module: nn.Module) -> Iterator[tuple[Batch, Any]]:
        """Yield each batch with what counts of its outputs, as NumPy has them."""
        set_mode(module, training=False)
        with torch.inference_mode():
            if self._step is None:
                (first,) = self._batches.take((self._chosen[:1],))
                outputs = self._task.counted(forward(module, first.inputs))
                size = max((each.numel() for _, each in leaves(outputs)), default=1)
                self._step = min(_SAMPLES, max(1, _NUMBERS // max(1, size)))
            for batch in self._batches.take(torch.split(self._chosen, self._step)):
                yield batch, tree_map(_array, self._task.counted(forward(module, batch.inputs)))


def _array(tensor: torch.Tensor) -> Any:
    return tensor.cpu().numpy()


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
    return Judge(CLASSIFICATION, batches, torch.arange(batches.size), None)(module)


class Validator:
    """Measures on the validation split, the only one that choices may see.

    Made before anything is pruned: without a teacher the dense network is the module itself.

    Attributes:
        judge: how it measures.
        rows: of what was measured last, of all processes.
    """

    def __init__(self, config: FinetuneConfig) -> None:
        """Hold this process's share of the split."""
        self._config = config
        batches = config.batches(config.data.validation)
        chosen = torch.arange(batches.size)[config.world.share(batches.size)]
        self.judge = Judge(config.task, batches, chosen, config.teacher or config.module)
        self.rows: Any = None

    def measure(self) -> float:
        """Return the metric of the module; leaves it in training mode.

        Where several processes train, their BN statistics are averaged first.
        """
        config = self._config
        if config.train_batchnorm:
            config.world.mean(statistics(config.module))
        shares = config.world.gather(self.judge.rows(config.module))
        self.rows = joined([rows for rows in shares if rows is not None])
        set_mode(config.module, training=True, train_batchnorm=config.train_batchnorm)
        return self.judge.metric.value(self.rows)


def statistics(module: nn.Module) -> list[torch.Tensor]:
    """Return the running statistics of a module's BN layers."""
    kept = [(layer.running_mean, layer.running_var) for layer in batchnorms(module)]
    return [tensor for pair in kept for tensor in pair if tensor is not None]
