"""One optimiser step: forward, loss, backward, masked gradients, update."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwprune.training.batches import Batch, Batches, augment
from hwprune.training.losses import loss_of
from hwprune.training.modes import frozen_statistics, logits_of, set_mode
from hwprune.training.optimizer import sgd
from hwprune.training.setting import Setting
from hwprune.training.sparse import SparseParameters


class Stepper:
    """Trains the module of a run, one batch at a time.

    Args:
        setting: of the run; its module is on its device.
        sparse: its prunable parameters.
        precision: of the forward pass.
    """

    def __init__(
        self, setting: Setting, sparse: SparseParameters, precision: Literal["fp32", "bf16"]
    ) -> None:
        """Make the optimiser."""
        self._setting, self._sparse, self.precision = setting, sparse, precision
        self.optimizer = sgd(setting.module, setting.recipe)

    def step(self, batch: Batch, rate: float) -> torch.Tensor:
        """Take one optimiser step and return the loss, without waiting for it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.backward(batch)
        self._sparse.mask_gradients()
        if self._setting.recipe.grad_clip is not None:
            parameters = self._setting.module.parameters()
            nn.utils.clip_grad_norm_(parameters, self._setting.recipe.grad_clip)
        self.optimizer.step()
        return loss

    def backward(self, batch: Batch) -> torch.Tensor:
        """Put the gradients of one batch into the parameters and return the loss."""
        setting, teacher = self._setting, self._setting.teacher
        self.optimizer.zero_grad(set_to_none=True)
        kind = torch.device(setting.device).type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            teacher_logits = None
            if teacher is not None and self._wants_teacher(batch):
                with torch.no_grad():
                    teacher_logits = logits_of(teacher, batch.inputs)
            logits = logits_of(setting.module, batch.inputs)
        loss = loss_of(logits, batch.labels, teacher_logits, setting.recipe)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def gradients(
        self, batches: Batches, generator: torch.Generator
    ) -> dict[str, NDArray[np.float32]]:
        """Return the summed gradient of a few batches for all prunable weights, dead or alive.

        Args:
            batches: where to draw from.
            generator: of the draw and of the augmentation.
        """
        setting = self._setting
        sums: dict[str, NDArray[np.float32]] = {}
        set_mode(setting.module, training=True, train_batchnorm=setting.train_batchnorm)
        with frozen_statistics(setting.module):
            for _ in range(setting.recipe.gradient_batches):
                index = torch.randperm(batches.size, generator=generator)
                index = index[: setting.recipe.batch_size]
                for batch in batches.take((index,)):
                    self.backward(augment(batch, setting.data.augment, generator))
                for name, gradient in self._sparse.gradients().items():
                    sums[name] = sums[name] + gradient if name in sums else gradient
        self.optimizer.zero_grad(set_to_none=True)
        return sums

    def _wants_teacher(self, batch: Batch) -> bool:
        return batch.labels is None or self._setting.recipe.distillation_weight > 0
