"""Which connections can go: those that others stand in for, however large they are."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwprune.least_squares import saliency
from hwprune.least_squares.reconstruct import least_squares
from hwprune.least_squares.ridge_solver import supports
from hwprune.least_squares.saliency import reconstruction_scores
from hwprune.sparsity import SCORES, rank
from hwprune.training.sparse import SparseParameters


class Inputs:
    """A split whose columns 0 and 1 are nearly the same, and whose column 2 is nearly nothing."""

    def __init__(self, count: int = 300) -> None:
        self.x = np.random.default_rng(0).standard_normal((count, 10)).astype(np.float32)
        self.x[:, 1] = self.x[:, 0] + 0.01 * self.x[:, 1]
        self.x[:, 2] *= 0.01

    @property
    def labels(self) -> None:
        return None

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Any) -> tuple[Any, ...]:
        return (self.x[indices],)


@pytest.fixture
def layer() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        module[0].weight.fill_(0.1).add_(0.01 * torch.arange(60.0).reshape(6, 10) / 60)
        module[0].weight[:, 0] = 1.0
        module[0].weight[:, 2] = 0.4
    return module.eval()


NAMES = ("0.weight", "2.weight")


def test_what_others_stand_in_for_goes_first(layer: nn.Module) -> None:
    scores = reconstruction_scores(layer, Inputs(), NAMES)
    first = scores["0.weight"]
    # Large weights, on the weakest column, cost next to nothing; the near twin of column 0
    # costs nothing either, as long as column 0 is there.
    worst = np.argsort(first, axis=1)[:, :2]
    assert {tuple(sorted(row)) for row in worst.tolist()} == {(1, 2)}
    assert (first[:, 0] == first.max(axis=1)).all()
    magnitudes = SCORES["lamp"](layer[0].weight.detach().numpy())
    assert (magnitudes[:, 2:3] > magnitudes[:, 3:]).all()


def test_a_row_counts_as_much_as_it_does_behind_bn() -> None:
    split = Inputs()
    split.x = np.random.default_rng(1).standard_normal((300, 10)).astype(np.float32)
    module = nn.Sequential(nn.Linear(10, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU()).eval()
    with torch.no_grad():
        module[0].weight.copy_(torch.linspace(0.5, 1.5, 10).expand(6, 10))
        module[1].weight[4] = 10.0
    scores = reconstruction_scores(module, split, ("0.weight",))
    kept = rank(scores, limit=10).masks(10)["0.weight"]
    assert kept[4].all()


def test_pruning_by_them_costs_least_squares_less() -> None:
    generator = torch.Generator().manual_seed(0)
    split = Inputs()
    # Columns that are mixtures of a few: much can be made up for.
    mixed = torch.randn(300, 6, generator=generator) @ torch.randn(6, 24, generator=generator)
    split.x = (mixed + 0.3 * torch.randn(300, 24, generator=generator)).numpy()
    dense = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    weights = {name: dict(dense.named_parameters())[name].detach().numpy() for name in NAMES}
    lamp = {name: SCORES["lamp"](weight) for name, weight in weights.items()}
    errors = []
    for scores in (lamp, reconstruction_scores(dense, split, NAMES)):
        masks = rank(scores).masks(200)
        module = copy.deepcopy(dense)
        SparseParameters(module, NAMES).set_masks(masks, None)
        least_squares(module, dense, split, NAMES, masks)
        with torch.no_grad():
            x = torch.from_numpy(split.x)
            errors.append(float((module(x) - dense(x)).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_weights_stay_and_the_seed_decides(layer: nn.Module) -> None:
    before = copy.deepcopy(layer.state_dict())
    seen: list[tuple[str, int, int]] = []
    one = reconstruction_scores(
        layer, Inputs(), NAMES, samples=64, progress=lambda *what: seen.append(what)
    )
    again = reconstruction_scores(layer, Inputs(), NAMES, samples=64)
    other = reconstruction_scores(layer, Inputs(), NAMES, samples=64, seed=1)
    assert all(np.array_equal(one[name], again[name]) for name in NAMES)
    assert not np.array_equal(one["0.weight"], other["0.weight"])
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())
    assert list(dict.fromkeys(seen)) == [("0.weight", 1, 2), ("2.weight", 2, 2)]


def test_costs_are_those_of_optimal_brain_surgeon() -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(1, 6, 400, generator=generator, dtype=torch.float64)
    columns += columns.mean(1, keepdim=True)
    matrix = columns @ columns.transpose(1, 2) / 400
    rows = torch.randn(1, 1, 6, generator=generator, dtype=torch.float64)
    behind = torch.full((1, 1), 0.25, dtype=torch.float64)
    order, costs = saliency._judged(matrix, rows, behind)
    assert sorted(order.tolist()) == list(range(6))
    # One connection a round: the first to go costs what the best fit without it leaves.
    held = matrix[0].clone()
    held.diagonal().add_(saliency._RIDGE * matrix[0].diagonal().mean())
    left = []
    for gone in range(6):
        alive = [column for column in range(6) if column != gone]
        right = (rows[0, 0] @ held)[alive]
        fit = torch.linalg.solve(held[alive][:, alive], right)
        left.append(float(rows[0, 0] @ held @ rows[0, 0] - fit @ right))
    assert int(order[0]) == int(np.argmin(left))
    assert float(costs[0]) == pytest.approx(0.25 * min(left))
    assert bool((costs.diff() >= 0).all())


@pytest.mark.parametrize("density", [0.8, 0.3])
def test_survivors_are_judged_as_if_the_pruned_had_never_been(density: float) -> None:
    generator = torch.Generator().manual_seed(1)
    columns = torch.randn(2, 12, 200, generator=generator, dtype=torch.float64)
    matrix = columns @ columns.transpose(1, 2) / 200
    rows = torch.randn(2, 3, 12, generator=generator, dtype=torch.float64)
    behind = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    alive = torch.rand(2, 3, 12, generator=generator) < density
    judge = saliency._RefitCosts(
        rows, rows @ matrix, matrix.float(), torch.linalg.inv(matrix).float(), behind
    )
    found = torch.zeros_like(rows)
    for kept in supports(alive):
        kept.put(found, judge.saliency(kept, alive))
    for group in range(2):
        for row in range(3):
            kept = alive[group, row]
            own = matrix[group][kept][:, kept]
            fit = torch.linalg.solve(own, (matrix[group] @ rows[group, row])[kept])
            wanted = fit.square() / torch.linalg.inv(own).diagonal() * behind[group, row]
            assert torch.allclose(found[group, row][kept], wanted, rtol=1e-3)
            assert not torch.any(found[group, row][~kept])


def test_what_is_too_large_is_judged_once(
    layer: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_rounds = reconstruction_scores(layer, Inputs(), NAMES)
    monkeypatch.setattr(saliency, "_ROUNDS_COST", 0.0)
    once = reconstruction_scores(layer, Inputs(), NAMES)
    assert not np.array_equal(once["0.weight"], in_rounds["0.weight"])
    assert (once["0.weight"][:, 2] < once["0.weight"][:, 0]).all()
    monkeypatch.setattr(saliency, "_GRAM_BYTES", 0)
    for name, score in reconstruction_scores(layer, Inputs(), NAMES).items():
        weight = dict(layer.named_parameters())[name].detach().numpy()
        assert np.array_equal(score, SCORES["lamp"](weight))
