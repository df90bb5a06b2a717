"""The demo's own network: handwritten digits of 8x8 pixels, trained in seconds on a laptop."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _block(channels_in: int, channels: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class DigitsCnn(nn.Module):
    """Three convolution blocks and a linear layer; wide enough that most of it can go."""

    def __init__(self, *, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _block(1, 32), _block(32, 64, stride=2), _block(64, 96, stride=1)
        )
        self.classifier = nn.Linear(96, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 1, 8, 8) to logits (n, classes)."""
        logits: Tensor = self.classifier(torch.mean(self.features(x), dim=(2, 3)))
        return logits
