"""What takes part in a run: averages, sharpness, activations that are phased out, reachability."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hwprune.ir import Masks
from hwprune.sparsity import Fill, MaskEvent, Strategy
from hwprune.training.sparse import SparseParameters


@dataclass(frozen=True)
class Proposal:
    """Masks that are about to take the place of the present ones.

    Attributes:
        masks: what is going to be kept.
        opened: those of them that no score asked for; they start from their pretrained values.
    """

    masks: Masks
    opened: Masks | None = None

    @property
    def untouched(self) -> Masks:
        """Return the masks without what was opened."""
        if self.opened is None:
            return self.masks
        return Masks({name: self.masks[name] & ~self.opened[name] for name in self.masks})


class Hook:
    """A part of a run. Every method does nothing unless it is overridden.

    Attributes:
        settled_from: the step from which it lets a run train as it ends: only epochs from there on
            are compared with the last one.
        eager: whether it changes the network from step to step: then nothing is compiled.
    """

    settled_from: int = 0
    eager: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """Return sentences for the report."""
        return ()

    def before_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Get ready for the forward pass of a step, counted from 0."""

    def after_backward(self, again: Callable[[], object]) -> None:
        """Change the gradients; ``again`` puts those of the same batch into the parameters anew."""

    def after_step(self) -> None:
        """Look at the weights that the optimiser has moved: masked, not yet as stored."""

    def propose(self, event: MaskEvent, proposal: Proposal, fill: Fill) -> Proposal:
        """Return the masks to take instead of those that an event leads to; changes nothing."""
        return proposal

    def after_mask_change(self, event: MaskEvent, proposal: Proposal) -> None:
        """Take note of masks that are in force now."""

    @contextmanager
    def for_measuring(self) -> Iterator[None]:
        """Let the module hold inside what it would be shipped with."""
        yield

    def finish(self) -> None:
        """Put into the module for good what is to be shipped, not yet as stored."""

    def close(self) -> None:
        """Leave nothing behind, also where the run failed."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return all that changes: dicts, lists, numbers, strings, None, tensors, arrays.

        Tensors need not be copied: they are written at once.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned; its tensors are on the CPU."""


@dataclass(frozen=True)
class Stage:
    """What a hook is made from, before there is an optimiser.

    Attributes:
        module: the network, on its device.
        sparse: its prunable parameters.
        strategy: along which it is pruned.
        inputs: returns two samples.
        seed: of the run.
        steps: in all.
        due: progress -> the step before which something happens.
    """

    module: nn.Module
    sparse: SparseParameters
    strategy: Strategy
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    seed: int
    steps: int
    due: Callable[[float], int]


HookMaker = Callable[[Stage], Mapping[str, Hook]]
"""Makes hooks by name, in the order in which they are called."""
