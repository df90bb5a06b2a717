"""How accurate is ResNet-20 when labels, training or data are missing? CIFAR-10 test set, in torch.

Methods: the mask alone; BN recalibration; least squares, which is what ``hwprune compile --epochs
0`` does, on 256 images without labels, and with LAMP's masks, to tell masks and refitting apart;
distillation from the dense network on 5,000 images without labels, from the dense weights along a
strategy, or from what least squares gave; and no data at all, which is what ``hwprune compile``
does without ``--data``. fp32 values, so that pruning alone is measured.

    python benchmarks/accuracy/data_free.py --data-dir DIR [--rows 0,2-4] [--table] [--restart]

A row that trains goes on from its last epoch where it was interrupted; its seconds are then those
of the last call. DIR holds ``cifar-10-batches-py`` and ``weights/cifar10_resnet20.pth``.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Experiment, Stopwatch, command_line, data_folder, measure_rows

Config = dict[str, Any]

SEED = 0
IMAGES = 256
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
DISTILLED: Config = {
    "images": 5000, "epochs": 5, "strategy": "cubic", "batch_size": 64, "learning_rate": 0.02,
}  # fmt: skip
# From weights that fit already, with BN as it is where there are only a few images.
AFTERWARDS: Config = {
    "images": 5000, "epochs": 5, "batch_size": 64, "learning_rate": 0.02, "train_batchnorm": True,
}  # fmt: skip
AFTERWARDS_FEW: Config = {
    "images": IMAGES, "epochs": 30, "batch_size": 128, "learning_rate": 0.001, "grad_clip": 1.0,
    "train_batchnorm": False,
}  # fmt: skip
# Eight times the steps, at larger rates, and with a square of each image set to zero.
AFTERWARDS_LONG: Config = {
    "images": IMAGES, "epochs": 120, "batch_size": 64, "grad_clip": 1.0, "train_batchnorm": False,
}  # fmt: skip
FITTED_FIRST = "least squares, distillation"


def _config(method: str, sparsity: float, **more: Any) -> Config:
    return {"method": method, "sparsity": sparsity, **more}


# The most telling first: a run may be cut short.
ROWS: list[Config] = [
    *(_config("least squares", sparsity, images=IMAGES) for sparsity in (0.8, 0.9, 0.7, 0.5, 0.95)),
    _config(FITTED_FIRST, 0.8, **AFTERWARDS_FEW),
    _config(FITTED_FIRST, 0.9, **AFTERWARDS),
    _config("no data", 0.7, images=IMAGES),
    _config("no data", 0.5, images=IMAGES),
    _config("distillation", 0.9, **DISTILLED),
    *(_config("mask alone", sparsity) for sparsity in SPARSITIES),
    *(_config("BN recalibration", sparsity, images=2000) for sparsity in SPARSITIES),
    *(_config("LAMP, least squares", sparsity, images=IMAGES) for sparsity in SPARSITIES),
    _config("no data", 0.8, images=IMAGES),
    _config("distillation", 0.95, **DISTILLED),
    _config(FITTED_FIRST, 0.8, **AFTERWARDS_LONG, learning_rate=0.005),
    _config(FITTED_FIRST, 0.8, **AFTERWARDS_LONG, learning_rate=0.01, cutout=8),
    _config("no data", 0.9, images=IMAGES),
]


def _pruned(dense: Any, names: tuple[str, ...], scores: Any, sparsity: float) -> tuple[Any, Any]:
    """Return a masked copy and its masks."""
    from hwprune.sparsity import rank
    from hwprune.training.sparse import SparseParameters

    ranking = rank(scores)
    masks = ranking.masks(round((1 - sparsity) * len(ranking)))
    module = copy.deepcopy(dense)
    SparseParameters(module, names).set_masks(masks, None)
    return module, masks


def _lamp(dense: Any, names: tuple[str, ...]) -> Any:
    from hwprune.sparsity import SCORES

    parameters = dict(dense.named_parameters())
    return {name: SCORES["lamp"](parameters[name].detach().numpy()) for name in names}


def _part(split: Any, count: int) -> Any:
    """Return the first images of a split, without labels."""
    from hwprune.sampling import Sampled

    return Sampled(replace(split, labels=None), np.arange(count, dtype=np.int64))


def _distil(
    config: Config,
    module: Any,
    dense: Any,
    names: tuple[str, ...],
    data: Any,
    masks: Any,
    checkpoint: Any,
) -> Any:
    """Train in place on the teacher's answers alone, and return the final masks.

    The masks are those given, from the start; for None, the strategy's own. The state is kept
    after every epoch.
    """
    from hwprune.sparsity import make
    from hwprune.training import FinetuneConfig, Recipe, finetune

    def fill(ranking: Any, fraction: float) -> Any:
        total = sum(int(np.prod(shape)) for shape in ranking.shapes.values())
        return ranking.masks(round(density * total)) if masks is None else masks

    density = 1 - config["sparsity"]
    result = finetune(
        FinetuneConfig(
            module=module,
            # Validation only says how it goes: a small part of it is enough.
            data=replace(
                data,
                train=_part(data.train, config["images"]),
                validation=_part(data.validation, 200),
                classes=None,
            ),
            names=names,
            strategy=make(config.get("strategy", "one-shot"), density=density),
            fill=fill,
            recipe=Recipe(
                epochs=config["epochs"],
                batch_size=config["batch_size"],
                learning_rate=config["learning_rate"],
                grad_clip=config.get("grad_clip"),
                cutout=config.get("cutout", 0),
            ),
            teacher=dense,
            seed=SEED,
            train_batchnorm=config.get("train_batchnorm", True),
            checkpoint=checkpoint,
            progress=lambda event: (
                print(f"  {event.message}, agreement {event.metric}", flush=True)
                if event.metric is not None
                else None
            ),
        )
    )
    return result.masks


@functools.cache
def _synthetic(dense: Any, images: int) -> Any:
    """Return inputs made from the dense network; the same ones serve all rows of a run."""
    from hwprune.least_squares.synthesis import synthesise

    return synthesise(dense, ((3, 32, 32),), samples=images, seed=SEED)


@functools.cache
def _dense(folder: Path) -> Any:
    from hwprune.frontend import load_model

    return load_model(str(folder / "weights" / "cifar10_resnet20.pth")).module


def _made(
    config: Config, dense: Any, names: tuple[str, ...], data: Any, checkpoint: Any
) -> tuple[Any, Any]:
    """Return the network that a method leads to, and its masks."""
    from hwprune.least_squares.reconstruct import least_squares
    from hwprune.least_squares.saliency import reconstruction_scores
    from hwprune.training import recalibrate_batchnorm

    method, sparsity = config["method"], config["sparsity"]
    split: Any = data.train
    if method == "distillation":
        module = copy.deepcopy(dense)
        return module, _distil(config, module, dense, names, data, None, checkpoint)
    if method == FITTED_FIRST:
        split = _part(split, config["images"])
    if method == "no data":
        split = _synthetic(dense, config["images"])
    images = min(IMAGES, config.get("images", IMAGES))
    if method in ("least squares", FITTED_FIRST, "no data"):
        scores = reconstruction_scores(dense, split, names, samples=images, seed=SEED)
    else:
        scores = _lamp(dense, names)
    module, masks = _pruned(dense, names, scores, sparsity)
    if method == "BN recalibration":
        recalibrate_batchnorm(module, split, samples=config["images"], seed=SEED)
    elif method != "mask alone":
        least_squares(module, dense, split, names, masks, samples=images, seed=SEED)
    if method == FITTED_FIRST:
        _distil(config, module, dense, names, data, masks, checkpoint)
    return module, masks


def run(config: Config, folder: Path, experiment: Experiment) -> None:
    """Measure one row and save it."""
    from hwprune.frontend import load_data
    from hwprune.training import Checkpoint, accuracy

    data = load_data(f"cifar10:{folder}?normalize=imagenet", seed=SEED)
    dense = _dense(folder)
    names = tuple(name for name, weight in dense.named_parameters() if weight.ndim > 1)
    watch = Stopwatch()
    checkpoint = Checkpoint(experiment.state_path(config, SEED), resume=True, every_seconds=0.0)
    resumed = checkpoint.path.exists()
    module, masks = _made(config, dense, names, data, checkpoint)
    seconds = watch.seconds
    experiment.add(
        config, SEED, seconds, config.get("epochs", 0) * config.get("images", 0) / 50_000,
        accuracy=accuracy(module, data.test),
        nonzeros=masks.nonzeros,
        weights=masks.weights,
        samples=len(data.test),
        resumed=resumed,
    )  # fmt: skip
    checkpoint.discard()


def table(experiment: Experiment) -> str:
    """Return the record as a Markdown table: methods down, sparsities across."""
    found: dict[str, dict[float, list[str]]] = {}
    for row in experiment.rows():
        config: Any = row.config
        cell = "not run" if row.accuracy is None else f"{100 * row.accuracy:.2f}"
        cells = found.setdefault(config["method"], {}).setdefault(config["sparsity"], [])
        cells.append(cell)
    heads = " | ".join(f"{sparsity:.0%}" for sparsity in SPARSITIES)
    lines = [f"| method | {heads} |", "|---" * (len(SPARSITIES) + 1) + "|"]
    order: Callable[[str], int] = list(dict.fromkeys(str(c["method"]) for c in ROWS)).index
    for method in sorted(found, key=order):
        shown = (" / ".join(found[method].get(sparsity, [])) for sparsity in SPARSITIES)
        lines.append(f"| {method} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the rows that were asked for, then print the table."""
    arguments = command_line(__doc__, resumes=True).parse_args()
    experiment = Experiment(
        "data_free", ["python", "benchmarks/accuracy/data_free.py", "--data-dir", "DIR"]
    )
    folder = Path() if arguments.table else data_folder(arguments.data_dir)
    if folder is None:
        return 0
    return measure_rows(
        arguments,
        experiment,
        [(config, SEED) for config in ROWS],
        lambda config, _: run(config, folder, experiment),
        table,
    )


if __name__ == "__main__":
    sys.exit(main())
