"""Which connections of a layer least squares can do without: Optimal Brain Surgeon, in rounds.

A weight that others can stand in for costs little, however large it is. What the squared error of
a row grows by when one of its weights goes and the others make up for it is

    w^2 / [H_SS^-1]_ww          H = mean of x x^T, S the survivors

(Optimal Brain Surgeon, Hassibi and Stork 1993; by rows as in arXiv 2208.11580). A quarter of a
layer's survivors goes each round, then the rest is fitted again.

A row's error counts as much as it does behind BN and residual sums (see ``uses``). Within a layer
this order stands. Across layers the scores are geometric means of two opinions: that cost as a
fraction of the mean variance of the channels there, and LAMP's value (arXiv 2010.07611) for
the same place in the order. LAMP alone leaves late, wide layers with a third of their output wrong
while early ones are nearly exact; the cost alone thins out the early ones, whose errors all the
others inherit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwprune.ir import Split
from hwprune.least_squares.parameter_uses import capture, survey
from hwprune.least_squares.ridge_solver import Sums, factor, systems
from hwprune.sparsity import SCORES
from hwprune.training.batches import Batches
from hwprune.training.modes import place, set_mode

_RIDGE = 1e-2
_GOING = 0.25
_LAST_DENSITY = 0.03
_BATCH = 64
_COLUMNS_A_WEIGHT = 32
_LEAST_COLUMNS = 1 << 14
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
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Return scores of all connections of a dense network, higher is better. Labels are not read.

    A tensor that cannot be judged (it has two uses, is read otherwise, or is too wide) gets LAMP's
    own scores.

    Args:
        module: the dense network; its weights stay as they are, and it ends in eval mode.
        split: where inputs come from.
        names: keys of the prunable parameters.
        samples: how many inputs to use; all where there are fewer.
        device: where to compute.
        seed: of the choice of samples and positions.
        progress: called before each tensor with its name, its number from 1, and their count.

    Raises:
        DataError: the split is empty.
    """
    home = next(module.parameters()).device
    parameters = dict(module.named_parameters(remove_duplicate=False))
    place(module, device, channels_last=False)
    set_mode(module, training=False)
    try:
        source = Batches(split, device=device, resident_bytes=0, channels_last=False)
        order = torch.randperm(source.size, generator=torch.Generator().manual_seed(seed))
        batches = tuple(torch.split(order[: max(1, samples)], _BATCH))
        uses = survey(module, names, next(source.take((order[:2],))).inputs)
        scores = {}
        for number, name in enumerate(names, start=1):
            if progress is not None:
                progress(name, number, len(names))
            weight = parameters[name].detach()
            lamp = SCORES["lamp"](_array(weight))
            scores[name] = lamp
            if uses.obstacle(name) is not None or len(uses.operators[name]) != 1:
                continue
            operator = uses.operators[name][0]
            rows = operator.rows(weight)
            groups, _, width = rows.shape
            if 8 * groups * width * width > _GRAM_BYTES:
                continue
            generator = torch.Generator().manual_seed(seed + number)
            wanted = max(_LEAST_COLUMNS, _COLUMNS_A_WEIGHT * width)
            sums = Sums(groups, 1, width, rows.device)
            weights, variance = torch.ones(rows.shape[:2]).to(rows), []
            for batch in source.take(batches):
                for seen in capture(module, name, 1, batch.inputs):
                    count = operator.count(seen.output)
                    at = torch.randperm(count, generator=generator)
                    at = at[: wanted // len(batches) + 1].to(rows.device)
                    columns = operator.columns(seen.x, at, seen.output, weight.shape)
                    sums.add(columns, columns.new_zeros(groups, 1, len(at)))
                    variance.append(operator.outputs(seen.output, at).var(2).mean())
                    if seen.scale is not None:
                        weights = seen.scale.square().reshape(weights.shape)
            matrix = sums.matrix(offset=True)
            assert matrix is not None
            behind = weights.double() / torch.stack(variance).mean().clamp_min(1e-30)
            order, costs = _judged(matrix, rows.double(), behind)
            means = torch.sqrt(costs * torch.from_numpy(np.sort(lamp, axis=None)).to(costs))
            placed = torch.empty(rows.numel()).to(rows)
            placed[order] = means.to(rows)
            scores[name] = _array(operator.weight(placed.reshape(rows.shape), weight.shape))
    finally:
        place(module, home, channels_last=False)
    return scores


def _judged(
    matrix: torch.Tensor, rows: torch.Tensor, behind: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the connections of a layer in the order to go in, and what each costs, both (g R K,).

    Costs never fall along the order.

    Args:
        matrix: (g, K, K) second moments of the columns, about their means.
        rows: (g, R, K) the dense weights, float64.
        behind: (g, R) what a squared error of a row counts at the layer's end, float64.
    """
    groups, height, width = rows.shape
    level = matrix.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    matrix = matrix.clone()
    matrix.diagonal(dim1=1, dim2=2).add_((_RIDGE * level)[:, None])
    if bool(torch.linalg.cholesky_ex(matrix)[1].any()):
        # Behind next to constant inputs the moments about their means are rounding: lifted once
        # here, so that no part of the matrix fails later.
        lowest = torch.linalg.eigvalsh(matrix)[:, :1].clamp_max(0)
        matrix.diagonal(dim1=1, dim2=2).sub_(2 * lowest)
    wanted = rows @ matrix
    alive = torch.ones_like(rows, dtype=torch.bool)
    inverse = torch.cholesky_inverse(factor(matrix)).diagonal(dim1=1, dim2=2)
    saliency = rows.square() / inverse.unsqueeze(1) * behind.unsqueeze(2)
    once = groups * height * width**3 > _ROUNDS_COST
    order: list[torch.Tensor] = []
    costs: list[torch.Tensor] = []
    left = rows.numel()
    while left:
        living = saliency.masked_fill(~alive, torch.inf).flatten()
        last = once or left <= _LAST_DENSITY * rows.numel() + 1
        going = torch.argsort(living, stable=True)[: left if last else max(1, int(_GOING * left))]
        order.append(going)
        costs.append(living[going])
        left -= len(going)
        alive.view(-1)[going] = False
        for group in range(groups):
            for system in systems(matrix[group], alive[group]):
                right = torch.gather(wanted[group, system.rows], 1, system.index) * system.valid
                found = torch.cholesky_solve(right.unsqueeze(2), system.factor).squeeze(2)
                inverse = torch.cholesky_inverse(system.factor).diagonal(dim1=1, dim2=2)
                scale = behind[group, system.rows].unsqueeze(1)
                saliency[group, system.rows] = system.spread(
                    found.square() / inverse * scale, width
                )
    return torch.cat(order), torch.cummax(torch.cat(costs), 0).values


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.float().cpu().numpy())
