"""Activations are int8 from some step on: few values, gradients that pass, nothing left behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hwprune.training.int8_activations import Int8Activations, rounded


class Seen(nn.Module):
    """Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.values = torch.empty(0)
        self.layer.register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        self.values = inputs[0].detach().clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def hook_of(module: nn.Module) -> Int8Activations:
    stage: Any = SimpleNamespace(module=module, due=lambda progress: round(100 * progress))
    return Int8Activations(stage, 0.75)


def test_layers_read_256_values_from_the_step_on() -> None:
    torch.manual_seed(0)
    module, optimizer = Seen(), torch.optim.SGD([torch.zeros(1)], lr=1)
    hook = hook_of(module)
    x = torch.randn(500, 6)
    hook.before_step(74, optimizer)
    module(x)
    assert torch.equal(module.values, x)
    assert hook.notes == ()
    hook.before_step(75, optimizer)
    hook.before_step(76, optimizer)
    module(x)
    assert len(module.values.unique()) <= 256
    assert (module.values == 0).sum() == (x.abs() < (x.max() - x.min()) / 510).sum()
    assert (module.values - x).abs().max() <= (x.max() - x.min()) / 255
    assert "from step 75 on" in hook.notes[0]
    module.eval()
    module(100 * x)
    assert module.values.max() <= x.max() * 1.01
    hook.close()
    module(x)
    assert torch.equal(module.values, x)


def test_ranges_outlive_an_interruption() -> None:
    torch.manual_seed(0)
    module, optimizer = Seen(), torch.optim.SGD([torch.zeros(1)], lr=1)
    hook = hook_of(module)
    again = hook_of(Seen())
    again.load_state_dict(hook.state_dict())
    assert again.notes == ()
    hook.before_step(80, optimizer)
    module(torch.randn(50, 6))
    again.load_state_dict(hook.state_dict())
    assert torch.equal(again.state_dict()["ranges"], hook.state_dict()["ranges"])


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.0, 3.0), (-3.0, 0.0)])
def test_gradients_pass_inside_of_the_range_alone(low: float, high: float) -> None:
    x = torch.linspace(-6, 6, 101, requires_grad=True)
    y = rounded(x, low, high)
    y.sum().backward()
    step = (high - low) / 255
    inside = (x > low + step) & (x < high - step)
    outside = (x < low - step) | (x > high + step)
    assert x.grad is not None
    assert (x.grad[inside] == 1).all()
    assert (x.grad[outside] == 0).all()
    assert (y - x)[inside].abs().max() <= step / 2 + 1e-6


def test_a_tensor_of_zeros_stays_what_it_is() -> None:
    zeros = torch.zeros(5)
    assert torch.equal(rounded(zeros, 0.0, 0.0), zeros)
