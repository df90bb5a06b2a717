"""Does shrinking pay, and an exchange on top of it? ResNet-20 from its pretrained weights.

Four arms at equal cost: cubic pruning in 60 events, the same with shrink, with an exchange of
micro-dips at the budget after that (``bidirectional``), and the same exchange at random. All four
reach the budget at 0.3 of the run by magnitude. ``--strategy auto`` takes its thresholds from the
record (hwprune/sparsity/auto.py).

    python benchmarks/accuracy/shrink_exchange.py --data-dir DIR [--short] [--epochs N]
        [--images N] [--seeds 0 1 2] [--sparsities 98 99] [--rows 0,2-4] [--table]

DIR holds ``cifar-10-batches-py`` and ``weights/cifar10_resnet20.pth``. A row that was interrupted
goes on from its last epoch; a row that is in the record is not run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from study import Config, Experiment, Rows, arm, by_seed, main, paired, spread

NETWORK = "cifar-resnet20"
SPARSITIES = (0.98, 0.99, 0.95, 0.97, 0.9)
SEEDS = range(3)
WAY = {"until": 0.3, "steps": 60, "start": 0.5, "score": "magnitude"}
CUBIC, SHRINK, EXCHANGE = "cubic, 60 events", "shrink", "shrink + exchange"
ARMS: dict[str, Config] = {
    CUBIC: arm("cubic", **WAY),
    SHRINK: arm("cubic", **WAY, shrink=1.0),
    EXCHANGE: arm("bidirectional"),
    "shrink + random exchange": arm("bidirectional", regrow_score="random"),
}


def cell(name: str, sparsity: float, scale: Config) -> Config:
    """Return the configuration of an arm at a sparsity."""
    return {"network": NETWORK, "sparsity": sparsity, **scale, **ARMS[name]}


def _own_options() -> argparse.Namespace:
    """Return the options that only this study has, and leave the others to ``study.main``."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--images", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--sparsities", type=float, nargs="+", metavar="PERCENT")
    options, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    return options


def study(options: argparse.Namespace) -> int:
    """Run the rows that were asked for, then print the table."""
    chosen = [each / 100 for each in options.sparsities or ()] or SPARSITIES

    def scaled(scale: Config) -> Config:
        return {**scale, "train_images": options.images} if options.images else scale

    def rows(scale: Config) -> Rows:
        # All arms of a pair before the next one: a run may be cut short.
        return [
            (cell(name, sparsity, scaled(scale)), seed)
            for seed in options.seeds
            for sparsity in chosen
            for name in ARMS
        ]

    def shown(experiment: Experiment, scale: Config) -> str:
        return table(experiment, scaled(scale), chosen)

    return main(__doc__, "shrink_exchange", rows, shown)


def table(experiment: Experiment, scale: Config, sparsities: Sequence[float]) -> str:
    """Return accuracy by arm, and how far it is ahead of cubic and of shrink alone."""
    lines = [
        "| sparsity | arm | validation, % | test, % | seeds | against cubic, points [95 %] "
        "| against shrink |",
        "|---" * 7 + "|",
    ]
    for sparsity in sorted(sparsities):
        found = {name: by_seed(experiment, cell(name, sparsity, scale)) for name in ARMS}
        for name, test in found.items():
            seen = by_seed(experiment, cell(name, sparsity, scale), "validation_accuracy")
            cubic = "" if name == CUBIC else paired(test, found[CUBIC])
            shrink = "" if name in (CUBIC, SHRINK) else paired(test, found[SHRINK])
            lines.append(
                f"| {100 * sparsity:g} % | {name} | {spread(list(seen.values()))} | "
                f"{spread(list(test.values()))} | {len(test)} | {cubic} | {shrink} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(study(_own_options()))
