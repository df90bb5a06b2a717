"""What the pruning stage hands to least squares, and what it does with the answer."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hwprune.frontend import load_data
from hwprune.ir import Data
from hwprune.sparsity import make
from hwprune.steps.planning import Prepared, plans_of
from hwprune.steps.pruning import Trained, Training, prune_and_regrow

Budget = Callable[[int], Prepared]


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits")


@pytest.fixture
def network(prepared: Budget) -> Prepared:
    return prepared(8_000)


def without_labels(data: Data) -> Data:
    parts = ("train", "validation", "test")
    return dataclasses.replace(
        data, classes=None,
        **{part: dataclasses.replace(getattr(data, part), labels=None) for part in parts},
    )  # fmt: skip


def weights_of(network: Prepared) -> dict[str, Any]:
    parameters = dict(network.model.module.named_parameters())
    return {name: parameters[name].detach().numpy().copy() for name in network.names}


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
    plan = plans_of(network, ("int8",))["int8"]
    strategy = make("one-shot", density=plan.max_nonzeros / plan.weights)
    training = Training(epochs=1, seed=0, recipe={}, device="cpu")
    found = prune_and_regrow(network, plan, strategy, None, training, lambda status: None)
    assert said in " ".join(found.notes)


def test_one_shot_without_labels_starts_from_least_squares(network: Prepared, data: Data) -> None:
    plan = plans_of(network, ("int8",))["int8"]
    training = Training(epochs=1, seed=0, recipe={"precision": "fp32"}, device="cpu")
    told: list[str] = []

    def run(given: Data, strategy: str) -> Trained:
        before = copy.deepcopy(network.model.module.state_dict())
        density = plan.max_nonzeros / plan.weights
        result = prune_and_regrow(
            network, plan, make(strategy, density=density), given, training,
            lambda status: told.append(status.message),
        )  # fmt: skip
        for name, weight in weights_of(network).items():
            assert not np.any(weight[~result.masks[name]])
        network.model.module.load_state_dict(before)
        return result

    bare = without_labels(data)
    assert "weights that least squares gave" in " ".join(run(bare, "one-shot").notes)
    assert any(message.startswith("refitted") for message in told)
    told.clear()
    for given, strategy in ((data, "one-shot"), (bare, "cubic")):
        assert "least squares gave" not in " ".join(run(given, strategy).notes)
    assert not any(message.startswith("refitted") for message in told)
