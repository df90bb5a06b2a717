"""Dead channels from masks to a verified file, in networks like DenseNet and EfficientNet."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from steps_tools import pack, verify, weights_in
from torch import nn

from hwprune.export.artifact import csr_arrays, read_artifact
from hwprune.export.pipeline import renewed
from hwprune.export.removal import gather_channels
from hwprune.ir import Masks, Model, TensorSpec, ValueType
from hwprune.sparsity import rank_weights
from hwprune.steps import planning
from hwprune.steps.packing import FULL_FRACTION
from hwprune.steps.planning import Prepared, prepare
from hwprune.targets import load


class Dense(nn.Module):
    """Two dense layers and a transition: pre-activation, so most BN stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(self._layer(16 + 8 * place) for place in range(3))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 1, bias=False), nn.AvgPool2d(2)
        )
        self.more = nn.ModuleList(self._layer(20 + 8 * place) for place in range(2))
        self.norm = nn.BatchNorm2d(36)
        self.head = nn.Linear(36, 10)

    @staticmethod
    def _layer(columns: int) -> nn.Module:
        return nn.Sequential(
            nn.BatchNorm2d(columns), nn.ReLU(), nn.Conv2d(columns, 24, 1, bias=False),
            nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 8, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        for layer in self.layers:
            y = torch.cat([y, layer(y)], 1)
        y = self.transition(y)
        for layer in self.more:
            y = torch.cat([y, layer(y)], 1)
        y = torch.relu(self.norm(y))
        out: torch.Tensor = self.head(y.mean((2, 3)))
        return out


class Block(nn.Module):
    """A mobile block: expand, depthwise, squeeze and excite, project, residual."""

    def __init__(self, columns: int, wide: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv2d(columns, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide),
            nn.SiLU(),
        )  # fmt: skip
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 4, 1), nn.SiLU(), nn.Conv2d(4, wide, 1),
            nn.Sigmoid(),
        )  # fmt: skip
        self.project = nn.Sequential(
            nn.Conv2d(wide, columns, 1, bias=False), nn.BatchNorm2d(columns)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(self.expand(x))
        out: torch.Tensor = x + self.project(y * self.excite(y))
        return out


def efficient() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.SiLU(),
        Block(32, 192), Block(32, 192), nn.Conv2d(32, 48, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10),
    )  # fmt: skip


@cache
def _made(build: Callable[[], nn.Module]) -> tuple[Model, Any]:
    """The network and its trace, which is the same for all targets."""
    torch.manual_seed(0)
    module = build().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_(std=0.3)
            part.running_mean.normal_(std=0.3)  # type: ignore[union-attr]
    spec = TensorSpec("x", (None, 1, 8, 8), "float32")
    model = Model("net", "net.pt", "state-dict", module, None, (spec,))
    return model, planning.trace(model)


@cache
def _prepared(build: Callable[[], nn.Module], target: str = "raspberry-pi-5") -> Prepared:
    model, traced = _made(build)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "trace", lambda model: traced)
        return prepare(model, load(target))


def sparse(
    build: Callable[[], nn.Module], sparsity: float, target: str = "raspberry-pi-5"
) -> tuple[Prepared, Masks]:
    """Return the network, its weights masked by LAMP, and the masks."""
    whole = _prepared(build, target)
    module = copy.deepcopy(whole.model.module)
    model = dataclasses.replace(whole.model, module=module)
    prepared = dataclasses.replace(whole, model=model)
    count = round((1 - sparsity) * prepared.template.weights)
    masks = rank_weights(weights_in(prepared), "lamp", count).masks(count)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name in masks:
            parameters[name].mul_(torch.from_numpy(masks[name]))
    return prepared, masks


def file_bytes(prepared: Prepared, masks: Masks, value_type: ValueType) -> int:
    """Return what the file weighs with all channels."""
    cost = renewed(prepared.template, prepared.model.module).cost(value_type)
    return cost.encoding(masks.positions(), value_type).file_bytes


@pytest.mark.parametrize("build", [Dense, efficient])
@pytest.mark.parametrize("sparsity", [0.98, 0.99])
def test_the_file_shrinks_and_computes_the_same(
    build: Callable[[], nn.Module], sparsity: float, tmp_path: Path
) -> None:
    prepared, masks = sparse(build, sparsity)
    whole = file_bytes(prepared, masks, "fp32")
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = prepared.model.module(x)
    # Without pretrained weights to come back to, what is freed stays free.
    nothing = {name: np.zeros(masks[name].shape, np.float32) for name in masks}
    packed = pack(prepared, masks, "fp32", nothing, whole)
    assert (packed.dropped, packed.respent) == (0, 0)
    assert packed.useless > 0
    assert packed.removed > 10
    assert packed.removed_bytes > 0
    assert len(packed.written.data) < whole
    # The module has its shapes, and computes what it did.
    with torch.no_grad():
        after = prepared.model.module(x)
    assert float((after - before).abs().max()) < 1e-5 * float(before.max() - before.min())
    path = tmp_path / "model.onnx"
    path.write_bytes(packed.written.data)
    assert verify(path, packed, prepared, whole).problems == ()
    matrices = csr_arrays(str(path))
    for layer in read_artifact(str(path)).layers:
        mask = packed.masks[layer.name]
        assert mask.shape == masks[layer.name].shape
        assert layer.shape == gather_channels(layer.name, mask, packed.written.kept).shape
        assert matrices[layer.name].nnz == mask.sum()


@pytest.mark.parametrize("target", ["raspberry-pi-5", "jetson-nano", "nrf52840"])
def test_the_bytes_are_spent_again_in_every_form(target: str, tmp_path: Path) -> None:
    prepared, masks = sparse(efficient, 0.95, target)
    budget = file_bytes(prepared, masks, "int8")
    packed = pack(prepared, masks, "int8", weights_in(_prepared(efficient, target)), budget)
    assert packed.removed_bytes > 0
    assert packed.respent > 0
    assert FULL_FRACTION * budget <= len(packed.written.data) <= budget
    path = tmp_path / "model.onnx"
    path.write_bytes(packed.written.data)
    assert verify(path, packed, prepared, budget, target).problems == ()
    found = read_artifact(str(path))
    assert found.form == ("inlined" if target == "jetson-nano" else "functions")
    assert sum(layer.nonzeros for layer in found.layers) == packed.masks.nonzeros


def test_a_network_that_is_cut_in_two_is_left_as_it_is() -> None:
    prepared, masks = sparse(efficient, 0.9)
    head = next(name for name in masks if masks[name].shape == (10, 48))
    masks = Masks({n: masks[n] & np.bool_(n != head) for n in masks})
    budget = file_bytes(prepared, masks, "int8")
    nothing = {name: np.zeros(masks[name].shape, np.float32) for name in masks}
    packed = pack(prepared, masks, "int8", nothing, budget)
    assert (packed.removed, packed.useless) == (0, 0)
