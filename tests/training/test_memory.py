"""Changing masks takes a bounded part of the model's own memory: some 20 bytes a weight."""

from __future__ import annotations

import copy
import tracemalloc
from typing import Any

import pytest
import torch
import training_nets as nets
from torch import nn

from hwprune.sparsity import MaskEvent, scores, topk_masks
from hwprune.training.events import masks_after
from hwprune.training.evidence import GradientStats
from hwprune.training.sparse import SparseParameters

SHAPES = {"large": (3000, 2000), "middle": (800, 2000), "small": (500, 800)}
WEIGHTS = 8_000_000


class Wide(nn.Module):
    """Three matrices, three quarters of the weights in one of them, as in VGG16."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            weight = torch.randn(shape, generator=generator)
            self.register_parameter(name, nn.Parameter(weight))


@pytest.mark.parametrize(
    ("event", "most"),
    [
        (MaskEvent(0.0, "prune", density=0.5), 5.0),
        (MaskEvent(0.0, "prune", density=0.1, score="magnitude"), 3.8),
        (MaskEvent(0.0, "prune", budget_fraction=1.0), 4.0),
        (MaskEvent(0.0, "regrow", density=0.4, score="gradient"), 3.6),
        (MaskEvent(0.0, "regrow", budget_fraction=1.0, score="gradient"), 5.4),
    ],
)
def test_masks_change_in_bounded_memory(
    event: MaskEvent, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In units of the model; where one tensor has three quarters of it."""
    monkeypatch.setattr(topk_masks, "_CHUNK", 1 << 15)
    monkeypatch.setattr(scores, "_CHUNK", 1 << 15)
    module: Any = Wide()
    sparse = SparseParameters(module, list(SHAPES), like=copy.deepcopy(module))
    if event.action == "regrow":
        small = MaskEvent(0.0, "prune", density=0.03)
        sparse.set_masks(
            masks_after(small, sparse, GradientStats(), nets.fill_count(1), density=1), None
        )
    seen = GradientStats({name: torch.randn(shape) for name, shape in SHAPES.items()})
    tracemalloc.start()
    try:
        masks = masks_after(event, sparse, seen, nets.fill_count(WEIGHTS // 20), density=0.05)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    aim = event.density or 0.05
    assert masks.nonzeros == round(aim * WEIGHTS)
    assert peak < most * 4 * WEIGHTS, peak / (4 * WEIGHTS)
