"""What the accuracy studies share: one network, one strategy, one seed, and what came of it.

A study's row fine-tunes a pretrained network along a strategy to a number of nonzeros, or to the
bytes of a whole file, and measures it on the test set, in torch. Rows of one study differ in their
configuration only, so that arms at the same epochs, nonzeros and recipe can be paired by seed.

A row that was killed goes on from its last epoch: its state lies below build/studies until the row
is in the record.
"""

from __future__ import annotations

import hashlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Experiment, Stopwatch, command_line, data_folder, measure_rows

Config = dict[str, Any]

TARGET = "raspberry-pi-5"
ROOT = Path(__file__).resolve().parents[2]
# Where a network's checkpoint lies below the data folder, its data set, and how that is normalised.
NETWORKS = {"cifar-resnet20": ("weights/cifar10_resnet20.pth", "cifar10", "imagenet")}
# What a comparison is worth costs an accelerator; the short one proves mechanics and gives hints.
FULL: Config = {"epochs": 12, "train_images": None}
SHORT: Config = {"epochs": 3, "train_images": 10_000}
Rows = list[tuple[Config, int]]


def arm(strategy: str, **options: Any) -> Config:
    """Return the part of a configuration that says how connections come and go."""
    return {"strategy": strategy, "options": options}


def run(config: Config, seed: int, folder: Path, experiment: Experiment) -> None:
    """Train one row and add it to the record.

    Args:
        config: network; sparsity, or budget_bytes and values; strategy and options; epochs;
            train_images (None for all); recipe, where fields differ from their defaults.
        seed: of the split, the batches and the strategy.
        folder: the data folder.
        experiment: the record.
    """
    from hwprune.frontend import load_data, load_model
    from hwprune.steps.choosing import Part
    from hwprune.steps.planning import prepare
    from hwprune.targets import load
    from hwprune.training import Checkpoint, Recipe, accuracy, finetune
    from hwprune.training.devices import resolve

    watch, cpu = Stopwatch(), time.process_time()
    path, source, normalize = NETWORKS[config["network"]]
    model = load_model(str(folder / path), arch=config["network"])
    data = load_data(f"{source}:{folder}?normalize={normalize}", seed=seed)
    if config["train_images"] is not None:
        chosen = np.arange(config["train_images"], dtype=np.int64)
        data = replace(data, train=Part(data.train, chosen))
    prepared = prepare(model, load(TARGET), config.get("budget_bytes"))
    device = resolve()
    checkpoint = Checkpoint(state_path(experiment, config, seed), resume=True)
    result = finetune(
        model.module,
        data=data,
        names=prepared.names,
        recipe=replace(Recipe(), epochs=config["epochs"], **config.get("recipe", {})),
        teacher=model.module,
        seed=seed,
        device=device,
        progress=lambda event: _tell(event, watch),
        checkpoint=checkpoint,
        **_course(config, prepared),
    )
    experiment.add(
        config, seed, watch.seconds, result.cost_epochs,
        accuracy=accuracy(model.module, data.test),
        validation_accuracy=result.final_accuracy,
        dense_validation_accuracy=result.dense_accuracy,
        extreme_validation_accuracy=result.extreme_accuracy,
        nonzeros=result.masks.nonzeros,
        sparsity=1 - result.masks.nonzeros / result.masks.weights,
        steps=result.steps,
        cpu_seconds=round(time.process_time() - cpu, 1),
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        device=device,
        precision=result.precision,
        trajectory=[
            {key: point[key] for key in ("epoch", "action", "nonzeros", "accuracy")}
            for point in result.trajectory
            if point["accuracy"] is not None
        ],
        notes=list(result.notes),
    )  # fmt: skip
    checkpoint.discard()


def state_path(experiment: Experiment, config: Config, seed: int) -> Path:
    """Return where a row keeps its state between epochs."""
    text = json.dumps([config, seed], sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return ROOT / "build" / "studies" / experiment.path.stem / f"{name}.state"


def _course(config: Config, prepared: Any) -> dict[str, Any]:
    """Return the strategy and what fills its budget: connections, or a file's bytes."""
    from hwprune.sparsity import make
    from hwprune.steps.planning import plans_of
    from hwprune.steps.pricing import pricer
    from hwprune.steps.pruning import filler

    if "sparsity" in config:
        count = round((1 - config["sparsity"]) * prepared.weights)
        strategy = make(config["strategy"], density=count / prepared.weights, **config["options"])
        return {
            "strategy": strategy,
            "fill": lambda ranking, fraction: ranking.masks(
                min(len(ranking), round(count * fraction))
            ),
        }
    plan = plans_of(prepared, (config["values"],))[config["values"]]
    density = plan.max_nonzeros / plan.weights
    strategy = make(config["strategy"], density=density, **config["options"])
    return {
        "strategy": strategy,
        "fill": filler(prepared, plan),
        "marginal": pricer(prepared, plan),
    }


def _tell(event: Any, watch: Stopwatch) -> None:
    if event.accuracy is not None:
        accuracy = f"{100 * event.accuracy:.2f} %"
        print(f"  {watch.seconds:6.0f} s  {event.message}, validation {accuracy}", flush=True)


def spread(values: Sequence[float]) -> str:
    """Return the mean of accuracies in per cent, with the standard deviation where there is one."""
    if not values:
        return "not run"
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> str:
    """Return the mean difference of two arms in points, with its 95 % interval (Student's t).

    Args:
        first: accuracy by seed.
        second: the same; seeds that only one of them has are left out.
    """
    from scipy import stats

    differences = [100 * (first[seed] - second[seed]) for seed in sorted({*first} & {*second})]
    if not differences:
        return ""
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.2f} (one seed)"
    error = statistics.stdev(differences) / len(differences) ** 0.5
    reach = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return f"{mean:+.2f} [{mean - reach:+.2f}, {mean + reach:+.2f}]"


def by_seed(experiment: Experiment, config: Config, key: str = "accuracy") -> dict[int, float]:
    """Return what was measured for a configuration, by seed."""
    return {
        row.seed: float(getattr(row, key))
        for row in experiment.rows()
        if row.status == "run" and dict(row.config) == config
    }


def main(
    doc: str | None,
    name: str,
    rows: Callable[[Config], Rows],
    table: Callable[[Experiment, Config], str],
) -> int:
    """Run the rows of a study that were asked for, then print its table.

    Args:
        doc: the study's docstring.
        name: of its file and its record.
        rows: the rows at a scale: epochs and train_images.
        table: the record at a scale, as text.
    """
    parser = command_line(doc)
    parser.add_argument("--short", action="store_true", help=f"the scale of a CPU: {SHORT}")
    arguments = parser.parse_args()
    scale = SHORT if arguments.short else FULL
    command = ["python", f"benchmarks/accuracy/{name}.py", "--data-dir", "DIR"]
    experiment = Experiment(name, command)
    folder = Path() if arguments.table else data_folder(arguments.data_dir)
    if folder is None:
        return 0
    return measure_rows(
        arguments,
        experiment,
        rows(scale),
        lambda config, seed: run(config, seed, folder, experiment),
        lambda experiment: table(experiment, scale),
    )
