"""planning: budgets that cannot be, plans per value type, and which one is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from steps_tools import At, job_of, weights_in
from torch import nn

from hwprune.budget import Prefixes
from hwprune.budget import plan as solve
from hwprune.errors import InfeasibleError, UsageError
from hwprune.export.deployment import chosen
from hwprune.ir import Data, Masks, Model, TensorSpec
from hwprune.sampling import Sampled, evenly_spread
from hwprune.sparsity import rank_weights
from hwprune.steps.deployment import metadata_of
from hwprune.steps.fitting import plan_model
from hwprune.steps.planning import (
    AUTO_VALUE_TYPES,
    Prepared,
    candidates_of,
    check_budget,
    prepare,
    value_types,
)
from hwprune.steps.value_type_selection import choose_value_type, reconstruction_error
from hwprune.targets import load


def test_a_budget_that_cannot_be_is_refused() -> None:
    target = load("raspberry-pi-5")
    assert check_budget(target, None) == target.budget_bytes
    assert check_budget(target, 1000) == 1000
    for budget in (0, 10 * 1024**4):
        with pytest.raises(UsageError) as caught:
            check_budget(target, budget)
        assert caught.value.hint


def test_value_types_are_those_of_the_target_or_the_one_asked_for() -> None:
    target = load("raspberry-pi-5")
    assert value_types(target, "auto") == AUTO_VALUE_TYPES == ("fp32", "fp16", "int8")
    assert value_types(target, "codebook16") == ("codebook16",)
    assert value_types(target, "int8") == ("int8",)
    with pytest.raises(UsageError, match="cannot decode int4"):
        value_types(load("rp2040"), "int4")


def test_narrow_values_leave_room_for_more(prepared: At) -> None:
    found = candidates_of(prepared(), AUTO_VALUE_TYPES, 8_000)
    plans = {kind: each.plan for kind, each in found.items()}
    assert plans["int8"].max_nonzeros > plans["fp16"].max_nonzeros > plans["fp32"].max_nonzeros
    for each in plans.values():
        assert each.floor_bytes < each.used_bytes <= 8_000
        assert each.limited_by == "budget"


def test_a_part_of_a_budget_next_to_the_floor_is_the_floor(prepared: At) -> None:
    now = prepared()
    floor = candidates_of(now, ("int8",), 8_000)["int8"].plan.floor_bytes
    tight = candidates_of(now, ("int8",), floor + 40)["int8"]
    ranking = rank_weights(weights_in(now))
    whole, part = tight.masks(ranking), tight.masks(ranking, 0.5)
    assert 0 <= part.nonzeros < whole.nonzeros  # what it holds are bytes of channels that are gone
    assert tight.file_bytes(part) <= floor
    assert tight.file_bytes(whole) <= floor + 40


@pytest.mark.parametrize("budget", [3_000, 8_000, 40_000])
def test_a_ranking_that_is_cut_short_plans_what_the_whole_one_does(
    prepared: At, budget: int
) -> None:
    now = prepared()
    whole = Prefixes(rank_weights(weights_in(now), "lamp"))
    for kind, found in candidates_of(now, AUTO_VALUE_TYPES, budget).items():
        cost = now.template.cost(kind)
        assert found.plan == solve(cost, whole, budget, kind, dense_bytes=now.dense_bytes)


def test_what_fits_is_told_without_compiling(prepared: At) -> None:
    model, target = prepared().model, load("raspberry-pi-5")
    found = plan_model(model, target, budget_bytes=8_000, values="int8")
    assert (found.budget_bytes, found.fits_dense) == (8_000, False)
    (plan,) = found.plans.values()
    said = chosen(metadata_of(target, 8_000, None), 8_000)  # what the file says of itself counts
    whole = prepare(model, target, deployment=said)
    assert plan == candidates_of(whole, ("int8",), 8_000)["int8"].plan
    assert found.weights == plan.weights
    roomy = plan_model(model, target)
    assert (roomy.budget_bytes, roomy.fits_dense) == (target.budget_bytes, True)
    assert set(roomy.plans) == set(AUTO_VALUE_TYPES)
    with pytest.raises(UsageError, match="the budget is 0 bytes"):
        plan_model(model, target, budget_bytes=0)


def test_no_value_type_fits(prepared: At) -> None:
    with pytest.raises(InfeasibleError, match="the file takes"):
        candidates_of(prepared(), AUTO_VALUE_TYPES, 900)


def test_a_refused_budget_names_what_stays_dense() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.fc = nn.Parameter(torch.ones(500, 8)), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.fc(x + (self.words * 2).sum(0))
            return found

    spec = TensorSpec("x", (None, 8), "float32")
    model = Model("words", "words.pt", "state-dict", Words().eval(), None, (spec,))
    whole = prepare(model, load("raspberry-pi-5"))
    with pytest.raises(InfeasibleError, match=r"4,110 B  dense: words: read by Mul"):
        candidates_of(whole, AUTO_VALUE_TYPES, 900)


def test_reconstruction_error() -> None:
    weights = {"w": np.array([[3.0, 4.0]], np.float32)}
    keep = Masks({"w": np.array([[False, True]])})
    assert reconstruction_error(weights, keep, {"w": 0}, "fp32") == pytest.approx(9 / 25)
    assert reconstruction_error({"w": np.zeros((1, 2), np.float32)}, keep, {"w": 0}, "fp32") == 0.0


def _quiet(status: object) -> None:
    pass


def test_one_candidate_is_the_choice(prepared: At) -> None:
    now = prepared()
    choice = choose_value_type(job_of(now), now, candidates_of(now, ("fp16",), 8_000), _quiet)
    assert choice.value_type == "fp16"
    assert "only" in choice.note


def test_without_data_the_smallest_error_of_the_weights_wins(prepared: At) -> None:
    now = prepared()
    before = weights_in(now)
    found = candidates_of(now, AUTO_VALUE_TYPES, 8_000)
    choice = choose_value_type(job_of(now), now, found, _quiet)
    assert choice.value_type == "int8"  # it keeps twice the weights
    assert "squared error" in choice.note
    after = weights_in(now)
    assert all(np.array_equal(before[name], after[name]) for name in before)


@dataclass(frozen=True)
class Images:
    """Random images with the labels that a function gives them."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        return (self.images[indices],)


def _data(prepared: Prepared) -> Data:
    """Data on which the dense network is always right."""
    import torch

    images = np.random.default_rng(0).standard_normal((300, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        labels = prepared.model.module(torch.from_numpy(images)).argmax(1).numpy()
    split = Images(images, labels.astype(np.int64))
    return Data("made", split, split, split, 10, "none")


def test_with_data_the_validation_accuracy_is_looked_at_first(prepared: At) -> None:
    now = prepared()
    found = candidates_of(now, AUTO_VALUE_TYPES, 8_000)
    job = job_of(now, _data(now), epochs=0)
    choice = choose_value_type(job, now, found, _quiet)
    assert choice.value_type in AUTO_VALUE_TYPES
    assert "screened" in choice.note
    assert choose_value_type(job, now, found, _quiet) == choice


def test_a_part_of_a_split() -> None:
    split = Images(np.arange(10, dtype=np.float32), np.arange(10))
    part = Sampled(split, np.array([1, 5, 9]))
    assert len(part) == 3
    assert part.labels is not None
    assert part.labels.tolist() == [1, 5, 9]
    assert part.batch(np.array([2, 0]))[0].tolist() == [9, 1]
    assert Sampled(Images(split.images, None), part.chosen).labels is None


def test_a_spread_has_both_ends() -> None:
    assert evenly_spread(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly_spread(3, 3).tolist() == [0, 1, 2]
    assert evenly_spread(1, 3).tolist() == [0, 0, 0]
