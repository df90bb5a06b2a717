"""Which connections should come back, and from which value? ResNet-20.

First a screen at 97 % sparsity with one seed: every rule with every initial value that suits it,
next to one-way pruning, and by bytes what gain per byte adds. Then the rules in FINALISTS, random
regrowth and one-way pruning with three seeds at 95 and 98.85 %. FINALISTS are the three rules that
did best in the screen at its short scale, on the validation split.

    python benchmarks/accuracy/regrowth_rules.py --data-dir DIR [--short] [--rows 0,2-4] [--table]

DIR holds ``cifar-10-batches-py`` and ``weights/cifar10_resnet20.pth``. A row that was interrupted
goes on from its last epoch; a row that is in the record is not run again.
"""

from __future__ import annotations

import sys

from study import Config, Experiment, Rows, arm, by_seed, main, paired, spread

NETWORK = "cifar-resnet20"
SCREENED, FINAL = 0.97, (0.95, 0.9885)
SEEDS = range(3)
ONE_WAY = "one-way (cubic)"
# Half of the connections come back, early enough to learn: the shallow and late dip that is the
# default would hide a rule behind what seeds differ by. One-way pruning is as early.
DIP: Config = {"depth": 0.5, "prune_until": 0.3, "regrow_from": 0.35, "regrow_until": 0.5}
ARMS: dict[str, Config] = {
    ONE_WAY: arm("cubic", until=0.5),
    **{
        f"{rule}, from {initial}": arm("bidirectional", **DIP, regrow_score=rule, initial=initial)
        for rule, initials in {
            "gradient": ("zero", "pretrained", "second-order"),
            "taylor": ("zero", "pretrained"),
            "descent": ("pretrained",),
            "momentum": ("zero",),
            "second-order": ("zero", "second-order"),
            "magnitude": ("pretrained",),
            "random": ("zero",),
        }.items()
        for initial in initials
    },
    "drawn anew from feedback": arm("bidirectional-feedback", **DIP),
}
FINALISTS = (
    "magnitude, from pretrained", "second-order, from zero", "second-order, from second-order"
)  # fmt: skip
FINAL_ARMS = (ONE_WAY, *FINALISTS, "random, from zero")
# Gain per byte is a question of bytes.
BY_BYTES: dict[str, Config] = {
    ONE_WAY: ARMS[ONE_WAY],
    "gradient": arm("bidirectional", **DIP),
    "gradient per byte": arm("bidirectional", **DIP, per_byte=True),
}
BUDGET: Config = {"budget_bytes": 28 * 1024, "values": "int8"}
# Many rows: the scale of a CPU is a third of the other studies'.
SHORT: Config = {"epochs": 2, "train_images": 5_000}


def cell(name: str, sparsity: float, scale: Config) -> Config:
    """Return the configuration of an arm at a sparsity."""
    return {"network": NETWORK, "sparsity": sparsity, **scale, **ARMS[name]}


def by_bytes(name: str, scale: Config) -> Config:
    """Return the configuration of an arm at a budget in bytes."""
    return {"network": NETWORK, **BUDGET, **scale, **BY_BYTES[name]}


def rows(scale: Config) -> Rows:
    """Return the screen, then the question of bytes, then the finalists."""
    return [
        *((cell(name, SCREENED, scale), 0) for name in ARMS),
        *((by_bytes(name, scale), 0) for name in BY_BYTES),
        *(
            (cell(name, sparsity, scale), seed)
            for seed in SEEDS
            for sparsity in FINAL
            for name in FINAL_ARMS
        ),
    ]


def table(experiment: Experiment, scale: Config) -> str:
    """Return validation and test accuracy by arm."""
    cells = [
        *((f"{SCREENED:.0%}", name, cell(name, SCREENED, scale)) for name in ARMS),
        *(("28 KiB", name, by_bytes(name, scale)) for name in BY_BYTES),
        *(
            (f"{100 * sparsity:g} %", name, cell(name, sparsity, scale))
            for sparsity in FINAL
            for name in FINAL_ARMS
        ),
    ]
    lines = [
        "| at | arm | validation, % | test, % | seeds | test against one-way, points [95 %] |",
        "|---|---|---|---|---|---|",
    ]
    one_way: dict[int, float] = {}
    for at, name, config in cells:
        test = by_seed(experiment, config)
        seen = by_seed(experiment, config, "validation_accuracy")
        if name == ONE_WAY:
            one_way = test
        against = "" if name == ONE_WAY else paired(test, one_way)
        shown = f"{spread(list(seen.values()))} | {spread(list(test.values()))}"
        lines.append(f"| {at} | {name} | {shown} | {len(test)} | {against} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(__doc__, "regrowth_rules", rows, table, short=SHORT))
