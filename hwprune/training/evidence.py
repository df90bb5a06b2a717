"""What is measured before masks change: gradients, their running average, their second moment.

Gradients stay where autograd put them; a tensor's arrays are made when a rule asks for them, so
that nothing of the network's size is held twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from hwprune.sparsity import NEEDS, NEEDS_GRADIENT, Event, Evidence
from hwprune.training.batches import Batches
from hwprune.training.sparse import SparseParameters, to_numpy
from hwprune.training.stepper import Stepper

# Batches that a Fisher diagonal is averaged over, where the recipe does not ask for more.
CURVATURE_BATCHES = 8

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Seen:
    """What was measured for one event; empty where it needs nothing.

    Attributes:
        gradient: per parameter, of the loss at the masked weights.
        momentum: the running average of gradients.
        curvature: the Fisher diagonal.
        seed: of this event.
    """

    gradient: Tensors = field(default_factory=dict)
    momentum: Tensors = field(default_factory=dict)
    curvature: Tensors = field(default_factory=dict)
    seed: int = 0

    def gradient_of(self, name: str) -> NDArray[np.float32] | None:
        """Return a parameter's gradient, None where none was measured."""
        return _array(self.gradient, name)

    def evidence(self, sparse: SparseParameters, name: str) -> Evidence:
        """Return all that is known of one tensor."""
        return Evidence.of(
            to_numpy(sparse.parameters[name]),
            to_numpy(sparse.pretrained[name]),
            gradient=self.gradient_of(name),
            momentum=_array(self.momentum, name),
            curvature=_array(self.curvature, name),
            seed=self.seed * 65_537 + list(sparse.parameters).index(name),
        )


NOTHING = Seen()


def needs(event: Event) -> frozenset[str]:
    """Return what an event's score and initial value need: gradient, momentum, curvature."""
    if event.action != "regrow":
        return frozenset({"gradient"}) if event.score in NEEDS_GRADIENT else frozenset()
    nothing: frozenset[str] = frozenset()
    return NEEDS.get(event.score, nothing) | NEEDS.get(event.initial, nothing)


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

        The gradient is the sum over the recipe's ``gradient_batches``. Where the curvature is asked
        for it is the mean over at least CURVATURE_BATCHES, and the curvature is the batch size
        times the mean square of a batch's gradient: the empirical Fisher diagonal, as far as
        samples are independent and the mean gradient is small.

        Args:
            event: which masks are about to change.
            number: tells events apart where something is random.
        """
        wanted = needs(event)
        seed = self._seed * 65_537 + number
        try:
            if "curvature" in wanted:
                mean, fisher = self._fisher()
                yield Seen(mean, self._stepper.trace.mean, fisher, seed)
            elif "gradient" in wanted:
                yield Seen(self._summed(), self._stepper.trace.mean, {}, seed)
            elif "momentum" in wanted and not self._stepper.trace.mean:
                # Before the first step the only gradient there is stands for the average.
                yield Seen({}, self._summed(), {}, seed)
            else:
                yield Seen({}, self._stepper.trace.mean, {}, seed)
        finally:
            if wanted:
                self._stepper.optimizer.zero_grad(set_to_none=True)

    def _summed(self) -> dict[str, torch.Tensor]:
        sums: dict[str, torch.Tensor] = {}
        for _ in self._stepper.probe(self._batches, self._generator):
            for name, gradient in self._sparse.taken_gradients().items():
                sums[name] = sums[name].add_(gradient) if name in sums else gradient
        return sums

    def _fisher(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        count = max(CURVATURE_BATCHES, self._stepper.gradient_batches)
        sums: dict[str, torch.Tensor] = {}
        squares: dict[str, torch.Tensor] = {}
        for _ in self._stepper.probe(self._batches, self._generator, count):
            for name, gradient in self._sparse.taken_gradients().items():
                if name in sums:
                    squares[name].addcmul_(gradient, gradient)
                    sums[name].add_(gradient)
                else:
                    squares[name], sums[name] = gradient * gradient, gradient
        for name in sums:
            sums[name].div_(count)
            squares[name].mul_(self._stepper.batch_size / count)
        return sums, squares


def _array(tensors: Tensors, name: str) -> NDArray[np.float32] | None:
    return to_numpy(tensors[name]) if name in tensors else None
