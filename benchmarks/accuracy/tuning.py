"""Which settings each side of the comparison does best with, before it is made. ResNet-20, 97 %.

One-way pruning and bidirectional pruning get the same epochs and seed, six candidates and eight,
and the validation split decides. What the first ones showed (a run this short wants its budget
early, magnitude does better than LAMP here) chose those behind them, on both sides alike; the last
two of bidirectional pruning take the rule that regrowth_rules.py found best.
What wins takes part in equal_cost.py as the tuned arm of its side, with other seeds.

    python benchmarks/accuracy/tuning.py --data-dir DIR [--short] [--rows 0,2-4] [--table]

DIR holds ``cifar-10-batches-py`` and ``weights/cifar10_resnet20.pth``. A row that was interrupted
goes on from its last epoch; a row that is in the record is not run again.
"""

from __future__ import annotations

import sys
from itertools import zip_longest

from study import Config, Experiment, Rows, arm, by_seed, main

NETWORK, SPARSITY = "cifar-resnet20", 0.97
# No seed of equal_cost.py, so that what was chosen on is not measured again.
SEED = 100
EARLY = {"prune_until": 0.35, "regrow_from": 0.4, "regrow_until": 0.5}
EARLIER = {"prune_until": 0.2, "regrow_from": 0.22, "regrow_until": 0.3}
PRETRAINED = {"regrow_score": "magnitude", "initial": "pretrained"}
SIDES: dict[str, dict[str, Config]] = {
    "one-way": {
        "budget reached at 0.3": arm("cubic", until=0.3),
        "at 0.45": arm("cubic", until=0.45),
        "at 0.6": arm("cubic"),
        "at 0.15": arm("cubic", until=0.15),
        "at 0.3, by magnitude": arm("cubic", until=0.3, score="magnitude"),
        "at 0.15, by magnitude": arm("cubic", until=0.15, score="magnitude"),
    },
    "bidirectional": {
        "depth 0.95, back at 0.65": arm("bidirectional"),
        "depth 0.95, back at 0.5": arm("bidirectional", **EARLY),
        "depth 0.95, back at 0.3": arm("bidirectional", **EARLIER),
        "depth 0.9, back at 0.3": arm("bidirectional", depth=0.9, **EARLIER),
        "cyclic, amplitude 0.1, until 0.4": arm(
            "cyclic", amplitude=0.1, prune_until=0.2, until=0.4
        ),
        "depth 0.95, back at 0.3, by magnitude": arm("bidirectional", **EARLIER, score="magnitude"),
        "the same, regrown by pretrained magnitude": arm(
            "bidirectional", **EARLIER, **PRETRAINED, score="magnitude"
        ),
        "the same, depth 0.8": arm(
            "bidirectional", depth=0.8, **EARLIER, **PRETRAINED, score="magnitude"
        ),
    },
}


def cell(side: str, name: str, scale: Config) -> Config:
    """Return the configuration of a candidate."""
    return {"network": NETWORK, "sparsity": SPARSITY, **scale, **SIDES[side][name]}


def rows(scale: Config) -> Rows:
    """Return all rows, one side's next to the other's: a run may be cut short."""
    pairs = zip_longest(*(SIDES[side] for side in SIDES))
    return [
        (cell(side, name, scale), SEED)
        for names in pairs
        for side, name in zip(SIDES, names, strict=True)
        if name is not None
    ]


def table(experiment: Experiment, scale: Config) -> str:
    """Return validation and test accuracy by candidate; the best of a side is marked."""
    lines = ["| side | candidate | validation, % | test, % |", "|---|---|---|---|"]
    for side, candidates in SIDES.items():
        configs = {name: cell(side, name, scale) for name in candidates}
        seen = {
            name: by_seed(experiment, config, "validation_accuracy").get(SEED)
            for name, config in configs.items()
        }
        best = max((value for value in seen.values() if value is not None), default=None)
        for name, config in configs.items():
            value, test = seen[name], by_seed(experiment, config).get(SEED)
            if value is None or test is None:
                lines.append(f"| {side} | {name} | not run | |")
                continue
            mark = ", best" if value == best else ""
            lines.append(f"| {side} | {name} | {100 * value:.2f}{mark} | {100 * test:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(__doc__, "tuning", rows, table))
