"""Paths from the inputs to the outputs: a mask that cuts an output off is found and mended.

At 99.99 % a mask may leave an output without any way from the input (layer collapse is the simplest
case, arXiv 2006.05467): it is a constant then, and no gradient ever mends it. Whether there is a
way is asked of the network itself, not of its graph: it is run once on positive numbers, with every
living weight positive and every dead one zero, biases zero, and normalisations passing on what they
get. What comes out is positive exactly where a path of living connections leads. Where every row
and column of every tensor has a living connection there is nothing to ask.

To mend, dead connections are opened a little: the flow through them says which of them lies on the
way that needs the fewest, and of those the one with the largest pretrained weights. For each one
that is opened another is closed that no output needs, so that their number stays.

Networks of which this cannot be said (an output that is zero with every weight alive, or that is
not zero for zero inputs, such as with learnt positions) are left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from hwprune.ir import Masks, Ranking
from hwprune.sparsity import rank
from hwprune.training.modes import set_mode
from hwprune.training.sparse import SparseParameters

# What goes in, small, so that no activation saturates; what a dead connection passes on: less than
# one part in the connections that a row can have, and large enough for twenty of them in a row.
_INPUT, _BRIDGE = 1e-3, 1e-8
# How often a network is looked at to mend a mask, and after how many outputs that cannot be reached
# the others are not tried: what is left is left to the next change of the masks.
_MOST_LOOKS, _PATIENCE = 200, 3
_NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})

Arrays = dict[str, NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class Mended:
    """Masks after mending.

    Attributes:
        masks: as many connections as before.
        opened: those of them that were dead; they are to start from their pretrained values, since
            two zeros in a row have no gradient.
        mended: how many outputs have a path again.
        left: how many have none: too few connections live to reach all.
    """

    masks: Masks
    opened: Masks | None = None
    mended: int = 0
    left: int = 0

    @property
    def untouched(self) -> Masks:
        """Return the masks without what was opened."""
        if self.opened is None:
            return self.masks
        return Masks({name: self.masks[name] & ~self.opened[name] for name in self.masks})


class Paths:
    """Looks for paths through one network.

    Args:
        module: the network; it is not changed.
        sparse: its prunable parameters.
        inputs: returns a batch, for the inputs' shapes.

    Attributes:
        mended: how often an output that was cut off was given a path.
        moved: the connections that this took.
        left: how many outputs have none in the present masks.
    """

    def __init__(
        self,
        module: nn.Module,
        sparse: SparseParameters,
        inputs: Callable[[], tuple[torch.Tensor, ...]],
    ) -> None:
        """Look at nothing yet."""
        self._module, self._sparse = module, sparse
        self._inputs = cache(inputs)
        self._judged: bool | None = None
        self.mended = self.moved = self.left = 0

    def mend(self, masks: Masks) -> Mended:
        """Return the masks with a path to every output that can have one; their count stays."""
        if _reaches_everything(masks) or not self._can_judge():
            return Mended(masks)
        cut = self.cut(masks)
        if not cut:
            return Mended(masks)
        try:
            return self._with_ways(masks, cut)
        except RuntimeError:  # a network that insists on one type of numbers: flows need another
            return Mended(masks, left=len(cut))

    def _with_ways(self, masks: Masks, cut: Sequence[int]) -> Mended:
        whole = _copied(masks.by_name)
        kept = self._mended(whole, cut)
        if kept is None:  # too few can live to reach them all: as many as it goes
            kept, failures = whole, 0
            for output in cut:
                if failures == _PATIENCE:
                    break
                if not self._reached(kept)[output]:
                    tried = self._mended(kept, (output,))
                    kept, failures = tried or kept, failures + (tried is None)
        left = len(self.cut(Masks(kept)))
        opened = {name: kept[name] & ~masks[name] for name in kept}
        return Mended(Masks(kept), Masks(opened), len(cut) - left, left)

    def filled(self, mended: Mended, fill: Callable[[Ranking], Masks]) -> Mended:
        """Return what of mended masks fits: bytes depend on positions, so it may be a little less.

        Connections that no output needs are the first to go.
        """
        assert mended.opened is not None
        values, before = self._sparse.values(), self._sparse.pretrained_values()
        scores = {}
        for name, mask in mended.masks.by_name.items():
            size = np.abs(np.where(mended.opened[name], before[name], values[name]))
            scores[name] = np.where(mask, size, np.float32(-np.inf))
        masks = fill(rank(scores, keep=self.needed(mended.masks)))
        left = len(self.cut(masks))
        opened = Masks({name: mended.opened[name] & masks[name] for name in masks})
        return Mended(masks, opened, mended.mended + mended.left - left, left)

    def count(self, mended: Mended) -> None:
        """Remember what was mended, for the report."""
        self.mended, self.left = self.mended + mended.mended, mended.left
        self.moved += 0 if mended.opened is None else mended.opened.nonzeros

    @property
    def notes(self) -> tuple[str, ...]:
        """Return sentences for the report."""
        said = []
        if self.mended:
            times = "an output" if self.mended == 1 else f"outputs, {self.mended} times,"
            said.append(
                f"{times} had no path of living connections from the input:"
                f" {self.moved} connections were moved to mend that"
            )
        if self.left:
            said.append(f"{self.left} outputs have no path of living connections from the input")
        return tuple(said)

    def state(self) -> dict[str, int]:
        """Return what was mended so far."""
        return {"mended": self.mended, "moved": self.moved, "left": self.left}

    def load(self, state: Mapping[str, int]) -> None:
        """Take back what ``state`` returned."""
        self.mended, self.moved, self.left = (state[k] for k in ("mended", "moved", "left"))

    def cut(self, masks: Masks) -> tuple[int, ...]:
        """Return the outputs that no path of living connections leads to."""
        return tuple(np.flatnonzero(~self._reached(masks.by_name)).tolist())

    def needed(self, masks: Masks) -> Masks:
        """Return the living connections that lie on a path."""
        return Masks({name: flow > 0 for name, flow in self._flows(masks.by_name).items()})

    def _can_judge(self) -> bool:
        if self._judged is None:
            full = {n: np.ones(shape, np.bool_) for n, shape in self._sparse.shapes.items()}
            try:
                every, nothing = (self._reached(full, size) for size in (1.0, 0.0))
                self._judged = bool(every.all()) and not nothing.any()
            # Whatever a network does with numbers of another type: it is not judged.
            except (RuntimeError, TypeError, ValueError, NotImplementedError):
                self._judged = False
        return self._judged

    def _reached(
        self, masks: Mapping[str, NDArray[np.bool_]], size: float = 1.0
    ) -> NDArray[np.bool_]:
        """Return which outputs a path leads to: every number on the way is 0 or 1."""
        weights = {name: torch.from_numpy(mask.astype(np.float32)) for name, mask in masks.items()}
        with torch.no_grad():
            return (self._outputs(weights, size, _Passing(binary=True)) > 0).numpy()

    def _mended(self, masks: Arrays, outputs: Sequence[int]) -> Arrays | None:
        """Open ways to some outputs and close as much elsewhere; None where that cannot be."""
        tried, count = _copied(masks), 0
        for _ in range(_MOST_LOOKS):
            reached = self._reached(tried)
            cut = [output for output in outputs if not reached[output]]
            if not cut:
                break
            best = self._best(tried, cut)
            if not best:
                return None
            for name, place in best:
                tried[name].flat[place] = True
            count += len(best)
        opened = {name: tried[name] & ~masks[name] for name in tried}
        return tried if self._close(tried, opened, count) else None

    def _best(self, masks: Arrays, outputs: Sequence[int]) -> list[tuple[str, int]]:
        """Return the dead connection through which most would flow to some outputs.

        Where all that flows to an output goes through one empty row, as in a last layer, that row's
        best one is needed anyway: those of all such rows together.
        """
        weights = self._weights(masks, _BRIDGE)
        flow = self._outputs(weights, _INPUT, _Passing())[list(outputs)]
        gains = _through(flow[flow > 0].log().sum(), weights)
        needed: list[tuple[str, int]] = []
        best, most = needed, 0.0
        for name, mask in masks.items():
            gain = np.where(mask, 0.0, gains[name]).reshape(len(mask), -1)
            empty = ~mask.reshape(len(mask), -1).any(1)
            rows = np.flatnonzero(empty & (gain.sum(1) > 1 - 1e-3))
            needed += [(name, int(r) * gain.shape[1] + int(np.argmax(gain[r]))) for r in rows]
            place = int(np.argmax(gain))
            if gain.flat[place] > most:
                best, most = [(name, place)], float(gain.flat[place])
        return needed or best

    def _close(self, masks: Arrays, opened: Arrays, count: int) -> bool:
        """Close connections that no output needs, in place; return whether there were so many."""
        while count:
            flows = self._flows(masks)
            # The last one of a tensor stays, and what was opened just now.
            may = {
                name: mask & ~opened[name] & (np.count_nonzero(mask) > 1)
                for name, mask in masks.items()
            }
            least = min(
                (float(flows[n][may[n]].min()) for n in masks if may[n].any()), default=np.inf
            )
            if least > 1 - 1e-6:  # all that some output has
                return False
            if least == 0:
                closed = self._close_useless(masks, may, flows, count)
            else:
                closed = 1
                name = next(n for n in masks if may[n].any() and flows[n][may[n]].min() == least)
                masks[name].flat[np.flatnonzero(may[name] & (flows[name] == least))[-1]] = False
            count -= closed
        return True

    def _close_useless(
        self, masks: Arrays, may: Arrays, flows: Mapping[str, NDArray[np.float64]], count: int
    ) -> int:
        """Close up to so many that lie on no path, the smallest weights first."""
        values = self._sparse.values()
        found = [
            (abs(float(values[name].flat[place])), name, int(place))
            for name in masks
            for place in np.flatnonzero(may[name] & (flows[name] == 0))
        ]
        closed = 0
        for _, name, place in sorted(found):
            if closed < count and np.count_nonzero(masks[name]) > 1:
                masks[name].flat[place] = False
                closed += 1
        return closed

    def _flows(self, masks: Mapping[str, NDArray[np.bool_]]) -> dict[str, NDArray[np.float64]]:
        """Return through each connection the parts of all outputs' flows: 1 where all of one's."""
        weights = self._weights(masks, 0.0)
        outputs = self._outputs(weights, _INPUT, _Passing())
        return _through(outputs[outputs > 0].log().sum(), weights)

    def _weights(
        self, masks: Mapping[str, NDArray[np.bool_]], bridge: float
    ) -> dict[str, torch.Tensor]:
        """Return positive weights where connections live, and less where they are dead."""
        weights = {}
        pretrained = self._sparse.pretrained_values() if bridge else {}
        for name, mask in masks.items():
            # Rows sum to one at most, so that values stay in range however deep the network is.
            rows = max(1, int(mask.reshape(mask.shape[0], -1).sum(1).max()))
            value = mask.astype(np.float64)
            if bridge:
                size = np.abs(pretrained[name]).astype(np.float64)
                value = np.where(mask, value, bridge * (1 + size / max(1e-30, size.max())))
            weights[name] = torch.from_numpy(value / rows).requires_grad_()
        return weights

    def _outputs(
        self, weights: Mapping[str, torch.Tensor], size: float, passing: _Passing
    ) -> torch.Tensor:
        """Run the network on positive weights and inputs of one size; return (outputs,)."""
        kind = next(iter(weights.values())).dtype
        state: dict[str, torch.Tensor] = {}
        for name, buffer in self._module.named_buffers():
            state[name] = buffer.cpu().to(kind) if buffer.is_floating_point() else buffer.cpu()
        for name, parameter in self._module.named_parameters():
            if name in weights:
                continue
            # A bias adds nothing; a scalar and a matrix that cannot be pruned pass things on.
            each = 0.0 if parameter.ndim == 1 else 1.0 / max(1, math.prod(parameter.shape[1:]))
            state[name] = torch.full(parameter.shape, each, dtype=kind)
        inputs = tuple(
            torch.full((1, *part.shape[1:]), size, dtype=kind)
            if part.is_floating_point()
            else part[:1].cpu()
            for part in self._inputs()
        )
        with _in_eval(self._module), passing:
            output = functional_call(self._module, {**state, **weights}, inputs)
        output = output[0] if isinstance(output, (tuple, list)) else output
        flat: torch.Tensor = output.reshape(-1)
        return flat


class _Passing(TorchFunctionMode):
    """Lets normalisations return what they get: they may not take a path away, nor make one.

    Args:
        binary: make 1 of every positive number and 0 of all others after each step, so that nothing
            gets too large or too small however deep the network is.
    """

    def __init__(self, *, binary: bool = False) -> None:
        super().__init__()
        self._binary = binary

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "").partition(".")[0] in _NORMS:
            return args[0] if args else kwargs["input"]
        result = func(*args, **kwargs)
        if self._binary and isinstance(result, torch.Tensor) and result.is_floating_point():
            return (result > 0).to(result.dtype)
        return result


@contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    set_mode(module, training=False)
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _through(
    total: torch.Tensor, weights: Mapping[str, torch.Tensor]
) -> dict[str, NDArray[np.float64]]:
    """Return what each weight has in a total: the weight times its derivative."""
    found = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    return {
        name: np.zeros(weight.shape) if grad is None else (weight * grad).detach().numpy()
        for (name, weight), grad in zip(weights.items(), found, strict=True)
    }


def _reaches_everything(masks: Masks) -> bool:
    """Return whether every row and every column of every tensor has a living connection.

    Whichever of them are its outputs: each is then reached from something that is reached itself.
    """
    for mask in masks.by_name.values():
        flat = mask.reshape(*mask.shape[:2], -1)
        if not (flat.any((1, 2)).all() and flat.any((0, 2)).all()):
            return False
    return True


def _copied(masks: Mapping[str, NDArray[np.bool_]]) -> Arrays:
    return {name: masks[name].copy() for name in masks}
