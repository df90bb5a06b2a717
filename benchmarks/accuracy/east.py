"""How much is left at 99 % and beyond? EAST, its parts left out, RigL and SET, from scratch.

The protocol is that of arXiv 2411.13545 (``--recipe east``): 250 epochs, batches of 128, SGD 0.1
with Nesterov momentum, a tenth of the rate at half and at three quarters, gradients clipped at 1.
RigL and SET have as many connections, ERK, magnitudes and exchanges; EAST without its parts is
RigL. In all arms a mask that leaves an output without a way from the input is mended, RigL's and
SET's too: the published RigL, 10.03 at 99.99 %, is not comparable in that respect. A sparsity is
one of the network that shares nothing. Validation is a tenth of the training images, so that
training sees 45,000.

    python benchmarks/accuracy/east.py --data-dir DIR [--short | --smoke] [--rows 0,2-4] [--table]

DIR holds ``cifar-10-batches-py`` and may hold ``cifar-100-python``, without which those rows are
skipped. A row that was interrupted goes on from its last epoch; one in the record is not run again.
``--short`` is ResNet-20 on 10,000 images for a few epochs, which proves mechanics, not accuracy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import study
from study import Config, Experiment, Rows, arm, by_seed, spread

FULL: Config = {"epochs": 250, "train_images": None}
SHORT: Config = {"epochs": 4, "train_images": 10_000}
SPARSITIES = (0.999, 0.9995, 0.99, 0.9999)
SEEDS = range(3)
EAST, RIGL = "EAST", "RigL"
# What all of them have in common; EAST has it as its defaults.
SAME: Config = {
    "score": "magnitude", "allocation": "erk", "grow_allocation": "towards-erk",
    "updates": 18, "drop": 0.5, "last_drop": 0.005,
}  # fmt: skip
SHARED: Config = {"sharing": True}
FIRST: dict[str, Config] = {EAST: {**arm("east"), **SHARED}, RIGL: arm("rigl", **SAME)}
ARMS: dict[str, Config] = {
    **FIRST,
    "SET": arm("set", **SAME),
    "EAST without DyReLU": {**arm("east", dyrelu=False), **SHARED},
    "EAST without cycles": {**arm("east", cyclic=False), **SHARED},
    "EAST without sharing": arm("east"),
}
# The network and its data, in the order in which they are wanted.
NETWORKS = {
    "ResNet-34, CIFAR-10": {"network": "cifar-resnet34", "data": "cifar10"},
    "ResNet-50, CIFAR-10": {"network": "cifar-resnet50", "data": "cifar10"},
    "ResNet-34, CIFAR-100": {"network": "cifar-resnet34", "data": "cifar100"},
    "ResNet-50, CIFAR-100": {"network": "cifar-resnet50", "data": "cifar100"},
}
SMALL = {"ResNet-20, CIFAR-10": {"network": "cifar-resnet20", "data": "cifar10"}}
# The paper's EAST and RigL for the first network, and what is aimed at: per cent by sparsity.
PUBLISHED = {0.99: (93.51, 92.92), 0.999: (86.99, 85.71), 0.9995: (83.83, 81.47),
             0.9999: (62.12, 10.03)}  # fmt: skip
AIMS = {0.99: 94.0, 0.999: 88.5, 0.9995: 86.0, 0.9999: 75.0}


def networks(scale: Config) -> dict[str, Config]:
    """Return the networks of a scale, by what a table calls them."""
    return NETWORKS if scale["train_images"] is None else SMALL


def cell(name: str, network: Config, sparsity: float, scale: Config) -> Config:
    """Return the configuration of an arm."""
    from hwprune.training.recipe_file import load

    recipe = dict(load("east").recipe)
    return {
        **network, "start": "scratch", "sparsity": sparsity, **scale, "recipe": recipe, **ARMS[name]
    }  # fmt: skip


def rows(scale: Config) -> Rows:
    """Return all rows: EAST and RigL at each sparsity, then what is left out, then other seeds."""
    others = [name for name in ARMS if name not in FIRST]
    return [
        (cell(name, network, sparsity, scale), seed)
        for network in networks(scale).values()
        for seed in SEEDS
        for arms in (FIRST, others)
        for sparsity in SPARSITIES
        for name in arms
    ]


def measure(config: Config, seed: int, folder: Path, experiment: Experiment) -> None:
    """Run a row, unless its data are not there."""
    if config["data"] == "cifar100" and not (folder / "cifar-100-python").is_dir():
        print(f"  skipped: there is no cifar-100-python in {folder}", file=sys.stderr)
        return
    study.run(config, seed, folder, experiment)


def table(experiment: Experiment, scale: Config) -> str:
    """Return accuracy on the test set by arm, beside what was published."""
    lines = [
        "| network | sparsity | arm | test accuracy, % | seeds | published | aim |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, network in networks(scale).items():
        for sparsity in sorted(SPARSITIES):
            for name in ARMS:
                found = by_seed(experiment, cell(name, network, sparsity, scale))
                published = aim = ""
                if network is NETWORKS["ResNet-34, CIFAR-10"] and name in FIRST:
                    published = f"{PUBLISHED[sparsity][name == RIGL]:.2f}"
                    aim = f"{AIMS[sparsity]:g}" if name == EAST else ""
                values = spread(list(found.values()))
                lines.append(
                    f"| {label} | {100 * sparsity:g} % | {name} | {values} | {len(found)} "
                    f"| {published} | {aim} |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(study.main(__doc__, "east", rows, table, full=FULL, short=SHORT, measure=measure))
