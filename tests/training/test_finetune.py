"""Fine-tuning on the digits: exact masks, exact zeros, fresh momentum, seeds and modes."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn

from hwprune.errors import DataError, HwpruneError, UsageError
from hwprune.ir import Data, Masks
from hwprune.sparsity import Initial, MaskEvent, Strategy, make, masks_equal
from hwprune.training import FinetuneConfig, Recipe, TrainResult, accuracy, finetune
from hwprune.training.batches import Batch
from hwprune.training.evaluate import Validator
from hwprune.training.finetune import Run
from hwprune.training.optimizer import sgd
from hwprune.training.sparse import SparseParameters

QUICK = Recipe(epochs=2, batch_size=64, precision="fp32", learning_rate=0.05)


@pytest.fixture(scope="module")
def data() -> Data:
    return nets.digits()


@pytest.fixture(scope="module")
def trained(data: Data) -> nn.Module:
    """Return a network that was trained densely: every weight fits the budget."""
    module = nets.small_cnn()
    strategy = make("one-shot", density=1.0)
    recipe = dataclasses.replace(QUICK, epochs=8, learning_rate=0.1)
    result = tune(module, data, strategy, budget=nets.WEIGHTS, recipe=recipe, teacher=None)
    assert result.masks.nonzeros == nets.WEIGHTS
    assert result.final_metric > 0.9
    return module


def tune(module: nn.Module, data: Data, strategy: Strategy, **options: Any) -> TrainResult:
    budget = options.pop("budget", 350)
    arguments: dict[str, Any] = {
        "data": data,
        "names": nets.NAMES,
        "strategy": strategy,
        "fill": nets.fill_count(budget),
        "recipe": QUICK,
        "teacher": None,
        "seed": 0,
    } | options
    return finetune(FinetuneConfig(module=module, **arguments))


def zeros_hold(module: nn.Module, result: TrainResult) -> bool:
    parameters = dict(module.named_parameters())
    return all(
        not np.any(parameters[name].detach().numpy()[~result.masks[name]]) for name in nets.NAMES
    )


def test_one_shot_to_a_tenth_recovers(data: Data, trained: nn.Module) -> None:
    module, budget = copy.deepcopy(trained), nets.WEIGHTS // 10
    recipe = dataclasses.replace(QUICK, epochs=8)
    result = tune(
        module, data, make("one-shot", density=0.1), budget=budget, recipe=recipe, teacher=trained
    )
    assert result.masks.nonzeros == budget
    assert zeros_hold(module, result)
    assert result.final_metric > 0.85
    assert accuracy(module, data.validation) == result.final_metric
    assert result.epochs == 8
    assert result.steps == 8 * (len(data.train) // 64)
    assert not module.training


def test_densities_are_exact_on_schedule(data: Data, trained: nn.Module) -> None:
    strategy = make("cubic", density=0.1, steps=6, exchange=0.2)
    result = tune(copy.deepcopy(trained), data, strategy, teacher=trained)
    changes = [entry for entry in result.trajectory if entry["action"] != "train"]
    assert len(changes) == len(strategy.events)
    for entry, event in zip(changes, strategy.events, strict=True):
        assert entry["action"] == event.action
        assert entry["step"] == round(event.progress * result.steps)
        aim = event.density
        expected = (
            round(aim * nets.WEIGHTS) if aim is not None else int(350 * event.budget_fraction)
        )
        assert entry["nonzeros"] == expected


@pytest.mark.parametrize("initial", ["zero", "pretrained"])
def test_bidirectional_reaches_its_extreme_and_fills_the_budget(
    data: Data, trained: nn.Module, initial: str
) -> None:
    module = copy.deepcopy(trained)
    strategy = make("bidirectional-single", density=0.1, depth=0.6, steps=2, initial=initial)
    result = tune(module, data, strategy, teacher=trained)
    assert result.extreme_nonzeros == 210
    assert result.extreme_metric is not None
    counts = [entry["nonzeros"] for entry in result.trajectory if entry["action"] == "regrow"]
    assert counts == [280, 350]
    assert result.masks.nonzeros == 350
    assert zeros_hold(module, result)


def test_pruned_momentum_is_zero_and_grown_weights_start_fresh(
    data: Data, trained: nn.Module
) -> None:
    module = copy.deepcopy(trained)
    sparse, optimizer = SparseParameters(module, nets.NAMES), sgd(module, QUICK)
    first = {n: np.random.default_rng(0).random(s) < 0.3 for n, s in sparse.shapes.items()}
    second = {n: np.random.default_rng(1).random(s) < 0.3 for n, s in sparse.shapes.items()}
    images = torch.from_numpy(data.train.batch(np.arange(64))[0])

    def step() -> None:
        optimizer.zero_grad()
        module(images).square().mean().backward()
        sparse.mask_gradients()
        optimizer.step()

    step()
    courses: tuple[tuple[dict[str, Any], Initial], ...] = (
        (first, "zero"),
        (second, "pretrained"),
    )
    for masks, initial in courses:
        before = {n: p.detach().clone().numpy() for n, p in sparse.parameters.items()}
        held = sparse.masks
        sparse.set_masks(Masks(masks), optimizer, initial=initial)
        for name, parameter in sparse.parameters.items():
            weight = parameter.detach().numpy()
            momentum = optimizer.state[parameter]["momentum_buffer"].numpy()
            kept, grown = masks[name] & held[name], masks[name] & ~held[name]
            assert not np.any(weight[~masks[name]])
            assert not np.any(momentum[~masks[name]])
            assert not np.any(momentum[grown])
            assert np.array_equal(weight[kept], before[name][kept])
            if initial == "pretrained":
                assert np.array_equal(weight[grown], sparse.pretrained[name].numpy()[grown])
        step()
        step()
        sparse.check()
    with torch.no_grad():
        sparse.parameters["0.weight"].add_(1e-30)
    with pytest.raises(HwpruneError, match=r"pruned weights of '0\.weight' are not zero"):
        sparse.check()


def test_the_same_seed_gives_the_same_run_and_global_state_is_untouched(
    data: Data, trained: nn.Module
) -> None:
    strategy = make("bidirectional-single", density=0.1, steps=2)
    results, states = [], []
    for seed in (1, 1, 2):
        module = nets.small_cnn(dropout=0.3)
        module.load_state_dict(trained.state_dict())
        before = torch.random.get_rng_state()
        results.append(tune(module, data, strategy, teacher=trained, seed=seed))
        assert torch.equal(before, torch.random.get_rng_state())
        states.append(module.state_dict())
        torch.rand(3)  # what others draw must not matter
    assert masks_equal(results[0].masks, results[1].masks)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not masks_equal(results[0].masks, results[2].masks)


def test_without_labels_the_teacher_teaches(trained: nn.Module) -> None:
    unlabelled = nets.digits(labelled=False)
    module = copy.deepcopy(trained)
    result = tune(module, unlabelled, make("one-shot", density=0.2), budget=700, teacher=trained)
    assert result.metric == "agreement"
    assert result.dense_metric == 1.0
    assert result.final_metric > 0.8
    with pytest.raises(DataError, match="nothing to learn from"):
        tune(module, unlabelled, make("one-shot", density=0.2), teacher=None)
    with pytest.raises(DataError, match="no labels"):
        accuracy(module, unlabelled.validation)


def test_no_epochs_prune_and_recalibrate(data: Data, trained: nn.Module) -> None:
    module = copy.deepcopy(trained)
    recipe = dataclasses.replace(QUICK, epochs=0)
    strategy = make("bidirectional-single", density=0.3, steps=2)
    result = tune(module, data, strategy, budget=1100, recipe=recipe, teacher=trained)
    assert (result.steps, result.epochs, result.best_epoch) == (0, 0, None)
    assert result.masks.nonzeros == 1100
    assert result.extreme_metric is not None
    assert zeros_hold(module, result)
    old, new = trained.state_dict(), module.state_dict()
    assert not torch.equal(old["1.running_mean"], new["1.running_mean"])
    alive = torch.from_numpy(result.masks["0.weight"]) & (new["0.weight"] != 0)
    assert torch.equal(old["0.weight"][alive], new["0.weight"][alive])


def test_the_teacher_may_be_the_module_itself(data: Data, trained: nn.Module) -> None:
    module = copy.deepcopy(trained)
    result = tune(module, data, make("one-shot", density=0.1), teacher=module)
    assert result.masks.nonzeros == 350


def test_the_teacher_and_frozen_batchnorm_are_left_alone(data: Data, trained: nn.Module) -> None:
    before = copy.deepcopy(trained.state_dict())
    module = copy.deepcopy(trained)
    tune(
        module,
        data,
        make("one-shot", density=0.1),
        teacher=trained,
        train_batchnorm=False,
    )
    assert all(torch.equal(before[key], value) for key, value in trained.state_dict().items())
    assert torch.equal(module.state_dict()["1.running_mean"], before["1.running_mean"])


def test_dense_changes_nothing(data: Data, trained: nn.Module) -> None:
    module = copy.deepcopy(trained)
    result = tune(module, data, make("dense", density=1.0))
    assert result.final_metric == result.dense_metric
    assert result.masks.nonzeros == nets.WEIGHTS
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), trained.parameters()))  # noqa: B905


def test_the_best_epoch_is_one_after_the_last_change(data: Data, trained: nn.Module) -> None:
    recipe = dataclasses.replace(QUICK, epochs=4, checkpoint="best")
    module = copy.deepcopy(trained)
    result = tune(module, data, make("cubic", density=0.1, until=0.5), recipe=recipe)
    later = [
        e["metric"] for e in result.trajectory if e["action"] == "train" and e["epoch"] in (3, 4)
    ]
    assert result.final_metric == max(later)
    assert result.best_epoch in (3, 4)
    assert accuracy(module, data.validation) == result.final_metric


def test_batches_are_drawn_alike_whatever_the_strategy(
    data: Data, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[torch.Tensor]] = []
    real = Run.drawn

    def collect(self: Run, batch: Batch, generator: torch.Generator) -> Batch:
        found = real(self, batch, generator)
        if generator is self.generator:
            drawn[-1].append(found.inputs[0].clone())
        return found

    monkeypatch.setattr(Run, "drawn", collect)
    for name in ("one-shot", "bidirectional", "rigl"):  # how often gradients are asked for differs
        drawn.append([])
        tune(copy.deepcopy(trained), data, make(name, density=0.1))
    assert len(drawn[0]) == 2 * (len(data.train) // 64)
    for other in drawn[1:]:
        assert all(torch.equal(a, b) for a, b in zip(drawn[0], other, strict=True))


def test_an_epoch_before_the_last_change_is_not_the_best(
    data: Data, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.1, 0.9, 0.8, 0.3, 0.4, 0.4])
    monkeypatch.setattr(Validator, "measure", lambda self: next(accuracies))
    recipe = dataclasses.replace(QUICK, epochs=4, checkpoint="best")
    result = tune(
        copy.deepcopy(trained), data, make("cubic", density=0.1, until=0.5), recipe=recipe
    )
    assert (result.best_epoch, result.final_metric) == (4, 0.4)


def test_progress_comes_in_order(data: Data, trained: nn.Module) -> None:
    seen: list[Any] = []
    tune(copy.deepcopy(trained), data, make("one-shot", density=0.1), progress=seen.append)
    assert [event.step for event in seen] == sorted(event.step for event in seen)
    assert seen[-1].step == seen[-1].of
    assert seen[-1].metric is not None
    assert "nonzeros" in seen[0].message


def test_an_interrupt_passes_through(data: Data, trained: nn.Module) -> None:
    def stop(event: object) -> None:
        raise KeyboardInterrupt

    module = copy.deepcopy(trained)
    with pytest.raises(KeyboardInterrupt):
        tune(module, data, make("one-shot", density=0.1), progress=stop)
    assert not module.training


def test_a_gradient_that_is_not_finite_leaves_pruned_weights_at_zero(trained: nn.Module) -> None:
    module = copy.deepcopy(trained)
    sparse, optimizer = SparseParameters(module, nets.NAMES), sgd(module, QUICK)
    masks = {n: np.random.default_rng(0).random(s) < 0.3 for n, s in sparse.shapes.items()}
    sparse.set_masks(Masks(masks), optimizer)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    sparse.mask_gradients()
    optimizer.step()
    sparse.check()


def test_divergence_is_explained(data: Data, trained: nn.Module) -> None:
    recipe = dataclasses.replace(QUICK, learning_rate=1e12)
    with pytest.raises(UsageError, match="diverged") as caught:
        tune(copy.deepcopy(trained), data, make("one-shot", density=0.5), recipe=recipe)
    assert "learning rate" in (caught.value.hint or "")


def test_wrong_data_and_names_are_explained(data: Data, trained: nn.Module) -> None:
    strategy, module = make("one-shot", density=0.1), copy.deepcopy(trained)
    labels = np.full(len(data.train), 10, dtype=np.int64)
    wrong = dataclasses.replace(data, train=nets.ArraySplit(data.train.arrays, labels))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="from 10 to 10, but the network has 10 outputs"):
        tune(module, wrong, strategy)
    empty = nets.ArraySplit((np.zeros((0, 1, 8, 8), np.float32),), np.zeros(0, np.int64))
    with pytest.raises(DataError, match="no samples"):
        tune(module, dataclasses.replace(data, train=empty), strategy)
    with pytest.raises(UsageError, match="empty"):
        tune(module, data, strategy, names=())
    with pytest.raises(HwpruneError, match="nowhere"):
        tune(module, data, strategy, names=("nowhere",))


@pytest.mark.parametrize("allocation", ["global", "erk"])
@pytest.mark.parametrize("score", ["magnitude", "lamp"])
def test_every_allocation_and_score_fills_the_budget(
    data: Data, trained: nn.Module, allocation: str, score: str
) -> None:
    events = (
        MaskEvent(0.0, "prune", density=0.5, score=score, allocation=allocation),
        MaskEvent(0.0, "prune", budget_fraction=1.0, score=score, allocation=allocation),
    )
    recipe = dataclasses.replace(QUICK, epochs=0)
    strategy = Strategy("x", events, 0.1)
    result = tune(copy.deepcopy(trained), data, strategy, recipe=recipe)
    assert [e["nonzeros"] for e in result.trajectory] == [round(0.5 * nets.WEIGHTS), 350]


def test_a_budget_above_the_living_brings_some_back(data: Data, trained: nn.Module) -> None:
    events = (MaskEvent(0.0, "prune", density=0.05), MaskEvent(0.5, "prune", budget_fraction=1.0))
    result = tune(copy.deepcopy(trained), data, Strategy("x", events, 0.05))
    assert result.masks.nonzeros == 350


class _TwoInputs(nn.Module):
    """Takes an image and its row sums."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(64, 16)
        self.rows = nn.Linear(8, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, image: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        joined = self.image(image.flatten(1)) + self.rows(rows)
        return self.head(torch.relu(joined))


def test_several_inputs(data: Data) -> None:
    def widen(split: Any) -> Any:
        images = split.arrays[0]
        return nets.ArraySplit((images, images.sum(axis=(1, 2))), split.labels)

    wide = dataclasses.replace(
        data,
        train=widen(data.train),
        validation=widen(data.validation),
        test=widen(data.test),
    )
    names = ("image.weight", "rows.weight", "head.weight")
    recipe = dataclasses.replace(QUICK, epochs=10)
    result = tune(
        _TwoInputs(), wide, make("cubic", density=0.5), names=names, budget=600, recipe=recipe
    )
    assert result.masks.nonzeros == 600
    assert result.final_metric > 0.5
