"""Values inside the loop: the forward pass sees weights as they will be stored.

What storing does to a weight is not known here: it comes as a function. While it is in force the
parameters' data are exchanged for the stored values during forward and backward, and put back
before the optimiser moves them: gradients pass straight through the rounding (arXiv 1308.3432).
Nothing is added to the network, and a zero that is stored as zero stays one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from torch import nn

from hwprune.training.modes import batchnorms
from hwprune.training.sparse import SparseParameters


class Store(Protocol):
    """What masked weights become by being stored.

    Attributes:
        holds_norms: whether what is stored depends on BN's statistics in such a way that these must
            not move meanwhile.
    """

    @property
    def holds_norms(self) -> bool:
        """See the attributes."""

    def __call__(
        self, weights: Mapping[str, torch.Tensor], *, final: bool = False
    ) -> Mapping[str, torch.Tensor]:
        """Return the stored values, in the weights' own shapes and memory order.

        Args:
            weights: by name; what is pruned is zero and stays zero, what lives does not become so.
            final: what is derived from the weights (a codebook) is derived anew, and storing what
                is returned once more changes nothing.
        """

    def state(self) -> dict[str, torch.Tensor]:
        """Return what later calls depend on, beside their arguments."""

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put it back."""


class Quantised:
    """Exchanges weights for stored ones, from some step on.

    Where the store holds norms, BN is in eval mode while weights are exchanged. A codebook is
    shared by channels, so a channel that is scaled down may be stored larger than it is; BN would
    take the larger output into its statistics, which scales the channel down further, without end.

    Args:
        module: the network.
        sparse: its prunable parameters.
        store: None where storing changes nothing that is worth training for.
        start: the first step that trains with stored values.

    Attributes:
        active: whether the present step does.
    """

    def __init__(
        self, module: nn.Module, sparse: SparseParameters, store: Store | None, start: int
    ) -> None:
        """Begin with the weights as they are."""
        self._sparse, self._store, self._start = sparse, store, start
        self._norms = batchnorms(module) if store is not None and store.holds_norms else []
        self.active = False

    def at(self, step: int) -> None:
        """Say which step comes next."""
        self.active = self._store is not None and step >= self._start

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """Let the parameters hold stored values inside, where that is in force."""
        if self._store is None or not self.active:
            yield
            return
        parameters = self._sparse.parameters
        held = {name: parameter.data for name, parameter in parameters.items()}
        stored = self._store(held)
        moving = [layer for layer in self._norms if layer.training]
        try:
            for layer in moving:
                layer.eval()
            for name, parameter in parameters.items():
                parameter.data = stored[name]
            yield
        finally:
            for layer in moving:
                layer.train()
            for name, parameter in parameters.items():
                parameter.data = held[name]

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """As ``exchanged``, for measuring BN's statistics anew: not where the store holds them."""
        with nullcontext() if self._norms else self.exchanged():
            yield

    def settle(self) -> bool:
        """Replace the weights by what is stored, for good; return whether there was anything."""
        if self._store is None or not self.active:
            return False
        held = {name: parameter.data for name, parameter in self._sparse.parameters.items()}
        for name, value in self._store(held, final=True).items():
            held[name].copy_(value)
        self.active = False
        return True

    def state(self) -> dict[str, torch.Tensor]:
        """Return what a resumed run needs: the store's own state."""
        return {} if self._store is None else self._store.state()

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from a state."""
        if self._store is not None:
            self._store.load(state)
