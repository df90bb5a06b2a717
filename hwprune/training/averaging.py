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
from hwprune.training.hooks import Hook
from hwprune.training.masters import MasterWeights
from hwprune.training.module_state import copy_of, floating_state, put
from hwprune.training.sparse import SparseParameters


class MovingAverage(Hook):
    """The exponential moving average of weights and BN statistics.

    Early on it forgets faster, as ``min(decay, (1 + n) / (10 + n))`` after n steps, so that it does
    not remember where it began.

    Args:
        module: the network in training.
        sparse: says when the masks change.
        masters: say how the average is stored.
        decay: what a step leaves of the average; 0 keeps none.
    """

    def __init__(
        self, module: nn.Module, sparse: SparseParameters, masters: MasterWeights, decay: float
    ) -> None:
        """Begin without an average."""
        self._module, self._sparse, self._masters = module, sparse, masters
        self._decay, self._steps = decay, 0
        self._mean: dict[str, torch.Tensor] = {}
        self._masks: Masks | None = None

    @property
    def values(self) -> Mapping[str, torch.Tensor]:
        """Return the average by name; nothing where there is none of the present masks."""
        return self._mean if self._masks is self._sparse.masks else {}

    @torch.no_grad()
    def after_step(self) -> None:
        """Take the weights of one more step in."""
        if not self._decay:
            return
        live = {name: tensor.detach() for name, tensor in floating_state(self._module).items()}
        if not self.values:
            self._masks, self._steps = self._sparse.masks, 0
            self._mean = {name: tensor.clone() for name, tensor in live.items()}
            return
        self._mean = {name: self._mean[name] for name in live}  # something may have left
        self._steps += 1
        kept = min(self._decay, (1 + self._steps) / (10 + self._steps))
        # From 0 towards 0: a pruned weight's average is exactly zero.
        torch._foreach_lerp_(list(self._mean.values()), list(live.values()), 1 - kept)

    @contextmanager
    def for_measuring(self) -> Iterator[None]:
        """Let the module hold the average inside, as stored."""
        if not self.values:
            yield
            return
        held = copy_of(self._module)
        put(self._module, self._mean)
        self._masters.show()
        try:
            yield
        finally:
            put(self._module, held)

    def finish(self) -> None:
        """Put the average into the module for good."""
        put(self._module, self.values)
        self._mean = {}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what a resumed run needs, which has the masks already."""
        return {**self.values, "//steps": torch.tensor(self._steps)} if self.values else {}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from a state, the masks being those that it was taken with."""
        if state:
            live = floating_state(self._module)
            self._mean = {name: torch.empty_like(live[name]).copy_(state[name]) for name in live}
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

    def add(self, solution: Mapping[str, torch.Tensor]) -> None:
        """Hold a copy of a solution, parameters and buffers by name."""
        if self._held.maxlen:
            floating = {n: t for n, t in solution.items() if t.is_floating_point()}
            self._held.append({n: t.detach().to("cpu", copy=True) for n, t in floating.items()})

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
            measure: how good the module is on validation; more is better.
        """
        if not self._held:
            return 0
        best, kept, masks = measure(), copy_of(self._module), sparse.masks
        mean, joined = kept, 0
        for solution in reversed(self._held):
            share = 1 / (joined + 2)
            trial = {name: torch.lerp(w, solution[name].to(w), share) for name, w in mean.items()}
            put(self._module, trial)
            _let_live(sparse)
            finish()
            score = measure()
            if score >= best:
                # The mean goes on as it was before pruning: an order must not decide who lives.
                best, mean, joined = score, trial, joined + 1
                kept, masks = copy_of(self._module), sparse.masks
        put(self._module, kept)
        sparse.set_masks(masks)
        return joined

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the held solutions, numbered."""
        return {f"{n}//{name}": w for n, held in enumerate(self._held) for name, w in held.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Hold these instead."""
        self._held.clear()
        found: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in state.items():
            number, _, name = key.partition("//")
            found.setdefault(int(number), {})[name] = tensor
        self._held.extend(found[number] for number in sorted(found))


def _let_live(sparse: SparseParameters) -> None:
    """Keep what is kept or is not zero: solutions of earlier rounds had other connections."""
    living = {
        name: sparse.masks[name] | (parameter.detach().cpu().contiguous().numpy() != 0)
        for name, parameter in sparse.parameters.items()
    }
    if any(np.any(living[name] != sparse.masks[name]) for name in living):
        sparse.set_masks(Masks(living))
