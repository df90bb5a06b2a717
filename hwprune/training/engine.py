"""Masks, master weights and stored values of a network in training, whatever the loop.

What is due at a step is in force for its forward pass: a loop of ours calls ``before_step``, and in
any other it happens at the end of the step before. An event that asks for the gradients of such a
loop waits until the step has them.

One rule: the optimiser steps on master weights; outside of ``optimizer.step`` the parameters hold
what would be shipped, which is masked and, from the value phase on, as stored. Two hooks of
``torch.optim.Optimizer`` keep it by copies in place: names, ``state_dict()``, compiled graphs and
whoever else holds a parameter stay valid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from hwprune.errors import UsageError
from hwprune.ir import Masks
from hwprune.sparsity import NEEDS_GRADIENT, NEEDS_MOMENTS, Fill, MaskEvent, Strategy
from hwprune.training.distributed import SINGLE_PROCESS, World
from hwprune.training.events import masks_after
from hwprune.training.evidence import GradientMoments, GradientStats
from hwprune.training.hooks import Hook, Proposal
from hwprune.training.masters import MasterWeights
from hwprune.training.sparse import SparseParameters

Gradients = Mapping[str, torch.Tensor]


class Engine:
    """Prunes (and regrows) along a strategy while somebody trains.

    Args:
        sparse: the prunable parameters.
        masters: of them.
        strategy: what happens to the masks, and when.
        fill: (ranking, fraction of the byte budget) -> masks.
        steps: optimiser steps in all.
        seed: of events that are random.
        world: the processes that train together; masks are the leader's.
        gradients: measures the gradients that an event asks for; without, they are summed over the
            loop's own last ``gradient_batches`` steps.
        gradient_batches: see ``gradients``.
        before_change: called with an event before anything is measured for it.
        changed: called with an event and the masks that it led to.

    Attributes:
        sparse: the same.
        masters: the same.
        hooks: what takes part, by name, in the order in which it is asked.
        step: optimiser steps taken.
        progress: returns how far training is, in [0, 1], in place of the steps taken.
        pending: (step, event) of what is still to come.
        optimizers: what it is attached to, in the order in which they step.
        moments: of the gradients that steps have; a loop with ``gradients`` adds them.
    """

    def __init__(
        self,
        sparse: SparseParameters,
        masters: MasterWeights,
        strategy: Strategy,
        fill: Fill,
        *,
        steps: int,
        seed: int,
        world: World = SINGLE_PROCESS,
        gradients: Callable[[], Gradients] | None = None,
        gradient_batches: int = 1,
        before_change: Callable[[MaskEvent], None] = lambda event: None,
        changed: Callable[[MaskEvent, Proposal], None] = lambda event, proposal: None,
    ) -> None:
        """Look up when the events are due."""
        self.sparse, self.masters, self.hooks = sparse, masters, dict[str, Hook]()
        self._fill, self._density, self._seed, self._world = fill, strategy.density, seed, world
        self._prices = strategy.prices
        self._gradients, self._gradient_batches = gradients, gradient_batches
        self._before_change, self._changed = before_change, changed
        self.step, self._steps = 0, steps
        self.progress: Callable[[], float] | None = None
        self._reached = 0.0
        self.pending = [(due(event.progress, steps), event) for event in strategy.events]
        self.optimizers: list[torch.optim.Optimizer] = []
        self._handles: list[Any] = []
        self._skipped = False
        self._sums: dict[str, torch.Tensor] = {}
        asking = [at for at, event in self.pending if _asks(event, NEEDS_MOMENTS)]
        self.moments = GradientMoments(sparse, asking)

    # -- the optimiser ----------------------------------------------------------------------------

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Take part in every step of an optimiser; of several, in turns that end with the last."""
        self.optimizers.append(optimizer)
        self._handles += [
            optimizer.register_step_pre_hook(self._before_update),
            optimizer.register_step_post_hook(self._after_update),
        ]

    def detach(self) -> None:
        """Leave the optimisers alone."""
        while self._handles:
            self._handles.pop().remove()
        self.optimizers = []

    def _before_update(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        """Get ready for an update; gradients of a closure are there after it was called only."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._ready(optimizer)
            return None

        called = False

        def wrapped() -> Any:
            nonlocal called
            if called:
                raise UsageError(
                    f"{type(optimizer).__name__} calls its closure several times in a step",
                    hint="use an optimiser that takes one gradient a step",
                )
            called, loss = True, closure()
            self._ready(optimizer)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    @torch.no_grad()
    def _ready(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply what is due and let the parameters be masters, with masked gradients."""
        if optimizer is self.optimizers[0]:
            self._look()
            found, scale = (getattr(optimizer, each, None) for each in ("found_inf", "grad_scale"))
            self._skipped = found is not None and float(found) > 0
            if not self._skipped:
                if self._gradients is None:
                    self._check_steps()
                    self._take_gradients(1.0 if scale is None else float(scale))
                self.change_masks()
                self.masters.reveal()
        self.sparse.mask_gradients()

    @torch.no_grad()
    def _after_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Mask what was moved, whatever moved it, and store it."""
        if optimizer is not self.optimizers[-1]:
            return
        self.sparse.mask()
        if self._skipped:
            return
        self.step += 1
        for hook in self.hooks.values():
            hook.after_step()
        try:
            self._look()
            if self._gradients is None:
                self.change_masks(waiting=True)
        finally:
            self._store()

    # -- how far training is ----------------------------------------------------------------------

    @property
    def now(self) -> int:
        """Return how far training is, in steps of the whole run."""
        return due(self._reached, self._steps)

    def _look(self) -> None:
        """Ask how far training is."""
        if self.progress is None:
            self._reached = max(self._reached, self.step / max(1, self._steps))
            return
        given = self.progress()
        try:
            value = float(given)
        except (TypeError, ValueError):
            value = math.nan
        if not 0 <= value <= 1:
            raise UsageError(
                f"progress is {given!r} after {self.step} steps",
                hint="progress returns how much of the training is done, a number in [0, 1]",
            )
        if value < self._reached:
            raise UsageError(
                f"progress fell from {self._reached:g} to {value:g} after {self.step} steps",
                hint="progress is of the whole training, not of an epoch, and never falls",
            )
        self._reached = value

    def _check_steps(self) -> None:
        if self.progress is None and self.step >= self._steps:
            raise UsageError(
                f"the optimiser has taken all of its {self._steps} steps",
                hint="give as steps those of the whole training, say by progress how far it is, or"
                " detach() before training on",
            )

    def _take_gradients(self, scale: float) -> None:
        """Add the loop's own gradients where an event that asks for them is near."""
        averaged = [at for at, event in self.pending if _asks(event, NEEDS_MOMENTS)]
        # Progress may leap over the step of an event, which still wants what led there.
        self.moments.add(min([self.now, *averaged[-1:]]), scale)
        near = self.now + self._gradient_batches
        if any(at < near and _asks(event, NEEDS_GRADIENT) for at, event in self.pending):
            for name, gradient in self.sparse.gradients().items():
                if name in self._sums:
                    self._sums[name].add_(gradient, alpha=1 / scale)
                else:
                    self._sums[name] = gradient / scale

    def _store(self) -> None:
        """Let the parameters be what is stored, once the masks are final and the time has come."""
        if not self.pending:
            self.masters.take(self.now)

    # -- the masks --------------------------------------------------------------------------------

    def begin(self) -> None:
        """Let the first forward pass see the masks and values of its step, where that can be."""
        self.change_masks(waiting=True)
        if not self.masters.values:
            self._store()

    def before_step(self) -> None:
        """Get ready for a forward pass, where the loop measures gradients by itself."""
        self.change_masks()
        if not self.masters.values:
            self._store()
        self.masters.hold_norms()

    def change_masks(self, *, at_end: bool = False, waiting: bool = False) -> None:
        """Apply the events whose step has come.

        Args:
            at_end: all that are left.
            waiting: none where one of them asks for gradients that are still to come.
        """
        asked = NEEDS_GRADIENT if self.moments.mean else NEEDS_GRADIENT | NEEDS_MOMENTS
        if waiting and any(at <= self.now and _asks(event, asked) for at, event in self.pending):
            return
        while self.pending and (at_end or self.pending[0][0] <= self.now):
            _, event = self.pending.pop(0)
            self._before_change(event)
            self.adopt(event, self.propose(event, self._stats(event)))
            if not self.pending or self.pending[0][0] > self.now:
                self._sums = {}

    def _stats(self, event: MaskEvent) -> GradientStats:
        """Return what an event asks for, measured where the steps have not gathered it."""
        seed = self._seed * 65_537 + len(self.pending)
        moments = _asks(event, NEEDS_MOMENTS)
        if moments and self.moments.mean:
            return GradientStats({}, self.moments.mean, self.moments.square, seed)
        gradient: Gradients = {}
        if moments or _asks(event, NEEDS_GRADIENT):
            gradient = self._sums if self._gradients is None else self._gradients()
        # Before the first step one gradient is all there is to know of how much batches agree.
        ones = {name: torch.ones_like(each) for name, each in gradient.items() if moments}
        return GradientStats(gradient, gradient, ones, seed)

    def propose(self, event: MaskEvent, stats: GradientStats) -> Proposal:
        """Return the masks that an event leads to, the same in all processes: the leader's."""
        masks = masks_after(
            event, self.sparse, stats, self._fill, density=self._density, prices=self._prices
        )
        proposal = Proposal(masks)
        if self._world.leads:
            for hook in self.hooks.values():
                proposal = hook.propose(event, proposal, self._fill)
        return self._world.broadcast(proposal)

    def adopt(self, event: MaskEvent, proposal: Proposal) -> None:
        """Put masks in force, momentum and masters included."""
        self.sparse.set_masks(
            proposal.masks, *self.optimizers, initial=event.initial, shrink=event.shrink
        )
        self.sparse.restart(proposal.opened)
        for hook in self.hooks.values():
            hook.after_mask_change(event, proposal)
        self._changed(event, proposal)

    # -- a checkpoint -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes; not the parameters, nor what the optimisers keep."""
        masks = self.sparse.masks.by_name
        return {
            "step": self.step,
            "reached": self._reached,
            "pending": len(self.pending),
            "masks": {n: torch.from_numpy(np.packbits(mask)) for n, mask in masks.items()},
            "masters": self.masters.state_dict(),
            "sums": dict(self._sums),
            "moments": self.moments.state_dict(),
            "hooks": {name: hook.state_dict() for name, hook in self.hooks.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned, in an engine that was made alike.

        What has left the network by then leaves it, so that the module's state fits afterwards.
        """
        shapes, parameters = self.sparse.shapes, self.sparse.parameters
        masks = {
            name: np.unpackbits(bits.numpy(), count=int(np.prod(shapes[name])))
            for name, bits in state["masks"].items()
        }
        # The masks first: hooks ask for them.
        self.sparse.set_masks(
            Masks({n: mask.reshape(shapes[n]).astype(np.bool_) for n, mask in masks.items()})
        )
        self.step = state["step"]
        self._reached = state.get("reached", self.step / max(1, self._steps))
        self.pending = self.pending[len(self.pending) - state["pending"] :]
        self.masters.load_state_dict(state["masters"])
        self._sums = {n: torch.empty_like(parameters[n]).copy_(t) for n, t in state["sums"].items()}
        self.moments.load_state_dict(state["moments"])
        for name, hook in self.hooks.items():
            hook.before_step(self.step - 1, self.optimizers[0])
            hook.load_state_dict(state["hooks"][name])


def due(progress: float, steps: int) -> int:
    """Return the step before which something happens."""
    return min(steps, round(progress * steps))


def value_phase(strategy: Strategy, quantizer: Any, quantise_from: float, steps: int) -> int:
    """Return the step from which values are trained as they are stored.

    Half as long where BN stands still meanwhile: it has less time to lose anything.
    """
    start = (1 + quantise_from) / 2 if quantizer.holds_norms else quantise_from
    last = max((event.progress for event in strategy.events), default=0.0)
    return max(due(last, steps), due(start, steps))


def _asks(event: MaskEvent, scores: frozenset[str]) -> bool:
    return event.action == "regrow" and event.score in scores
