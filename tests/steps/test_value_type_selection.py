"""``--values auto`` with training: short trials, what they cost, and when there are none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from steps_tools import At, job_of, weights_in

from hwprune.ir import Data, Status, ValueType
from hwprune.job import TRIED_VALUE_TYPES, may_try
from hwprune.sampling import Sampled
from hwprune.steps import value_type_selection
from hwprune.steps.planning import AUTO_VALUE_TYPES, Candidate, Prepared, candidates_of, value_types
from hwprune.steps.value_type_selection import Choice, choose_value_type
from hwprune.targets import load
from hwprune.tasks import CLASSIFICATION
from hwprune.training import FinetuneConfig, Recipe
from hwprune.training.batches import Batches

ALL: tuple[ValueType, ...] = (*AUTO_VALUE_TYPES, *TRIED_VALUE_TYPES)
RACE = {"race": 0.5, "batch_size": 8, "precision": "fp32"}


@dataclass(frozen=True)
class Images:
    """Images and their labels."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        return (self.images[indices],)


@pytest.fixture
def data(prepared: At) -> Data:
    """Data on which the dense network is always right."""
    images = np.random.default_rng(0).standard_normal((300, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        labels = prepared().model.module(torch.from_numpy(images)).argmax(1).numpy()
    split = Images(images, labels.astype(np.int64))
    return Data("made", split, split, split, 10, "none")


def choose(
    prepared: Prepared,
    data: Data,
    kinds: tuple[ValueType, ...],
    recipe: dict[str, Any],
    said: list[str] | None = None,
) -> Choice:
    def say(status: Status) -> None:
        if said is not None:
            said.append(status.message)

    job = job_of(prepared, data, epochs=10, recipe=recipe)
    return choose_value_type(job, prepared, candidates_of(prepared, kinds, 8_000), say)


def right(share: float) -> Any:
    """What accuracy is taken of: which of 144 samples are right."""
    return np.arange(144) < 144 * share


def test_a_race_is_short_repeatable_and_counted(prepared: At, data: Data) -> None:
    now = prepared()
    before = weights_in(now)
    said: list[str] = []
    choice = choose(now, data, ALL, RACE, said)
    entrants = [message.removeprefix("trying ") for message in said]
    assert 3 <= len(entrants) <= 4
    assert set(TRIED_VALUE_TYPES) < set(entrants)
    assert choice.value_type in entrants
    # Five epochs for all: one for each of three or four.
    assert choice.cost_epochs == pytest.approx(len(entrants) * max(1, round(5 / len(entrants))))
    assert "after a short training" in choice.note
    assert f"{choice.cost_epochs:.2g} epochs in all" in choice.note
    assert choose(now, data, ALL, RACE) == choice
    after = weights_in(now)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_the_best_after_training_wins_and_the_error_decides_between_equals(
    prepared: At, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = prepared()

    def winner(**accuracies: float) -> str:
        def attempt(job: Any, data: Data, prepared: Prepared, each: Candidate, *_: Any) -> Any:
            return right(accuracies.get(each.plan.value_type, 0.5))

        monkeypatch.setattr(value_type_selection, "_try", attempt)
        monkeypatch.setattr(value_type_selection, "_screen", lambda *rest: right(0.5))
        return choose(now, data, ALL, RACE).value_type

    assert winner(int4=0.9) == "int4"
    assert winner(codebook16=0.9) == "codebook16"


# The types by the error of the stored weights, the smallest first; another order than the plans'.
BY_ERROR: tuple[ValueType, ...] = ("fp16", "codebook16", "int8", "int4", "fp32")


@pytest.mark.parametrize("way", ["no data", "screened", "tried"])
def test_between_equals_the_smaller_error_of_the_weights_decides(
    prepared: At, data: Data, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    now, said = prepared(), list[str]()
    monkeypatch.setattr(
        value_type_selection, "reconstruction_error",
        lambda weights, masks, axes, kind: 0.1 * (1 + BY_ERROR.index(kind)),
    )  # fmt: skip
    monkeypatch.setattr(value_type_selection, "_screen", lambda *rest: right(0.5))
    # The best by far of those that are tried is within one standard error of the second alone.
    level = {"codebook16": 0.9, "int4": 0.89, "fp16": 0.2, "int8": 0.2}
    monkeypatch.setattr(
        value_type_selection, "_try",
        lambda job, data, net, each, *_: right(level[each.plan.value_type]),
    )  # fmt: skip
    if way == "no data":
        choice = choose_value_type(job_of(now), now, candidates_of(now, ALL, 8_000), lambda _: None)
        assert (choice.value_type, choice.cost_epochs) == ("fp16", 0)
    elif way == "screened":
        assert choose(now, data, ALL, {**RACE, "race": 0.0}).value_type == "fp16"
    else:
        assert choose(now, data, ALL, RACE, said).value_type == "codebook16"
        # Of the wide types, those with the smallest errors are tried.
        assert said == ["trying fp16", "trying int8", "trying int4", "trying codebook16"]
        level |= {"codebook16": 0.89, "int4": 0.9}
        assert choose(now, data, ALL, RACE).value_type == "codebook16"
        level |= {"fp16": 0.9}
        assert choose(now, data, ALL, RACE).value_type == "fp16"


def test_trials_are_plain_trainings_with_the_values_in_the_loop(
    prepared: At, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Recipe] = []

    def finetune(config: FinetuneConfig) -> Any:
        seen.append(config.recipe)
        return SimpleNamespace(rows=right(0.5))

    monkeypatch.setattr(value_type_selection, "finetune", finetune)
    asked = {
        **RACE, "ema_decay": 0.9, "sharpness": 0.1, "interpolate": 2, "checkpoint": "best",
        "per_round": True, "learning_rate": 0.01,
    }  # fmt: skip
    choose(prepared(), data, ALL, asked)
    assert len(seen) >= 3
    plain = Recipe(
        epochs=seen[0].epochs, race=0.5, batch_size=8, precision="fp32", learning_rate=0.01,
        quantise_from=0.5,
    )  # fmt: skip
    assert set(seen) == {plain}


@pytest.mark.parametrize("recipe", [{**RACE, "race": 0.0}, {**RACE, "race": 0.01}])
def test_without_a_race_four_bits_are_never_taken(
    prepared: At, data: Data, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(value_type_selection, "_screen", lambda *rest: right(0.5))
    now = prepared()
    choice = choose(now, data, ALL, recipe)
    assert choice.value_type in AUTO_VALUE_TYPES
    assert choice.cost_epochs == 0
    assert "screened" in choice.note
    assert choice == choose(now, data, AUTO_VALUE_TYPES, recipe)


def test_when_there_may_be_a_race(data: Data) -> None:
    recipe = Recipe(epochs=10, race=0.5)
    assert may_try(data, CLASSIFICATION, recipe)
    assert not may_try(None, CLASSIFICATION, recipe)
    bare = replace(data, validation=Images(np.zeros((3, 1)), None))
    assert not may_try(bare, CLASSIFICATION, recipe)
    for off in ({"epochs": 0}, {"race": 0.0}, {"quantise_from": 1.0}):
        assert not may_try(data, CLASSIFICATION, replace(recipe, **off))
    target = load("raspberry-pi-5")
    assert value_types(target, "auto", also=TRIED_VALUE_TYPES) == tuple(
        kind for kind in target.value_types if kind in ALL
    )
    assert value_types(load("nrf52840"), "auto", also=TRIED_VALUE_TYPES) == AUTO_VALUE_TYPES


class Bytes(Images):
    """Images that are held as bytes."""

    def stored(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.round(self.images[indices] * 100 + 100).astype(np.uint8)

    def affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return np.array([0.01], np.float32), np.array([1.0], np.float32)


def test_a_part_of_images_that_are_bytes_is_held_as_bytes() -> None:
    images = np.linspace(-1, 1, 3 * 16, dtype=np.float32).reshape(3, 1, 4, 4)
    chosen = np.array([2, 0])
    part = Sampled(Bytes(images, None), chosen)
    assert part.stored(np.array([0])).tolist() == part.whole.stored(np.array([2])).tolist()
    batches = Batches(part, device="cpu", resident_bytes=2**20, channels_last=False)
    assert [held.dtype for held in batches._held or ()] == [torch.uint8]
    (batch,) = batches.in_order(slice(None))
    assert batch.inputs[0].numpy() == pytest.approx(images[chosen], abs=0.006)

    plain = Sampled(Images(images, None), chosen)
    assert plain.affine() is None
    (batch,) = Batches(plain, device="cpu", resident_bytes=2**20, channels_last=False)
    assert batch.inputs[0].numpy() == pytest.approx(images[chosen], abs=0)
