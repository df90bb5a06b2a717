"""What is measured before masks change: the gradient of the loss, dead connections included.

Gradients stay where autograd put them; a tensor's arrays are made when a rule asks for them, so
that nothing of the network's size is held twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from hwprune.sparsity import Evidence
from hwprune.training.sparse import SparseParameters, to_numpy


@dataclass(frozen=True, slots=True)
class Seen:
    """What was measured for one event; empty where it needs nothing.

    Attributes:
        gradient: per parameter, of the loss at the masked weights.
        seed: of this event.
    """

    gradient: Mapping[str, torch.Tensor] = field(default_factory=dict)
    seed: int = 0

    def evidence(self, sparse: SparseParameters, name: str) -> Evidence:
        """Return all that is known of one tensor."""
        return Evidence(
            to_numpy(sparse.parameters[name]),
            to_numpy(sparse.pretrained[name]),
            to_numpy(self.gradient[name]) if name in self.gradient else None,
            self.seed * 65_537 + list(sparse.parameters).index(name),
        )
