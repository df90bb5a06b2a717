"""Which connections of a layer least squares can do without: Optimal Brain Surgeon, in rounds.

A weight that others can stand in for costs little, however large it is. What the squared error of
a row grows by when one of its weights goes and the others make up for it is

    w^2 / [H_SS^-1]_ww          H = mean of x x^T, S the survivors

(Optimal Brain Surgeon, Hassibi and Stork 1993; by rows as in arXiv 2208.11580). A quarter of a
layer's survivors goes each round, then the rest is fitted again.

A row's error counts as much as it does behind BN and residual sums. Within a layer this order
stands. Across layers the scores are geometric means of two opinions: that cost as a fraction of the
mean variance of the channels there, and LAMP's value (arXiv 2010.07611) for the same place in the
order. LAMP alone leaves late, wide layers with a third of their output wrong while early ones are
nearly exact; the cost alone thins out the early ones, whose errors all the others inherit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwprune.ir import Split
from hwprune.least_squares.im2col import LinearOperator
from hwprune.least_squares.parameter_uses import ParameterUse, survey, watch
from hwprune.least_squares.ridge_solver import GramSums, Supports, factor, support, supports
from hwprune.sparsity import SCORES
from hwprune.training.batches import Batches
from hwprune.training.module_state import placed
from hwprune.training.sparse import to_numpy

_RIDGE = 1e-2
_GOING = 0.25
_LAST_DENSITY = 0.03
_BATCH = 64
_COLUMNS_A_WEIGHT = 32
# With many groups of few weights each, such as depthwise, so many a weight are plenty.
_MOST_A_WEIGHT = 256
_LEAST_COLUMNS = 1 << 14
# What the second moments of one layer may take, and of all layers that one pass serves.
_GRAM_BYTES = 256 * 1024**2
# Multiplications beyond which a layer is judged once, by the inverse that its rows share.
_ROUNDS_COST = 1e12


def reconstruction_scores(
    module: nn.Module,
    split: Split,
    names: Sequence[str],
    *,
    samples: int = 256,
    device: str = "cpu",
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda name, number, of: None,
) -> dict[str, NDArray[np.float32]]:
    """Return scores of all connections of a dense network, higher is better. Labels are not read.

    A tensor that cannot be judged (it has two uses, is read otherwise, is too wide, or what reaches
    it is not finite) gets LAMP's own scores.

    Args:
        module: the dense network; its weights stay as they are, and it ends in eval mode.
        split: where inputs come from.
        names: keys of the prunable parameters.
        samples: how many inputs to use; all where there are fewer.
        device: where to compute.
        seed: of the choice of samples and positions.
        progress: called now and then with a tensor's name, its number from 1, and their count.

    Raises:
        DataError: the split is empty.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    with placed(device, module):
        source = Batches(split, device=device, resident_bytes=0, channels_last=False)
        order = torch.randperm(source.size, generator=torch.Generator().manual_seed(seed))
        batches = torch.split(order[: max(1, samples)], _BATCH)
        uses = survey(module, names, next(source.take((order[:2],))).inputs)
        lamp = {name: SCORES["lamp"](to_numpy(parameters[name])) for name in names}
        scores, layers = dict(lamp), []
        for number, name in enumerate(names, start=1):
            if uses.counts().get(name) == 1:
                operator = uses.operators[name][0]
                layers.append(_Layer(name, parameters[name], operator, seed + number, len(batches)))
        layers = [layer for layer in layers if layer.bytes <= _GRAM_BYTES]
        layers.sort(key=lambda layer: uses.ends.index(layer.name))
        number = 0
        for group in _grouped(layers):
            for batch in source.take(batches):
                progress(group[0].name, number + 1, len(layers))
                ended = partial(_add, {layer.name: layer for layer in group})
                watch(
                    module, dict.fromkeys((layer.name for layer in group), 1), batch.inputs, ended
                )
            for layer in group:
                number += 1
                found = layer.scores(
                    lamp[layer.name], partial(progress, layer.name, number, len(layers))
                )
                scores[layer.name] = lamp[layer.name] if found is None else to_numpy(found)
    return scores


class _Layer:
    """What passes show of one layer."""

    def __init__(
        self, name: str, weight: torch.Tensor, operator: LinearOperator, seed: int, batches: int
    ) -> None:
        self.name, self._weight, self._operator = name, weight.detach(), operator
        self._rows = operator.rows(self._weight)
        groups, _, width = self._rows.shape
        self.bytes = 8 * groups * width * width
        wanted = max(_LEAST_COLUMNS, _COLUMNS_A_WEIGHT * width)
        if groups > 1:
            wanted = min(wanted, _MOST_A_WEIGHT * width)
        self._share = wanted // batches + 1
        self._generator = torch.Generator().manual_seed(seed)
        self._sums: GramSums | None = None
        # What a squared error of a row counts at the layer's end.
        self._behind = torch.ones(self._rows.shape[:2]).to(self._rows)
        self._variance: list[torch.Tensor] = []

    def add(self, use: ParameterUse) -> None:
        """Take the columns at some positions of a batch."""
        groups = len(self._rows)
        if self._sums is None:
            self._sums = GramSums()
        at = torch.randperm(use.operator.count(use.output), generator=self._generator)
        at = at[: self._share].to(self._rows.device)
        columns = use.operator.columns(use.x, at, use.output, self._weight.shape)
        self._sums.add(columns, columns.new_zeros(groups, 1, len(at)))
        self._variance.append(use.operator.outputs(use.output, at).var(2).mean())
        if use.scale is not None:
            self._behind = use.scale.square().reshape(self._behind.shape)

    def scores(self, lamp: NDArray[np.float32], tick: Callable[[], None]) -> torch.Tensor | None:
        """Return scores in the weight's shape; None where what was seen is not finite."""
        if self._sums is None:
            return None
        sums, self._sums = self._sums, None
        rows, variance = self._rows.double(), torch.stack(self._variance).mean().clamp_min(1e-30)
        seen = sums.moments(offset=True).diagonal.sum() + variance + rows.square().sum()
        if not bool(torch.isfinite(seen)):
            return None
        behind = self._behind.double() / variance
        if rows.numel() * rows.shape[2] ** 2 > _ROUNDS_COST:
            tick()
            saliency = rows.square() / sums.inverse_diagonal(_RIDGE).unsqueeze(1)
            costs, order = torch.sort((saliency * behind.unsqueeze(2)).flatten(), stable=True)
        else:
            order, costs = _judged(sums.matrix(offset=True), rows, behind, tick)
        means = torch.sqrt(costs * torch.from_numpy(np.sort(lamp, axis=None)).to(costs))
        placed = torch.empty(rows.numel()).to(self._rows)
        placed[order] = means.to(placed)
        return self._operator.weight(placed.reshape(rows.shape), self._weight.shape)


def _grouped(layers: Sequence[_Layer]) -> Iterator[list[_Layer]]:
    """Yield layers that one pass serves: as many as their moments may be held of."""
    group: list[_Layer] = []
    for layer in layers:
        if group and sum(each.bytes for each in (*group, layer)) > _GRAM_BYTES:
            yield group
            group = []
        group.append(layer)
    if group:
        yield group


def _add(layers: Mapping[str, _Layer], found: list[ParameterUse]) -> None:
    layers[found[0].name].add(found[0])


def _judged(
    matrix: torch.Tensor,
    rows: torch.Tensor,
    behind: torch.Tensor,
    tick: Callable[[], None] = lambda: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the connections of a layer in the order to go in, and what each costs, both (g R K,).

    Costs never fall along the order.

    Args:
        matrix: (g, K, K) second moments of the columns, about their means, float64.
        rows: (g, R, K) the dense weights, float64.
        behind: (g, R) what a squared error of a row counts at the layer's end, float64.
        tick: called now and then.
    """
    level = matrix.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    # The scale does not matter to what follows: single precision is enough for most of it.
    matrix = matrix / level[:, None, None]
    behind = behind * level[:, None]
    matrix.diagonal(dim1=1, dim2=2).add_(_RIDGE)
    factors, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed.any()):
        # Behind next to constant inputs the moments about their means are rounding: lifted once
        # here, so that no part of the matrix fails later.
        lowest = torch.linalg.eigvalsh(matrix)[:, :1].clamp_max(0)
        matrix.diagonal(dim1=1, dim2=2).sub_(2 * lowest)
        factors = factor(matrix)
    tick()
    inverse = torch.cholesky_inverse(factors)
    saliency = rows.square() / inverse.diagonal(dim1=1, dim2=2).unsqueeze(1) * behind.unsqueeze(2)
    judge = _RefitCosts(rows, rows @ matrix, matrix.float(), inverse.float(), behind)
    alive = torch.ones_like(rows, dtype=torch.bool)
    order: list[torch.Tensor] = []
    costs: list[torch.Tensor] = []
    left = rows.numel()
    while left:
        living = saliency.masked_fill(~alive, torch.inf).flatten()
        last = left <= _LAST_DENSITY * rows.numel() + 1
        going = torch.argsort(living, stable=True)[: left if last else max(1, int(_GOING * left))]
        order.append(going)
        costs.append(living[going])
        left -= len(going)
        alive.view(-1)[going] = False
        for kept in supports(alive):
            tick()
            kept.put(saliency, judge.saliency(kept, alive))
    return torch.cat(order), torch.cummax(torch.cat(costs), 0).values


@dataclass(frozen=True, slots=True)
class _RefitCosts:
    """What the survivors S of a row cost when the row is fitted again without the pruned, D.

    With A the inverse of the moments H the fit is w_S - A_SD A_DD^-1 w_D, and the inverse of H_SS
    is A_SS - A_SD A_DD^-1 A_DS: less work than from H_SS itself while D is the smaller part.
    """

    rows: torch.Tensor
    wanted: torch.Tensor
    matrix: torch.Tensor
    inverse: torch.Tensor
    behind: torch.Tensor

    def saliency(self, kept: Supports, alive: torch.Tensor) -> torch.Tensor:
        """Return the saliencies of some rows' survivors, (b, s) float64."""
        gone = support(~alive, kept.rows)
        if gone.index.shape[1] < kept.index.shape[1]:
            weights = gone.take(self.rows).float().unsqueeze(2)
            both = torch.cat((gone.square(self.inverse, kept), weights), 2)
            both = torch.linalg.solve_triangular(
                factor(gone.square(self.inverse)), both, upper=False
            )
            across, alone = both[:, :, :-1], both[:, :, -1:]
            found = kept.take(self.rows) - (across.mT @ alone).squeeze(2)
            own = kept.diagonal(self.inverse) - across.square().sum(1)
        else:
            factors = factor(kept.square(self.matrix))
            right = kept.take(self.wanted).float().unsqueeze(2)
            found = torch.cholesky_solve(right, factors).squeeze(2).double()
            own = torch.cholesky_inverse(factors).diagonal(dim1=1, dim2=2)
        own = own.double().clamp_min(torch.finfo(torch.float32).tiny)
        saliency: torch.Tensor = found.square() / own
        return saliency * self.behind.flatten()[kept.rows].unsqueeze(1)
