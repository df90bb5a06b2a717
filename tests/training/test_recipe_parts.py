"""What a recipe can ask for: averages, cutout, sharpness, stored values, LR rewinding."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn

from hwprune.ir import Data, Masks
from hwprune.sparsity import MaskEvent, Strategy, make
from hwprune.training import FinetuneConfig, Recipe, accuracy, finetune
from hwprune.training.averaging import MovingAverage, Pool, floating_state
from hwprune.training.batches import Batch, augment
from hwprune.training.engine import Engine
from hwprune.training.finetune import Run
from hwprune.training.masters import MasterWeights
from hwprune.training.sharpness import Sharpness
from hwprune.training.sparse import SparseParameters

QUICK = Recipe(epochs=2, batch_size=64, precision="fp32", quantise_from=0.5)
OFF = dataclasses.replace(QUICK, quantise_from=1.0, race=0.0)


@pytest.fixture(scope="module")
def data() -> Data:
    return nets.digits(samples=600)


@pytest.fixture(scope="module")
def start() -> nn.Module:
    return nets.small_cnn()


def tune(module: nn.Module, data: Data, recipe: Recipe, **options: Any) -> Any:
    arguments: dict[str, Any] = {
        "data": data,
        "names": nets.NAMES,
        "strategy": make("one-shot", density=0.2),
        "fill": nets.fill_count(700),
        "recipe": recipe,
        "teacher": None,
        "seed": 0,
    } | options
    return finetune(FinetuneConfig(module=module, **arguments))


def masked(module: nn.Module, share: float, seed: int = 0) -> SparseParameters:
    sparse = SparseParameters(module, nets.NAMES)
    draw = np.random.default_rng(seed)
    sparse.set_masks(Masks({n: draw.random(s) < share for n, s in sparse.shapes.items()}), None)
    return sparse


def unstored(module: nn.Module, sparse: SparseParameters) -> MasterWeights:
    return MasterWeights(module, sparse, None, 0)


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


class Grid:
    """A store that rounds to multiples of a step, but never to zero."""

    name = "grid"

    def __init__(self, step: float, *, holds_norms: bool = False) -> None:
        self.step, self.finals, self.holds_norms = step, 0, holds_norms

    def __call__(
        self, weights: Mapping[str, torch.Tensor], *, final: bool = False
    ) -> dict[str, torch.Tensor]:
        self.finals += final
        return {
            name: (w.abs() / self.step).round().clamp(min=1) * self.step * w.sign()
            for name, w in weights.items()
        }

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        del state


# -- off is off -----------------------------------------------------------------------------------


def test_what_is_off_changes_no_bit(data: Data, start: nn.Module) -> None:
    plain, other = copy.deepcopy(start), copy.deepcopy(start)
    first = tune(plain, data, OFF)
    second = tune(other, data, OFF, store=Grid(0.1))  # in force from progress 1: never
    assert same(plain.state_dict(), other.state_dict())
    assert first.final_metric == second.final_metric
    third = copy.deepcopy(start)
    tune(third, data, QUICK)  # nothing rounds
    assert same(plain.state_dict(), third.state_dict())


# -- averages -------------------------------------------------------------------------------------


def test_the_moving_average_is_the_average_and_zero_where_pruned() -> None:
    module = nets.small_cnn()
    sparse = masked(module, 0.3)
    average = MovingAverage(module, sparse, unstored(module, sparse), 0.5)
    generator = torch.Generator().manual_seed(0)
    expected: dict[str, torch.Tensor] = {}
    for step in range(6):
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            alive = torch.from_numpy(sparse.masks[name]) if name in sparse.masks else True
            parameter.data.add_(noise * alive)
        module[1].running_mean.normal_(generator=generator)
        average.after_step()
        kept = min(0.5, (1 + step) / (10 + step))
        for name, tensor in floating_state(module).items():
            new = tensor.detach().clone()
            expected[name] = new if step == 0 else torch.lerp(expected[name], new, 1 - kept)
    live = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with average.for_measuring():
        assert same(expected, module.state_dict())
        sparse.check()
    assert same(live, module.state_dict())
    resumed = MovingAverage(module, sparse, unstored(module, sparse), 0.5)
    resumed.load_state_dict(average.state_dict())
    with resumed.for_measuring():
        assert same(expected, module.state_dict())
    before = sparse.masks
    sparse.set_masks(Masks({n: before[n] & (np.arange(before[n].size).reshape(before[n].shape) % 2 == 0) for n in before}), None)  # noqa: E501  # fmt: skip
    with average.for_measuring():  # it knows weights that were pruned since: it is not used
        sparse.check()
    average.after_step()
    average.finish()
    sparse.check()


def test_what_is_measured_and_kept_is_the_average(data: Data, start: nn.Module) -> None:
    plain, averaged = copy.deepcopy(start), copy.deepcopy(start)
    tune(plain, data, OFF)
    result = tune(averaged, data, dataclasses.replace(OFF, ema_decay=0.9))
    assert not torch.equal(plain[4].weight, averaged[4].weight)
    assert not torch.equal(plain[1].running_var, averaged[1].running_var)
    assert accuracy(averaged, data.validation) == result.final_metric
    assert result.trajectory[-1]["metric"] == result.final_metric


def test_a_solution_joins_only_where_validation_does_not_fall() -> None:
    module = nn.Sequential(nn.Linear(4, 3, bias=False))
    sparse = SparseParameters(module, ("0.weight",))
    first = {"0.weight": np.array([[1, 1, 0, 0]] * 3, dtype=bool)}
    second = {"0.weight": np.array([[0, 1, 1, 0]] * 3, dtype=bool)}
    pool = Pool(module, 2)
    for value, masks in ((8.0, first), (2.0, first), (4.0, second)):
        module[0].weight.data.fill_(value)
        sparse.set_masks(Masks(masks), None)
        if value != 4.0:
            pool.add(floating_state(module))
    begun = module[0].weight.detach().clone()
    pruned = []

    def finish() -> None:
        pruned.append(sparse.masks.nonzeros)
        sparse.set_masks(Masks(second), None)

    # The mean of 4 and 2 is welcome, that of 4, 2 and 8 is not; that of 4 and 8 would be, but 2 is
    # the latest.
    score = {4.0: 0.5, 3.0: 0.5, 6.0: 0.5}
    joined = pool.merge(
        sparse, finish, lambda: score.get(float(module[0].weight.detach()[0, 1]), 0.1)
    )
    assert joined == 1
    assert pruned == [9, 9]  # both masks lived until it was pruned again
    assert np.array_equal(sparse.masks["0.weight"], second["0.weight"])
    sparse.check()
    assert torch.equal(module[0].weight.detach()[0], torch.tensor([0.0, 3.0, 2.0, 0.0]))
    module[0].weight.data.copy_(begun)
    assert pool.merge(sparse, finish, iter([0.5, 0.1, 0.1]).__next__) == 0
    assert torch.equal(module[0].weight.detach(), begun)
    held = Pool(module, 2)
    held.load_state_dict(pool.state_dict())
    assert [same(a, b) for a, b in zip(held._held, pool._held, strict=True)] == [True, True]


def test_interpolation_in_a_run_fills_the_same_budget(data: Data, start: nn.Module) -> None:
    events = (MaskEvent(0.0, "prune", density=0.4), MaskEvent(0.5, "prune", budget_fraction=1.0))
    strategy = Strategy("rounds", events, 0.2, restarts=(0.5,))
    recipe = dataclasses.replace(OFF, epochs=4, interpolate=3)
    module = copy.deepcopy(start)
    result = tune(module, data, recipe, strategy=strategy)
    points = [point for point in result.trajectory if point["action"] == "average"]
    for point in points:
        assert point["metric"] >= result.trajectory[-2]["metric"]
    assert result.masks.nonzeros == 700
    assert accuracy(module, data.validation) == result.final_metric
    for name in nets.NAMES:
        weight = dict(module.named_parameters())[name].detach().numpy()
        assert not np.any(weight[~result.masks[name]])


def test_what_is_averaged_are_the_masters_at_the_ends_of_rounds_and_of_settled_epochs(
    data: Data, start: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[tuple[int, dict[str, torch.Tensor]]] = []
    steps: list[int] = []
    real = Run._step

    def step(self: Run, batch: Batch) -> torch.Tensor:
        steps.append(self.step)
        return real(self, batch)

    def add(self: Pool, solution: Mapping[str, torch.Tensor]) -> None:
        added.append((len(steps), {name: tensor.clone() for name, tensor in solution.items()}))

    monkeypatch.setattr(Run, "_step", step)
    monkeypatch.setattr(Pool, "add", add)
    events = (MaskEvent(0.0, "prune", density=0.4), MaskEvent(0.25, "prune", budget_fraction=1.0))
    strategy = Strategy("rounds", events, 0.2, restarts=(0.25,))
    recipe = dataclasses.replace(QUICK, epochs=4, interpolate=3)
    tune(copy.deepcopy(start), data, recipe, strategy=strategy, store=Grid(0.05))
    epoch = len(data.train) // 64
    # As the second round begins, and after the one settled epoch that is not the last.
    assert [at for at, _ in added] == [epoch + 1, 3 * epoch]
    weight = added[-1][1]["4.weight"]
    assert not torch.allclose(weight / 0.05, (weight / 0.05).round(), atol=1e-3)


def test_the_norm_that_is_clipped_is_that_of_what_is_kept(
    data: Data, start: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[torch.Tensor] = []
    real = nn.utils.clip_grad_norm_

    def clip(parameters: Any, most: float) -> torch.Tensor:
        parameters = list(parameters)
        norms.append(real(parameters, most))
        assert all(not p.grad[p == 0].any() for p in parameters if p.ndim > 1)
        return norms[-1]

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clip)
    recipe = dataclasses.replace(OFF, epochs=1, grad_clip=0.01)
    tune(copy.deepcopy(start), data, recipe)
    assert len(norms) == len(data.train) // 64
    assert min(norms) > 0.01  # it was clipped


# -- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [True, False])
def test_cutout_zeroes_one_square_and_draws_the_same_again(channels_last: bool) -> None:
    images = torch.ones(200, 2, 8, 10)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    batch = Batch((images, torch.ones(200, 3)), None)
    cut, again = (
        augment(batch, "none", torch.Generator().manual_seed(3), cutout=4).inputs for _ in range(2)
    )
    assert torch.equal(cut[0], again[0])
    assert torch.equal(cut[1], batch.inputs[1])
    assert cut[0].is_contiguous(memory_format=torch.channels_last) == channels_last
    holes = cut[0][:, 0] == 0
    assert torch.equal(holes, cut[0][:, 1] == 0)
    sizes = set()
    for hole in holes:
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns[None])  # a rectangle
        sizes.add((int(rows.sum()), int(columns.sum())))
    assert max(sizes) == (4, 4)
    assert min(min(size) for size in sizes) == 2  # the centre is always inside
    assert torch.all(images == 1)


def test_cutout_comes_after_the_draws_that_were_there_before() -> None:
    images = torch.randn(20, 1, 8, 8)
    plain = augment(Batch((images,), None), "shift", torch.Generator().manual_seed(0)).inputs[0]
    cut = augment(
        Batch((images,), None), "shift", torch.Generator().manual_seed(0), cutout=3
    ).inputs[0]
    assert torch.equal(cut[cut != 0], plain[cut != 0])
    assert (cut == 0).sum() >= 20 * 4


# -- sharpness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [False, True])
def test_a_sharpness_aware_gradient_is_that_of_the_worst_point_near_by(stored: bool) -> None:
    module = nn.Linear(2, 1, bias=False)
    module.weight.data = torch.tensor([[3.1, 0.0]])
    sparse = SparseParameters(module, ["weight"])
    sparse.set_masks(Masks({"weight": np.array([[True, False]])}))
    masters = MasterWeights(module, sparse, Grid(0.25) if stored else None, 0)
    masters.take(0)
    seen = []

    def backward() -> None:
        seen.append(module.weight.detach().clone())
        module.weight.grad = None
        (0.5 * (module.weight + 1).square().sum()).backward()

    backward()
    held, before = module.weight.data_ptr(), module.weight.detach().clone()
    Sharpness(module, masters, 0.5).after_backward(backward)
    # It is the master that is moved, by half a unit along its own gradient, and seen as stored.
    assert torch.allclose(seen[1], torch.tensor([[3.5 if stored else 3.6, 0.0]]))
    assert torch.allclose(before, torch.tensor([[3.0 if stored else 3.1, 0.0]]))
    assert torch.equal(module.weight.detach(), before)
    assert module.weight.data_ptr() == held


def test_sharpness_leaves_zeros_zero_and_costs_twice(data: Data, start: nn.Module) -> None:
    plain, sharp = copy.deepcopy(start), copy.deepcopy(start)
    tune(plain, data, OFF)
    result = tune(sharp, data, dataclasses.replace(OFF, sharpness=0.1))
    assert result.cost_epochs == 2 * result.epochs == 4
    for name in nets.NAMES:
        weight = dict(sharp.named_parameters())[name].detach().numpy()
        assert not np.any(weight[~result.masks[name]])
    assert not torch.equal(plain[4].weight, sharp[4].weight)
    steps = 2 * (len(data.train) // 64)
    assert int(sharp[1].num_batches_tracked) == 2 * steps  # both passes are counted ...
    sparse = SparseParameters(sharp, nets.NAMES)
    quiet = Sharpness(sharp, unstored(sharp, sparse), 0.1)
    sharp.train()
    images = torch.from_numpy(data.train.batch(np.arange(32))[0])

    def backward() -> None:
        sharp.zero_grad()
        sharp(images).square().mean().backward()

    backward()
    mean = sharp[1].running_mean.clone()
    quiet.after_backward(backward)
    assert torch.equal(mean, sharp[1].running_mean)  # ... but only the first one moves them


# -- stored values --------------------------------------------------------------------------------


def test_gradients_of_stored_values_move_the_masters() -> None:
    module = nets.small_cnn()
    sparse = masked(module, 0.3)
    masters = MasterWeights(module, sparse, Grid(0.05), start=3)
    engine = Engine(
        sparse, masters, Strategy("x", ()), nets.fill_count(1), steps=9, seed=0
    )  # nothing is due
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    engine.attach(optimizer)
    expected = {name: p.detach().clone() for name, p in sparse.parameters.items()}
    for step in range(6):
        engine.before_step()
        seen = {name: p.detach().clone() for name, p in sparse.parameters.items()}
        assert bool(masters.values) == (step >= 3)
        assert same(seen, Grid(0.05)(expected) if step >= 3 else expected)
        optimizer.zero_grad()
        module(torch.randn(8, 1, 8, 8)).square().mean().backward()
        optimizer.step()
        for name, parameter in sparse.parameters.items():
            assert parameter.grad is not None
            expected[name].add_(parameter.grad, alpha=-0.01)
        sparse.check()
    assert not same(seen, expected)
    masters.reveal()
    assert same(expected, {name: p.detach() for name, p in sparse.parameters.items()})
    assert masters.finish()
    assert same(Grid(0.05)(expected), {n: p.detach() for n, p in sparse.parameters.items()})
    assert not masters.finish()


def test_norms_that_are_held_do_not_move() -> None:
    for holds_norms in (True, False):
        module = nets.small_cnn()
        masters = MasterWeights(
            module, masked(module, 0.3), Grid(0.05, holds_norms=holds_norms), start=1
        )
        masters.take(0)
        assert module[1].training
        masters.take(1)
        assert module[1].training != holds_norms
        module.train()
        masters.hold_norms()
        assert module[1].training != holds_norms


@pytest.mark.parametrize("checkpoint", ["final", "best"])
def test_a_run_ends_with_stored_values(data: Data, start: nn.Module, checkpoint: Any) -> None:
    module, store = copy.deepcopy(start), Grid(0.03)
    recipe = dataclasses.replace(QUICK, epochs=3, ema_decay=0.8, checkpoint=checkpoint)
    result = tune(module, data, recipe, store=store)
    assert store.finals == 1
    for name in nets.NAMES:
        weight = dict(module.named_parameters())[name].detach()
        levels = weight / 0.03
        assert torch.allclose(levels, levels.round(), atol=1e-4)
        assert np.array_equal(weight.numpy() != 0, result.masks[name])
    assert accuracy(module, data.validation) == result.final_metric
    trained = [p for p in result.trajectory if p["action"] == "train"]
    if checkpoint == "final":
        assert trained[-1]["metric"] == result.final_metric
    else:
        # Epoch 2 began without rounding: only the last one is of the kind that is kept.
        assert result.best_epoch == 3


def test_coarse_values_are_learnt(data: Data, start: nn.Module) -> None:
    losses = []
    images = torch.from_numpy(data.test.batch(np.arange(len(data.test)))[0])
    labels = torch.from_numpy(data.test.labels)
    # So coarse that it cannot be put up with, only be learnt, whatever the arithmetic: 1.3 to 1.5
    # against 5.9 to 9.8 with three seeds.
    for quantise_from in (0.5, 1.0):
        module, store = copy.deepcopy(start), Grid(0.35)
        recipe = dataclasses.replace(QUICK, epochs=8, quantise_from=quantise_from)
        tune(module, data, recipe, store=store)
        parameters = {n: p for n, p in module.named_parameters() if n in nets.NAMES}
        for name, value in store({n: p.data for n, p in parameters.items()}).items():
            parameters[name].data.copy_(value)
        with torch.no_grad():
            losses.append(float(nn.functional.cross_entropy(module(images), labels)))
    assert losses[0] < 0.5 * losses[1]


# -- schedules ------------------------------------------------------------------------------------


def test_a_schedule_begins_anew_at_the_step_of_its_round(data: Data, start: nn.Module) -> None:
    strategy = make("iterative", density=0.2, removed=0.4)
    recipe = dataclasses.replace(OFF, warmup_fraction=0.0)
    result = tune(copy.deepcopy(start), data, recipe, strategy=strategy)
    changes = [point for point in result.trajectory if point["action"] == "prune"]
    assert len(changes) == 4
    assert [point["lr"] for point in changes] == [recipe.learning_rate] * 4


def test_rounds_may_have_the_whole_schedule_each(data: Data, start: nn.Module) -> None:
    strategy = make("iterative", density=0.2, removed=0.6)
    recipe = dataclasses.replace(OFF, epochs=1, per_round=True)
    result = tune(copy.deepcopy(start), data, recipe, strategy=strategy)
    assert result.epochs == 2 == len(strategy.restarts) + 1


def test_the_test_split_is_never_read(data: Data, start: nn.Module) -> None:
    class Sealed:
        labels = property(lambda self: pytest.fail("labels of the test split were read"))

        def __len__(self) -> int:
            return 10

        def batch(self, indices: object) -> Any:
            pytest.fail("the test split was read")

    sealed = dataclasses.replace(data, test=Sealed())  # type: ignore[arg-type]
    recipe = dataclasses.replace(QUICK, checkpoint="best", interpolate=2, ema_decay=0.9)
    tune(copy.deepcopy(start), sealed, recipe, store=Grid(0.05))
