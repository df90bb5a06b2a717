"""The networks that the accuracy studies prune: their weights, their data, and where both lie.

ResNet-20 starts from a checkpoint that others published. The other networks are trained here, by
train_dense.py, whose files are too large for a repository: they lie below ``build/dense``, their
hashes in benchmarks/results/train_dense.json. A study prunes the dense network of its own scale
(all images, the short scale's or a trial's), and only a file that the record knows.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
from common import BUILD, bench_record

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


# Scales at which networks are trained, by the part of a study's scale that tells them apart.
DENSE_FULL: Config = {"epochs": 200, "train_images": None}
DENSE_SHORT: Config = {"epochs": 3, "train_images": 10_000}
DENSE_SMOKE: Config = {"epochs": 2, "train_images": 512, "eval_images": 200}
COMMON_RECIPE: Config = {
    "learning_rate": 0.1, "weight_decay": 5e-4, "warmup_fraction": 0.025, "cutout": 16,
}  # fmt: skip
# Where they differ from COMMON_RECIPE. EfficientNet-B0 has dropout and stochastic depth already:
# a square of 16 pixels cut out of 32, or smoothed labels, on top of these would underfit.
RECIPES: dict[str, Config] = {
    "cifar-vgg16-bn": {"learning_rate": 0.05},
    "cifar-efficientnet-b0": {"learning_rate": 0.05, "cutout": 0},
    "cifar-mobilenet-v2": {"learning_rate": 0.05},
    "cifar-resnet20": {"weight_decay": 1e-4, "cutout": 0},
}


def dense_recipe(network: str) -> Config:
    """Return how a network is trained from scratch, where that differs from ``Recipe``."""
    return {**COMMON_RECIPE, **RECIPES.get(network, {})}


def retraining(network: str) -> Config:
    """Return the part of a study's row by which a network keeps its weight decay when pruned.

    Empty for ResNet-20, whose weight decay is ``Recipe``'s own.
    """
    if NETWORKS[network].weights is not None:
        return {}
    return {"recipe": {"weight_decay": dense_recipe(network)["weight_decay"]}}


def dense_scale(config: Config) -> Config:
    """Return the scale of the dense network that a study's row prunes.

    Args:
        config: the row's; ``dense_epochs``, where it is not what the scale has.
    """
    scale = DENSE_FULL if config["train_images"] is None else DENSE_SHORT
    scale = DENSE_SMOKE if is_smoke(config) else scale
    return {**scale, "epochs": config.get("dense_epochs", scale["epochs"])}


def is_smoke(config: Config) -> bool:
    """Return whether a row is a trial of the mechanics, whose accuracy means nothing."""
    return "eval_images" in config


def work_folder(config: Config) -> Path:
    """Return where files of a row lie that are no results; trials have a folder of their own."""
    return BUILD / "smoke" if is_smoke(config) else BUILD


def dense_path(network: str, scale: Config, seed: int = SPLIT_SEED) -> Path:
    """Return where train_dense.py puts a network that it trained at a scale.

    Args:
        network: its name.
        scale: ``epochs`` and ``train_images``; ``eval_images`` in a trial.
        seed: of its training.
    """
    images = "all" if scale["train_images"] is None else scale["train_images"]
    name = f"{network}-{scale['epochs']}-epochs-{images}-images-seed{seed}.pth"
    return work_folder(scale) / "dense" / name


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def source_digest(model: Any) -> str | None:
    """Return the SHA-256 of the file that a network was read from; None where there is none."""
    path = Path(model.source)
    return digest(path) if path.is_file() else None


def open_network(config: Config, folder: Path) -> Any:
    """Return the dense network of a row, as ``hwprune.frontend.load_model`` does.

    Args:
        config: ``network``, and the scale where it is one that is trained here.
        folder: the data folder.

    Raises:
        InputError: it has to be trained first, or the file is not the one that was; says how.
    """
    from hwprune.frontend import load_model

    name = config["network"]
    weights = NETWORKS[name].weights
    path = _trained(name, dense_scale(config), folder) if weights is None else folder / weights
    return load_model(str(path), arch=name)


def _trained(name: str, scale: Config, folder: Path) -> Path:
    """Return the file of a network that was trained at a scale, if it is in the record."""
    from hwprune.errors import InputError

    path = dense_path(name, scale)
    how = "--smoke" if is_smoke(scale) else "--short" if scale["train_images"] is not None else ""
    command = f"python benchmarks/accuracy/train_dense.py --data-dir {folder} {how}".rstrip()
    hint = f"{command} --epochs {scale['epochs']} --rows {list(TRAINED).index(name)}"
    if not path.is_file():
        raise InputError(f"{name} is not trained yet: there is no {path}", hint=hint)
    results = BUILD / "smoke" if is_smoke(scale) else common.RESULTS
    record = bench_record.read(results / "train_dense.json")
    known = {
        (row.model_extra or {}).get("sha256")
        for row in (() if record is None else record.rows)
        if row.status == "run"
        and row.seed == SPLIT_SEED
        and row.config["network"] == name
        and all(row.config.get(key) == value for key, value in scale.items())
    }
    if (found := digest(path)) not in known:
        raise InputError(
            f"{path} is not a network that train_dense.json knows: its SHA-256 is {found}, expected"
            f" that of {name} after {scale['epochs']} epochs",
            hint=f"train it anew: {hint}",
        )
    return path


def fresh_network(config: Config, seed: int) -> Any:
    """Return the network of a row that starts from scratch, as ``--arch`` alone does.

    Args:
        config: ``network``; ``data``, where it is not cifar10, says how many classes there are.
        seed: of the random weights.
    """
    from hwprune.frontend import load_model

    classes = {"cifar10": 10, "cifar100": 100}[config.get("data", "cifar10")]
    return load_model(None, arch=f"{config['network']}(num_classes={classes})", seed=seed)


def open_data(config: Config, folder: Path, seed: int) -> Any:
    """Return the images of a row, as ``hwprune.frontend.load_data`` does.

    Args:
        config: ``network``; ``data``, where it is not cifar10; ``train_images``, the first so many
            (None for all); in a trial ``eval_images`` of validation and test too.
        folder: the data folder.
        seed: of the validation split, where the network is not one that is trained here.
    """
    from hwprune.frontend import load_data
    from hwprune.sampling import Sampled

    network = NETWORKS[config["network"]]
    split_seed = SPLIT_SEED if network.weights is None else seed
    source = config.get("data", "cifar10")
    data = load_data(f"{source}:{folder}?normalize={network.normalize}", seed=split_seed)

    def first(split: Any, count: int) -> Any:
        return Sampled(split, np.arange(min(count, len(split)), dtype=np.int64))

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
