"""The networks that the accuracy studies prune: their weights, their data, and where both lie.

ResNet-20 starts from a checkpoint that others published. The other networks are trained here, by
train_dense.py, whose files are too large for a repository: they lie below ``build/dense``, their
hashes in benchmarks/results/train_dense.json.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import BUILD

Config = Mapping[str, Any]

# What a network that is trained here was not trained on, whatever the seed of a study: choices are
# made on images that the network has not seen.
SPLIT_SEED = 0


@dataclass(frozen=True, slots=True)
class Network:
    """Where a network's weights come from, and what it is fed with.

    Attributes:
        weights: a file below the data folder; None where train_dense.py makes it.
        normalize: of the images, as ``--data`` spells it.
    """

    weights: str | None = None
    normalize: str = "cifar10"


NETWORKS = {
    "cifar-resnet20": Network("weights/cifar10_resnet20.pth", "imagenet"),
    "cifar-vgg16-bn": Network(),
    "cifar-densenet121": Network(),
    "cifar-efficientnet-b0": Network(),
    "cifar-resnet50": Network(),
    "cifar-mobilenet-v2": Network(),
    "cifar-resnet34": Network(),
}


def is_smoke(config: Config) -> bool:
    """Return whether a row is a trial of the mechanics, whose accuracy means nothing."""
    return "eval_images" in config


def work_folder(config: Config) -> Path:
    """Return where files of a row lie that are no results; trials have a folder of their own."""
    return BUILD / "smoke" if is_smoke(config) else BUILD


def dense_path(network: str, config: Config, seed: int = SPLIT_SEED) -> Path:
    """Return where train_dense.py puts a network, and studies look for it."""
    return work_folder(config) / "dense" / f"{network}-seed{seed}.pth"


def open_network(config: Config, folder: Path) -> Any:
    """Return the dense network of a row, as ``hwprune.frontend.load_model`` does.

    Args:
        config: ``network``.
        folder: the data folder.

    Raises:
        InputError: it has to be trained first; says how.
    """
    from hwprune.errors import InputError
    from hwprune.frontend import load_model

    name = config["network"]
    weights = NETWORKS[name].weights
    path = dense_path(name, config) if weights is None else folder / weights
    if weights is None and not path.is_file():
        scale = " --smoke" if is_smoke(config) else ""
        raise InputError(
            f"{name} is not trained yet: there is no {path}",
            hint=f"python benchmarks/accuracy/train_dense.py --data-dir {folder}{scale}"
            f" --rows {list(TRAINED).index(name)}",
        )
    return load_model(str(path), arch=name)


def fresh_network(config: Config, seed: int) -> Any:
    """Return the network of a row that starts from scratch, as ``--arch`` alone does.

    Args:
        config: ``network``; ``data``, where it is not cifar10, says how many classes there are.
        seed: of the random weights.
    """
    from hwprune.frontend import new_model

    classes = {"cifar10": 10, "cifar100": 100}[config.get("data", "cifar10")]
    return new_model(f"{config['network']}(num_classes={classes})", seed=seed)


def open_data(config: Config, folder: Path, seed: int) -> Any:
    """Return the images of a row, as ``hwprune.frontend.load_data`` does.

    Args:
        config: ``network``; ``data``, where it is not cifar10; ``train_images``, the first so many
            (None for all); in a trial ``eval_images`` of validation and test too.
        folder: the data folder.
        seed: of the validation split, where the network is not one that is trained here.
    """
    from hwprune.frontend import load_data
    from hwprune.steps.choosing import Part

    network = NETWORKS[config["network"]]
    split_seed = SPLIT_SEED if network.weights is None else seed
    source = config.get("data", "cifar10")
    data = load_data(f"{source}:{folder}?normalize={network.normalize}", seed=split_seed)

    def first(split: Any, count: int) -> Any:
        return Part(split, np.arange(min(count, len(split)), dtype=np.int64))

    if config["train_images"] is not None:
        data = replace(data, train=first(data.train, config["train_images"]))
    if is_smoke(config):
        count = config["eval_images"]
        data = replace(data, validation=first(data.validation, count), test=first(data.test, count))
    return data


def untrained(network: str, seed: int) -> Any:
    """Return an architecture with random weights, alike for the same seed."""
    import torch

    from hwprune.frontend.zoo import ARCHITECTURES

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[network].build()


def test_accuracy(module: Any, data: Any, device: str) -> float:
    """Return a module's accuracy on the test images, measured on a device; it stays there."""
    from hwprune.training import accuracy

    return accuracy(module.to(device), data.test, device=device)


def device_name(device: str) -> str:
    """Return what a device is called, such as ``NVIDIA H200`` or ``cpu``."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


# In the order of what is wanted first when time is short: train_dense.py's rows.
TRAINED: Mapping[str, Network] = {
    name: NETWORKS[name]
    for name in (
        "cifar-vgg16-bn",
        "cifar-densenet121",
        "cifar-efficientnet-b0",
        "cifar-resnet50",
        "cifar-mobilenet-v2",
        "cifar-resnet34",
        "cifar-resnet20",
    )
}
