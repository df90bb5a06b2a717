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
not zero for zero inputs, such as with learnt positions) are left as they are, and the report says
so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwprune.extreme.passing import (
    CannotPassError,
    has_grouped_transposed,
    passed,
    through,
)
from hwprune.ir import Masks, Ranking
from hwprune.sparsity import Fill, MaskEvent, rank
from hwprune.training.hooks import Hook, Proposal
from hwprune.training.sparse import SparseParameters

# What goes in, small, so that no activation saturates; what a dead connection passes on: less than
# one part in the connections that a row can have, and large enough for twenty of them in a row.
_INPUT, _BRIDGE = 1e-3, 1e-8
# How often a network is looked at to mend a mask, and after how many outputs that cannot be reached
# the others are not tried: what is left is left to the next change of the masks.
_MOST_LOOKS, _PATIENCE = 200, 3
# Up to so many outputs each one's share in a connection is looked at by itself.
_MOST_OUTPUTS = 100

Arrays = dict[str, NDArray[np.bool_]]
Flows = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class RepairedMasks(Proposal):
    """Masks after repair: as many connections as before.

    What was opened had been pruned, and starts from its pretrained value, since two zeros in a row
    have no gradient.

    Attributes:
        mended: how many outputs have a path again.
        left: how many were not reached: mostly since too few connections are kept to reach all.
        problem: why ways could not be looked for, though a row or a column is empty.
    """

    mended: int = 0
    left: int = 0
    problem: str = ""


class Reachability(Hook):
    """Looks for paths through one network.

    Args:
        module: the network; it is not changed.
        sparse: its prunable parameters.
        inputs: returns a batch, for the inputs' shapes.
        plain: lets the module be what it is in the end, inside.

    Attributes:
        mended: how often an output that was cut off was given a path.
        moved: the connections that this took.
        left: how many outputs have none in the present masks.
        problem: why ways could not be looked for.
    """

    def __init__(
        self,
        module: nn.Module,
        sparse: SparseParameters,
        inputs: Callable[[], tuple[torch.Tensor, ...]],
        plain: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Look at nothing yet."""
        self._module, self._sparse, self._plain = module, sparse, plain
        self._inputs = cache(inputs)
        self._unjudged: str | None = None  # why not; empty where it can be judged
        self._by_sides = not has_grouped_transposed(module)
        self.mended = self.moved = self.left = 0
        self.problem = ""

    def propose(self, event: MaskEvent, proposal: Proposal, fill: Fill) -> Proposal:
        """Return the masks with a path to every output; of bytes, those that fit."""
        fraction = event.budget_fraction
        with self._plain(), torch.enable_grad():
            repaired = self.mend(proposal.masks)
            if repaired.opened is None or fraction is None:
                return repaired
            return self.filled(repaired, lambda ranking: fill(ranking, fraction))

    def after_mask_change(self, event: MaskEvent, proposal: Proposal) -> None:
        """Remember what was mended, for the report."""
        if isinstance(proposal, RepairedMasks):
            self.mended, self.left = self.mended + proposal.mended, proposal.left
            self.moved += 0 if proposal.opened is None else proposal.opened.nonzeros
            self.problem = proposal.problem or self.problem

    def mend(self, masks: Masks) -> RepairedMasks:
        """Return the masks with a path to every output that can have one; their count stays."""
        if self._by_sides and _reaches_everything(masks):
            return RepairedMasks(masks)
        if self._why_unjudged():
            problem = "" if _reaches_everything(masks) else f"judged: {self._why_unjudged()}"
            return RepairedMasks(masks, problem=problem)
        cut = self.cut(masks)
        if not cut:
            return RepairedMasks(masks)
        try:
            return self._with_ways(masks, cut)
        # A network that insists on one type of numbers: flows need another.
        except CannotPassError as error:
            return RepairedMasks(masks, left=len(cut), problem=f"mended: {error}")

    def _with_ways(self, masks: Masks, cut: Sequence[int]) -> RepairedMasks:
        whole = _copied(masks.by_name)
        bridges = self._bridges()
        kept = self._mended(whole, cut, bridges)
        if kept is None:  # too few can live to reach them all: as many as it goes
            kept, failures = whole, 0
            for output in cut:
                if failures == _PATIENCE:
                    break
                if not self._reached(kept)[output]:
                    tried = self._mended(kept, (output,), bridges)
                    kept, failures = tried or kept, failures + (tried is None)
        left = len(self.cut(Masks(kept)))
        opened = {name: kept[name] & ~masks[name] for name in kept}
        return RepairedMasks(Masks(kept), Masks(opened), len(cut) - left, left)

    def filled(self, mended: RepairedMasks, fill: Callable[[Ranking], Masks]) -> RepairedMasks:
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
        return RepairedMasks(masks, opened, mended.mended + mended.left - left, left)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return sentences for the report."""
        said = []
        if self.mended:
            times = "an output" if self.mended == 1 else f"outputs, {self.mended} times,"
            said.append(
                f"{times} had no path of kept connections from the input:"
                f" {self.moved} connections were moved to mend that"
            )
        if self.left:
            said.append(f"{self.left} outputs have no path of kept connections from the input")
        if self.problem:
            said.append(f"paths from the input to the outputs could not be {self.problem}")
        return tuple(said)

    def state_dict(self) -> dict[str, Any]:
        """Return what was mended so far."""
        return {name: getattr(self, name) for name in ("mended", "moved", "left", "problem")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        for name, value in state.items():
            setattr(self, name, value)

    def cut(self, masks: Masks) -> tuple[int, ...]:
        """Return the outputs that no path of living connections leads to."""
        return tuple(np.flatnonzero(~self._reached(masks.by_name)).tolist())

    def needed(self, masks: Masks) -> Masks:
        """Return the living connections that lie on a path."""
        return Masks({name: flow > 0 for name, flow in self._flows(masks.by_name).items()})

    def _why_unjudged(self) -> str:
        """Return why nothing can be said of the network's paths; empty where it can."""
        if self._unjudged is None:
            full = {n: np.ones(shape, np.bool_) for n, shape in self._sparse.shapes.items()}
            try:
                every, nothing = (self._reached(full, size) for size in (1.0, 0.0))
            except CannotPassError as error:
                self._unjudged = str(error)
            else:
                self._unjudged = ""
                if not every.all():
                    self._unjudged = "an output may be zero with every weight kept"
                elif nothing.any():
                    self._unjudged = "an output is not zero where all inputs are"
        return self._unjudged

    def _reached(
        self, masks: Mapping[str, NDArray[np.bool_]], size: float = 1.0
    ) -> NDArray[np.bool_]:
        """Return which outputs a path leads to: every number on the way is 0 or 1."""
        weights = {name: torch.from_numpy(mask.astype(np.float32)) for name, mask in masks.items()}
        with torch.no_grad():
            outputs = passed(self._module, weights, self._inputs(), size, binary=True)
        return (outputs > 0).numpy()

    def _mended(
        self, masks: Arrays, outputs: Sequence[int], bridges: Mapping[str, NDArray[np.float32]]
    ) -> Arrays | None:
        """Open ways to some outputs and close as much elsewhere; None where that cannot be."""
        tried, count = _copied(masks), 0
        for _ in range(_MOST_LOOKS):
            reached = self._reached(tried)
            cut = [output for output in outputs if not reached[output]]
            if not cut:
                break
            best = self._best(tried, cut, bridges)
            if not best:
                return None
            for name, place in best:
                tried[name].flat[place] = True
            count += len(best)
        opened = {name: tried[name] & ~masks[name] for name in tried}
        return tried if self._close(tried, opened, count) else None

    def _best(
        self, masks: Arrays, outputs: Sequence[int], bridges: Mapping[str, NDArray[np.float32]]
    ) -> list[tuple[str, int]]:
        """Return the dead connection through which most would flow to some outputs.

        Where all that flows to an output goes through one empty row, as in a last layer, that row's
        best one is needed anyway: those of all such rows together.
        """
        weights = _weights(masks, bridges)
        flow = self._outputs(weights)[list(outputs)]
        gains = _numbers(through(flow[flow > 0].log().sum(), weights))
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
            least = _least(flows, may)
            if least > 1 - 1e-6:  # in all outputs together: it may be all that one of them has
                flows = self._largest(masks)
                least = _least(flows, may)
            if least > 1 - 1e-6:
                return False
            if least == 0:
                closed = self._close_useless(masks, may, flows, count)
            else:
                closed = 1
                name = next(n for n in masks if may[n].any() and flows[n][may[n]].min() == least)
                masks[name].flat[np.flatnonzero(may[name] & (flows[name] == least))[-1]] = False
            count -= closed
        return True

    def _close_useless(self, masks: Arrays, may: Arrays, flows: Flows, count: int) -> int:
        """Close up to so many that lie on no path, the smallest weights first."""
        values = self._sparse.values()
        found: list[tuple[float, str, int]] = []
        for name, mask in may.items():
            places = np.flatnonzero(mask & (flows[name] == 0))
            if places.size:  # each look at the values makes the whole array anew
                sizes = np.abs(values[name].reshape(-1)[places])
                found += [
                    (s, name, p) for s, p in zip(sizes.tolist(), places.tolist(), strict=True)
                ]
        closed = 0
        for _, name, place in sorted(found):
            if closed < count and np.count_nonzero(masks[name]) > 1:
                masks[name].flat[place] = False
                closed += 1
        return closed

    def _flows(self, masks: Mapping[str, NDArray[np.bool_]]) -> Flows:
        """Return through each connection the parts of all outputs' flows: 1 where all of one's."""
        weights = _weights(masks)
        outputs = self._outputs(weights)
        return _numbers(through(outputs[outputs > 0].log().sum(), weights))

    def _largest(self, masks: Mapping[str, NDArray[np.bool_]]) -> Flows:
        """Return through each connection the largest part of a single output's flow.

        One look for each output; of more than a few of them the parts are summed as elsewhere.
        """
        weights = _weights(masks)
        outputs = self._outputs(weights)
        reached = outputs[outputs > 0].log()
        if len(reached) > _MOST_OUTPUTS:
            return _numbers(through(reached.sum(), weights))
        largest = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for flow in reached.unbind():
            for name, part in through(flow, weights).items():
                torch.maximum(largest[name], part, out=largest[name])
        return _numbers(largest)

    def _bridges(self) -> dict[str, NDArray[np.float32]]:
        """Return what dead connections pass on, the more the larger their pretrained weights."""
        bridges: dict[str, NDArray[np.float32]] = {}
        for name, values in self._sparse.pretrained_values().items():
            size = np.abs(values)
            share = size / max(1e-30, float(size.max()))
            bridges[name] = (_BRIDGE * (1 + share)).astype(np.float32)
        return bridges

    def _outputs(self, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return (outputs,) what flows to each of them."""
        return passed(self._module, weights, self._inputs(), _INPUT)


def _reaches_everything(masks: Masks) -> bool:
    """Return whether every row and every column of every tensor has a living connection.

    Whichever of them are its outputs: each is then reached from something that is reached itself.
    """
    for mask in masks.by_name.values():
        flat = mask.reshape(*mask.shape[:2], -1)
        if not (flat.any((1, 2)).all() and flat.any((0, 2)).all()):
            return False
    return True


def _weights(
    masks: Mapping[str, NDArray[np.bool_]],
    bridges: Mapping[str, NDArray[np.float32]] | None = None,
) -> dict[str, torch.Tensor]:
    """Return positive weights where connections live, and zero or less than one where dead."""
    weights = {}
    for name, mask in masks.items():
        # Rows sum to one at most, so that values stay in range however deep the network is.
        rows = max(1, int(mask.reshape(mask.shape[0], -1).sum(1).max()))
        value = mask.astype(np.float64)
        if bridges is not None:
            value = np.where(mask, value, bridges[name])
        weights[name] = torch.from_numpy(value / rows).requires_grad_()
    return weights


def _least(flows: Flows, may: Arrays) -> float:
    """Return the least that flows through a connection that may go; infinite where none may."""
    return min((float(flows[n][may[n]].min()) for n in may if may[n].any()), default=np.inf)


def _numbers(parts: Mapping[str, torch.Tensor]) -> Flows:
    return {name: part.numpy() for name, part in parts.items()}


def _copied(masks: Mapping[str, NDArray[np.bool_]]) -> Arrays:
    return {name: masks[name].copy() for name in masks}
