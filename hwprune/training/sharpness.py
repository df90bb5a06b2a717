"""Sharpness-aware steps (SAM, arXiv 2010.01412): the gradient of the worst point near by.

Each step costs two forward and backward passes, so a run costs as much as one of twice its epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from hwprune.training.modes import frozen_statistics


class Sharpness:
    """Replaces the gradients by those at the worst point within a radius.

    Args:
        module: its floating-point parameters move there and back; their gradients are masked, so a
            pruned weight does not move.
        radius: the Euclidean distance, rho in the paper.
    """

    def __init__(self, module: nn.Module, radius: float) -> None:
        """Hold what is moved."""
        self._module, self._radius = module, radius

    def ascend(self, backward: Callable[[], object]) -> None:
        """Call ``backward`` at the worst point; the weights end exactly where they were.

        BN normalises by the batch both times and moves its running statistics the first time only.

        Args:
            backward: puts the gradients of the very same batch into the parameters, having zeroed
                those that are there.
        """
        moved = [p for p in self._module.parameters() if p.grad is not None]
        gradients = [p.grad for p in moved if p.grad is not None]
        if not gradients:
            return
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        # Not finite: the loss is not either, and whoever looks at it says so.
        step = torch.nan_to_num(self._radius / norm, posinf=0.0)
        with _displaced(moved, gradients, step), frozen_statistics(self._module):
            backward()


@contextmanager
def _displaced(
    parameters: Sequence[nn.Parameter], directions: Sequence[torch.Tensor], step: torch.Tensor
) -> Iterator[None]:
    held = [parameter.data for parameter in parameters]
    try:
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.data = parameter.data + step * direction
        yield
    finally:
        # Exchanged, not subtracted: what was zero is zero, what was is to the bit.
        for parameter, value in zip(parameters, held, strict=True):
            parameter.data = value
