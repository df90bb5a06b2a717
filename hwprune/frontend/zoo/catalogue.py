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
        sample: the shape of its one input, without the batch.
        head: the state-dict key of the final linear layer's weight, shaped (classes, features).
        variants: keyword arguments of the forms that a bare state dict is compared with.
    """

    name: str
    build: Callable[..., nn.Module]
    sample: tuple[int, ...]
    head: str
    variants: tuple[Mapping[str, Any], ...] = ({},)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return what it reads."""
        return (TensorSpec("input", (None, *self.sample), "float32"),)


_CIFAR = (3, 32, 32)
_ENTRIES = (
    # ResNets for CIFAR with option A shortcuts (arXiv 1512.03385)
    Architecture("cifar-resnet20", partial(CifarResNet, 3), _CIFAR, "linear.weight"),
    Architecture("cifar-resnet32", partial(CifarResNet, 5), _CIFAR, "linear.weight"),
    Architecture("cifar-resnet44", partial(CifarResNet, 7), _CIFAR, "linear.weight"),
    Architecture("cifar-resnet56", partial(CifarResNet, 9), _CIFAR, "linear.weight"),
    # torchvision's networks at 32x32; the small form of the third has growth_rate=12
    Architecture("cifar-vgg16-bn", cifar.vgg16_bn, _CIFAR, "classifier.weight"),
    Architecture(
        "cifar-densenet121", cifar.densenet121, _CIFAR, "classifier.weight",
        variants=({}, {"growth_rate": 12}),
    ),
    Architecture("cifar-efficientnet-b0", cifar.efficientnet_b0, _CIFAR, "classifier.1.weight"),
    Architecture("cifar-mobilenet-v2", cifar.mobilenet_v2, _CIFAR, "classifier.1.weight"),
    Architecture("cifar-resnet34", cifar.resnet34, _CIFAR, "fc.weight"),
    Architecture("cifar-resnet50", cifar.resnet50, _CIFAR, "fc.weight"),
    # MLPerf Tiny (arXiv 2106.07597): pixels 0..255; MFCC maps of 49x10
    Architecture("mlperf-resnet8", ResNet8, _CIFAR, "fc.weight"),
    Architecture("mlperf-dscnn", DsCnn, (1, 49, 10), "fc.weight"),
    # the demo's, for scikit-learn's digits
    Architecture("digits-cnn", DigitsCnn, (1, 8, 8), "classifier.weight"),
)  # fmt: skip

ARCHITECTURES: dict[str, Architecture] = {entry.name: entry for entry in _ENTRIES}
