"""Master weights: what the optimiser moves, while the parameters hold what is stored.

What storing does to a weight is not known here: a quantiser comes from the caller. From some step
on the network is trained with stored values: gradients pass straight through the rounding to the
masters (arXiv 1308.3432). Nothing is added to the network, and a zero that is stored as zero stays
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from hwprune.training.module_state import batchnorms
from hwprune.training.sparse import SparseParameters


class Quantizer(Protocol):
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

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what later calls depend on, beside their arguments."""

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put it back."""


class MasterWeights:
    """Keeps master weights from some step on; before it the parameters are their own masters.

    Where the quantiser holds norms, BN is in eval mode meanwhile. A codebook is shared by channels,
    so a channel that is scaled down may be stored larger than it is; BN would take the larger
    output into its statistics, which scales the channel down further, without end.

    Args:
        module: the network.
        sparse: its prunable parameters.
        quantizer: None where storing changes nothing that is worth training for.
        start: the first step that trains with stored values.

    Attributes:
        sparse: the same.
        start: the same.
        values: the masters by name; empty before ``start``.
    """

    def __init__(
        self,
        module: nn.Module,
        sparse: SparseParameters,
        quantizer: Quantizer | None,
        start: int,
    ) -> None:
        """Begin with the weights as they are."""
        self.sparse, self._quantizer, self.start = sparse, quantizer, start
        held = quantizer is not None and quantizer.holds_norms
        self._norms = batchnorms(module) if held else []
        self.values: dict[str, torch.Tensor] = {}

    @property
    def holds_norms(self) -> bool:
        """Return whether BN stands still now."""
        return bool(self.values and self._norms)

    def take(self, step: int) -> None:
        """Take the present weights as masters and store them, from ``start`` on."""
        if self._quantizer is None or step < self.start:
            return
        with torch.no_grad():
            for name, parameter in self.sparse.parameters.items():
                if name in self.values:
                    self.values[name].copy_(parameter)
                else:
                    self.values[name] = parameter.detach().clone()
        self.show()
        self.hold_norms()

    def hold_norms(self) -> None:
        """Keep BN's statistics as they are, where what is stored depends on them."""
        if self.holds_norms:
            for layer in self._norms:
                layer.eval()

    def reveal(self) -> None:
        """Let the parameters hold the masters."""
        with torch.no_grad():
            for name, value in self.values.items():
                self.sparse.parameters[name].copy_(value)

    def show(self, *, final: bool = False) -> None:
        """Let the parameters hold what their present values are stored as."""
        if self._quantizer is None or not self.values:
            return
        live = {name: p.detach() for name, p in self.sparse.parameters.items()}
        with torch.no_grad():
            for name, value in self._quantizer(live, final=final).items():
                live[name].copy_(value)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show parameters that hold masters as stored inside."""
        held = {name: self.sparse.parameters[name].detach().clone() for name in self.values}
        self.show()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in held.items():
                    self.sparse.parameters[name].copy_(value)

    def finish(self) -> bool:
        """Store the parameters, which hold masters, for good; return whether there was anything."""
        stored = bool(self.values)
        self.show(final=True)
        self.values = {}
        return stored

    def state_dict(self) -> dict[str, Any]:
        """Return the masters and the quantiser's own state."""
        quantizer = {} if self._quantizer is None else self._quantizer.state_dict()
        return {"values": dict(self.values), "quantizer": quantizer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.values = {
            name: torch.empty_like(self.sparse.parameters[name].data).copy_(value)
            for name, value in state["values"].items()
        }
        if self._quantizer is not None:
            self._quantizer.load_state_dict(state["quantizer"])
