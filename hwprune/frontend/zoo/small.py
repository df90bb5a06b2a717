"""Small networks: the demo's, and twins of two of MLPerf Tiny (arXiv 2106.07597).

MLPerf's references are Keras models: a stride-2 convolution is padded on the far side only, BN has
epsilon 1e-3, convolutions have biases.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_BN_EPSILON = 1e-3


def _conv_bn(
    channels_in: int, channels: int, *, stride: int = 1, relu: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = []
    if stride == 2:
        layers.append(nn.ZeroPad2d((0, 1, 0, 1)))
    layers.append(nn.Conv2d(channels_in, channels, 3, stride, padding=1 if stride == 1 else 0))
    layers.append(nn.BatchNorm2d(channels, eps=_BN_EPSILON))
    if relu:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class ResNet8(nn.Module):
    """The image-classification network: three residual stages, pixels 0..255 unscaled."""

    def __init__(self, *, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = _conv_bn(3, 16)
        self.b1a = _conv_bn(16, 16)
        self.b1b = _conv_bn(16, 16, relu=False)
        self.b2a = _conv_bn(16, 32, stride=2)
        self.b2b = _conv_bn(32, 32, relu=False)
        self.b2s = nn.Conv2d(16, 32, 1, 2)
        self.b3a = _conv_bn(32, 64, stride=2)
        self.b3b = _conv_bn(64, 64, relu=False)
        self.b3s = nn.Conv2d(32, 64, 1, 2)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 3, 32, 32) to logits (n, classes)."""
        x = self.stem(x)
        x = torch.relu(x + self.b1b(self.b1a(x)))
        x = torch.relu(self.b2s(x) + self.b2b(self.b2a(x)))
        x = torch.relu(self.b3s(x) + self.b3b(self.b3a(x)))
        logits: Tensor = self.fc(torch.mean(x, dim=(2, 3)))
        return logits


class DsCnn(nn.Module):
    """The keyword-spotting network: depthwise-separable convolutions over an MFCC map."""

    def __init__(self, *, num_classes: int = 12) -> None:
        super().__init__()
        width = 64
        layers: list[nn.Module] = [
            nn.ZeroPad2d((1, 1, 4, 5)),
            nn.Conv2d(1, width, (10, 4), 2),
            nn.BatchNorm2d(width, eps=_BN_EPSILON),
            nn.ReLU(),
            nn.Dropout(0.2),
        ]
        for _ in range(4):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, groups=width),
                nn.BatchNorm2d(width, eps=_BN_EPSILON),
                nn.ReLU(),
                nn.Conv2d(width, width, 1),
                nn.BatchNorm2d(width, eps=_BN_EPSILON),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map MFCC maps (n, 1, 49, 10) to logits (n, classes)."""
        x = self.dropout(self.features(x))
        # The reference pools 24x5 windows of the 25x5 map: the last row does not count.
        logits: Tensor = self.fc(torch.mean(x[:, :, :24], dim=(2, 3)))
        return logits


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
