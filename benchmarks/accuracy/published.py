"""What others have published on CIFAR-10, for the figures: test accuracy in per cent.

``paper`` are the figures of the seed paper, arXiv 2511.11675; the others are stronger, and named.
Splits, recipes and epochs differ from ours: we train on 45,000 of the 50,000 images.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "arXiv 2511.11675"


@dataclass(frozen=True, slots=True)
class Point:
    """One published figure.

    Attributes:
        network: as the architecture is called here.
        sparsity: of the weights, in [0, 1).
        accuracy: test accuracy in per cent.
        source: who reports it, and of which form.
        spread: the standard deviation where one is given.
    """

    network: str
    sparsity: float
    accuracy: float
    source: str
    spread: float = 0.0


VGG, RESNET = "cifar-vgg16-bn", "cifar-resnet20"
DENSENET, EFFICIENTNET = "cifar-densenet121", "cifar-efficientnet-b0"

# What the dense networks reach in the paper.
PAPER_DENSE = {VGG: 93.39, DENSENET: 94.86}
# The paper gives EfficientNet-B0 as a loss against a dense accuracy that it does not give.
PAPER_LOSS = {EFFICIENTNET: (0.96, 0.69)}

# Figure 1: one-way pruning.
PAPER_ONE_WAY = (
    Point(VGG, 0.9885, 91.73, "iterative"),
    Point(VGG, 0.99, 91.03, "one-shot"),
    Point(DENSENET, 0.95, 93.47, ""),
    Point(DENSENET, 0.99, 89.83, ""),
)
# Figure 2: the states of VGG16 from the extreme one on.
PAPER_TRAJECTORIES = {
    "iterative": (Point(VGG, 0.9885, 91.73, "extreme"), Point(VGG, 0.9685, 92.64, "regrown")),
    "one-shot": (
        Point(VGG, 0.99, 91.03, "extreme"),
        Point(VGG, 0.9639, 92.77, "regrown"),
        Point(VGG, 0.9296, 92.90, "regrown"),
    ),
}
OTHERS = (
    Point(VGG, 0.982, 93.88, "Lottery Pools (2208.10842)", 0.09),
    Point(VGG, 0.982, 93.28, "iterative magnitude, weight rewinding", 0.04),
    Point(VGG, 0.9885, 92.14, "RD pruning", 0.18),
    Point(VGG, 0.99, 90.08, "SynFlow, at initialisation (2006.05467)"),
    Point(RESNET, 0.79, 91.95, "iterative, LR rewinding (2003.02389)"),
    Point(RESNET, 0.866, 91.48, "iterative, LR rewinding (2003.02389)"),
    Point(RESNET, 0.893, 91.22, "iterative, LR rewinding (2003.02389)"),
    Point(RESNET, 0.95, 82.67, "ProsPr, at initialisation (2202.08132)"),
    Point(RESNET, 0.9628, 83.4, "Gem-Miner (2202.12002)"),
    # Of a dense network that reaches 87.95 only.
    Point(EFFICIENTNET, 0.9885, 85.63, "RD pruning (dense 87.95)"),
)


@dataclass(frozen=True, slots=True)
class Code:
    """A published code for a network: bytes (KB are 1,000) and accuracy in per cent."""

    network: str
    kilobytes: float
    accuracy: float
    source: str


CODES = (
    Code(VGG, 384, 93.43, "MIRACLE (1810.00440)"),
    Code(VGG, 135, 90.0, "MIRACLE (1810.00440)"),
    Code(VGG, 101, 90.0, "EPR"),
)
