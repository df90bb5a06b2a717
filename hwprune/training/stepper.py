"""One optimiser step: forward, loss, backward, masked gradients, update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import nn

from hwprune.extreme.dyrelu import is_phased
from hwprune.training.averaging import Average
from hwprune.training.batches import Batch, Batches
from hwprune.training.losses import loss_of
from hwprune.training.modes import frozen_statistics, logits_of, set_mode
from hwprune.training.optimizer import sgd
from hwprune.training.quantised import Quantised
from hwprune.training.setting import Setting
from hwprune.training.sharpness import Sharpness
from hwprune.training.sparse import SparseParameters


class Stepper:
    """Trains the module of a run, one batch at a time.

    Args:
        setting: of the run; its module is on its device.
        sparse: its prunable parameters.
        precision: of the forward pass.
        values: the weights as they are stored.

    Attributes:
        values: the same.
        average: the moving average of the weights.
    """

    def __init__(
        self,
        setting: Setting,
        sparse: SparseParameters,
        precision: Literal["fp32", "bf16"],
        values: Quantised,
    ) -> None:
        """Make the optimiser."""
        recipe = setting.recipe
        self.values = values
        self.average = Average(setting.module, sparse, recipe.ema_decay)
        self._sharpness = None
        if recipe.sharpness:
            self._sharpness = Sharpness(setting.module, recipe.sharpness)
        self._setting, self._sparse = setting, sparse
        self.precision: Literal["fp32", "bf16"] = precision
        self._module, self._teacher = setting.module, setting.teacher
        if recipe.compiled:
            self._module = cast("nn.Module", torch.compile(setting.module))
            if setting.teacher is not None:
                self._teacher = cast("nn.Module", torch.compile(setting.teacher))
        self.optimizer = sgd(setting.module, setting.recipe)

    def step(self, batch: Batch, rate: float) -> torch.Tensor:
        """Take one optimiser step and return the loss, without waiting for it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.backward(batch)
        if self._sharpness is not None:
            self._sparse.mask_gradients()
            self._sharpness.ascend(lambda: self.backward(batch))
        self._sparse.mask_gradients()
        if self._setting.recipe.grad_clip is not None:
            parameters = self._setting.module.parameters()
            nn.utils.clip_grad_norm_(parameters, self._setting.recipe.grad_clip)
        self.optimizer.step()
        self.average.update()
        return loss

    @property
    def _network(self) -> nn.Module:
        """Return what runs: as it is while activations are phased, which change at every step."""
        module = self._setting.module
        return module if is_phased(module) else self._module

    @contextmanager
    def shipped(self) -> Iterator[None]:
        """Let the module hold inside what it would be shipped with: averaged, as stored."""
        with self.average.exchanged(), self.values.exchanged():
            yield

    def backward(self, batch: Batch, *, eager: bool = False) -> torch.Tensor:
        """Put the gradients of one batch into the parameters and return the loss.

        Args:
            batch: what to learn from.
            eager: run the network as it is, where ordinary steps go through ``torch.compile``.
        """
        setting = self._setting
        module = setting.module if eager else self._network
        teacher = setting.teacher if eager else self._teacher
        self.optimizer.zero_grad(set_to_none=True)
        kind = torch.device(setting.device).type
        with self.values.exchanged():
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                teacher_logits = None
                if teacher is not None and self._wants_teacher(batch):
                    with torch.no_grad():
                        teacher_logits = logits_of(teacher, batch.inputs)
                logits = logits_of(module, batch.inputs)
            loss = loss_of(logits, batch.labels, teacher_logits, setting.recipe)
            loss.backward()  # type: ignore[no-untyped-call]
        return setting.world.mean_gradients(
            setting.module, loss.detach(), logits.shape[0], setting.batch_size
        )

    def probe(self, batches: Batches, generator: torch.Generator) -> Iterator[None]:
        """Put the gradients of ``gradient_batches`` batches into the parameters, one by one.

        A few batches with BN held still are no reason to compile the network for that too.

        Args:
            batches: where to draw from.
            generator: of the draw and of the augmentation.
        """
        setting = self._setting
        set_mode(setting.module, training=True, train_batchnorm=setting.train_batchnorm)
        with frozen_statistics(setting.module):
            for _ in range(setting.recipe.gradient_batches):
                index = torch.randperm(batches.size, generator=generator)
                index = index[: setting.batch_size][setting.rows]
                for batch in batches.take((index,)):
                    self.backward(setting.augmented(batch, generator), eager=True)
                yield

    def state(self) -> dict[str, Any]:
        """Return the optimiser's state and the precision, which is the first processor's."""
        return {"optimizer": self.optimizer.state_dict(), "precision": self.precision}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state`` returned."""
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        self.precision = state["precision"]

    def _wants_teacher(self, batch: Batch) -> bool:
        return batch.labels is None or self._setting.recipe.distillation_weight > 0
