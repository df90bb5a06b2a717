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

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hwprune.errors import HwpruneError
from hwprune.ir import Masks, Split
from hwprune.least_squares.im2col import LinearOperator
from hwprune.least_squares.parameter_uses import Captured, Uses, capture, survey
from hwprune.least_squares.ridge_solver import Parts, Streamed, Sums, solve
from hwprune.training.batches import Batch, Batches
from hwprune.training.modes import place, set_mode, share_parameters

SAMPLES = 256
# Each row takes the one that does best on held-out samples.
RIDGES = (1e-3, 1e-2, 1e-1)
MEMORY_BYTES = 512 * 1024**2
# Inputs in one forward pass.
_BATCH = 64
# One in so many samples is not fitted on, and decides which rows keep their new weights.
_HELD_OUT = 8
# Columns that a layer is fitted on, where there are as many: so many, or so many a row's weight.
_COLUMNS = 1 << 15
_COLUMNS_A_WEIGHT = 32
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
        streamed: whether its columns were too many to keep their products.
    """

    name: str
    rows: int
    refitted: int
    before: float
    after: float
    streamed: bool


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What ``least_squares`` did.

    Attributes:
        layers: tensors that were refitted, in the order of the forward pass.
        skipped: (name, reason) of those that were left as they are.
        samples: inputs that were used.
        seconds: wall time.
    """

    layers: tuple[LayerFit, ...]
    skipped: tuple[tuple[str, str], ...]
    samples: int
    seconds: float


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
    progress: Callable[[LayerFit, int, int], None] | None = None,
) -> Reconstruction:
    """Refit the surviving weights of a pruned network, and the offsets behind them. In place.

    Offsets are the layer's own bias, or that of the BN behind it. BN's statistics stay those of the
    dense network: the layers in front are fitted to them. A row whose squared error on held-out
    samples does not fall stays as it is. Pruned weights stay exactly zero. Labels are not read.

    Time grows with the square of the number of layers: each is measured on the network so far.

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
            pass; a layer that needs more is solved by conjugate gradients on inputs that are kept,
            and on fewer inputs if they do not fit either.
        device: where to compute.
        seed: of the choice of samples and positions.
        progress: called after each layer with its fit, its number from 1, and their count.

    Raises:
        DataError: the split is empty.
        HwpruneError: the teacher shares parameters with the module.
    """
    started = time.perf_counter()
    if share_parameters(teacher, module):
        raise HwpruneError("least squares needs the dense network apart from the pruned one")
    home = next(module.parameters()).device
    for network in (module, teacher):
        place(network, device, channels_last=False)
        set_mode(network, training=False)
    try:
        run = _Run(
            module, teacher, split, names, masks, samples, ridges, memory_bytes, device, seed
        )
        layers, skipped = [], list(run.skipped)
        for number, name in enumerate(run.order, start=1):
            found = run.refit(name, seed + number)
            if isinstance(found, str):
                skipped.append((name, found))
                continue
            layers.append(found)
            if progress is not None:
                progress(found, number, len(run.order))
    finally:
        for network in (module, teacher):
            place(network, home, channels_last=False)
    return Reconstruction(tuple(layers), tuple(skipped), run.samples, time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One use in one batch: input, what its output lacks, and what the dense network has there."""

    operator: LinearOperator
    x: torch.Tensor
    lacking: torch.Tensor
    dense: torch.Tensor
    mine: Captured


class _Run:
    """What stays the same from layer to layer."""

    def __init__(
        self,
        module: nn.Module,
        teacher: nn.Module,
        split: Split,
        names: Sequence[str],
        masks: Masks,
        samples: int,
        ridges: Sequence[float],
        memory_bytes: int,
        device: str,
        seed: int,
    ) -> None:
        self.module, self.teacher, self.masks = module, teacher, masks
        self.ridges, self.memory_bytes = ridges, memory_bytes
        self._source = Batches(split, device=device, resident_bytes=0, channels_last=False)
        order = torch.randperm(self._source.size, generator=torch.Generator().manual_seed(seed))
        order = order[: max(1, samples)]
        self.samples = len(order)
        held = len(order) // _HELD_OUT or min(1, len(order) - 1)
        # A single sample is fitted on and checked with.
        self._fitted, self._held = order[held:], order[:held] if held else order
        first = next(self._source.take((order[:2],)))
        self.uses: Uses = survey(module, names, first.inputs)
        self.parameters = dict(module.named_parameters(remove_duplicate=False))
        obstacles = {name: self.uses.obstacle(name) for name in names}
        self.order = tuple(name for name in self.uses.order() if obstacles[name] is None)
        self.skipped = [(name, reason) for name, reason in obstacles.items() if reason is not None]

    def refit(self, name: str, seed: int) -> LayerFit | str:
        """Solve for one tensor and keep the rows that got better; or say why it cannot be."""
        weight, operator = self.parameters[name], self.uses.operators[name][0]
        rows = operator.rows(weight.detach())
        alive = operator.rows(torch.from_numpy(self.masks[name]).to(weight.device))
        data, last = self._collect(name, rows, seed)
        if data is None or last is None:
            return "is not used alike in every forward pass"
        offset = self._offset(name, last)
        found = [solve(data, alive, ridge, offset=offset is not None) for ridge in self.ridges]
        choices = [(delta.float(), shift.float()) for delta, shift in found]
        weights = [operator.weight(delta, weight.shape) for delta, _ in choices]
        before, errors, scale = self._errors(name, weights, [shift for _, shift in choices])
        delta, moved, after = torch.zeros_like(rows), torch.zeros_like(before), before
        for (one, shift), error in zip(choices, errors, strict=True):
            # Not "unless worse": what is not a number is no better either.
            better = error < after
            delta = torch.where(better.unsqueeze(2), one, delta)
            moved, after = torch.where(better, shift, moved), torch.where(better, error, after)
        with torch.no_grad():
            weight.add_(operator.weight(delta, weight.shape))
            if offset is not None:
                by = last.offset_scale
                offset.add_(moved.flatten() if by is None else moved.flatten() * by)
        total = max(float(scale.sum()), 1e-30)
        return LayerFit(
            name,
            before.numel(),
            int((after < before).sum()),
            float(before.sum()) / total,
            float(after.sum()) / total,
            isinstance(data, Streamed),
        )

    def _collect(
        self, name: str, rows: torch.Tensor, seed: int
    ) -> tuple[Sums | Streamed | None, Captured | None]:
        """Run the samples to be fitted on through both networks and keep what the layer needs."""
        groups, height, width = rows.shape
        shape = self.parameters[name].shape
        operators = self.uses.operators[name]
        generator = torch.Generator().manual_seed(seed)
        wanted = max(_COLUMNS, _COLUMNS_A_WEIGHT * width)
        share = wanted / (max(1, len(self._fitted)) * len(operators))
        part = max(1, _PART_BYTES // (4 * groups * width))
        sums: Sums | None = None
        if 8 * groups * width * (width + height) <= self.memory_bytes // 2:
            sums = Sums(groups, height, width, rows.device)
        kept: list[tuple[_Seen, torch.Tensor]] = []
        room, last = self.memory_bytes // 2, None
        for batch in self._batches(self._fitted):
            seen = self._seen(name, batch)
            if not seen:
                return None, None
            for each in seen:
                last = each.mine
                at = _some(
                    each.operator.count(each.lacking), share * len(batch.inputs[0]), generator
                )
                at = at.to(rows.device)
                if sums is not None:
                    for columns, lacking in _parts([(each, at)], part, shape):
                        sums.add(columns, lacking)
                    continue
                room -= 4 * (each.x.numel() + each.lacking.numel())
                if room >= 0 or not kept:
                    kept.append((each, at))
        if sums is not None:
            return sums, last
        return Streamed(lambda: _parts(kept, part, shape)), last

    def _errors(
        self, name: str, deltas: Sequence[torch.Tensor], shifts: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Return squared errors by row: as it is, with each change; and the dense variance."""
        before, scale = torch.zeros_like(shifts[0]), torch.zeros_like(shifts[0])
        after = [torch.zeros_like(before) for _ in deltas]
        for batch in self._batches(self._held):
            for each in self._seen(name, batch):
                operator = each.operator
                at = torch.arange(operator.count(each.lacking), device=before.device)
                lacking = operator.outputs(each.lacking, at)
                dense = operator.outputs(each.dense, at)
                before += lacking.square().sum(2)
                scale += (dense - dense.mean(2, keepdim=True)).square().sum(2)
                for error, delta, shift in zip(after, deltas, shifts, strict=True):
                    change = operator.outputs(operator.apply(each.x, delta, each.lacking), at)
                    error += (lacking - change - shift.unsqueeze(2)).square().sum(2)
        return before, after, scale

    def _seen(self, name: str, batch: Batch) -> list[_Seen]:
        """Run one batch through both networks up to a layer; empty where they use it otherwise."""
        operators = self.uses.operators[name]
        mine = capture(self.module, name, len(operators), batch.inputs)
        theirs = capture(self.teacher, name, len(operators), batch.inputs)
        if not len(mine) == len(theirs) == len(operators):
            return []
        return [
            _Seen(use, a.x, a.divided(b.output - a.output), a.divided(b.output), a)
            for use, a, b in zip(operators, mine, theirs, strict=True)
        ]

    def _offset(self, name: str, last: Captured) -> torch.Tensor | None:
        """Return the bias that may move with a layer: one that nothing else reads."""
        offset = last.offset
        alone = (
            len(self.uses.operators[name]) == 1
            and offset is not None
            and self.uses.reads.get(offset.data_ptr()) == 1
        )
        return offset if alone else None

    def _batches(self, order: torch.Tensor) -> Iterator[Batch]:
        return self._source.take(tuple(torch.split(order, _BATCH)))


def _some(count: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """Return about ``share`` of ``count`` positions, drawn without repetition; all if fewer."""
    wanted = int(share) + 1
    if wanted >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:wanted]


def _parts(seen: Sequence[tuple[_Seen, torch.Tensor]], part: int, shape: torch.Size) -> Parts:
    """Yield columns and what their outputs lack, ``part`` positions at a time."""
    for each, positions in seen:
        for at in torch.split(positions, part):
            columns = each.operator.columns(each.x, at, each.lacking, shape)
            yield columns, each.operator.outputs(each.lacking, at)
