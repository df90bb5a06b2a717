"""What the pruning stage hands to least squares, and what it does with the answer."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
from steps_tools import At, job_of, weights_in

from hwprune.frontend import load_data
from hwprune.ir import Data
from hwprune.sparsity import make
from hwprune.steps.planning import Candidate, Prepared, candidates_of
from hwprune.steps.pruning import Pruned, prune_and_regrow, strategy_for


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits")


@pytest.fixture
def network(prepared: At) -> Prepared:
    return prepared()


def fitting(network: Prepared) -> Candidate:
    return candidates_of(network, ("int8",), 8_000)["int8"]


def without_labels(data: Data) -> Data:
    parts = ("train", "validation", "test")
    return dataclasses.replace(
        data, classes=None,
        **{part: dataclasses.replace(getattr(data, part), labels=None) for part in parts},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "made from what its BN"),
        ({"dtype": "int64"}, "no floats"),
        ({"shape": (2, 1, 8, 8)}, "a fixed batch"),
    ],
)
def test_inputs_are_made_up_where_they_are_floats_of_any_batch(
    network: Prepared, change: dict[str, Any], said: str
) -> None:
    model = network.model
    spec = dataclasses.replace(model.inputs[0], **change)
    network = dataclasses.replace(network, model=dataclasses.replace(model, inputs=(spec,)))
    strategy = make("one-shot", density=0.5)
    found = prune_and_regrow(
        job_of(network), network, fitting(network), strategy, lambda status: None
    )
    assert said in " ".join(found.notes)


def test_one_shot_without_labels_starts_from_least_squares(network: Prepared, data: Data) -> None:
    candidate = fitting(network)
    told: list[str] = []

    def run(given: Data, strategy: str) -> Pruned:
        before = copy.deepcopy(network.model.module.state_dict())
        job = job_of(network, given, strategy=strategy, epochs=1, recipe={"precision": "fp32"})
        result = prune_and_regrow(
            job, network, candidate, strategy_for(job, candidate),
            lambda status: told.append(status.message),
        )  # fmt: skip
        for name, weight in weights_in(network).items():
            assert not np.any(weight[~result.masks[name]])
        network.model.module.load_state_dict(before)
        return result

    bare = without_labels(data)
    assert "weights that least squares gave" in " ".join(run(bare, "one-shot").notes)
    assert any(message.startswith("refitting") for message in told)
    told.clear()
    assert "least squares" not in " ".join(run(data, "one-shot").notes)
    assert not any(message.startswith("refitting") for message in told)
    notes = " ".join(run(bare, "cubic").notes)
    assert "least squares gave" not in notes
    assert "with least squares alone" in notes  # compared afterwards, as outputs are values


def test_training_that_ends_behind_least_squares_is_thrown_away(
    network: Prepared, data: Data
) -> None:
    model = dataclasses.replace(network.model, batchnorm_frozen=True)
    network = dataclasses.replace(network, model=model)
    candidate, bare = fitting(network), without_labels(data)
    kept = []
    for rate in (1e-12, 3.0):
        before = copy.deepcopy(network.model.module.state_dict())
        recipe = {"precision": "fp32", "learning_rate": rate, "quantise_from": 1.0}
        job = job_of(network, bare, strategy="one-shot", epochs=1, recipe=recipe)
        run = prune_and_regrow(
            job, network, candidate, strategy_for(job, candidate), lambda status: None
        )
        kept.append("the weights of least squares were kept" in " ".join(run.notes))
        assert run.recipe["grad_clip"] is not None  # else the first steps undo the fit
        assert all(np.isfinite(weight).all() for weight in weights_in(network).values())
        for name, weight in weights_in(network).items():
            assert not np.any(weight[~run.masks[name]])
        network.model.module.load_state_dict(before)
    assert kept == [False, True]
