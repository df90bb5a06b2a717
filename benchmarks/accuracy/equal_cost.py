"""Does bidirectional pruning beat one-way pruning at equal cost? ResNet-20, paired by seed.

All arms of a cell have the same pretrained network, epochs, recipe, distillation and nonzeros; what
differs is how connections come and go. One-way is the strongest there is (cubic, distilled): the
other arms are compared with it. Controls: regrowth of random connections, RigL's exchange from the
pretrained weights, and one-way pruning straight to the final density (one-shot).

    python benchmarks/accuracy/equal_cost.py --data-dir DIR [--short] [--rows 0,2-4] [--table]

DIR holds ``cifar-10-batches-py`` and ``weights/cifar10_resnet20.pth``. A row that was interrupted
goes on from its last epoch; a row that is in the record is not run again.
"""

from __future__ import annotations

import sys

from study import Config, Experiment, Rows, arm, by_seed, main, paired, spread

NETWORK = "cifar-resnet20"
SPARSITIES = (0.95, 0.98)
SEEDS = range(5)
ONE_WAY = "one-way (cubic)"
ARMS: dict[str, Config] = {
    ONE_WAY: arm("cubic"),
    "bidirectional": arm("bidirectional"),
    "bidirectional by feedback": arm("bidirectional-feedback"),
    "exchange while pruning (GraNet)": arm("granet"),
    "random regrowth": arm("bidirectional", regrow_score="random"),
    "RigL from the pretrained weights": arm("rigl"),
    "one-shot": arm("one-shot"),
}


def cell(sparsity: float, name: str, scale: Config) -> Config:
    """Return the configuration of an arm."""
    return {"network": NETWORK, "sparsity": sparsity, **scale, **ARMS[name]}


def rows(scale: Config) -> Rows:
    """Return all rows, those that a pair needs next to each other: a run may be cut short."""
    return [
        (cell(sparsity, name, scale), seed)
        for seed in SEEDS
        for sparsity in SPARSITIES
        for name in ARMS
    ]


def table(experiment: Experiment, scale: Config) -> str:
    """Return accuracy on the test set by arm, and the paired difference from one-way pruning."""
    lines = [
        "| sparsity | arm | test accuracy, % | seeds | against one-way, points [95 %] |",
        "|---|---|---|---|---|",
    ]
    for sparsity in SPARSITIES:
        one_way = by_seed(experiment, cell(sparsity, ONE_WAY, scale))
        for name in ARMS:
            found = by_seed(experiment, cell(sparsity, name, scale))
            against = "" if name == ONE_WAY else paired(found, one_way)
            values = spread(list(found.values()))
            lines.append(f"| {sparsity:.0%} | {name} | {values} | {len(found)} | {against} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(__doc__, "equal_cost", rows, table))
