"""Without training: least squares on data, on made-up inputs, or a mask alone; what is said."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_record
import numpy as np
import pytest
import torch
from torch import nn

from hwprune.frontend import load_data
from hwprune.ir import Data, Masks, Ranking
from hwprune.least_squares import OneShot, one_shot
from hwprune.least_squares.one_shot import FAILS_ABOVE, GOOD_TO
from hwprune.sparsity import make
from hwprune.tasks import CLASSIFICATION, IMITATION
from hwprune.training import FinetuneConfig, Recipe, finetune
from hwprune.training.batches import Batches

NAMES = ("0.weight", "3.weight", "6.weight", "8.weight")
SHAPES = ((1, 8, 8),)


def fill(density: float) -> Callable[[Ranking, float], Masks]:
    def at(ranking: Ranking, fraction: float) -> Masks:
        total = sum(int(np.prod(shape)) for shape in ranking.shapes.values())
        return ranking.masks(int(density * total * fraction))

    return at


def tell(message: str, done: int, of: int) -> None:
    assert 0 < done <= of
    assert message


def once(network: nn.Module, density: float) -> OneShot:
    return OneShot(network, NAMES, fill(density), seed=0, device="cpu", tell=tell)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits")


@pytest.fixture(scope="module")
def trained(data: Data) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 40),
            nn.ReLU(),
            nn.Linear(40, 10),
        )
    finetune(FinetuneConfig(
        module=net, data=data, names=NAMES, strategy=make("one-shot", density=1.0), fill=fill(1.0),
        recipe=Recipe(epochs=4, batch_size=64, precision="fp32"), teacher=None, seed=0,
    ))  # fmt: skip
    return net.eval()


@pytest.fixture
def network(trained: nn.Module) -> nn.Module:
    """Return a network that was trained a little."""
    return copy.deepcopy(trained)


def without_labels(data: Data) -> Data:
    parts = ("train", "validation", "test")
    return dataclasses.replace(
        data, classes=None,
        **{part: dataclasses.replace(getattr(data, part), labels=None) for part in parts},
    )  # fmt: skip


def weights_of(network: nn.Module) -> dict[str, Any]:
    parameters = dict(network.named_parameters())
    return {name: parameters[name].detach().numpy().copy() for name in NAMES}


def test_data_are_fitted_to_and_measured(network: nn.Module, data: Data) -> None:
    fitted = once(network, 0.1).on_data(data, task=CLASSIFICATION, recalibrates=True)
    assert fitted.metric is not None
    assert fitted.metric > 0.6
    for name, weight in weights_of(network).items():
        assert not np.any(weight[~fitted.masks[name]])
    assert [point["action"] for point in fitted.trajectory] == ["prune", "least squares"]
    notes = " ".join(fitted.notes)
    assert "accuracy on validation: least squares" in notes
    assert "BN recalibration" in notes


def test_labels_are_not_needed_and_change_no_weight(network: nn.Module, data: Data) -> None:
    kept = {key: value.clone() for key, value in network.state_dict().items()}
    one = once(network, 0.2).on_data(data, task=CLASSIFICATION, recalibrates=True)
    weights = weights_of(network)
    network.load_state_dict(kept)
    two = once(network, 0.2).on_data(without_labels(data), task=CLASSIFICATION, recalibrates=True)
    assert two.metric is None
    assert "variance of the dense outputs that is kept on validation" in " ".join(two.notes)
    assert all(np.array_equal(one.masks[name], two.masks[name]) for name in one.masks)
    assert all(np.array_equal(weights[name], now) for name, now in weights_of(network).items())


def test_the_better_of_the_two_is_kept(
    network: nn.Module, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([0.3, 0.9])
    monkeypatch.setattr(one_shot.Judge, "__call__", lambda self, module: next(shares))
    fitted = once(network, 0.2).on_data(data, task=CLASSIFICATION, recalibrates=True)
    assert fitted.metric == 0.9
    assert "did better than least squares here" in " ".join(fitted.notes)


def test_no_data_but_bn(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights_of(network)
    fitted = once(network, 0.4).without_data(SHAPES)
    assert fitted.metric is None
    notes = " ".join(fitted.notes)
    assert "nothing was trained" in notes
    assert "inputs made from what its BN layers remember" in notes
    after = weights_of(network)
    for name, weight in after.items():
        assert not np.any(weight[~fitted.masks[name]])
        assert not np.array_equal(weight[fitted.masks[name]], before[name][fitted.masks[name]])


@pytest.mark.parametrize(
    ("change", "reason"), [("norm", "has no BN statistics"), ("shape", "fixed batch or no floats")]
)
def test_where_nothing_can_be_made_up_the_mask_is_all(
    network: nn.Module, change: str, reason: str
) -> None:
    if change == "norm":
        network[1] = nn.Identity()
    before = weights_of(network)
    fitted = once(network, 0.1).without_data(SHAPES if change == "norm" else None)
    notes = " ".join(fitted.notes)
    assert reason in notes
    assert "warning: at 90" in notes
    for name, weight in weights_of(network).items():
        assert np.array_equal(weight, np.where(fitted.masks[name], before[name], 0))


@pytest.mark.parametrize("way", ["data", "none"])
def test_warnings_come_above_what_is_good(way: str) -> None:
    def told(sparsity: float) -> str:
        mask = np.arange(1000) >= round(1000 * sparsity)
        return " ".join(one_shot._limits(way, Masks({"w": mask})))

    assert "warning" not in told(GOOD_TO[way])
    assert "accuracy falls fast" in told((GOOD_TO[way] + FAILS_ABOVE[way]) / 2)
    assert "little accuracy is left" in told(FAILS_ABOVE[way] + 0.05)
    assert one_shot._INSTEAD[way] in told(0.99)


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


class TwoHeads(nn.Module):
    """No classifier: one output of one number, and one of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 16)
        self.number, self.map = nn.Linear(16, 1), nn.Linear(16, 12)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        y = torch.relu(self.body(x.flatten(1)))
        return {"number": self.number(y), "maps": [self.map(y).unflatten(1, (3, 4))]}


def test_without_labels_every_output_is_compared(data: Data) -> None:
    bare = without_labels(data)
    dense = TwoHeads().eval()
    batches = Batches(bare.validation, device="cpu", resident_bytes=0, channels_last=False)
    measure = one_shot.Judge(IMITATION, batches, torch.arange(batches.size), dense)
    assert measure(copy.deepcopy(dense)) == 1.0
    for head in ("number", "map"):
        broken = copy.deepcopy(dense)
        with torch.no_grad():
            getattr(broken, head).weight.zero_()
        assert measure(broken) < 0.6
    names = ("body.weight", "number.weight", "map.weight")
    one = OneShot(copy.deepcopy(dense), names, fill(0.5), seed=0, device="cpu", tell=tell)
    fitted = one.on_data(bare, task=IMITATION, recalibrates=True)
    assert fitted.metric is None
    assert measure(one.module) > 0.8
    assert "variance of the dense outputs that is kept on validation" in " ".join(fitted.notes)


def test_what_is_not_finite_is_left_to_the_mask(network: nn.Module, data: Data) -> None:
    with torch.no_grad():
        network[3].weight.fill_(1e38)
    before = weights_of(network)
    fitted = once(network, 0.3).on_data(data, task=CLASSIFICATION, recalibrates=True)
    notes = " ".join(fitted.notes)
    for name, weight in weights_of(network).items():
        if name != "0.weight":
            assert f"{name} has inputs or outputs that are not finite" in notes
            assert np.array_equal(weight, np.where(fitted.masks[name], before[name], 0))
