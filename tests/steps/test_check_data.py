"""check_data: whether the data belong to the network is said only where the samples can show it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hwprune.frontend import load_data
from hwprune.ir import Model, TensorSpec
from hwprune.steps.check_data import check_data
from hwprune.tasks import CLASSIFICATION


@pytest.mark.parametrize(
    ("samples", "right", "hints"),
    [(1, 0, 0), (9, 4, 0), (200, 100, 1), (200, 110, 1), (200, 120, 0)],
)
def test_only_what_is_no_better_than_guessing_is_called_chance(
    tmp_path: Path, samples: int, right: int, hints: int
) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.random((samples, 4), dtype=np.float32), np.int64(np.arange(samples) < right)
    parts = {"x": generator.random((20, 4), dtype=np.float32), "y": np.arange(20) % 2}
    np.savez(tmp_path / "d.npz", **parts, x_val=x, y_val=y, x_test=x, y_test=y)
    guesses = nn.Linear(4, 2).eval()
    nn.init.zeros_(guesses.weight)
    guesses.bias = nn.Parameter(torch.tensor([0.0, 1.0]))  # always class 1
    spec = TensorSpec("x", (None, 4), "float32")
    model = Model("net", "net.pt", "state-dict", guesses, None, (spec,))
    data = load_data(f"npz:{tmp_path / 'd.npz'}")
    assert len(check_data(model, data, CLASSIFICATION)) == hints
