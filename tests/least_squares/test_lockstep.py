"""Forward passes that stop and go on: what they show is what a run from the start shows."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hwprune.ir import Masks
from hwprune.least_squares import reconstruct
from hwprune.least_squares.parameter_uses import ParameterUse, watch
from hwprune.least_squares.reconstruct import Reconstruction, least_squares
from hwprune.training.sparse import SparseParameters


class Images:
    """A split of noise without labels."""

    labels = None

    def __init__(self, count: int = 150) -> None:
        rough = np.random.default_rng(0).standard_normal((count, 4, 6, 6)).astype(np.float32)
        self.x = rough + 2 * rough.mean(axis=1, keepdims=True)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Any) -> tuple[Any, ...]:
        return (self.x[indices],)


class Branches(nn.Module):
    """What a layer's output can go through: sums, BN, steps in place, several readers."""

    passes = 0

    def __init__(self) -> None:
        super().__init__()
        self.short = nn.Conv2d(4, 8, 1, bias=False)
        self.first = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.other = nn.BatchNorm2d(8)
        self.read_twice = nn.Conv2d(8, 8, 1)
        self.last = nn.BatchNorm2d(8)
        self.shared = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        type(self).passes += 1
        beside = self.short(x)
        y = functional.relu_(self.norm(self.first(x)))
        y = self.other(self.wide(y))
        y += beside
        y = functional.relu(y)
        z = self.read_twice(y)
        y = self.last(z) + y
        y = functional.relu(y) * torch.sigmoid(z)
        vectors = y.mean(dim=(2, 3))
        vectors = functional.relu(self.shared(torch.tanh(self.shared(vectors))))
        return self.head(vectors)


class Remembering(Branches):
    """Leaves things for its own later steps, as some heads do."""

    seen: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x.mean(dim=(1, 2, 3))[:, None]
        return super().forward(x) + self.seen


@pytest.fixture(scope="module")
def dense() -> Branches:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Branches()
        for norm in (net.norm, net.other, net.last):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.normal_(norm.bias)
    return net.eval()


def names_of(net: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, weight in net.named_parameters() if weight.ndim > 1)


def refit(dense: nn.Module, split: Images | None = None) -> tuple[nn.Module, Reconstruction]:
    net, names = copy.deepcopy(dense), names_of(dense)
    generator = np.random.default_rng(1)
    shapes = {name: tuple(dict(net.named_parameters())[name].shape) for name in names}
    masks = Masks({name: generator.random(shape) < 0.6 for name, shape in shapes.items()})
    SparseParameters(net, names).set_masks(masks, None)
    return net, least_squares(net, dense, split or Images(), names, masks)


def test_going_on_shows_what_starting_again_shows(
    dense: Branches, monkeypatch: pytest.MonkeyPatch
) -> None:
    Branches.passes = 0
    one, report = refit(dense)
    once = Branches.passes
    assert {layer.name for layer in report.layers} == set(names_of(dense))
    assert sum(layer.refitted for layer in report.layers) > 10
    monkeypatch.setattr(reconstruct, "_HELD_BYTES", 0)
    Branches.passes = 0
    two, _ = refit(dense)
    # Of 150 samples there are four batches: once through both networks, and twice more behind the
    # shortcut, which ends after the layers that it passes by, and behind the weight with two uses.
    assert once <= 2 + 4 * 2 * 3
    assert Branches.passes >= 4 * 2 * len(report.layers)
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4), name


def test_an_offset_moves_what_comes_behind_it_alone() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.before = self.conv(x)
            self.behind = self.norm(self.before)
            return functional.relu(self.behind) + self.before

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        net = Held().eval()
        nn.init.uniform_(net.norm.weight, 0.5, 1.5)
        x, delta, shift = torch.randn(3, 4, 6, 6), torch.randn(8, 4, 1, 1), torch.randn(8)
    uses: list[ParameterUse] = []
    watch(net, {"conv.weight": 1}, (x,), uses.extend)
    (use,) = uses
    before, behind = net.before, net.behind
    with torch.no_grad():
        use.correct(delta, shift)
        net.conv.weight.add_(delta)
        net.norm.bias.add_(shift * use.offset_scale)
        net(x)
    assert torch.allclose(before, net.before, atol=1e-5)
    assert torch.allclose(behind, net.behind, atol=1e-5)


def test_no_offset_moves_with_a_weight_that_is_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.one, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.relu(self.other(self.conv(functional.relu(self.one(self.conv(x))))))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        dense = Twice().eval()
    net, report = refit(dense)
    assert [layer.refitted > 0 for layer in report.layers] == [True]
    assert not any(norm.bias.any() for norm in (net.one, net.other))


def test_what_a_forward_pass_remembers_is_its_own(dense: Branches) -> None:
    remembering = Remembering()
    remembering.load_state_dict(dense.state_dict())
    plain, _ = refit(dense)
    other, _ = refit(remembering.eval())
    # The last layer ends before what was remembered is added, so the weights are the same.
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_batch_that_fails_is_an_error_and_leaves_no_thread(dense: Branches) -> None:
    class Broken(Images):
        def batch(self, indices: Any) -> tuple[Any, ...]:
            if len(indices) == 4:  # the rest of the fitted samples after two batches
                raise OSError("gone")
            return super().batch(indices)

    before = threading.active_count()
    with pytest.raises(OSError, match="gone"):
        refit(dense, Broken())
    assert threading.active_count() == before


def test_buffers_that_are_views_are_no_obstacle() -> None:
    class Windowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("window", torch.hann_window(6))
            self.conv = nn.Conv2d(4, 8, 3)
            self.head = nn.Conv2d(8, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.head(torch.relu(self.conv(x * self.window)))
            return y

    _, report = refit(Windowed().eval())
    assert [layer.name for layer in report.layers] == ["conv.weight", "head.weight"]
