"""How accurate is ResNet-20 at a sparsity, pruned one way as by default? Three seeds, 12 epochs.

Beside each row stand the project's aim and the nearest published figure at the same sparsity.

    python benchmarks/accuracy/resnet20_sparsity.py --data-dir DIR [--short] [--rows 0,2] [--table]

DIR holds ``cifar-10-batches-py`` and ``weights/cifar10_resnet20.pth``. A row that was interrupted
goes on from its last epoch; a row that is in the record is not run again.
"""

from __future__ import annotations

import sys

from published import OTHERS
from study import Config, Experiment, Rows, arm, by_seed, main, spread

NETWORK = "cifar-resnet20"
# Sparsity, and the mean test accuracy in per cent that is aimed at.
AIMS = {0.79: 91.9, 0.866: 91.7, 0.9: 91.4, 0.95: 89.5, 0.98: 84.5}
SEEDS = range(3)


def cell(sparsity: float, scale: Config) -> Config:
    """Return the configuration at a sparsity."""
    return {"network": NETWORK, "sparsity": sparsity, **scale, **arm("cubic")}


def rows(scale: Config) -> Rows:
    """Return all rows, one seed of every sparsity before the next seed."""
    return [(cell(sparsity, scale), seed) for seed in SEEDS for sparsity in AIMS]


def table(experiment: Experiment, scale: Config) -> str:
    """Return accuracy on the test set by sparsity, beside what is aimed at."""
    lines = ["| sparsity | test accuracy, % | seeds | aim, % | published |"]
    lines.append("|---" * 5 + "|")
    for sparsity, aim in AIMS.items():
        found = by_seed(experiment, cell(sparsity, scale))
        published = "; ".join(
            f"{point.accuracy:g} % at {100 * point.sparsity:g} %, {point.source}"
            for point in OTHERS
            if point.network == NETWORK and abs(point.sparsity - sparsity) < 0.01
        )
        lines.append(
            f"| {100 * sparsity:g} % | {spread(list(found.values()))} | {len(found)} | {aim:g} "
            f"| {published} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(__doc__, "resnet20_sparsity", rows, table))
