"""What is measured before masks change: the gradient of the loss, dead connections included.

Gradients stay where autograd put them; a tensor's arrays are made when a rule asks for them, so
that nothing of the network's size is held twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from hwprune.sparsity import NEEDS_GRADIENT, Event, Evidence
from hwprune.training.batches import Batches
from hwprune.training.sparse import SparseParameters, to_numpy
from hwprune.training.stepper import Stepper


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


NOTHING = Seen()


class Witness:
    """Measures what events need.

    Args:
        stepper: of the run.
        sparse: its prunable parameters.
        batches: where samples are drawn from.
        generator: of the draw and of the augmentation.
        seed: of the run.
    """

    def __init__(
        self,
        stepper: Stepper,
        sparse: SparseParameters,
        batches: Batches,
        generator: torch.Generator,
        seed: int,
    ) -> None:
        """Hold what measuring takes."""
        self._stepper, self._sparse = stepper, sparse
        self._batches, self._generator, self._seed = batches, generator, seed

    @contextmanager
    def seen(self, event: Event, number: int) -> Iterator[Seen]:
        """Measure what an event needs, and forget it afterwards.

        The gradient is the sum over the recipe's ``gradient_batches``.

        Args:
            event: which masks are about to change.
            number: tells events apart where something is random.
        """
        seed = self._seed * 65_537 + number
        if event.action == "prune" or event.score not in NEEDS_GRADIENT:
            yield Seen({}, seed)
            return
        try:
            yield Seen(self._summed(), seed)
        finally:
            self._stepper.optimizer.zero_grad(set_to_none=True)

    def _summed(self) -> dict[str, torch.Tensor]:
        sums: dict[str, torch.Tensor] = {}
        for _ in self._stepper.probe(self._batches, self._generator):
            for name, gradient in self._sparse.taken_gradients().items():
                sums[name] = sums[name].add_(gradient) if name in sums else gradient
        return sums
