"""Dense networks for the accuracy studies, trained on CIFAR-10 from scratch.

The engine that prunes trains them too, along a course without events: images lie on the device as
bytes and are cropped, mirrored and cut there; bf16, NHWC and torch.compile where there is CUDA. The
45,000 images of the training split are used, and the last epoch's weights: nothing is chosen, and
the validation tenth stays unseen for the studies.

    python benchmarks/accuracy/train_dense.py --data-dir DIR [--short | --smoke] [--epochs N]
        [--rows 0,2-4] [--table] [--device auto] [--no-compile] [--restart]

DIR holds ``cifar-10-batches-py``. The state is kept after every epoch, and a row that was
interrupted goes on from there. Weights go to ``build/dense``, in files whose names say the scale,
what they are to benchmarks/results/train_dense.json. Accuracy is torch's. ``--smoke`` tries the
mechanics in minutes of a CPU: 512 images, two epochs, a record below ``build/smoke``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Experiment, command_line, data_folder, device_name, measure_rows
from networks import (
    BUILD,
    DENSE_FULL,
    DENSE_SHORT,
    DENSE_SMOKE,
    TRAINED,
    dense_path,
    dense_recipe,
    digest,
    open_data,
    test_accuracy,
    untrained,
)

Config = dict[str, Any]

FULL, SHORT, SMOKE = DENSE_FULL, DENSE_SHORT, DENSE_SMOKE
SEEDS = range(3)
# What the project asks of them, in per cent.
AIMS = {
    "cifar-vgg16-bn": 94.0, "cifar-densenet121": 95.0, "cifar-efficientnet-b0": 93.5,
    "cifar-resnet50": 95.0,
}  # fmt: skip


def cell(network: str, scale: Config) -> Config:
    """Return the configuration of a network."""
    return {"network": network, **scale, "recipe": dense_recipe(network)}


def rows(scale: Config) -> list[tuple[Config, int]]:
    """Return all rows: every network with the first seed, then the other seeds."""
    return [(cell(network, scale), seed) for seed in SEEDS for network in TRAINED]


class Trained(Experiment):
    """A record whose rows are only done where their weights are at hand too."""

    def done(self, config: Mapping[str, Any], seed: int) -> bool:
        """Return whether the row was measured, and its file is here, unchanged."""
        path = dense_path(config["network"], config, seed)
        row = next((r for r in self.rows() if dict(r.config) == config and r.seed == seed), None)
        if row is None or row.status != "run" or not path.is_file():
            return False
        return bool((row.model_extra or {})["sha256"] == digest(path))


def run(config: Config, seed: int, folder: Path, experiment: Experiment, **how: Any) -> None:
    """Train one network, keep its weights and add it to the record.

    Args:
        config: network, epochs, train_images, recipe; eval_images in a trial.
        seed: of the initial weights, the order of images and their augmentation.
        folder: the data folder.
        experiment: the record.
        how: ``device`` and ``compiled``, which a row's configuration does not depend on.
    """
    import torch

    from hwprune.sparsity import make
    from hwprune.training import Checkpoint, FinetuneConfig, Recipe, finetune
    from hwprune.training.devices import resolve

    device = resolve(how.get("device", "auto"))
    compiled = how.get("compiled", True) and device.startswith("cuda")
    module = untrained(config["network"], seed)
    data = open_data(config, folder, seed)
    checkpoint = Checkpoint(experiment.state_path(config, seed), resume=True, every_seconds=0.0)
    recipe = {"distillation_weight": 0.0, "compiled": compiled, **config["recipe"]}
    result = finetune(
        FinetuneConfig(
            module=module,
            data=data,
            names=[name for name, each in module.named_parameters() if each.ndim > 1],
            strategy=replace(make("dense", density=1.0), trains=True),
            fill=lambda ranking, fraction: ranking.masks(len(ranking)),
            recipe=replace(Recipe(), epochs=config["epochs"], **recipe),
            teacher=None,
            seed=seed,
            device=device,
            progress=_tell,
            checkpoint=checkpoint,
        )
    )
    path = dense_path(config["network"], config, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".new")
    torch.save({key: value.cpu() for key, value in module.state_dict().items()}, whole)
    os.replace(whole, path)
    experiment.add(
        config, seed, result.seconds, result.epochs,
        accuracy=test_accuracy(module, data, device),
        validation_accuracy=result.final_metric,
        sha256=digest(path),
        file=path.name,
        bytes=path.stat().st_size,
        parameters=sum(each.numel() for each in module.parameters()),
        steps=result.steps,
        device=device_name(device),
        precision=result.precision,
        compiled=compiled,
        notes=list(result.notes),
    )  # fmt: skip
    checkpoint.discard()


def _tell(event: Any) -> None:
    if event.metric is not None:
        loss = f"loss {event.loss:.3f}, validation {100 * event.metric:.2f} %"
        print(f"  {event.message}, {loss}", flush=True)
    elif "continued" in event.message:
        print(f"  {event.message}", flush=True)


def table(experiment: Experiment, scale: Config) -> str:
    """Return test accuracy by network and seed, next to what is asked for."""
    lines = [
        "| network | asked for | "
        + " | ".join(f"seed {seed}, test %" for seed in SEEDS)
        + " | epochs | seconds an epoch | device |",
        "|---|---|" + "---|" * (len(SEEDS) + 3),
    ]
    for network in TRAINED:
        done = {
            row.seed: row
            for row in experiment.rows()
            if row.status == "run" and dict(row.config) == cell(network, scale)
        }
        cells = [
            f"{100 * (done[seed].accuracy or 0):.2f}" if seed in done else "not run"
            for seed in SEEDS
        ]
        cost, device = "", ""
        if done:
            row = next(iter(done.values()))
            extra: Any = row.model_extra
            cost = f"{row.cost.seconds / max(1, row.cost.epochs):.1f}" if row.cost else ""
            device = f"{extra['device']}, {extra['precision']}"
        aim = f"{AIMS[network]:.1f}" if network in AIMS else ""
        lines.append(
            f"| {network} | {aim} | {' | '.join(cells)} | {scale['epochs']} | {cost} | {device} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Train the rows that were asked for, then print the table."""
    from hwprune.errors import HwpruneError

    parser = command_line(__doc__, resumes=True)
    parser.add_argument("--short", action="store_true", help=f"the scale of a CPU: {SHORT}")
    parser.add_argument("--smoke", action="store_true", help=f"the mechanics only: {SMOKE}")
    parser.add_argument("--epochs", type=int, help="instead of the scale's: rows of their own")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--no-compile", action="store_true", help="no torch.compile on CUDA")
    arguments = parser.parse_args()
    scale = SMOKE if arguments.smoke else SHORT if arguments.short else FULL
    if arguments.epochs is not None:
        if arguments.epochs < 1:
            parser.error("--epochs must be 1 or more")
        scale = {**scale, "epochs": arguments.epochs}
    name = "train_dense"
    experiment = Trained(name, ["python", f"benchmarks/accuracy/{name}.py", "--data-dir", "DIR"])
    if arguments.smoke:
        experiment.path = BUILD / "smoke" / f"{name}.json"
    folder = Path() if arguments.table else data_folder(arguments.data_dir)
    if folder is None:
        return 0
    how = {"device": arguments.device, "compiled": not arguments.no_compile}
    try:
        return measure_rows(
            arguments,
            experiment,
            rows(scale),
            lambda config, seed: run(config, seed, folder, experiment, **how),
            lambda experiment: table(experiment, scale),
        )
    except HwpruneError as error:
        print(f"{error.message}\n{error.hint or ''}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
