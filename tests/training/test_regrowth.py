"""Every rule, start and share of regrowth in a run, and what is measured for them."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn

from hwprune.extreme import extreme_hooks
from hwprune.ir import Data, Masks
from hwprune.sparsity import (
    GROWTH_ALLOCATIONS,
    GROWTH_SCORES,
    MaskEvent,
    Strategy,
    make,
    masks_equal,
)
from hwprune.training import Checkpoint, FinetuneConfig, Recipe, TrainResult, finetune
from hwprune.training.events import masks_after
from hwprune.training.evidence import GradientMoments, GradientStats
from hwprune.training.sparse import SparseParameters, to_numpy

QUICK = Recipe(epochs=1, batch_size=64, precision="fp32", learning_rate=0.05)
BUDGET = 350
DENSITY = BUDGET / nets.WEIGHTS


@pytest.fixture(scope="module")
def data() -> Data:
    return nets.digits(samples=500)


def tune(data: Data, strategy: Strategy, **options: Any) -> tuple[nn.Module, TrainResult]:
    module = nets.small_cnn()
    arguments: dict[str, Any] = {
        "data": data,
        "names": nets.NAMES,
        "strategy": strategy,
        "fill": nets.fill_count(BUDGET),
        "recipe": QUICK,
        "teacher": None,
        "seed": 0,
    } | options
    return module, finetune(FinetuneConfig(module=module, **arguments))


def zeros_hold(module: nn.Module, masks: Masks) -> bool:
    parameters = dict(module.named_parameters())
    return all(not np.any(to_numpy(parameters[n])[~masks[n]]) for n in nets.NAMES)


@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("rule", sorted(GROWTH_SCORES))
def test_every_rule_fills_the_budget(data: Data, rule: str, epochs: int) -> None:
    strategy = make("bidirectional-single", density=DENSITY, depth=0.5, steps=2, regrow_score=rule)
    recipe = dataclasses.replace(QUICK, epochs=epochs)
    module, result = tune(data, strategy, recipe=recipe)
    assert result.masks.nonzeros == BUDGET
    assert zeros_hold(module, result.masks)
    assert all(mask.any() for mask in result.masks.by_name.values())


@pytest.mark.parametrize(
    "name",
    [
        "bidirectional-one-shot",
        "bidirectional-iterative",
        "bidirectional",
        "rigl",
        "set",
    ],
)
def test_every_new_strategy_ends_at_the_budget_and_repeats_itself(data: Data, name: str) -> None:
    runs = [tune(data, make(name, density=DENSITY)) for _ in range(2)]
    for module, result in runs:
        assert result.masks.nonzeros == BUDGET
        assert zeros_hold(module, result.masks)
        assert (result.extreme_nonzeros is not None) == name.startswith("bidirectional-")
    assert masks_equal(runs[0][1].masks, runs[1][1].masks)
    first, second = (module.state_dict() for module, _ in runs)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_random_regrowth_depends_on_the_seed(data: Data) -> None:
    strategy = make("set", density=DENSITY, updates=1)
    recipe = dataclasses.replace(QUICK, epochs=0)
    masks = [tune(data, strategy, recipe=recipe, seed=seed)[1].masks for seed in (1, 1, 2)]
    assert masks_equal(masks[0], masks[1])
    assert not masks_equal(masks[0], masks[2])


def sparse_of(density: float = 0.2, seed: int = 0) -> tuple[nn.Module, SparseParameters]:
    module = nets.small_cnn()
    sparse = SparseParameters(module, nets.NAMES)
    generator = np.random.default_rng(seed)
    alive = {name: generator.random(shape) < density for name, shape in sparse.shapes.items()}
    sparse.set_masks(Masks(alive), None)
    return module, sparse


def noise(sparse: SparseParameters, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(shape, generator=generator) for n, shape in sparse.shapes.items()}


@pytest.mark.parametrize("share", sorted(GROWTH_ALLOCATIONS))
def test_growth_goes_where_it_is_shared_out(share: str) -> None:
    _, sparse = sparse_of()
    before = sparse.masks
    seen = GradientStats(noise(sparse))
    for aim in ({"density": 0.3}, {"budget_fraction": 1.0}):
        event = MaskEvent(0.5, "regrow", score="gradient", allocation=share, **aim)  # type: ignore[arg-type]
        count = round(0.3 * nets.WEIGHTS)
        masks = masks_after(event, sparse, seen, nets.fill_count(count), density=0.3)
        assert masks.nonzeros == count
        for name in masks:
            assert np.all(masks[name] >= before[name])
            grown = masks[name] & ~before[name]
            gains = np.abs(to_numpy(seen.gradient[name]))
            left = ~masks[name]
            if grown.any() and left.any():
                assert gains[grown].min() >= gains[left].max() or share == "global"


def test_a_tensor_that_lost_everything_gets_its_best_connection_back() -> None:
    _, sparse = sparse_of()
    alive = dict(sparse.masks.by_name)
    alive["0.weight"] = np.zeros_like(alive["0.weight"])
    sparse.set_masks(Masks(alive), None)
    gradient = noise(sparse)
    gradient["0.weight"] *= 1e-6
    best = int(gradient["0.weight"].abs().argmax())
    for aim in ({"density": 0.25}, {"budget_fraction": 1.0}):
        event = MaskEvent(0.5, "regrow", score="gradient", **aim)  # type: ignore[arg-type]
        fill = nets.fill_count(round(0.25 * nets.WEIGHTS))
        masks = masks_after(event, sparse, GradientStats(gradient), fill, density=0.25)
        assert np.flatnonzero(masks["0.weight"]).tolist() == [best]


def test_a_collapse_is_reported_by_name(data: Data) -> None:
    events = (MaskEvent(0.0, "prune", budget_fraction=1.0, score="magnitude"),)
    module = nets.small_cnn()
    with torch.no_grad():
        module[4].weight.mul_(1e-6)
    result = finetune(FinetuneConfig(
        module=module, data=data, names=nets.NAMES, strategy=Strategy("x", events, 0.01),
        fill=nets.fill_count(30), recipe=dataclasses.replace(QUICK, epochs=0), teacher=None, seed=0,
        hooks=extreme_hooks,
    ))  # fmt: skip
    assert "layer collapse in 4.weight: its best connection was kept" in result.notes
    assert 1 <= result.masks["4.weight"].sum() < 5  # what the outputs need
    assert result.masks.nonzeros == 30
    assert "had no path of kept connections from the input" in " ".join(result.notes)


def test_the_teacher_lends_its_weights_as_the_pretrained_ones() -> None:
    module = nets.small_cnn()
    teacher = copy.deepcopy(module)
    sparse = SparseParameters(module, nets.NAMES, like=teacher)
    lent = dict(teacher.named_parameters())
    assert all(sparse.pretrained[n].data_ptr() == lent[n].data_ptr() for n in nets.NAMES)
    with torch.no_grad():
        lent["4.weight"].add_(1)
    other = SparseParameters(module, nets.NAMES, like=teacher)
    assert other.pretrained["4.weight"].data_ptr() != lent["4.weight"].data_ptr()
    itself = SparseParameters(module, nets.NAMES, like=module)
    own = dict(module.named_parameters())
    assert all(itself.pretrained[n].data_ptr() != own[n].data_ptr() for n in nets.NAMES)


class Stopped(Exception):
    """What stands for the end of the process."""


@pytest.mark.parametrize(
    "strategy",
    [
        make("bidirectional-single", density=DENSITY, depth=0.5),
        make("set", density=DENSITY, updates=5),
        make("bidirectional", density=DENSITY, exchanges=6),
    ],
    ids=["gradient", "random", "moments"],
)
def test_a_resumed_run_ends_as_the_whole_one(
    data: Data, tmp_path: Path, strategy: Strategy
) -> None:
    recipe = dataclasses.replace(QUICK, epochs=4)
    teacher = nets.small_cnn()

    def stop(event: Any) -> None:
        if event.message.startswith("epoch 3 of"):  # the second one is saved by now
            raise Stopped

    whole, expected = tune(data, strategy, recipe=recipe, teacher=teacher)
    checkpoint = Checkpoint(tmp_path / "run", every_seconds=0)
    with pytest.raises(Stopped):
        tune(data, strategy, recipe=recipe, teacher=teacher, checkpoint=checkpoint, progress=stop)
    resumed = dataclasses.replace(checkpoint, resume=True)
    module, result = tune(data, strategy, recipe=recipe, teacher=teacher, checkpoint=resumed)
    assert any("continued after epoch 2" in note for note in result.notes)
    assert masks_equal(result.masks, expected.masks)
    states = whole.state_dict(), module.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# -- shrink, and what the steps gather ------------------------------------------------------------


def test_weights_that_go_leave_at_zero_and_take_the_others_along() -> None:
    """A proximal step: every weight of a tensor loses what the largest one that goes has."""
    sparse = SparseParameters(nets.small_cnn(), nets.NAMES)
    before = {name: p.detach().clone() for name, p in sparse.parameters.items()}
    event = MaskEvent(0.0, "prune", density=0.2, score="magnitude", shrink=0.5)
    masks = masks_after(event, sparse, GradientStats(), nets.fill_count(1), density=0.2)
    whole = dict(masks.by_name) | {"4.weight": np.ones_like(masks["4.weight"])}
    sparse.set_masks(Masks(whole), shrink=event.shrink)
    for name in ("0.weight", "10.weight"):
        kept, was = torch.from_numpy(whole[name]), before[name]
        lost = 0.5 * was[~kept].abs().max()
        assert lost > 0
        now = sparse.parameters[name].detach()
        assert torch.allclose(now[kept], was[kept].sign() * (was[kept].abs() - lost))
        assert not now[~kept].any()
    # A tensor that loses nothing stays as it is.
    assert torch.equal(sparse.parameters["4.weight"].detach(), before["4.weight"])


def test_moments_are_averages_of_the_steps_that_matter() -> None:
    _, sparse = sparse_of()
    moments, idle = GradientMoments(sparse, [140, 150]), GradientMoments(sparse, [])
    mean = {name: np.zeros(shape) for name, shape in sparse.shapes.items()}
    square = {name: np.zeros(shape) for name, shape in sparse.shapes.items()}
    for step in range(151):
        for name, gradient in noise(sparse, step).items():
            sparse.parameters[name].grad = 4 * gradient
            if step >= 12:
                mean[name] += (gradient.numpy() - mean[name]) / 32
                square[name] += (gradient.numpy() ** 2 - square[name]) / 32
        moments.add(step, scale=4.0)
        idle.add(step)
    assert idle.mean == {}
    for name in sparse.shapes:
        assert np.allclose(moments.mean[name].numpy(), mean[name], atol=1e-4)
        assert np.allclose(moments.square[name].numpy(), square[name], atol=1e-4)
    other = GradientMoments(sparse, [150])
    other.load_state_dict(moments.state_dict())
    assert all(torch.equal(other.square[n], moments.square[n]) for n in moments.square)
    moments.add(151)
    assert moments.mean == {}


def test_clipping_does_not_hide_the_gradients_of_what_is_pruned(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def watched(
        event: MaskEvent, sparse: Any, stats: GradientStats, *rest: Any, **more: Any
    ) -> Any:
        if event.action == "regrow":
            masks = sparse.masks
            pruned = [to_numpy(stats.square[name])[~masks[name]] for name in masks]
            seen.append(float(np.mean(np.concatenate(pruned) > 0)))
        return masks_after(event, sparse, stats, *rest, **more)

    monkeypatch.setattr("hwprune.training.engine.masks_after", watched)
    recipe = dataclasses.replace(QUICK, epochs=3, grad_clip=1.0)
    _, result = tune(data, make("bidirectional", density=DENSITY, exchanges=3), recipe=recipe)
    assert result.masks.nonzeros == BUDGET
    assert len(seen) == 3
    assert min(seen) > 0.3  # ReLUs are dead in part


def test_each_dip_of_an_exchange_ends_at_the_budget(data: Data) -> None:
    strategy = make("bidirectional", density=DENSITY, exchanges=5, drop=0.3)
    _, result = tune(data, strategy, recipe=dataclasses.replace(QUICK, epochs=3))
    after = [p["nonzeros"] for p in result.trajectory if p["action"] == "regrow"]
    assert after == [BUDGET] * 5
    dips = [p["nonzeros"] for p in result.trajectory if p["action"] == "prune"][-5:]
    assert dips == sorted(dips)
    assert dips[0] < 0.8 * BUDGET
    assert result.extreme_nonzeros is None  # never trained below the budget
