"""Refit the surviving weights, layer after layer, so that the sparse network answers as the dense.

Needs a few hundred inputs; no labels and no gradients. In the order of the forward pass, the
surviving weights of each layer become the ridge-regularised least-squares solution of "what the
dense network has here, from what the sparse network brings here": so a layer also mends what those
before it could not. Where a layer's output runs through BN and a residual sum before the next
activation, "here" is behind them, since that is what the next layer sees.

Layer-wise least squares after pruning is an old idea (for instance arXiv 1707.06168, for channels);
solving on each row's own support follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from hwprune.errors import HwpruneError
from hwprune.ir import Masks, Split
from hwprune.least_squares.lockstep import Pass
from hwprune.least_squares.parameter_uses import ParameterUse, plain_attention, survey
from hwprune.least_squares.ridge_solver import GramSums, solve
from hwprune.training.batches import Batches
from hwprune.training.module_state import placed, share_parameters

SAMPLES = 256
# Each row takes the one that does best on held-out samples.
RIDGES = (1e-3, 1e-2, 1e-1)
MEMORY_BYTES = 512 * 1024**2
# What forward passes may hold between two layers; where it is more, they start again for each.
_HELD_BYTES = 1024 * 1024**2
# Inputs in one forward pass.
_BATCH = 64
# One in so many samples is not fitted on, and decides which rows keep their new weights.
_HELD_OUT = 8
# Columns that a layer is fitted on, where there are as many: so many, or so many a row's weight.
_COLUMNS = 1 << 15
_COLUMNS_A_WEIGHT = 32
# With many groups of few weights each, such as depthwise, so many a weight are plenty.
_MOST_A_WEIGHT = 256
_PART_BYTES = 32 * 1024**2


@dataclass(frozen=True, slots=True)
class LayerFit:
    """How one tensor was refitted.

    Attributes:
        name: the parameter.
        rows: how many output channels it has.
        refitted: how many of them got new weights; the others were better as they were.
        before, after: the squared error at the layer's end on samples that were not fitted on, as a
            fraction of what the dense network has there (variance).
    """

    name: str
    rows: int
    refitted: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What ``least_squares`` did.

    Attributes:
        layers: tensors that were refitted, in the order of the forward pass.
        skipped: (name, reason) of those that were left as they are.
        samples: inputs that were used.
    """

    layers: tuple[LayerFit, ...]
    skipped: tuple[tuple[str, str], ...]
    samples: int


def least_squares(
    module: nn.Module,
    teacher: nn.Module,
    split: Split,
    names: Sequence[str],
    masks: Masks,
    *,
    samples: int = SAMPLES,
    ridges: Sequence[float] = RIDGES,
    memory_bytes: int = MEMORY_BYTES,
    device: str = "cpu",
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda name, number, of: None,
) -> Reconstruction:
    """Refit the surviving weights of a pruned network, and the offsets behind them. In place.

    Offsets are the layer's own bias, or that of the BN behind it. BN's statistics stay those of the
    dense network: the layers in front are fitted to them. A row whose squared error on held-out
    samples does not fall stays as it is. Pruned weights stay exactly zero. Labels are not read.

    Args:
        module: the network with its masks applied; ends in eval mode.
        teacher: the dense network; unchanged.
        split: where inputs come from.
        names: keys of the prunable parameters.
        masks: what lives.
        samples: how many inputs to use; all where there are fewer.
        ridges: how strongly weights are held, relative to the mean variance of a layer's columns:
            what each row chooses from.
        memory_bytes: about what a layer's equations may take, beside the network's own forward
            pass; a layer whose second moments need more is solved on fewer columns.
        device: where to compute.
        seed: of the choice of samples and positions.
        progress: called now and then with a layer's name, its number from 1, and their count.

    Raises:
        DataError: the split is empty.
        HwpruneError: the teacher shares parameters with the module.
    """
    if share_parameters(teacher, module):
        raise HwpruneError("least squares needs the dense network apart from the pruned one")
    with placed(device, module, teacher):
        source = Batches(split, device=device, resident_bytes=0, channels_last=False)
        order = torch.randperm(source.size, generator=torch.Generator().manual_seed(seed))
        order = order[: max(1, samples)]
        run = _Refit(module, teacher, masks, names, source, order)
        run.ridges, run.memory_bytes = ridges, memory_bytes
        with torch.no_grad(), plain_attention(), closing(run):
            layers, skipped = [], run.skipped
            for number, name in enumerate(run.counts, start=1):
                tick = partial(progress, name, number, len(run.counts))
                found = run.refit(name, seed + number, tick)
                run.left.discard(name)
                if isinstance(found, LayerFit):
                    layers.append(found)
                else:
                    skipped.append((name, found))
    return Reconstruction(tuple(layers), tuple(skipped), len(order))


class _Otherwise(Exception):
    """A batch uses a parameter otherwise than the surveyed one did."""


class _Pair:
    """One batch on its way through both networks."""

    def __init__(self, run: _Refit, index: torch.Tensor) -> None:
        def inputs() -> tuple[torch.Tensor, ...]:
            return next(run.source.take((index,))).inputs

        self.size = len(index)
        self._passes = [
            Pass(network, run.uses, run.left, inputs) for network in (run.module, run.teacher)
        ]

    def to(self, name: str, count: int) -> list[tuple[ParameterUse, ParameterUse]]:
        mine, theirs = (each.to(name) for each in self._passes)
        if not len(mine) == len(theirs) == count:
            raise _Otherwise
        return list(zip(mine, theirs, strict=True))

    def close(self) -> None:
        for each in self._passes:
            each.close()


class _Refit:
    """What stays the same from layer to layer."""

    ridges: Sequence[float] = RIDGES
    memory_bytes: int = MEMORY_BYTES

    def __init__(
        self,
        module: nn.Module,
        teacher: nn.Module,
        masks: Masks,
        names: Sequence[str],
        source: Batches,
        order: torch.Tensor,
    ) -> None:
        self.module, self.teacher, self.masks, self.source = module, teacher, masks, source
        self.samples = len(order)
        self.uses = survey(module, names, next(self.source.take((order[:2],))).inputs)
        self.counts = self.uses.counts()
        self.left = set(self.counts)
        self.parameters = dict(module.named_parameters(remove_duplicate=False))
        reasons = ((name, self.uses.obstacle(name)) for name in names)
        self.skipped = [(name, reason) for name, reason in reasons if reason is not None]
        held = len(order) // _HELD_OUT or min(1, len(order) - 1)
        # A single sample is fitted on and checked with.
        parts = order[held:], order[:held] if held else order
        self._fitted, self._held_out = (
            [_Pair(self, index) for index in torch.split(part, _BATCH)] for part in parts
        )

    def close(self) -> None:
        """End all passes."""
        for pair in (*self._fitted, *self._held_out):
            pair.close()

    def refit(self, name: str, seed: int, tick: Callable[[], None]) -> LayerFit | str:
        """Solve for one tensor and keep the rows that got better; or say why it cannot be."""
        weight, operator = self.parameters[name], self.uses.operators[name][0]
        rows = operator.rows(weight.detach())
        alive = operator.rows(torch.from_numpy(self.masks[name]).to(weight.device))
        # What was seen of the pruned network, where the passes go on from here.
        waiting: list[ParameterUse] | None = None
        if self.counts[name] == 1 and 2 * self.samples * self.uses.live[name] <= _HELD_BYTES:
            waiting = []
        try:
            data, last = self._collect(name, rows, seed, waiting, tick)
            offset = self._offset(last)
            found = solve(data, alive, self.ridges, offset=offset is not None, tick=tick)
            choices = [(delta.float(), shift.float()) for delta, shift in found]
            deltas = [operator.weight(delta, weight.shape) for delta, _ in choices]
            shifts = [shift for _, shift in choices]
            before, errors, scale = self._errors(name, rows, deltas, shifts, waiting)
        except _Otherwise:
            self.close()
            return "is not used alike in every forward pass"
        if not choices or not bool(torch.isfinite(before).all()):
            return "has inputs or outputs that are not finite"
        delta, moved, after = torch.zeros_like(rows), torch.zeros_like(before), before
        for (one, shift), error in zip(choices, errors, strict=True):
            # Not "unless worse": what is not a number is no better either.
            better = error < after
            delta = torch.where(better.unsqueeze(2), one, delta)
            moved, after = torch.where(better, shift, moved), torch.where(better, error, after)
        change = operator.weight(delta, weight.shape)
        weight.add_(change)
        if offset is not None:
            by = last.offset_scale
            offset.add_(moved.flatten() if by is None else moved.flatten() * by)
        for use in waiting or ():
            use.correct(change, None if offset is None else moved.flatten())
        total = max(float(scale.sum()), 1e-30)
        return LayerFit(
            name,
            before.numel(),
            int((after < before).sum()),
            float(before.sum()) / total,
            float(after.sum()) / total,
        )

    def _visit(
        self, pairs: Sequence[_Pair], name: str, waiting: list[ParameterUse] | None
    ) -> Iterator[tuple[_Pair, ParameterUse, torch.Tensor, ParameterUse]]:
        """Yield each use in each batch, what its output lacks, and the dense network's use."""
        for pair in pairs:
            for mine, theirs in pair.to(name, self.counts[name]):
                if waiting is not None:
                    waiting.append(mine)
                yield pair, mine, mine.divided(theirs.output - mine.output), theirs
            if waiting is None:
                pair.close()

    def _collect(
        self,
        name: str,
        rows: torch.Tensor,
        seed: int,
        waiting: list[ParameterUse] | None,
        tick: Callable[[], None],
    ) -> tuple[GramSums, ParameterUse]:
        """Run the samples to be fitted on through both networks and keep what the layer needs."""
        groups, height, width = rows.shape
        shape = self.parameters[name].shape
        generator = torch.Generator().manual_seed(seed)
        wanted = max(_COLUMNS, _COLUMNS_A_WEIGHT * width)
        if groups > 1:
            wanted = min(wanted, _MOST_A_WEIGHT * width)
        if 8 * groups * width * (width + height) > self.memory_bytes // 2:
            # Then the columns themselves are kept: at most as many as fit, and fewer than K.
            wanted = max(1, min(width // 2, self.memory_bytes // (8 * groups * width)))
        share = wanted / (sum(pair.size for pair in self._fitted) * self.counts[name])
        part = max(1, _PART_BYTES // (4 * groups * width))
        sums = GramSums()
        for pair, use, lacking, _ in self._visit(self._fitted, name, waiting):
            tick()
            for at in torch.split(
                _some(use.operator.count(lacking), share * pair.size, generator), part
            ):
                here = at.to(rows.device)
                columns = use.operator.columns(use.x, here, lacking, shape)
                sums.add(columns, use.operator.outputs(lacking, here))
        return sums, use

    def _errors(
        self,
        name: str,
        rows: torch.Tensor,
        deltas: Sequence[torch.Tensor],
        shifts: Sequence[torch.Tensor],
        waiting: list[ParameterUse] | None,
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Return squared errors by row: as it is, with each change; and the dense variance."""
        before, scale = torch.zeros_like(rows[..., 0]), torch.zeros_like(rows[..., 0])
        after = [torch.zeros_like(before) for _ in deltas]
        for _, use, missing, theirs in self._visit(self._held_out, name, waiting):
            operator = use.operator
            at = torch.arange(operator.count(missing), device=before.device)
            lacking = operator.outputs(missing, at)
            dense = operator.outputs(use.divided(theirs.output), at)
            before += lacking.square().sum(2)
            scale += (dense - dense.mean(2, keepdim=True)).square().sum(2)
            for error, delta, shift in zip(after, deltas, shifts, strict=True):
                change = operator.outputs(operator.apply(use.x, delta, missing), at)
                error += (lacking - change - shift.unsqueeze(2)).square().sum(2)
        return before, after, scale

    def _offset(self, use: ParameterUse) -> torch.Tensor | None:
        """Return the bias that may move with a layer: one that nothing else reads."""
        if use.offset is None or self.counts[use.name] > 1:
            return None
        return use.offset if self.uses.reads.get(use.offset.data_ptr()) == 1 else None


def _some(count: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """Return about ``share`` of ``count`` positions, drawn without repetition; all if fewer."""
    wanted = int(share) + 1
    if wanted >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:wanted]
