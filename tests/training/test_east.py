"""EAST in a run: density on schedule at every step, each part alone, ways at 99.99 %."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn

from hwprune.extreme import extreme_hooks
from hwprune.ir import Data, Masks, Ranking
from hwprune.sparsity import MaskEvent, Strategy, make
from hwprune.sparsity.allocation import erk
from hwprune.sparsity.east import density_at
from hwprune.training import FinetuneConfig, Recipe, finetune
from hwprune.training.evaluate import Validator
from hwprune.training.finetune import Run
from hwprune.training.sparse import SparseParameters

RECIPE = Recipe(epochs=2, batch_size=20, precision="fp32", distillation_weight=0.0)
BUDGET = 270


@pytest.fixture(scope="module")
def data() -> Data:
    return nets.digits(samples=400)


def tune(module: nn.Module, data: Data, names: Any, budget: int, **options: Any) -> Any:
    weights = sum(dict(module.named_parameters())[name].numel() for name in names)
    return finetune(FinetuneConfig(
        module=module, data=data, names=names, fill=nets.fill_count(budget), recipe=RECIPE,
        teacher=None, strategy=make("east", density=budget / weights, **options), seed=0,
        hooks=extreme_hooks,
    ))  # fmt: skip


@pytest.fixture
def living(monkeypatch: pytest.MonkeyPatch) -> list[Masks]:
    """The masks at every step of a run."""
    seen: list[Masks] = []
    real = Run.backward

    def backward(self: Run, *args: Any, eager: bool = False) -> torch.Tensor:
        if not eager:
            seen.append(self.sparse.masks)
        return real(self, *args, eager=eager)

    monkeypatch.setattr(Run, "backward", backward)
    return seen


def test_density_is_on_schedule_at_every_step(data: Data, living: list[Masks]) -> None:
    result = tune(nets.small_cnn(), data, nets.NAMES, BUDGET, cycle_steps=4)
    steps = len(living)
    assert steps == 28
    peak = 0
    for step, masks in enumerate(living):
        # Eight changes in the first 40 % of the run, of which each fourth ends a cycle.
        due = max((n for n in range(9) if round(0.05 * n * steps) <= step), default=0)
        place = due % 4 / 4
        wanted = round(density_at(place, BUDGET / nets.WEIGHTS, 3.0) * nets.WEIGHTS)
        assert masks.nonzeros == wanted, step
        counts = {name: int(np.count_nonzero(masks[name])) for name in masks}
        if place:  # shared out as ERK would: within one connection of its remainders
            shares = erk({n: np.zeros(masks[n].shape, np.float32) for n in masks}, wanted)
            assert all(abs(counts[n] - shares[n]) <= 1 for n in masks), (step, counts, shares)
        peak = max(peak, wanted)
    assert peak == 3 * BUDGET
    assert result.masks.nonzeros == BUDGET
    assert not np.array_equal(living[-1]["4.weight"], living[12]["4.weight"])  # exchanged since


def test_the_mask_freezes(data: Data, living: list[Masks]) -> None:
    tune(nets.small_cnn(), data, nets.NAMES, BUDGET)
    last = living[-1]
    assert all(masks is last for masks in living[21:])


@pytest.mark.parametrize(
    ("options", "dynamic", "above"),
    [({"cyclic": False}, True, False), ({"dyrelu": False}, False, True),
     ({"cyclic": False, "dyrelu": False}, False, False)],
)  # fmt: skip
def test_each_part_can_be_left_out(
    data: Data, living: list[Masks], options: dict[str, Any], dynamic: bool, above: bool
) -> None:
    result = tune(nets.small_cnn(), data, nets.NAMES, BUDGET, **options)
    assert any("DyReLU stood in for 2 ReLUs" in note for note in result.notes) == dynamic
    assert (max(masks.nonzeros for masks in living) > BUDGET) == above
    assert result.masks.nonzeros == BUDGET


def test_without_its_parts_east_is_rigl() -> None:
    plain = make("east", density=0.01, cyclic=False, dyrelu=False)
    rigl = make(
        "rigl", density=0.01, score="magnitude", allocation="erk", grow_allocation="towards-erk",
        updates=18, drop=0.5, last_drop=0.005,
    )  # fmt: skip
    assert dataclasses.replace(plain, name="rigl") == rigl
    noisy = make(
        "set", density=0.01, score="magnitude", allocation="erk", grow_allocation="towards-erk",
        updates=18, drop=0.5, last_drop=0.005,
    )  # fmt: skip
    grown = [(a, b) for a, b in zip(rigl.events, noisy.events, strict=True) if a != b]
    assert all(dataclasses.replace(a, score="random") == b for a, b in grown)
    assert len(grown) == 18


class Wide(nn.Module):
    """600,000 weights in a row: at 99.99 % sixty of them live, and no way leads around a layer."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (64, 500, 500, 500, 10)
        pairs = list(zip(sizes, sizes[1:], strict=False))  # noqa: RUF007
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm1d(b) for _, b in pairs[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, 1, 8, 8) to (n, 10)."""
        x = x.flatten(1)
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x = torch.relu(norm(layer(x)))
        return self.layers[-1](x)


def outputs_reached(masks: Masks, inputs: int) -> np.ndarray:
    """Follow the living connections through layers in a row, from all inputs."""
    alive = np.ones(inputs, bool)
    for mask in masks.by_name.values():
        matrix = mask.reshape(*mask.shape[:2], -1).any(2)
        alive = matrix @ alive.repeat(matrix.shape[1] // len(alive))  # flattened pictures
    return alive


@pytest.mark.parametrize(
    ("build", "names", "inputs", "budget"),
    [(Wide, tuple(f"layers.{n}.weight" for n in range(4)), 64, 54),
     (nets.small_cnn, nets.NAMES, 1, 16)],
)  # fmt: skip
def test_gradients_flow_at_extreme_sparsities(
    build: Callable[[], nn.Module], names: tuple[str, ...], inputs: int, budget: int,
    data: Data, living: list[Masks], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    module = build()
    flowed: list[dict[str, int]] = []
    real = SparseParameters.mask_gradients

    def noted(self: SparseParameters, **given: Any) -> None:
        real(self, **given)
        found = {name: p.grad for name, p in self.parameters.items()}
        flowed.append({n: 0 if g is None else int(g.count_nonzero()) for n, g in found.items()})

    monkeypatch.setattr(SparseParameters, "mask_gradients", noted)
    result = tune(module, data, names, budget)
    assert result.masks.nonzeros == budget
    assert any("had no path" in note for note in result.notes)
    for masks in [*living, result.masks]:
        assert outputs_reached(masks, inputs).all()  # every output, at every step
    assert len(flowed) >= len(living) > 0
    for counts in flowed:  # each tensor learns at every step
        assert min(counts.values()) > 0, counts
    for name in names:
        parameter = dict(module.named_parameters())[name]
        alive = torch.from_numpy(result.masks[name])
        # What lives is not zero: it has learnt, or stands ready to.
        assert torch.count_nonzero(parameter[alive]) == alive.sum()


def test_an_average_of_solutions_has_its_ways_too(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What three times as many connections learnt is pruned again, and mended where it is cut."""
    monkeypatch.setattr(Validator, "measure", lambda self: 0.5)  # whatever it does, it joins
    torch.manual_seed(0)
    module = Wide()
    names = tuple(f"layers.{n}.weight" for n in range(4))
    events = (MaskEvent(0.0, "prune", density=3e-4), MaskEvent(0.5, "prune", budget_fraction=1.0))
    result = finetune(FinetuneConfig(
        module=module, data=data, names=names, fill=nets.fill_count(54), teacher=None, seed=0,
        hooks=extreme_hooks, strategy=Strategy("rounds", events, 1e-4, restarts=(0.5,)),
        recipe=dataclasses.replace(RECIPE, interpolate=1),
    ))  # fmt: skip
    assert any("averaged with 1 of its" in note for note in result.notes)
    assert result.masks.nonzeros == 54
    assert outputs_reached(result.masks, 64).all()
    for name in names:
        parameter = dict(module.named_parameters())[name]
        alive = torch.from_numpy(result.masks[name])
        assert torch.count_nonzero(parameter[alive]) == alive.sum()


def test_the_budget_may_be_bytes(data: Data) -> None:
    """A fill that counts rows as well: what is moved may cost more, and then less lives."""
    asked: list[int] = []

    def fill(ranking: Ranking, fraction: float) -> Masks:
        low, high = 0, len(ranking)
        while low < high:
            middle = (low + high + 1) // 2
            if size(ranking.masks(middle)) <= 900 * fraction:
                low = middle
            else:
                high = middle - 1
        asked.append(low)
        return ranking.masks(low)

    def size(masks: Masks) -> int:
        return sum(2 * int(m.sum()) + 3 * int(m.any(1).sum()) for m in (
            masks[name].reshape(len(masks[name]), -1) for name in masks
        ))  # fmt: skip

    module = nets.small_cnn()
    result = finetune(FinetuneConfig(
        module=module, data=data, names=nets.NAMES, fill=fill, recipe=RECIPE, teacher=None,
        strategy=make("east", density=BUDGET / nets.WEIGHTS), seed=0, hooks=extreme_hooks,
    ))  # fmt: skip
    assert 890 <= size(result.masks) <= 900
    peak = max(point["nonzeros"] for point in result.trajectory)
    assert peak == 3 * BUDGET  # above what the bytes hold
    assert peak > max(asked)
