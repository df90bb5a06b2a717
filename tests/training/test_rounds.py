"""Training from scratch, what is observed between rounds, and steps that torch compiled."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import training_nets as nets
from torch import nn

from hwprune.sparsity import make
from hwprune.training import Checkpoint, FinetuneConfig, Recipe, accuracy, finetune

RECIPE = Recipe(epochs=2, batch_size=64, precision="fp32", learning_rate=0.1)
ROUNDS = dataclasses.replace(RECIPE, epochs=1, per_round=True)
ITERATIVE = make("iterative", density=0.5, removed=0.3)  # to 0.7 and 0.5


def tune(module: nn.Module, **options: Any) -> Any:
    arguments = {
        "data": nets.digits(samples=600), "names": nets.NAMES, "recipe": RECIPE, "seed": 0,
        "fill": nets.fill_count(round(0.5 * nets.WEIGHTS)), "teacher": None,
    }  # fmt: skip
    return finetune(FinetuneConfig(module=module, **{**arguments, **options}))


def test_a_dense_network_is_trained_from_scratch() -> None:
    module = nets.small_cnn()
    dense = dataclasses.replace(make("dense", density=1.0), trains=True)
    result = tune(module, strategy=dense, recipe=dataclasses.replace(RECIPE, epochs=5))
    assert result.epochs == 5
    assert result.masks.nonzeros == nets.WEIGHTS
    assert result.final_metric > result.dense_metric + 0.4


def test_what_is_observed_is_the_network_at_the_end_of_each_round(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(module: nn.Module) -> float:
        named = dict(module.named_parameters())
        seen.append(sum(int(torch.count_nonzero(named[name])) for name in nets.NAMES))
        return accuracy(module, nets.digits(samples=600).test)

    plain = nets.small_cnn()
    alone = tune(plain, strategy=ITERATIVE, recipe=ROUNDS)
    module = nets.small_cnn()
    result = tune(module, strategy=ITERATIVE, recipe=ROUNDS, observe=look)
    points = [point for point in result.trajectory if "observed" in point]
    assert seen == [round(0.7 * nets.WEIGHTS)]
    assert [(p["epoch"], p["action"], p["nonzeros"]) for p in points] == [(1.0, "train", seen[0])]
    assert 0 < points[0]["observed"] < 1
    # It was looked at, and that was all.
    assert result.final_metric == alone.final_metric
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), module.parameters()))  # noqa: B905


def test_what_was_observed_before_a_kill_is_kept(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state", resume=True, every_seconds=0)

    def killed(event: Any) -> None:
        if event.step > 6:  # in the second round
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(nets.small_cnn(), strategy=ITERATIVE, recipe=ROUNDS, checkpoint=checkpoint,
             observe=lambda module: 0.25, progress=killed)  # fmt: skip
    result = tune(nets.small_cnn(), strategy=ITERATIVE, recipe=ROUNDS, checkpoint=checkpoint,
                  observe=lambda module: 0.75)  # fmt: skip
    assert [p["observed"] for p in result.trajectory if "observed" in p] == [0.25]


def test_a_compiled_step_asks_torch_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []

    def compile_(module: nn.Module) -> nn.Module:
        compiled.append(module)
        return module

    monkeypatch.setattr(torch, "compile", compile_)
    module, teacher = nets.small_cnn(), nets.small_cnn(seed=1)
    recipe = dataclasses.replace(RECIPE, epochs=1)
    strategy = make("one-shot", density=0.5)
    tune(module, strategy=strategy, recipe=recipe, teacher=teacher)
    assert not compiled
    tune(module, strategy=strategy, recipe=dataclasses.replace(recipe, compiled=True),
         teacher=teacher)  # fmt: skip
    assert compiled == [module, teacher]


class Counted(nn.Module):
    """What torch.compile returns: it runs the module that it shares weights with."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        logits: torch.Tensor = self.module(images)
        return logits


def test_gradients_for_scores_do_not_go_through_what_was_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Counted] = []

    def compile_(module: nn.Module) -> Counted:
        made.append(Counted(module))
        return made[-1]

    monkeypatch.setattr(torch, "compile", compile_)
    recipe = dataclasses.replace(RECIPE, epochs=1, compiled=True, gradient_batches=3)
    result = tune(nets.small_cnn(), strategy=make("rigl", density=0.5, updates=2),
                  recipe=recipe)  # fmt: skip
    assert [each.calls for each in made] == [result.steps]


def test_a_run_that_is_compiled_goes_on_from_one_that_was_not(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state", resume=True, every_seconds=0)

    def killed(event: Any) -> None:
        if "epoch 2 of" in event.message:
            raise KeyboardInterrupt

    strategy = make("one-shot", density=0.5)
    with pytest.raises(KeyboardInterrupt):
        tune(nets.small_cnn(), strategy=strategy, checkpoint=checkpoint, progress=killed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "compile", lambda module: module)
        result = tune(nets.small_cnn(), strategy=strategy, checkpoint=checkpoint,
                      recipe=dataclasses.replace(RECIPE, compiled=True))  # fmt: skip
    assert any("continued after epoch 1" in note for note in result.notes)
    assert any("compiled" in note and "not bit for bit" in note for note in result.notes)
