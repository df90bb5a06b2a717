"""A tiny network, the digits, and a budget that counts connections instead of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from hwprune.ir import Data, Masks, Ranking


@dataclass(frozen=True)
class ArraySplit:
    arrays: tuple[NDArray[Any], ...]
    labels: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.arrays[0])

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        return tuple(array[indices] for array in self.arrays)


def digits(*, labelled: bool = True, samples: int = 1797) -> Data:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))[:samples]
    pixels = (images[order].reshape(-1, 1, 8, 8).astype(np.float32) - 4.88) / 6.02
    wanted = labels[order].astype(np.int64)
    first, second = int(0.7 * samples), int(0.85 * samples)

    def split(start: int, stop: int) -> ArraySplit:
        return ArraySplit((pixels[start:stop],), wanted[start:stop] if labelled else None)

    return Data(
        name="digits",
        train=split(0, first),
        validation=split(first, second),
        test=split(second, samples),
        classes=10 if labelled else None,
        normalize="4.88/6.02",
        augment="shift",
    )


def small_cnn(seed: int = 0, *, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(96, 10),
        )


NAMES = ("0.weight", "4.weight", "10.weight")
WEIGHTS = 12 * 9 + 24 * 12 * 9 + 960


def fill_count(budget: int) -> Any:
    """Return a Fill for a budget of so many connections."""

    def fill(ranking: Ranking, fraction: float) -> Masks:
        return ranking.masks(min(len(ranking), int(budget * fraction)))

    return fill
