"""Without training: least squares on data, on made-up inputs, or a mask alone; what is said."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwprune.frontend import load_data
from hwprune.ir import Data, Masks, Ranking
from hwprune.report import bench_record
from hwprune.sparsity import make
from hwprune.steps import reconstructing
from hwprune.steps.planning import Prepared, plans_of
from hwprune.steps.pruning import Trained, Training, prune_and_regrow
from hwprune.steps.reconstructing import FAILS_ABOVE, GOOD_TO, fit_with_data, fit_without_data
from hwprune.training import Recipe, finetune

Budget = Callable[[int], Prepared]


def fill(density: float) -> Callable[[Ranking, float], Masks]:
    def at(ranking: Ranking, fraction: float) -> Masks:
        total = sum(int(np.prod(shape)) for shape in ranking.shapes.values())
        return ranking.masks(int(density * total * fraction))

    return at


def tell(message: str, done: int, of: int) -> None:
    assert 0 < done <= of
    assert message


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits")


@pytest.fixture
def network(prepared: Budget, data: Data) -> Prepared:
    """Return a network that was trained a little."""
    if not _TRAINED:
        module = prepared(10_000).model.module
        finetune(
            module, data=data, names=prepared(10_000).names, strategy=make("one-shot", density=1.0),
            fill=fill(1.0), recipe=Recipe(epochs=4, batch_size=64, precision="fp32"), teacher=None,
            seed=0,
        )  # fmt: skip
        _TRAINED.append(copy.deepcopy(module.state_dict()))
    found = prepared(10_000)
    found.model.module.load_state_dict(_TRAINED[0])
    return found


_TRAINED: list[dict[str, torch.Tensor]] = []


def without_labels(data: Data) -> Data:
    parts = ("train", "validation", "test")
    return dataclasses.replace(
        data, classes=None,
        **{part: dataclasses.replace(getattr(data, part), labels=None) for part in parts},
    )  # fmt: skip


def weights_of(network: Prepared) -> dict[str, Any]:
    parameters = dict(network.model.module.named_parameters())
    return {name: parameters[name].detach().numpy().copy() for name in network.names}


def test_data_are_fitted_to_and_measured(network: Prepared, data: Data) -> None:
    fitted = fit_with_data(network, fill(0.1), data, seed=0, device="cpu", tell=tell)
    assert fitted.accuracy is not None
    assert fitted.accuracy > 0.6
    for name, weight in weights_of(network).items():
        assert not np.any(weight[~fitted.masks[name]])
    assert [point["action"] for point in fitted.trajectory] == ["prune", "least squares"]
    notes = " ".join(fitted.notes)
    assert "accuracy on validation: least squares" in notes
    assert "BN recalibration" in notes


def test_labels_are_not_needed_and_change_no_weight(network: Prepared, data: Data) -> None:
    before = network.model.module.state_dict()
    kept = {key: value.clone() for key, value in before.items()}
    one = fit_with_data(network, fill(0.2), data, seed=0, device="cpu", tell=tell)
    weights = weights_of(network)
    network.model.module.load_state_dict(kept)
    two = fit_with_data(network, fill(0.2), without_labels(data), seed=0, device="cpu", tell=tell)
    assert two.accuracy is None
    assert "agreement with the dense model on validation" in " ".join(two.notes)
    assert all(np.array_equal(one.masks[name], two.masks[name]) for name in one.masks)
    assert all(np.array_equal(weights[name], now) for name, now in weights_of(network).items())


def test_the_better_of_the_two_is_kept(
    network: Prepared, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([0.3, 0.9])
    monkeypatch.setattr(reconstructing._Measure, "__call__", lambda self, module: next(shares))
    fitted = fit_with_data(network, fill(0.2), data, seed=0, device="cpu", tell=tell)
    assert fitted.accuracy == 0.9
    assert "did better than least squares here" in " ".join(fitted.notes)


def test_no_data_but_bn(network: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights_of(network)
    fitted = fit_without_data(network, fill(0.4), seed=0, device="cpu", tell=tell)
    assert fitted.accuracy is None
    notes = " ".join(fitted.notes)
    assert "nothing was trained" in notes
    assert "inputs made from what its BN layers remember" in notes
    after = weights_of(network)
    for name, weight in after.items():
        assert not np.any(weight[~fitted.masks[name]])
        assert not np.array_equal(weight[fitted.masks[name]], before[name][fitted.masks[name]])


@pytest.mark.parametrize(
    ("change", "reason"), [("norm", "has no BN statistics"), ("dtype", "fixed batch or no floats")]
)
def test_where_nothing_can_be_made_up_the_mask_is_all(
    network: Prepared, change: str, reason: str
) -> None:
    model = network.model
    if change == "norm":
        model.module[1] = nn.Identity()
    else:
        spec = dataclasses.replace(model.inputs[0], dtype="int64")
        network = dataclasses.replace(network, model=dataclasses.replace(model, inputs=(spec,)))
    before = weights_of(network)
    fitted = fit_without_data(network, fill(0.1), seed=0, device="cpu", tell=tell)
    notes = " ".join(fitted.notes)
    assert reason in notes
    assert "warning: at 90" in notes
    for name, weight in weights_of(network).items():
        assert np.array_equal(weight, np.where(fitted.masks[name], before[name], 0))


@pytest.mark.parametrize("way", ["data", "none"])
def test_warnings_come_above_what_is_good(way: str) -> None:
    def told(sparsity: float) -> str:
        mask = np.arange(1000) >= round(1000 * sparsity)
        return " ".join(reconstructing._limits(way, Masks({"w": mask}), "do this instead"))

    assert "warning" not in told(GOOD_TO[way])
    assert "accuracy falls fast" in told((GOOD_TO[way] + FAILS_ABOVE[way]) / 2)
    assert "little accuracy is left" in told(FAILS_ABOVE[way] + 0.05)
    assert "do this instead" in told(0.99)


def test_one_shot_without_labels_starts_from_least_squares(network: Prepared, data: Data) -> None:
    network = dataclasses.replace(network, budget_bytes=8_000)
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


RECORD = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "data_free.json"


@pytest.mark.parametrize(
    ("way", "method"), [("data", "least squares"), ("none", "no data"), ("mask", "mask alone")]
)
def test_the_limits_are_those_that_were_measured(way: str, method: str) -> None:
    record = bench_record.read(RECORD)
    assert record is not None
    reached = {
        row.config["sparsity"]: row.accuracy
        for row in record.rows
        if row.status == "run" and row.config["method"] == method and row.accuracy is not None
    }
    # Good: at most 4 points below the dense 91.7 %. Failing: more than 10 below.
    assert reached
    for sparsity, accuracy in reached.items():
        assert isinstance(sparsity, float)
        assert (accuracy >= 0.917 - 0.04) == (sparsity <= GOOD_TO[way])
        assert accuracy >= 0.917 - 0.10 or sparsity > FAILS_ABOVE.get(way, 0.0)
