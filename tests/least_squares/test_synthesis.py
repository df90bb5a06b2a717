"""Images from BN's memory: nearer to it than noise, the same by seed, fit for least squares."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hwprune.least_squares import synthesis
from hwprune.least_squares.reconstruct import least_squares
from hwprune.least_squares.synthesis import SAMPLES, STEPS, Synthetic, affordable, synthesise
from hwprune.sparsity import make, rank_weights
from hwprune.training import FinetuneConfig, Recipe, accuracy, finetune
from hwprune.training.sparse import SparseParameters

SHAPE = ((1, 8, 8),)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    module = nets.small_cnn()
    recipe = Recipe(epochs=6, batch_size=64, precision="fp32", learning_rate=0.1)
    finetune(FinetuneConfig(
        module=module, data=nets.digits(), names=nets.NAMES, strategy=make("one-shot", density=1.0),
        fill=nets.fill_count(nets.WEIGHTS), recipe=recipe, teacher=None, seed=0,
    ))  # fmt: skip
    return module


def made(module: nn.Module, **options: int) -> Synthetic:
    synthetic = synthesise(module, SHAPE, **({"samples": 96, "steps": 60} | options))
    assert synthetic is not None
    return synthetic


def test_statistics_come_near_and_the_seed_decides(trained: nn.Module) -> None:
    before = copy.deepcopy(trained.state_dict())
    flags = [parameter.requires_grad for parameter in trained.parameters()]
    ticks: list[tuple[int, int]] = []
    one = synthesise(
        trained, SHAPE, samples=96, steps=60, progress=lambda *tick: ticks.append(tick)
    )
    assert one is not None
    assert one.after < 0.2 * one.before
    assert len(one) == 96
    assert one.labels is None
    assert one.batch(np.array([3, 1]))[0].shape == (2, 1, 8, 8)
    assert ticks == [(step, 120) for step in range(1, 121)]
    assert np.array_equal(one.arrays[0], made(trained).arrays[0])
    assert not np.array_equal(one.arrays[0], made(trained, seed=1).arrays[0])
    assert all(torch.equal(before[key], value) for key, value in trained.state_dict().items())
    assert flags == [parameter.requires_grad for parameter in trained.parameters()]


def test_moments_and_their_derivatives_are_those_of_torch() -> None:
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    mean, variance = synthesis._Moments.apply(x)
    assert torch.allclose(mean, x.mean((0, 2)))
    assert torch.allclose(variance, x.var((0, 2), unbiased=False))
    assert torch.autograd.gradcheck(synthesis._Moments.apply, (x,))


class TwoInputs(nn.Module):
    """Only the first is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Map two (n, 4) to (n, 2)."""
        return self.head(self.norm(first) + second)


def test_inputs_that_no_statistics_speak_of_stay_small() -> None:
    found = synthesise(TwoInputs(), ((4,), (4,)), samples=16, steps=3)
    assert found is not None
    assert [array.shape for array in found.arrays] == [(16, 4), (16, 4)]


def test_without_statistics_there_is_nothing() -> None:
    assert synthesise(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), SHAPE, steps=1) is None
    plain = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten())
    plain.append(nn.Linear(64, 10))
    assert synthesise(plain, SHAPE, steps=1) is None


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_exported_program_remembers_too(trained: nn.Module) -> None:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(trained, (torch.randn(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    module = program.module()
    assert np.allclose(made(module).arrays[0], made(trained).arrays[0], atol=1e-3)


def test_least_squares_on_them_is_better_than_the_mask_alone(trained: nn.Module) -> None:
    data = nets.digits()
    weights = {
        name: parameter.detach().numpy()
        for name, parameter in trained.named_parameters()
        if name in nets.NAMES
    }
    masks = rank_weights(weights, "lamp").masks(nets.WEIGHTS // 5)
    module = copy.deepcopy(trained)
    SparseParameters(module, nets.NAMES).set_masks(masks, None)
    alone = accuracy(module, data.validation)
    synthetic = made(trained, samples=128)
    least_squares(module, trained, synthetic, nets.NAMES, masks)
    fitted = accuracy(module, data.validation)
    real = copy.deepcopy(trained)
    SparseParameters(real, nets.NAMES).set_masks(masks, None)
    unlabelled = dataclasses.replace(data.train, labels=None)  # type: ignore[type-var]
    least_squares(real, trained, unlabelled, nets.NAMES, masks, samples=128)
    assert fitted > alone
    assert accuracy(real, data.validation) > alone


def test_work_is_bounded_whatever_the_network(
    trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert affordable(trained, SHAPE) == (SAMPLES, STEPS)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        trained(torch.zeros(1, *SHAPE[0]))
    whole = counter.get_total_flops() * SAMPLES * STEPS
    for part in (2, 4, 6):
        found = affordable(trained, SHAPE, most_macs=whole / part)
        assert found is not None
        assert 0.9 / part < found[0] * found[1] / (SAMPLES * STEPS) <= 1 / part
        assert found[1] / STEPS > found[0] / SAMPLES
    # The fewest may take twice as much.
    assert affordable(trained, SHAPE, most_macs=whole / 15) == (SAMPLES // 4, STEPS // 2)
    assert affordable(trained, SHAPE, most_macs=whole / 17) is None
    # An image of twice the side shows four times the places.
    large = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1))
    sizes = [affordable(large, ((1, side, side),)) for side in (16, 32, 45, 64, 224)]
    assert sizes == [(SAMPLES, STEPS)] * 2 + [(129, STEPS)] + [(SAMPLES // 4, STEPS)] * 2
    # Fewer than a batch, where fewer are wanted.
    monkeypatch.setattr(synthesis, "SAMPLES", 8)
    assert affordable(trained, SHAPE) == (8, STEPS)
