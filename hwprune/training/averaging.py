"""Averages of weights: over the steps (EMA), and over successive sparse solutions.

Both keep what is pruned exactly zero: the moving average begins anew whenever the masks change, so
that it never holds a weight that has been pruned since; an average of solutions is pruned again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from hwprune.ir import Masks
from hwprune.training.sparse import SparseParameters


def floating_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and floating-point buffers by name, those that are shared once."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor for name, tensor in named if tensor.is_floating_point()}


class Average:
    """The exponential moving average of weights and BN statistics.

    Early on it forgets faster, as ``min(decay, (1 + n) / (10 + n))`` after n steps, so that it does
    not remember where it began.

    Args:
        module: the network in training.
        sparse: says when the masks change.
        decay: what a step leaves of the average; 0 keeps none.
    """

    def __init__(self, module: nn.Module, sparse: SparseParameters, decay: float) -> None:
        """Begin without an average."""
        self._module, self._sparse, self._decay = module, sparse, decay
        self._mean: dict[str, torch.Tensor] = {}
        self._masks: Masks | None = None
        self._steps = 0

    def update(self) -> None:
        """Take the weights of one more step in."""
        if not self._decay:
            return
        live = {name: tensor.detach() for name, tensor in floating_state(self._module).items()}
        if self._masks is not self._sparse.masks or not self._mean:
            self._masks, self._steps = self._sparse.masks, 0
            self._mean = {name: tensor.clone() for name, tensor in live.items()}
            return
        if len(live) < len(self._mean):  # something has left the network
            self._mean = {name: self._mean[name] for name in live}
        self._steps += 1
        kept = min(self._decay, (1 + self._steps) / (10 + self._steps))
        # From 0 towards 0: a pruned weight's average is exactly zero.
        torch._foreach_lerp_(list(self._mean.values()), list(live.values()), 1 - kept)

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """Let the module hold the average inside, where there is one of the present masks."""
        if not self._mean or self._masks is not self._sparse.masks:
            yield
            return
        live = floating_state(self._module)
        held = {name: tensor.data for name, tensor in live.items()}
        try:
            for name, tensor in live.items():
                tensor.data = self._mean[name]
            yield
        finally:
            for name, tensor in live.items():
                tensor.data = held[name]

    def settle(self) -> None:
        """Put the average into the module for good."""
        if self._mean and self._masks is self._sparse.masks:
            for name, tensor in floating_state(self._module).items():
                tensor.data.copy_(self._mean[name])
        self._mean = {}

    def state(self) -> dict[str, torch.Tensor]:
        """Return what a resumed run needs, which has the masks already."""
        if not self._mean or self._masks is not self._sparse.masks:
            return {}
        return {**self._mean, "//steps": torch.tensor(self._steps)}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from a state, the masks being those that it was taken with."""
        if state:
            live = floating_state(self._module)
            self._mean = {name: state[name].to(live[name]).clone() for name in live}
            self._masks, self._steps = self._sparse.masks, int(state["//steps"])


class Pool:
    """Successive sparse solutions of one run, to be averaged at its end.

    Args:
        module: the network in training.
        size: how many of the latest are held, in main memory.
    """

    def __init__(self, module: nn.Module, size: int) -> None:
        """Begin empty."""
        self._module = module
        self._held: deque[dict[str, torch.Tensor]] = deque(maxlen=size)

    def add(self) -> None:
        """Hold a copy of the solution that the module is now."""
        if self._held.maxlen:
            self._held.append(_copy_of(self._module, "cpu"))

    def merge(
        self, sparse: SparseParameters, finish: Callable[[], None], measure: Callable[[], float]
    ) -> int:
        """Average the held solutions into the module's, the latest first, and return how many.

        A solution joins the running mean if validation is then no lower than before (greedily,
        after Lottery Pools, arXiv 2208.10842); otherwise it is left out and the next one is tried.
        Without one that joins the module is as it was, to the bit.

        Args:
            sparse: the module's prunable parameters.
            finish: recalibrates BN, having pruned to the budget again if more than the present
                connections live.
            measure: the validation metric of the module.
        """
        if not self._held:
            return 0
        best, kept, masks = measure(), _copy_of(self._module), sparse.masks
        mean, joined = kept, 0
        for solution in reversed(self._held):
            share = 1 / (joined + 2)
            trial = {name: torch.lerp(w, solution[name].to(w), share) for name, w in mean.items()}
            _put(self._module, trial)
            _let_live(sparse)
            finish()
            accuracy = measure()
            if accuracy >= best:
                # The mean goes on as it was before pruning: an order must not decide who lives.
                best, mean, joined = accuracy, trial, joined + 1
                kept, masks = _copy_of(self._module), sparse.masks
        _put(self._module, kept)
        sparse.set_masks(masks, None)
        return joined

    def state(self) -> dict[str, torch.Tensor]:
        """Return the held solutions, numbered."""
        return {f"{n}//{name}": w for n, held in enumerate(self._held) for name, w in held.items()}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Hold these instead."""
        self._held.clear()
        found: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in state.items():
            number, _, name = key.partition("//")
            found.setdefault(int(number), {})[name] = tensor
        self._held.extend(found[number] for number in sorted(found))


def _copy_of(module: nn.Module, device: str | None = None) -> dict[str, torch.Tensor]:
    return {
        name: tensor.detach().to(device or tensor.device, copy=True)
        for name, tensor in floating_state(module).items()
    }


def _put(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in floating_state(module).items():
        tensor.data.copy_(state[name])


def _let_live(sparse: SparseParameters) -> None:
    """Let live what lives or is not zero: solutions of earlier rounds had other connections."""
    living = {
        name: sparse.masks[name] | (parameter.detach().cpu().contiguous().numpy() != 0)
        for name, parameter in sparse.parameters.items()
    }
    if any(np.any(living[name] != sparse.masks[name]) for name in living):
        sparse.set_masks(Masks(living), None)
