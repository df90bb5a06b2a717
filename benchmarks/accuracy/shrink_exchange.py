"""Does shrinking pay, and an exchange on top of it? At equal cost, paired by seed.

Four arms: cubic pruning in 60 events, the same with shrink, with an exchange of micro-dips at the
budget after that (``bidirectional``), and the same exchange at random. All reach the budget at 0.3
of the run by magnitude; a fifth is ``cubic`` with its own defaults. ``--strategy auto`` takes its
thresholds from the record (hwprune/sparsity/auto.py).

    python benchmarks/accuracy/shrink_exchange.py --data-dir DIR [--network mlp|cnn] [--short]
        [--epochs N] [--images N] [--seeds 0 1 2] [--sparsities 98 99] [--rows 0,2-4] [--table]

ResNet-20 starts from its pretrained weights: DIR holds ``cifar-10-batches-py`` and
``weights/cifar10_resnet20.pth``. Two networks on Fashion-MNIST (below DIR/FashionMNIST) are cheap
enough for any CPU: an MLP (784-100-100-10, 89,400 weights) and a CNN (three convolutions with BN,
14,288 weights). They are trained densely first, with the seed and the epochs of the row, and that
is not counted. A row that was interrupted goes on from its last epoch; a row that is in the record
is not run again.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from study import Config, Experiment, Rows, Stopwatch, arm, by_seed, main, paired, run, spread

NETWORKS = {"resnet20": "cifar-resnet20", "mlp": "fashion-mlp", "cnn": "fashion-cnn"}
SPARSITIES = {
    "resnet20": (0.98, 0.99, 0.95, 0.97, 0.9),
    "mlp": (0.99, 0.98, 0.995, 0.95),
    "cnn": (0.98, 0.95),
}
# Of the small networks, what the record has with three seeds.
RECORDED = {"mlp": (0.98, 0.99, 0.995), "cnn": (0.95, 0.98)}
SEEDS = range(3)
SMALL: Config = {"epochs": 16, "train_images": 10_000}
WAY = {"until": 0.3, "steps": 60, "start": 0.5, "score": "magnitude"}
CUBIC, SHRINK, EXCHANGE = "cubic, 60 events", "shrink", "shrink + exchange"
DEFAULTS = "cubic, its defaults"
ARMS: dict[str, Config] = {
    CUBIC: arm("cubic", **WAY),
    SHRINK: arm("cubic", **WAY, shrink=1.0),
    EXCHANGE: arm("bidirectional"),
    "shrink + random exchange": arm("bidirectional", regrow_score="random"),
    DEFAULTS: arm("cubic"),
}


def cell(network: str, name: str, sparsity: float, scale: Config) -> Config:
    """Return the configuration of an arm at a sparsity."""
    return {"network": NETWORKS[network], "sparsity": sparsity, **scale, **ARMS[name]}


def measure(config: Config, seed: int, folder: Path, experiment: Experiment) -> None:
    """Run a row and add it to the record."""
    if config["network"] != NETWORKS["resnet20"]:
        _run_small(config, seed, folder, experiment)
    else:
        run(config, seed, folder, experiment)


def _network(name: str) -> Any:
    from torch import nn

    if name == NETWORKS["mlp"]:
        sizes = (784, 100), (100, 100), (100, 10)
        first, second, last = (nn.Linear(*each) for each in sizes)
        return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last)
    blocks: list[nn.Module] = []
    for inputs, outputs in (1, 16), (16, 32), (32, 32):
        conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        blocks += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


_dense: dict[tuple[Any, ...], Any] = {}


def _run_small(config: Config, seed: int, folder: Path, experiment: Experiment) -> None:
    import torch
    from torch import nn

    from hwprune.frontend import load_data
    from hwprune.sampling import Sampled
    from hwprune.sparsity import make
    from hwprune.training import FinetuneConfig, Recipe, accuracy, finetune

    data = load_data(f"fashion-mnist:{folder / 'FashionMNIST'}", seed=seed)
    images = np.arange(config["train_images"], dtype=np.int64)
    data = replace(data, train=Sampled(data.train, images), augment="none")
    recipe = Recipe(epochs=config["epochs"], precision="fp32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(config["network"])
    names = tuple(name for name, tensor in network.named_parameters() if tensor.ndim > 1)

    def trained(module: nn.Module, strategy: Any, teacher: nn.Module | None) -> Any:
        weights = sum(dict(module.named_parameters())[name].numel() for name in names)
        count = round((1 - config["sparsity"]) * weights)
        return finetune(FinetuneConfig(
            module=module, data=data, names=names, strategy=strategy, recipe=recipe,
            teacher=teacher, seed=seed,
            fill=lambda ranking, part: ranking.masks(min(len(ranking), round(count * part))),
        ))  # fmt: skip

    key = config["network"], seed, config["epochs"], config["train_images"]
    if key not in _dense:
        trained(network, replace(make("dense", density=1.0), trains=True), None)
        _dense[key] = copy.deepcopy(network.state_dict())
    network.load_state_dict(_dense[key])
    teacher, watch = copy.deepcopy(network), Stopwatch()
    strategy = make(config["strategy"], density=1 - config["sparsity"], **config["options"])
    result = trained(network, strategy, teacher)
    experiment.add(
        config, seed, watch.seconds, result.cost_epochs,
        accuracy=accuracy(network, data.test),
        validation_accuracy=result.final_metric,
        dense_validation_accuracy=result.dense_metric,
        dense_accuracy=accuracy(teacher, data.test),
        nonzeros=result.masks.nonzeros,
        steps=result.steps,
        precision=result.precision,
        notes=list(result.notes),
    )  # fmt: skip
    print(f"  {watch.seconds:.0f} s, validation {100 * result.final_metric:.2f} %", flush=True)


def _own_options() -> argparse.Namespace:
    """Return the options that only this study has, and leave the others to ``study.main``."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--images", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--sparsities", type=float, nargs="+", metavar="PERCENT")
    options, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    return options


def study(options: argparse.Namespace) -> int:
    """Run the rows that were asked for, then print the table."""
    network = options.network
    chosen = [each / 100 for each in options.sparsities or ()] or SPARSITIES[network]
    full = {} if network == "resnet20" else {"full": SMALL}

    def scaled(scale: Config) -> Config:
        return {**scale, "train_images": options.images} if options.images else scale

    def rows(scale: Config) -> Rows:
        # All arms of a pair before the next one: a run may be cut short.
        return [
            (cell(network, name, sparsity, scaled(scale)), seed)
            for seed in options.seeds
            for sparsity in chosen
            for name in ARMS
        ]

    def shown(experiment: Experiment, scale: Config) -> str:
        return table(experiment, network, scaled(scale), chosen)

    return main(__doc__, "shrink_exchange", rows, shown, measure=measure, **full)


def table(experiment: Experiment, network: str, scale: Config, sparsities: Sequence[float]) -> str:
    """Return accuracy by arm, and how far it is ahead of cubic and of shrink alone."""
    lines = [
        "| sparsity | arm | validation, % | test, % | seeds | against cubic, points [95 %] "
        "| against shrink | against its defaults |",
        "|---" * 8 + "|",
    ]
    for sparsity in sorted(sparsities):
        cells = {name: cell(network, name, sparsity, scale) for name in ARMS}
        found = {name: by_seed(experiment, config) for name, config in cells.items()}
        for name, test in found.items():
            seen = by_seed(experiment, cells[name], "validation_accuracy")
            cubic = "" if name == CUBIC else paired(test, found[CUBIC])
            shrink = paired(test, found[SHRINK]) if "exchange" in name else ""
            own = paired(test, found[DEFAULTS]) if name == EXCHANGE else ""
            lines.append(
                f"| {100 * sparsity:g} % | {name} | {spread(list(seen.values()))} | "
                f"{spread(list(test.values()))} | {len(test)} | {cubic} | {shrink} | {own} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(study(_own_options()))
