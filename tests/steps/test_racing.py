"""``--values auto`` with training: short races, what they cost, and when they are not held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hwprune.ir import Data, ValueType
from hwprune.steps import choosing
from hwprune.steps.choosing import RACING_VALUE_TYPES, choose_value_type, may_race
from hwprune.steps.planning import (
    AUTO_VALUE_TYPES,
    Prepared,
    module_weights,
    plans_of,
    value_types,
)
from hwprune.steps.pruning import Training, recipe_of
from hwprune.targets import load
from hwprune.training.batches import Batches

At = Callable[[int], Prepared]
ALL: tuple[ValueType, ...] = (*AUTO_VALUE_TYPES, *RACING_VALUE_TYPES)
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
        labels = prepared(1).model.module(torch.from_numpy(images)).argmax(1).numpy()
    split = Images(images, labels.astype(np.int64))
    return Data("made", split, split, split, 10, "none")


def test_a_race_is_short_repeatable_and_counted(prepared: At, data: Data) -> None:
    now = prepared(8_000)
    before = {name: weight.copy() for name, weight in module_weights(now).items()}
    training = Training(10, 0, RACE, "cpu")
    said: list[str] = []
    plans = plans_of(now, ALL)
    choice = choose_value_type(
        now, plans, data, 0, training=training, say=lambda status: said.append(status.message)
    )
    entrants = [message.removeprefix("trying ") for message in said]
    assert 3 <= len(entrants) <= 4
    assert set(RACING_VALUE_TYPES) < set(entrants)
    assert choice.value_type in entrants
    # Five epochs for all: one for each of three or four.
    assert choice.cost_epochs == pytest.approx(len(entrants) * max(1, round(5 / len(entrants))))
    assert "after a short training" in choice.note
    assert f"{choice.cost_epochs:.2g} epochs in all" in choice.note
    again = choose_value_type(now, plans, data, 0, training=training)
    assert again == choice
    after = module_weights(now)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_the_best_after_training_wins_and_the_error_decides_between_equals(
    prepared: At, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = prepared(8_000)
    plans = plans_of(now, ALL)
    training = Training(10, 0, RACE, "cpu")

    def winner(**accuracies: float) -> str:
        def attempt(prepared: Prepared, plan: Any, *rest: Any) -> float:
            return accuracies.get(plan.value_type, 0.5)

        monkeypatch.setattr(choosing, "_try", attempt)
        monkeypatch.setattr(choosing, "_screen", lambda *rest: 0.5)
        return choose_value_type(now, plans, data, 0, training=training).value_type

    assert winner(int4=0.9) == "int4"
    assert winner(codebook16=0.9) == "codebook16"
    assert winner(int4=0.9, int8=0.9, fp32=0.2) != "codebook16"


@pytest.mark.parametrize("recipe", [{**RACE, "race": 0.0}, {**RACE, "race": 0.01}])
def test_without_a_race_four_bits_are_never_taken(
    prepared: At, data: Data, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "_screen", lambda *rest: 0.5)
    now = prepared(8_000)
    choice = choose_value_type(
        now, plans_of(now, ALL), data, 0, training=Training(10, 0, recipe, "cpu")
    )
    assert choice.value_type in AUTO_VALUE_TYPES
    assert choice.cost_epochs == 0
    assert "screened" in choice.note
    assert choice == choose_value_type(now, plans_of(now, AUTO_VALUE_TYPES), data, 0)


def test_when_there_may_be_a_race(data: Data) -> None:
    recipe = recipe_of(Training(10, 0, RACE, "cpu"))
    assert may_race(data, recipe)
    assert not may_race(None, recipe)
    assert not may_race(replace(data, validation=Images(np.zeros((3, 1)), None)), recipe)
    for off in ({"epochs": 0}, {"race": 0.0}, {"quantise_from": 1.0}):
        assert not may_race(data, replace(recipe, **off))
    target = load("raspberry-pi-5")
    assert value_types(target, "auto", also=RACING_VALUE_TYPES) == tuple(
        kind for kind in target.value_types if kind in ALL
    )
    assert value_types(load("nrf52840"), "auto", also=RACING_VALUE_TYPES) == AUTO_VALUE_TYPES


class Bytes(Images):
    """Images that are held as bytes."""

    def stored(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.round(self.images[indices] * 100 + 100).astype(np.uint8)

    def affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return np.array([0.01], np.float32), np.array([1.0], np.float32)


def test_a_part_of_images_that_are_bytes_is_held_as_bytes() -> None:
    images = np.linspace(-1, 1, 3 * 16, dtype=np.float32).reshape(3, 1, 4, 4)
    chosen = np.array([2, 0])
    part = choosing.Part(Bytes(images, None), chosen)
    assert part.stored(np.array([0])).tolist() == part.whole.stored(np.array([2])).tolist()
    batches = Batches(part, device="cpu", resident_bytes=2**20, channels_last=False)
    assert [held.dtype for held in batches._held or ()] == [torch.uint8]
    (batch,) = batches.in_order(slice(None))
    assert batch.inputs[0].numpy() == pytest.approx(images[chosen], abs=0.006)

    plain = choosing.Part(Images(images, None), chosen)
    assert plain.affine() is None
    (batch,) = Batches(plain, device="cpu", resident_bytes=2**20, channels_last=False)
    assert batch.inputs[0].numpy() == pytest.approx(images[chosen], abs=0)
