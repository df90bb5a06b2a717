"""One of several processes of test_distributed.py: joins, runs a scenario, writes what it saw."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import training_nets as nets
from torch import nn

from hwprune.errors import DataError, HwpruneError
from hwprune.extreme import extreme_hooks
from hwprune.extreme.sharing import share
from hwprune.sparsity import make
from hwprune.training import Checkpoint, FinetuneConfig, Recipe, World, finetune, joined

RECIPE = Recipe(epochs=2, batch_size=31, precision="fp32", learning_rate=0.02, cutout=2, views=1)


def without_batchnorm() -> nn.Module:
    """A network whose gradient of a batch is the mean of its parts' gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(128, 10),
        )  # fmt: skip


def with_shared_weights() -> nn.Module:
    """A network two of whose convolutions are one tensor; without BN, as above."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        module = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.Identity(), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Identity(), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Identity(), nn.ReLU(),
            nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip
    share(module, groups=[("4.weight", "7.weight")])
    return module


NAMES = {
    "plain": ("0.weight", "4.weight"),
    "batchnorm": nets.NAMES,
    "shared": ("0.weight", "4.weight", "11.weight"),
}
MODULES: dict[str, Any] = {
    "plain": without_batchnorm,
    "batchnorm": lambda: nets.small_cnn(dropout=0.2),
    "shared": with_shared_weights,
}


def train(kind: str, world: World, **changes: Any) -> dict[str, Any]:
    """Train one network and return what came of it."""
    module = MODULES[kind]()
    arguments: dict[str, Any] = {
        "data": nets.digits(samples=301),
        "names": NAMES[kind],
        "strategy": make("bidirectional-single", density=0.3, depth=0.6, steps=2),
        "fill": nets.fill_count(300),
        "recipe": RECIPE,
        "teacher": module,
        "seed": 1,
        "world": world,
        "hooks": extreme_hooks,
    } | changes
    result = finetune(FinetuneConfig(module=module, **arguments))
    return {
        "masks": {name: result.masks[name].tolist() for name in result.masks},
        "weights": {k: v.tolist() for k, v in module.state_dict().items()},
        "accuracy": result.final_metric,
        "dense_metric": result.dense_metric,
        "losses": [p["loss"] for p in result.trajectory if p["action"] == "train"],
        "digest": digest(module),
        "notes": result.notes,
    }


def digest(module: nn.Module) -> str:
    """Return a digest of every bit of a module."""
    parts = [tensor.numpy().tobytes() for tensor in module.state_dict().values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def resumed(world: World, folder: Path, kind: str = "batchnorm") -> dict[str, Any]:
    """Train to the end, and once more from a checkpoint between the two epochs."""
    checkpoint = Checkpoint(folder / "run", every_seconds=0)
    kept: list[bytes] = []

    def progress(event: Any) -> None:
        if event.message.startswith("epoch 2 of") and world.leads:
            kept.append(checkpoint.path.read_bytes())

    whole = train(kind, world, checkpoint=checkpoint, progress=progress)
    if world.leads:
        checkpoint.path.write_bytes(kept[0])
    world.gather(None)  # the file is there for everyone
    again = train(kind, world, checkpoint=dataclasses.replace(checkpoint, resume=True))
    return {"whole": whole["digest"], "again": again["digest"], "notes": again["notes"]}


def failing(world: World) -> str:
    """Let the second process fail in its first epoch."""

    def progress(event: Any) -> None:
        if world.rank == 1 and event.message.startswith("epoch 1"):
            raise DataError("a file of mine is gone", hint="look for it")

    train("plain", world, progress=progress)
    return "nobody noticed"


def main() -> int:
    """Run what the first argument says; write it to the folder of the second."""
    folder = Path(sys.argv[2])
    saw: dict[str, Any] = {}
    code = 0
    try:
        with joined("cpu") as world:
            if sys.argv[1] == "train":
                saw["plain"] = train("plain", world)
                saw["batchnorm"] = train("batchnorm", world)
                saw["phased"] = train("batchnorm", world, strategy=make("east", density=0.1))
                saw["resumed"] = resumed(world, folder)
                saw["lead"] = world.broadcast(world.rank)
                try:
                    train("plain", world, seed=world.rank)
                except HwpruneError as error:
                    saw["different"] = error.message
            elif sys.argv[1] == "shared":
                saw["shared"] = train("shared", world)
                saw["resumed"] = resumed(world, folder, "shared")
            elif sys.argv[1] == "fail":
                failing(world)
            elif world.rank == 1:
                os._exit(9)  # as if it had been killed
            else:
                train("plain", world)
    except HwpruneError as error:
        saw["error"] = [type(error).__name__, error.message, error.hint]
        code = error.exit_code
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(saw))
    return code


if __name__ == "__main__":
    sys.exit(main())
