"""Every rule, start and share of regrowth in a run; feedback; and what is measured for them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_nets as nets
from numpy.typing import NDArray
from torch import nn

from hwprune.errors import UsageError
from hwprune.ir import Data, Masks
from hwprune.sparsity import GROWTHS, RULES, Event, Feedback, Strategy, make, masks_equal
from hwprune.training import Checkpoint, Recipe, TrainResult, finetune
from hwprune.training.events import masks_after
from hwprune.training.evidence import NOTHING, Seen, needs
from hwprune.training.feedback import FeedbackWeights
from hwprune.training.optimizer import sgd
from hwprune.training.sparse import SparseParameters, to_numpy
from hwprune.training.trace import DECAY, Trace

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
    return module, finetune(module, **arguments)


def zeros_hold(module: nn.Module, masks: Masks) -> bool:
    parameters = dict(module.named_parameters())
    return all(not np.any(to_numpy(parameters[n])[~masks[n]]) for n in nets.NAMES)


@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_fills_the_budget(data: Data, rule: str, epochs: int) -> None:
    strategy = make("bidirectional", density=DENSITY, depth=0.5, steps=2, regrow_score=rule)
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
        "bidirectional-feedback",
        "feedback",
        "granet",
        "rigl",
        "set",
    ],
)
def test_every_new_strategy_ends_at_the_budget_and_repeats_itself(data: Data, name: str) -> None:
    runs = [tune(data, make(name, density=DENSITY)) for _ in range(2)]
    for module, result in runs:
        assert result.masks.nonzeros == BUDGET
        assert zeros_hold(module, result.masks)
        assert (result.extreme_nonzeros is not None) == name.startswith("bidirectional")
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


@pytest.mark.parametrize("share", sorted(GROWTHS))
def test_growth_goes_where_it_is_shared_out(share: str) -> None:
    _, sparse = sparse_of()
    before = sparse.masks
    seen = Seen(noise(sparse))
    for aim in ({"density": 0.3}, {"budget_fraction": 1.0}):
        event = Event(0.5, "regrow", score="gradient", allocation=share, **aim)  # type: ignore[arg-type]
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
        if share == "uniform":
            added = {n: int((masks[n] & ~before[n]).sum()) / masks[n].size for n in masks}
            assert max(added.values()) - min(added.values()) < 0.02


def test_gain_per_byte_prefers_what_costs_little() -> None:
    _, sparse = sparse_of()
    same = {name: torch.ones(shape) for name, shape in sparse.shapes.items()}

    def marginal(masks: Masks) -> Mapping[str, NDArray[np.float32]]:
        assert masks is sparse.masks
        cost = {n: np.full(s, 2, np.float32) for n, s in sparse.shapes.items()}
        cost["4.weight"][:] = 1.5
        return cost

    event = Event(0.5, "regrow", density=0.3, score="gradient", per_byte=True)
    arguments = (sparse, Seen(same), nets.fill_count(1000))
    masks = masks_after(event, *arguments, density=0.3, marginal=marginal)
    for name in masks:
        grown = bool((masks[name] & ~sparse.masks[name]).any())
        assert grown == (name == "4.weight")
    with pytest.raises(UsageError, match="per byte"):
        masks_after(event, *arguments, density=0.3)


def test_a_tensor_that_lost_everything_gets_its_best_connection_back() -> None:
    _, sparse = sparse_of()
    alive = dict(sparse.masks.by_name)
    alive["0.weight"] = np.zeros_like(alive["0.weight"])
    sparse.set_masks(Masks(alive), None)
    gradient = noise(sparse)
    gradient["0.weight"] *= 1e-6
    best = int(gradient["0.weight"].abs().argmax())
    for aim in ({"density": 0.25}, {"budget_fraction": 1.0}):
        event = Event(0.5, "regrow", score="gradient", **aim)  # type: ignore[arg-type]
        fill = nets.fill_count(round(0.25 * nets.WEIGHTS))
        masks = masks_after(event, sparse, Seen(gradient), fill, density=0.25)
        assert np.flatnonzero(masks["0.weight"]).tolist() == [best]


def test_a_collapse_is_reported_by_name(data: Data) -> None:
    events = (Event(0.0, "prune", budget_fraction=1.0, score="magnitude"),)
    module = nets.small_cnn()
    with torch.no_grad():
        module[4].weight.mul_(1e-6)
    result = finetune(
        module, data=data, names=nets.NAMES, strategy=Strategy("x", events, 0.01),
        fill=nets.fill_count(30), recipe=dataclasses.replace(QUICK, epochs=0), teacher=None, seed=0,
    )  # fmt: skip
    assert "layer collapse in 4.weight: its best connection was kept" in result.notes
    assert 1 <= result.masks["4.weight"].sum() < 5  # what the outputs need
    assert result.masks.nonzeros == 30
    assert "had no path of living connections from the input" in " ".join(result.notes)


def test_a_second_order_start_is_the_step(data: Data) -> None:
    strategy = make(
        "bidirectional", density=0.3, depth=0.5, steps=1, regrow_score="second-order",
        initial="second-order",
    )  # fmt: skip
    recipe = dataclasses.replace(QUICK, epochs=0)
    module, result = tune(data, strategy, recipe=recipe, fill=nets.fill_count(1100))
    plain = nets.small_cnn()
    moved = 0
    for name in nets.NAMES:
        weight, start = (to_numpy(dict(m.named_parameters())[name]) for m in (module, plain))
        living = result.masks[name]
        grown = living & (weight != start)
        moved += int(grown.sum())
        usual = float(np.sqrt(np.mean(start**2)))
        assert np.abs(weight[grown]).max(initial=0) <= usual * 1.0001
    assert 400 <= moved <= 550


def test_what_an_event_needs() -> None:
    def event(action: Any, **more: Any) -> Event:
        return Event(0.5, action, density=0.5, **more)

    assert needs(event("prune")) == set()
    assert needs(event("prune", score="taylor")) == {"gradient"}
    assert needs(event("regrow", score="random")) == set()
    assert needs(event("regrow", score="momentum")) == {"momentum"}
    assert needs(event("regrow", score="magnitude", initial="second-order")) == {
        "gradient",
        "curvature",
    }


def test_the_trace_is_an_average_and_costs_nothing_when_nobody_asks() -> None:
    _, sparse = sparse_of()
    idle, trace = Trace(sparse, []), Trace(sparse, [120, 150])
    expected = {name: np.zeros(shape) for name, shape in sparse.shapes.items()}
    for step in range(152):
        for name, gradient in noise(sparse, step).items():
            sparse.parameters[name].grad = gradient
            if 20 <= step < 150:
                expected[name] += (1 - DECAY) * (gradient.numpy() - expected[name])
        for each in (idle, trace):
            each.at(step)
            each.update()
        if step == 149:
            assert idle.mean == {}
            for name, mean in trace.mean.items():
                assert np.allclose(mean.numpy(), expected[name], atol=1e-4)
            other = Trace(sparse, [150])
            other.load(trace.state())
            assert all(torch.equal(other.mean[n], trace.mean[n]) for n in trace.mean)
    assert trace.mean == {}


# -- feedback -------------------------------------------------------------------------------------


def test_feedback_moves_the_dense_weights_by_the_gradient_at_the_masked_point() -> None:
    module, sparse = sparse_of()
    optimizer = sgd(module, dataclasses.replace(QUICK, momentum=0.0, weight_decay=0.0))
    feedback = FeedbackWeights(sparse, Feedback(0.0, 0.5), lambda progress: round(10 * progress))
    feedback.before_events(0)
    for name in sparse.parameters:  # the dense weights of the dead: some value
        sparse.dense[name].add_(0.01)
    sparse.show_dense()
    before = {name: tensor.clone() for name, tensor in sparse.dense.items()}
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    sparse.mask_gradients()
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    with feedback.unveiled():
        optimizer.step()
    sparse.check()
    for name, parameter in sparse.parameters.items():
        alive = torch.from_numpy(sparse.masks[name])
        assert torch.allclose(sparse.dense[name], before[name] - 0.2)
        assert torch.equal(parameter.data, torch.where(alive, sparse.dense[name], 0.0))


def test_a_connection_that_earned_it_returns_with_its_dense_value_and_ends_masked() -> None:
    module, sparse = sparse_of()
    optimizer = sgd(module, QUICK)
    feedback = FeedbackWeights(sparse, Feedback(0.0, 0.5), lambda progress: round(10 * progress))
    feedback.before_events(0)
    dead = np.flatnonzero(~sparse.masks["0.weight"])[:3]
    sparse.dense["0.weight"].view(-1)[torch.from_numpy(dead)] = 9.0
    redraw = Event(0.1, "redraw", share=None, density=0.2)
    masks = masks_after(redraw, sparse, NOTHING, nets.fill_count(10), density=0.2)
    assert masks.nonzeros == round(0.2 * nets.WEIGHTS)
    assert masks["0.weight"].reshape(-1)[dead].all()
    sparse.set_masks(masks, optimizer)
    assert sparse.parameters["0.weight"].data.view(-1)[torch.from_numpy(dead)].tolist() == [9.0] * 3
    sparse.check()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    with feedback.unveiled():
        optimizer.step()
    parameter = sparse.parameters["0.weight"]
    pruned = torch.from_numpy(~masks["0.weight"])
    assert optimizer.state[parameter]["momentum_buffer"][pruned].abs().min() > 0
    copied = FeedbackWeights(sparse, Feedback(0.0, 0.5), lambda progress: round(10 * progress))
    saved = copy.deepcopy(feedback.state())
    feedback.after_events(4, optimizer, at_end=False)
    assert sparse.dense
    feedback.after_events(5, optimizer, at_end=False)
    assert not sparse.dense
    assert not optimizer.state[parameter]["momentum_buffer"][pruned].any()
    sparse.check()
    feedback.before_events(6)
    assert not sparse.dense  # it does not begin again
    copied.load(saved)
    assert set(sparse.dense) == set(nets.NAMES)
    assert torch.equal(sparse.dense["0.weight"], saved["dense"]["0.weight"])  # type: ignore[index]


def test_feedback_may_begin_late_from_pretrained_values() -> None:
    _, sparse = sparse_of()
    sparse.keep_dense("pretrained")
    for name, dense in sparse.dense.items():
        dead = torch.from_numpy(~sparse.masks[name])
        assert torch.equal(dense[dead], sparse.pretrained[name][dead])
        assert torch.equal(dense[~dead], sparse.parameters[name].data[~dead])


def test_feedback_changes_more_than_plain_pruning_would(data: Data) -> None:
    """What was pruned comes back: without feedback the same course never grows anything."""
    recipe = dataclasses.replace(QUICK, epochs=4)
    strategy = make("feedback", density=0.2, until=0.3, hold=0.9, steps=5, redraws=8)
    fill = nets.fill_count(round(0.2 * nets.WEIGHTS))
    held: list[Masks] = []
    module = nets.small_cnn()

    def watch(ranking: Any, fraction: float) -> Masks:
        held.append(fill(ranking, fraction))
        parameters = dict(module.named_parameters())
        assert len(held) == 1 or zeros_hold(module, held[-2])
        assert parameters["0.weight"].abs().max() > 0
        return held[-1]

    result = finetune(
        module, data=data, names=nets.NAMES, strategy=strategy, fill=watch, recipe=recipe,
        teacher=None, seed=0,
    )  # fmt: skip
    back = sum(int((held[-1][n] & ~held[0][n]).sum()) for n in held[0])
    assert back > 10
    assert zeros_hold(module, result.masks)


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
        make("bidirectional-feedback", density=DENSITY, steps=4),
        make("bidirectional", density=DENSITY, depth=0.5, regrow_score="momentum"),
        make("set", density=DENSITY, updates=5),
    ],
    ids=["feedback", "momentum", "random"],
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
