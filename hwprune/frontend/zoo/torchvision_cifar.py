"""torchvision's ImageNet networks, adapted to 32x32 images as the CIFAR literature does.

The adaptation is the same everywhere: a 3x3 stem of stride 1 in place of the strided one, and no
pooling before the first stage. Each builder states what else differs from torchvision's network.
Weights are never downloaded.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from hwprune.frontend.torchvision_shim import import_torchvision


class CifarVgg(nn.Module):
    """VGG's convolutions followed by one linear layer (arXiv 1409.1556, configuration D)."""

    def __init__(self, features: nn.Module, *, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 3, 32, 32) to logits (n, classes)."""
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


def vgg16_bn(*, num_classes: int = 10) -> nn.Module:
    """Build VGG16 with BN: five poolings take 32x32 to 1x1, so one linear layer is the head."""
    network = import_torchvision().models.vgg16_bn(weights=None)
    return CifarVgg(network.features, num_classes=num_classes)


def densenet121(*, num_classes: int = 10, growth_rate: int = 32) -> nn.Module:
    """Build DenseNet-121 (arXiv 1608.06993): the stem is a bare convolution of 2k channels.

    The first BN reads the stem inside dense block 1, so the stem's own BN and ReLU are left out.
    """
    models: Any = import_torchvision().models
    network: nn.Module = models.DenseNet(
        growth_rate, (6, 12, 24, 16), 2 * growth_rate, num_classes=num_classes
    )
    features: Any = network.features
    stem = nn.Conv2d(3, 2 * growth_rate, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight)
    kept = OrderedDict(
        (name, module)
        for name, module in features.named_children()
        if name not in ("conv0", "norm0", "relu0", "pool0")
    )
    network.features = nn.Sequential(OrderedDict([("conv0", stem), *kept.items()]))
    return network


def efficientnet_b0(*, num_classes: int = 10) -> nn.Module:
    """Build EfficientNet-B0 (arXiv 1905.11946) in its CIFAR form of 3,599,686 parameters.

    Two differences beside the stem: the classifier reads the last stage's 320 channels (there is
    no head convolution of 1280), and the first block has an expansion too, of ratio 1.
    """
    models: Any = import_torchvision().models
    network: nn.Module = models.efficientnet_b0(weights=None, num_classes=num_classes)
    features: Any = network.features
    features[0][0].stride = (1, 1)
    first: Any = features[1][0]
    expand = nn.Sequential(
        nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32), nn.SiLU(inplace=True)
    )
    first.block = nn.Sequential(expand, *first.block)
    network.features = nn.Sequential(*list(features)[:-1])
    network.classifier = nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(320, num_classes))
    return network


def mobilenet_v2(*, num_classes: int = 10) -> nn.Module:
    """Build MobileNetV2 (arXiv 1801.04381) with strides 1 in the stem and in the second stage.

    32x32 images leave the last stage as 4x4, as ImageNet's leave it as 7x7.
    """
    stages = [
        # expansion, channels, blocks, stride
        [1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1],
        [6, 160, 3, 2], [6, 320, 1, 1],
    ]  # fmt: skip
    models: Any = import_torchvision().models
    network: nn.Module = models.mobilenet_v2(
        weights=None, num_classes=num_classes, inverted_residual_setting=stages
    )
    features: Any = network.features
    features[0][0].stride = (1, 1)
    return network


def resnet34(*, num_classes: int = 10) -> nn.Module:
    """Build ResNet-34 (arXiv 1512.03385) with the 3x3 stem and no max pooling."""
    return _resnet("resnet34", num_classes)


def resnet50(*, num_classes: int = 10) -> nn.Module:
    """Build ResNet-50 (arXiv 1512.03385) with the 3x3 stem and no max pooling."""
    return _resnet("resnet50", num_classes)


def _resnet(name: str, num_classes: int) -> nn.Module:
    models: Any = import_torchvision().models
    network: nn.Module = getattr(models, name)(weights=None, num_classes=num_classes)
    stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    network.conv1 = stem
    network.maxpool = nn.Identity()
    return network
