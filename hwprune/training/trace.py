"""The running average of dense gradients, which the rule ``momentum`` ranks dead connections by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hwprune.training.sparse import SparseParameters

# What a step leaves of the average, and how many steps it takes to forget where it began.
DECAY = 0.9
WARM_UP = 100


class Trace:
    """The running average of dense gradients (arXiv 1907.04840), over the steps that matter.

    Args:
        sparse: the parameters.
        due: the steps of events that ask for it.
    """

    def __init__(self, sparse: SparseParameters, due: Sequence[int]) -> None:
        """Begin without an average."""
        self._sparse = sparse
        self._steps = range(min(due) - WARM_UP, max(due)) if due else range(0)
        self._step = 0
        self.mean: dict[str, torch.Tensor] = {}

    def at(self, step: int) -> None:
        """Say which step comes next."""
        self._step = step
        if self.mean and step > self._steps.stop:
            self.mean = {}

    def update(self) -> None:
        """Take the present gradients in, before they are masked."""
        if self._step not in self._steps:
            return
        for name, parameter in self._sparse.parameters.items():
            if parameter.grad is None:
                continue
            if name not in self.mean:
                self.mean[name] = torch.zeros_like(parameter)
            self.mean[name].lerp_(parameter.grad, 1.0 - DECAY)

    def state(self) -> Mapping[str, torch.Tensor]:
        """Return the average."""
        return dict(self.mean)

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what ``state`` returned."""
        self.mean = {
            name: torch.empty_like(self._sparse.parameters[name].data).copy_(tensor)
            for name, tensor in state.items()
        }
