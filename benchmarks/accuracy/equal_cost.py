"""Does bidirectional pruning beat one-way pruning at equal cost? Paired by seed.

All arms of a cell have the same pretrained network, epochs, recipe, distillation and nonzeros; what
differs is how connections come and go. One-way is the strongest there is (cubic, distilled): the
other arms are compared with it. Controls: regrowth of random connections, RigL's exchange from the
pretrained weights, and one-way pruning straight to the final density (one-shot). These arms were
fixed beforehand, each with its strategy's defaults. The tuned arms are what tuning.py chose of
either side, at its short scale, with another seed and on the validation split, and of bidirectional
pruning also the best that regrows by gradients; they are compared with each other.

ResNet-20 first, then VGG16 and ResNet-50 with fewer arms, three seeds and more epochs. Their RigL
starts from random weights, masked by Erdős-Rényi-kernel densities, with the dense network as its
teacher as for the others: the epochs are those of the other arms, which the dense network's own
training is not counted in.

    python benchmarks/accuracy/equal_cost.py --data-dir DIR [--short] [--rows 0,2-4] [--table]

DIR holds ``cifar-10-batches-py`` and ``weights/cifar10_resnet20.pth``; the other networks come from
train_dense.py. A row that was interrupted goes on from its last epoch; a row that is in the record
is not run again.
"""

from __future__ import annotations

import sys

from networks import retraining
from study import FULL, Config, Experiment, Rows, arm, by_seed, main, paired, spread
from tuning import SIDES

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
ONE_WAY_TUNED, BIDIRECTIONAL_TUNED = "one-way, tuned", "bidirectional, tuned"
TUNED: dict[str, Config] = {
    ONE_WAY_TUNED: SIDES["one-way"]["at 0.3, by magnitude"],
    BIDIRECTIONAL_TUNED: SIDES["bidirectional"]["the same, depth 0.8"],
    "bidirectional, by gradient": SIDES["bidirectional"]["depth 0.95, back at 0.3"],
}
LARGER = {"cifar-vgg16-bn": (0.982, 0.99, 0.995), "cifar-resnet50": (0.95, 0.99)}
LARGER_SEEDS = range(3)
# At the full scale, whose epochs are ResNet-20's: --epochs 12 is that scale, any other number holds
# for all networks.
LARGER_EPOCHS = 60
LARGER_ARMS: dict[str, Config] = {
    ONE_WAY: arm("cubic"),
    "bidirectional": arm("bidirectional"),
    "cyclic": arm("cyclic"),
    "RigL from scratch": {
        **arm(
            "rigl", score="magnitude", allocation="erk", grow_allocation="towards-erk", updates=100
        ),
        "start": "random",
    },
}


def cell(sparsity: float, name: str, scale: Config) -> Config:
    """Return the configuration of an arm."""
    return {"network": NETWORK, "sparsity": sparsity, **scale, **{**ARMS, **TUNED}[name]}


def larger(network: str, sparsity: float, name: str, scale: Config) -> Config:
    """Return the configuration of an arm on a network of LARGER."""
    is_full = {key: scale.get(key) for key in FULL} == FULL
    whole = {"epochs": LARGER_EPOCHS} if is_full else {}
    return {
        "network": network, "sparsity": sparsity, **scale, **whole, **retraining(network),
        **LARGER_ARMS[name],
    }  # fmt: skip


def rows(scale: Config) -> Rows:
    """Return all rows, those that a pair needs next to each other: a run may be cut short."""
    small, tuned = (
        [
            (cell(sparsity, name, scale), seed)
            for seed in SEEDS
            for sparsity in SPARSITIES
            for name in arms
        ]
        for arms in (ARMS, TUNED)
    )
    large = [
        (larger(network, sparsity, name, scale), seed)
        for network, sparsities in LARGER.items()
        for seed in LARGER_SEEDS
        for sparsity in sparsities
        for name in LARGER_ARMS
    ]
    # Behind the others: their numbers stand in docs.
    return small + large + tuned


def table(experiment: Experiment, scale: Config) -> str:
    """Return accuracy on the test set by arm, and the paired difference from one-way pruning."""
    cells = [
        ("ResNet-20", sparsity, name, cell(sparsity, name, scale))
        for sparsity in SPARSITIES
        for name in (*ARMS, *TUNED)
    ] + [
        (network, sparsity, name, larger(network, sparsity, name, scale))
        for network, sparsities in LARGER.items()
        for sparsity in sparsities
        for name in LARGER_ARMS
    ]
    lines = [
        "| network | sparsity | arm | test accuracy, % | seeds | against one-way, points [95 %] |",
        "|---|---|---|---|---|---|",
    ]
    one_way: dict[int, float] = {}
    for network, sparsity, name, config in cells:
        found = by_seed(experiment, config)
        is_one_way = name in (ONE_WAY, ONE_WAY_TUNED)
        if is_one_way:
            one_way = found
        against = "" if is_one_way else paired(found, one_way)
        at = f"{network} | {100 * sparsity:g} %"
        lines.append(
            f"| {at} | {name} | {spread(list(found.values()))} | {len(found)} | {against} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(__doc__, "equal_cost", rows, table))
