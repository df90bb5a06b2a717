"""What the dense network answers to training samples, asked once for each view of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hwprune.training.batches import Batch, Batches, augment, sent
from hwprune.training.config import FinetuneConfig
from hwprune.training.losses import forward
from hwprune.trees import leaves, tree_map


class Teacher:
    """The dense network that is imitated.

    With ``views`` above 0 an epoch takes view ``epoch % views`` of every sample, which seed and
    number alone decide. Answers to a view are had in one pass, in the order of the split, so that
    they do not depend on where a run was interrupted; they are held in main memory as fp16 (fp32
    where that overflows).

    Args:
        network: what steps ask: ``config.teacher``, or compiled.
        config: of the run.
        batches: the training samples.
        epochs: of the run.
        autocast: the arithmetic of a step.

    Attributes:
        views: how many views there are; 0 where each step draws its own and asks anew.
    """

    def __init__(
        self,
        network: nn.Module,
        config: FinetuneConfig,
        batches: Batches,
        epochs: int,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """Begin without answers."""
        self._network, self._config, self._batches = network, config, batches
        assert config.teacher is not None  # without one nobody is asked
        self._teacher, self._autocast = config.teacher, autocast
        self._held: dict[int, Any] = {}
        changes = config.data.augment != "none" or config.recipe.cutout
        views = config.recipe.views if changes else min(1, config.recipe.views)
        few = next(batches.take((torch.arange(min(2, batches.size)),)))
        answers = [answer for _, answer in leaves(self._asked(self._teacher, few))]
        by_sample = all(len(each) == len(few.inputs[0]) if each.ndim else False for each in answers)
        size = views * batches.size * sum(2 * each[0].numel() for each in answers if each.ndim)
        fits = by_sample and size <= config.recipe.resident_bytes
        self.views = views if views < epochs and fits else 0

    def ask(self, batch: Batch) -> Batch:
        """Return a batch with the answers to it."""
        return replace(batch, answers=self._asked(self._network, batch))

    def view(self, batch: Batch, epoch: int) -> Batch:
        """Return a batch of the split as an epoch sees it, with the answers to it."""
        number, device = epoch % self.views, torch.device(self._config.device)

        def chosen(held: torch.Tensor) -> torch.Tensor:
            answers = held[batch.index]
            return sent(answers.float() if answers.is_floating_point() else answers, device)

        answers = tree_map(chosen, self._answers(number))
        return replace(self._moved(batch, number), answers=answers)

    def _asked(self, network: nn.Module, batch: Batch) -> Any:
        with torch.no_grad(), self._autocast():
            return forward(network, batch.inputs)

    def _moved(self, batch: Batch, number: int) -> Batch:
        assert batch.index is not None  # batches of a split have it
        generator = torch.Generator().manual_seed(65_537 * (self._config.seed + 1) + number)
        return augment(
            batch, self._config.data.augment, generator, cutout=self._config.recipe.cutout,
            rows=batch.index, of=self._batches.size,
        )  # fmt: skip

    def _answers(self, number: int) -> Any:
        """Return the answers to a view of all samples."""
        if number not in self._held:
            world, found = self._config.world, []
            for batch in self._batches.in_order(world.share(self._batches.size)):
                answers = self._asked(self._teacher, self._moved(batch, number))
                found.append(tree_map(_compact, answers))
            every = [part for share in world.gather(found) for part in share]
            self._held[number] = tree_map(lambda *parts: torch.cat(parts), *every)
        return self._held[number]


def _compact(answers: torch.Tensor) -> torch.Tensor:
    half = answers.half() if answers.is_floating_point() else answers
    return (half if bool(torch.isfinite(half).all()) else answers).cpu()
