"""The seed paper's Figure 1: accuracy against sparsity, iterative and one-shot, no regrowth.

arXiv 2511.11675 prunes ResNet-20, VGG16, DenseNet-121 and EfficientNet-B0. Iterative: 20 rounds
that each remove 20 % of what is left (98.85 % in the end), every round retrained with a whole
learning-rate schedule: one row is the whole curve, and its test accuracy is measured at the end of
each round. One-shot: one row for each sparsity, retrained once. So a point at the end of the
iterative curve has cost twenty times what a one-shot point has; the table says so.

    python benchmarks/accuracy/fig1.py --data-dir DIR [--short | --smoke] [--rows 0,2-4] [--table]

DIR holds ``cifar-10-batches-py`` and ``weights/cifar10_resnet20.pth``; the other networks come from
train_dense.py. The state is kept after every epoch. figures.py draws the record.
"""

from __future__ import annotations

import sys

import staged
from networks import retraining
from study import Config, Experiment, Rows, by_seed, main, spread

NETWORKS = (
    "cifar-resnet20", "cifar-vgg16-bn", "cifar-densenet121", "cifar-efficientnet-b0",
)  # fmt: skip
ROUNDS = 20
ONE_SHOT = (0.5, 0.8, 0.9, 0.95, 0.96, 0.97, 0.98, 0.9885, 0.99)
SEEDS = range(3)
# Epochs of each stage.
FULL: Config = {"epochs": 30, "train_images": None}
SHORT: Config = {"epochs": 1, "train_images": 10_000}


def iterative(network: str, scale: Config) -> Config:
    """Return the configuration of a network's iterative curve."""
    return {"network": network, "stages": staged.rounds(ROUNDS), **scale, **retraining(network)}


def one_shot(network: str, sparsity: float, scale: Config) -> Config:
    """Return the configuration of one one-shot point."""
    return {"network": network, "stages": [sparsity], **scale, **retraining(network)}


def rows(scale: Config) -> Rows:
    """Return all rows: by seed, then by network, its curve before its points."""
    return [
        (config, seed)
        for seed in SEEDS
        for network in NETWORKS
        for config in (
            iterative(network, scale),
            *(one_shot(network, sparsity, scale) for sparsity in ONE_SHOT),
        )
    ]


def curves(
    experiment: Experiment, network: str, scale: Config
) -> dict[str, list[tuple[float, float, list[float]]]]:
    """Return by mode (sparsity, epochs, test accuracies by seed), sparser and sparser."""
    found: dict[str, list[tuple[float, float, list[float]]]] = {"iterative": [], "one-shot": []}
    whole = [
        row
        for row in experiment.rows()
        if row.status == "run" and dict(row.config) == iterative(network, scale)
    ]
    for number, sparsity in enumerate(staged.rounds(ROUNDS), start=1):
        points = [staged.seen_at(row, sparsity) for row in whole]
        seen = [float(point["accuracy"]) for point in points if point is not None]
        if seen:
            found["iterative"].append((sparsity, number * scale["epochs"], seen))
    for sparsity in ONE_SHOT:
        alone = by_seed(experiment, one_shot(network, sparsity, scale))
        if alone:
            found["one-shot"].append((sparsity, scale["epochs"], list(alone.values())))
    return found


def table(experiment: Experiment, scale: Config) -> str:
    """Return test accuracy by network, mode and sparsity, with what it cost."""
    lines = ["| network | mode | sparsity | epochs | test accuracy, % | seeds |", "|---|---|---|---|---|---|"]  # fmt: skip # noqa: E501
    for network in NETWORKS:
        for mode, points in curves(experiment, network, scale).items():
            if not points:
                lines.append(f"| {network} | {mode} | | | not run | 0 |")
            lines += [
                f"| {network} | {mode} | {100 * sparsity:.2f} % | {epochs} | {spread(seen)} | "
                f"{len(seen)} |"
                for sparsity, epochs, seen in points
            ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(__doc__, "fig1", rows, table, full=FULL, short=SHORT))
