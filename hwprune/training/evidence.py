"""What growth scores go by: gradients of the loss with respect to every weight, pruned included.

They stay torch tensors; a tensor's arrays are made when a score asks for them, so that nothing of
the network's size is held twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hwprune.sparsity import Evidence
from hwprune.training.sparse import SparseParameters, to_numpy

# A batch counts by half of what it did, 22 batches later: as an average over some 64 of them.
_DECAY = 1 - 1 / 32
# After so many batches nothing but rounding is left of where the averages began.
_WARM_UP = 128

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class GradientStats:
    """What is known of the gradients at one event; empty where it needs nothing.

    Attributes:
        gradient: per parameter, of the loss at the masked weights.
        mean: of the gradients of the last batches.
        square: of their squares.
        seed: of this event.
    """

    gradient: Tensors = field(default_factory=dict)
    mean: Tensors = field(default_factory=dict)
    square: Tensors = field(default_factory=dict)
    seed: int = 0

    def evidence(self, sparse: SparseParameters, name: str) -> Evidence:
        """Return all that is known of one tensor."""

        def array(tensors: Tensors) -> NDArray[np.float32] | None:
            return to_numpy(tensors[name]) if name in tensors else None

        return Evidence(
            to_numpy(sparse.pretrained[name]),
            array(self.gradient),
            array(self.mean),
            array(self.square),
            self.seed * 65_537 + list(sparse.parameters).index(name),
        )


class GradientMoments:
    """Averages of gradients and of their squares over the last batches, over the steps that matter.

    Two numbers for each prunable weight, no pass over data: the steps have whole gradients until
    they are masked. In several processes these are of the whole batch by then, so that the averages
    are the same in all.

    Args:
        sparse: the parameters.
        due: the steps of the events that ask for them.
    """

    def __init__(self, sparse: SparseParameters, due: Sequence[int]) -> None:
        """Begin without averages."""
        self._sparse = sparse
        self._steps = range(min(due) - _WARM_UP, max(due) + 1) if due else range(0)
        self.mean: dict[str, torch.Tensor] = {}
        self.square: dict[str, torch.Tensor] = {}

    def add(self, step: int, scale: float = 1.0) -> None:
        """Take in a step's gradients, before they are masked; ``scale`` is what they are times."""
        if step not in self._steps:
            self.mean, self.square = {}, {}
            return
        for name, parameter in self._sparse.parameters.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad if scale == 1 else parameter.grad / scale
            if name not in self.mean:
                self.mean[name] = torch.zeros_like(gradient)
                self.square[name] = torch.zeros_like(gradient)
            self.mean[name].mul_(_DECAY).add_(gradient, alpha=1 - _DECAY)
            self.square[name].mul_(_DECAY).addcmul_(gradient, gradient, value=1 - _DECAY)

    def state_dict(self) -> dict[str, Any]:
        """Return both averages."""
        return {"mean": dict(self.mean), "square": dict(self.square)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""

        def placed(held: Tensors) -> dict[str, torch.Tensor]:
            parameters = self._sparse.parameters
            return {n: torch.empty_like(parameters[n].data).copy_(t) for n, t in held.items()}

        self.mean, self.square = placed(state["mean"]), placed(state["square"])
