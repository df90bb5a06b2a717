"""Sharpness-aware steps (SAM, arXiv 2010.01412): the gradient of the worst point near by.

Each step costs two forward and backward passes, so a run costs as much as one of twice its epochs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hwprune.training.hooks import Hook
from hwprune.training.masters import MasterWeights
from hwprune.training.module_state import frozen_statistics


class Sharpness(Hook):
    """Replaces the gradients by those at the worst point within a radius.

    Args:
        module: its floating-point parameters move there and back; a pruned weight does not.
        masters: of it; it is they that move, and the point is seen as stored.
        radius: the Euclidean distance, rho in the paper.
    """

    def __init__(self, module: nn.Module, masters: MasterWeights, radius: float) -> None:
        """Hold what is moved."""
        self._module, self._masters, self._radius = module, masters, radius

    def after_backward(self, again: Callable[[], object]) -> None:
        """Call ``again`` at the worst point; the weights end exactly where they were.

        BN normalises by the batch both times and moves its running statistics the first time only.
        """
        self._masters.sparse.mask_gradients()
        moved = [p for p in self._module.parameters() if p.grad is not None]
        gradients = [p.grad for p in moved if p.grad is not None]
        if not gradients:
            return
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        # Not finite: the loss is not either, and whoever looks at it says so.
        step = torch.nan_to_num(self._radius / norm, posinf=0.0)
        held = [(p, p.detach().clone()) for p in self._module.parameters()]
        try:
            self._masters.reveal()
            with torch.no_grad():
                for parameter, gradient in zip(moved, gradients, strict=True):
                    parameter.add_(step * gradient)
            self._masters.show()
            with frozen_statistics(self._module):
                again()
        finally:
            # Put back, not subtracted: what was zero is zero, what was is to the bit.
            with torch.no_grad():
                for parameter, value in held:
                    parameter.copy_(value)
