"""The table of built-in architectures: every name that ``--arch`` takes without a prefix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from hwprune.frontend.zoo import torchvision_cifar as cifar
from hwprune.frontend.zoo.resnet import CifarResNet
from hwprune.frontend.zoo.small import DigitsCnn, DsCnn, ResNet8
from hwprune.ir import TensorSpec


@dataclass(frozen=True, slots=True)
class Architecture:
    """One built-in architecture.

    Attributes:
        name: what ``--arch`` calls it.
        build: makes the untrained module; keyword arguments only, ``num_classes`` among them.
        inputs: one specification per input; None is the batch.
        about: one line for people, with the source.
        head: the state-dict key of the final linear layer's weight, shaped (classes, features).
        variants: keyword arguments of the forms that a bare state dict is compared with.
    """

    name: str
    build: Callable[..., nn.Module]
    inputs: tuple[TensorSpec, ...]
    about: str
    head: str
    variants: tuple[Mapping[str, Any], ...] = ({},)


def _images(channels: int, height: int, width: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec("input", (None, channels, height, width), "float32"),)


_CIFAR = _images(3, 32, 32)

_ENTRIES = (
    *(
        Architecture(
            name=f"cifar-resnet{6 * blocks + 2}",
            build=partial(CifarResNet, blocks),
            inputs=_CIFAR,
            about=f"ResNet-{6 * blocks + 2} for CIFAR, option A shortcuts (arXiv 1512.03385)",
            head="linear.weight",
        )
        for blocks in (3, 5, 7, 9)
    ),
    Architecture(
        "cifar-vgg16-bn",
        cifar.vgg16_bn,
        _CIFAR,
        "VGG16 with BN and one linear layer, 32x32 (arXiv 1409.1556)",
        head="classifier.weight",
    ),
    Architecture(
        "cifar-densenet121",
        cifar.densenet121,
        _CIFAR,
        "DenseNet-121, 32x32; growth_rate=12 is the small one (arXiv 1608.06993)",
        head="classifier.weight",
        variants=({}, {"growth_rate": 12}),
    ),
    Architecture(
        "cifar-efficientnet-b0",
        cifar.efficientnet_b0,
        _CIFAR,
        "EfficientNet-B0, 32x32 (arXiv 1905.11946)",
        head="classifier.1.weight",
    ),
    Architecture(
        "cifar-mobilenet-v2",
        cifar.mobilenet_v2,
        _CIFAR,
        "MobileNetV2, 32x32 (arXiv 1801.04381)",
        head="classifier.1.weight",
    ),
    Architecture(
        "cifar-resnet34",
        cifar.resnet34,
        _CIFAR,
        "ResNet-34 with a 3x3 stem, 32x32 (arXiv 1512.03385)",
        head="fc.weight",
    ),
    Architecture(
        "cifar-resnet50",
        cifar.resnet50,
        _CIFAR,
        "ResNet-50 with a 3x3 stem, 32x32 (arXiv 1512.03385)",
        head="fc.weight",
    ),
    Architecture(
        "mlperf-resnet8",
        ResNet8,
        _CIFAR,
        "MLPerf Tiny image classification, pixels 0..255 (arXiv 2106.07597)",
        head="fc.weight",
    ),
    Architecture(
        "mlperf-dscnn",
        DsCnn,
        _images(1, 49, 10),
        "MLPerf Tiny keyword spotting, MFCC maps of 49x10 (arXiv 2106.07597)",
        head="fc.weight",
    ),
    Architecture(
        "digits-cnn",
        DigitsCnn,
        _images(1, 8, 8),
        "the demo's network for scikit-learn's 8x8 digits",
        head="classifier.weight",
    ),
)

ARCHITECTURES: dict[str, Architecture] = {entry.name: entry for entry in _ENTRIES}
