"""What a run is: of two runs of one identity, either can continue what the other began."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import re
from functools import cache
from pathlib import Path

import numpy as np
import torch

from hwprune.ir import Split
from hwprune.sampling import evenly_spread
from hwprune.training.checkpoints import Identity
from hwprune.training.config import FinetuneConfig
from hwprune.trees import leaves

# The rooms whose code decides what a training step does.
_ROOMS = ("training", "extreme", "least_squares", "sparsity", "budget", "encoding", "tasks")
# Samples of a split that are looked at: the whole of a large data set would take minutes.
_LOOKED_AT = 256
# Fields of the recipe that say how steps are computed: other kernels, other last bits.
_SURROUNDINGS = ("compiled",)


def identity_of(config: FinetuneConfig) -> Identity:
    """Return what decides the steps of a run, by names that a person understands.

    The network's weights enter as a digest of all of them, a split as a digest of its labels and of
    256 samples that are spread over it.
    """
    splits = [
        _short(split_digest(part), f"{len(part):,} samples", digested=True)
        for part in (config.data.train, config.data.validation)
    ]
    return {
        "hwprune": f"{version()}, code {code_digest()}",
        "the network": _module_digest(config.module),
        "the data": f"{config.data.name}, normalised by {config.data.normalize}",
        "the training data": splits[0],
        "the validation data": splits[1],
        "augmentation": config.data.augment,
        "task": f"{config.task.name} {config.task.output or ''} {config.task.source}".strip(),
        "strategy": _short(repr(config.strategy), config.strategy.name),
        "teacher": None if config.teacher is None else _module_digest(config.teacher),
        "seed": config.seed,
        "BN is trained": config.train_batchnorm,
        **{
            f"recipe.{field.name}": _plain(getattr(config.recipe, field.name))
            for field in dataclasses.fields(config.recipe)
            if field.name not in _SURROUNDINGS
        },
    }


def surroundings_of(config: FinetuneConfig) -> Identity:
    """Return what changes the last bits of a run, not what it does: where and how it is run."""
    return {
        "device": config.device,
        "processes": config.world.size,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        **{name: getattr(config.recipe, name) for name in _SURROUNDINGS},
    }


@cache
def code_digest() -> str:
    """Return a short digest of the code that training depends on, as it was when first asked."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for room in _ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def version() -> str:
    """Return the version of this program."""
    try:
        return importlib.metadata.version("hwprune")
    except importlib.metadata.PackageNotFoundError:
        return "(a checkout that is not installed)"


def _module_digest(module: torch.nn.Module) -> str:
    # What it prints says strides and the like, where it holds no function's address.
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", str(module)).encode())
    for name, value in module.state_dict().items():
        digest.update(f"{name} {type(value).__name__}".encode())
        if isinstance(value, torch.Tensor):
            array = value.detach().cpu().contiguous()
            digest.update(f"{array.dtype} {tuple(array.shape)}".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return _short(digest.hexdigest(), type(module).__name__, digested=True)


def split_digest(split: Split) -> str:
    """Return a short digest of a split: of its labels, and of 256 samples spread over it."""
    digest = hashlib.sha256()
    if split.labels is not None:
        for path, labels in leaves(split.labels):
            digest.update(path.encode())
            digest.update(np.ascontiguousarray(labels).data)
    chosen = np.unique(evenly_spread(len(split), _LOOKED_AT))
    few = chosen[:4]
    with torch.random.fork_rng(devices=[]):  # a source may draw: looking leaves no trace
        once, again, samples = split.batch(few), split.batch(few), split.batch(chosen)
    # A source that augments by itself gives other values each time: its shapes must do.
    random = any(not np.array_equal(*pair) for pair in zip(once, again, strict=True))
    for array in samples:
        digest.update(f"{array.dtype} {array.shape}".encode())
        if not random:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:12]


def _short(text: str, name: str, *, digested: bool = False) -> str:
    """Return a name for people, and what tells two of that name apart."""
    return f"{name} {(text if digested else hashlib.sha256(text.encode()).hexdigest())[:12]}"


def _plain(value: object) -> str | int | float | bool | None:
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
