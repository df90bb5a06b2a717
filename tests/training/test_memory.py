"""Changing masks holds a bounded part of the model's own memory, whatever the aim."""

from __future__ import annotations

import copy
import tracemalloc
from typing import Any

import pytest
import torch
import training_nets as nets
from torch import nn

from hwprune.sparsity import Event, topk
from hwprune.training.events import masks_after
from hwprune.training.evidence import Seen
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
        (Event(0.0, "prune", density=0.5), 1.1),
        (Event(0.0, "prune", density=0.1, score="magnitude"), 1.1),
        # A ranking takes some 60 bytes for each connection that may fit.
        (Event(0.0, "prune", budget_fraction=1.0), 1.3),
        (Event(0.0, "regrow", density=0.4, score="gradient"), 0.5),
        (Event(0.0, "regrow", budget_fraction=1.0, score="gradient"), 1.1),
    ],
)
def test_masks_change_in_little_memory(
    event: Event, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside it there are the masks themselves, twice a quarter of the model."""
    monkeypatch.setattr(topk, "CHUNK", 1 << 15)
    module: Any = Wide()
    sparse = SparseParameters(module, list(SHAPES), like=copy.deepcopy(module))
    if event.action == "regrow":
        small = Event(0.0, "prune", density=0.03)
        sparse.set_masks(masks_after(small, sparse, Seen(), nets.fill_count(1), density=1), None)
    seen = Seen({name: torch.randn(shape) for name, shape in SHAPES.items()})
    tracemalloc.start()
    try:
        masks = masks_after(event, sparse, seen, nets.fill_count(WEIGHTS // 20), density=0.05)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    aim = event.density or 0.05
    assert masks.nonzeros == round(aim * WEIGHTS)
    assert peak < most * 4 * WEIGHTS, peak / (4 * WEIGHTS)
