"""What do pruning and regrowing cost beside plain fine-tuning, in time and in memory?

Time: ResNet-20 on CIFAR-10, a short run that fills a 40 KiB file. What it spends on changing masks
(gradients for scores, ranking, the size solver, setting the masks) and on keeping pruned weights at
zero is measured apart from its steps, in seconds of CPU time of one thread, so that other work on
the machine counts little. A look at the validation split in the extreme state is measured apart as
well: that is for the report.

Memory: VGG16 with 138 million parameters, on synthetic images of 32 x 32 (its size does not depend
on the image's). What a change of the masks adds to the resident memory of the run at its peak,
beside what training holds already: weights, their pretrained values, gradients and momentum.

An epoch: of ResNet-20 with its teacher, 45,000 images and 5,000 of validation, averaged over 12 of
them, from the medians of 60 steps; with the recipe's views, and with a teacher that each step asks.
Rows for AVX2 want a process of their own (--rows 7), since torch looks at its environment once.

    python benchmarks/accuracy/cost.py --data-dir DIR [--rows 0,2-3] [--table]
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Experiment, Stopwatch, command_line, data_folder, measure_rows

Config = dict[str, Any]

KIB = 1024
SEED = 0
# A whole epoch of the training split, and the compiler's default length, for what it comes to.
EPOCH_IMAGES, DEFAULT_EPOCHS = 45_000, 12
TIME: Config = {
    "network": "cifar-resnet20", "budget_bytes": 40 * KIB, "values": "int8", "epochs": 2,
    "train_images": 12_800,
}  # fmt: skip
MEMORY: Config = {"network": "torchvision:vgg16", "density": 0.05, "epochs": 2, "train_images": 16}
# Few events: each of them takes the same memory.
# Records have the single dip by its name of then.
STRATEGIES = {"cubic": "cubic", "bidirectional": "bidirectional-single"}
FEW = {"prune_steps": 2, "steps": 2}
ROWS: list[tuple[Config, int]] = [
    ({**TIME, "strategy": "bidirectional", "options": {}}, SEED),
    ({**TIME, "strategy": "cubic", "options": {}}, SEED),
    ({**MEMORY, "strategy": "bidirectional", "options": FEW}, SEED),
    *(
        ({"network": "cifar-resnet20", "isa": isa, "precision": precision, "views": views}, SEED)
        for isa, precision in (("native", "auto"), ("native", "fp32"), ("avx2", "fp32"))
        for views in (0, 4)
    ),
]
VALIDATED = 5_000


@dataclass
class Spent:
    """What a run spent, by CPU time in seconds and by resident memory in bytes."""

    events: list[float] = field(default_factory=list)
    added_bytes: list[int] = field(default_factory=list)
    looks: float = 0.0
    zeros: float = 0.0
    epochs: float = 0.0
    optimizer_steps: int = 0


@contextmanager
def watched() -> Iterator[Spent]:
    """Measure the parts of every run inside."""
    from hwprune.training.engine import Engine
    from hwprune.training.sparse import SparseParameters

    course: Any = sys.modules["hwprune.training.finetune"]
    spent = Spent()
    parts: list[tuple[Any, str]] = [
        (Engine, "change_masks"), (course.Run, "_epoch"), (course.Run, "measure"),
        (SparseParameters, "mask_gradients"), (SparseParameters, "check"), (course.Run, "_step"),
    ]  # fmt: skip
    real = [getattr(owner, name) for owner, name in parts]
    inside = [False]

    def timed(function: Callable[..., Any], add: Callable[[float], None]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **options)
            finally:
                add(time.process_time() - start)

        return call

    def apply_due(run: Any, *args: Any, **options: Any) -> None:
        due = run.pending and (options.get("at_end") or run.pending[0][0] <= run.step)
        if not due:
            return real[0](run, *args, **options)
        before, looked, count = resident(reset=True)[0], spent.looks, len(run.pending)
        start, inside[0] = time.process_time(), True
        real[0](run, *args, **options)
        inside[0] = False
        seconds = time.process_time() - start - (spent.looks - looked)
        spent.events += [seconds / (count - len(run.pending))] * (count - len(run.pending))
        spent.added_bytes.append(resident()[1] - before)

    def add_look(seconds: float) -> None:
        spent.looks += seconds if inside[0] else 0.0

    def add_zeros(seconds: float) -> None:
        spent.zeros += seconds

    def add_epoch(seconds: float) -> None:
        spent.epochs += seconds

    def add_step(_: float) -> None:
        spent.optimizer_steps += 1

    adding = (add_epoch, add_look, add_zeros, add_zeros, add_step)
    watching = [apply_due, *(timed(f, add) for f, add in zip(real[1:], adding, strict=True))]
    for (owner, name), watcher in zip(parts, watching, strict=True):
        setattr(owner, name, watcher)
    try:
        yield spent
    finally:
        for (owner, name), function in zip(parts, real, strict=True):
            setattr(owner, name, function)


def resident(*, reset: bool = False) -> tuple[int, int]:
    """Return the resident bytes of this process now and at their peak (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return int(found["VmRSS"]) * KIB, int(found["VmHWM"]) * KIB


def run_epochs(config: Config, seed: int, folder: Path, experiment: Experiment) -> None:
    """Train for a few steps and save what an epoch takes."""
    if config["isa"] != "native":
        os.environ |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    if config["isa"] != "native" and capability != "AVX2":
        sys.exit("a row for AVX2 wants a process of its own: give --rows with that one alone")
    from hwprune.sampling import Sampled
    from hwprune.sparsity import make
    from hwprune.training import FinetuneConfig, Recipe, finetune
    from hwprune.training.evaluate import Validator
    from hwprune.training.teacher import Teacher

    torch.set_num_threads(1)
    watch, images, measured = Stopwatch(), 12 * 128, 500
    given = _resnet20({"budget_bytes": 40 * KIB, "values": "int8", "train_images": images,
                       "strategy": "cubic", "options": {}, **config}, seed, folder)  # fmt: skip
    given["strategy"] = make("one-shot", density=given["strategy"].density)
    part = Sampled(given["data"].validation, np.arange(measured, dtype=np.int64))
    given["data"] = replace(given["data"], validation=part)
    recipe = Recipe(epochs=5, precision=config["precision"], views=config["views"])
    given.pop("batch_size")
    course: Any = sys.modules["hwprune.training.finetune"]
    took: dict[str, list[float]] = {}

    def watched_part(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return real(*args, **options)
            finally:
                took.setdefault(name, []).append(time.process_time() - start)

        setattr(owner, name, call)

    for owner, name in ((course.Run, "_step"), (Validator, "measure"), (Teacher, "_answers")):
        watched_part(owner, name)
    result = finetune(FinetuneConfig(recipe=recipe, seed=seed, device="cpu", **given))
    step = statistics.median(took["_step"])
    validation = statistics.median(took["measure"]) * VALIDATED / measured
    views = sorted(took.get("_answers", ()))[-config["views"] :] if config["views"] else [0.0]
    asking = sum(views) * EPOCH_IMAGES / images / DEFAULT_EPOCHS
    experiment.add(
        config, seed, watch.seconds, recipe.epochs,
        capability=capability,
        precision=result.precision,
        step_cpu_seconds=round(step, 4),
        teacher_cpu_seconds_per_epoch=round(asking, 1),
        validation_cpu_seconds=round(validation, 1),
        epoch_cpu_seconds=round(step * (EPOCH_IMAGES // 128) + asking + validation, 1),
    )  # fmt: skip


def run(config: Config, seed: int, folder: Path, experiment: Experiment) -> None:
    """Train along a strategy once and save what its parts took."""
    if "views" in config:
        return run_epochs(config, seed, folder, experiment)
    import torch

    from hwprune.training import FinetuneConfig, Recipe, finetune

    torch.set_num_threads(1)
    watch = Stopwatch()
    given = network(config, seed, folder)
    recipe = replace(Recipe(), epochs=config["epochs"], batch_size=given.pop("batch_size"))
    with watched() as spent:
        result = finetune(FinetuneConfig(recipe=recipe, seed=seed, device="cpu", **given))
    module = given["module"]
    model_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    steps = spent.epochs - sum(spent.events) - spent.looks
    step = (steps - spent.zeros) / max(1, spent.optimizer_steps)
    epoch = step * (EPOCH_IMAGES // recipe.batch_size)
    zeros = spent.zeros / max(1, spent.optimizer_steps)
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in module.parameters()),
        "steps": spent.optimizer_steps,
        "events": len(spent.events),
        "event_cpu_seconds": round(sum(spent.events) / len(spent.events), 4),
        "largest_event_cpu_seconds": round(max(spent.events), 4),
        "model_bytes": model_bytes,
        "nonzeros": result.masks.nonzeros,
    }
    if "budget_bytes" in config:
        whole = DEFAULT_EPOCHS * epoch
        found |= {
            "step_cpu_seconds": round(step, 5),
            "zeros_cpu_seconds_per_step": round(zeros, 6),
            "extreme_look_cpu_seconds": round(spent.looks, 3),
            # Of a whole epoch at this cost of a step; and all events of a run of default length.
            "largest_event_of_epoch": round(max(spent.events) / epoch, 5),
            "zeros_of_step": round(zeros / step, 5),
            "overhead_of_run": round(sum(spent.events) / whole + zeros / step, 5),
        }
    else:  # a small network's peak is that of a batch's activations
        added = max(spent.added_bytes)
        found |= {
            "event_added_bytes": added,
            "event_added_in_models": round(added / model_bytes, 3),
        }
    experiment.add(config, seed, watch.seconds, config["epochs"], **found)


def network(config: Config, seed: int, folder: Path) -> dict[str, Any]:
    """Return the arguments of ``finetune`` that say what is trained, and the batch size."""
    if "budget_bytes" in config:
        return _resnet20(config, seed, folder)
    return _vgg16(config, seed)


def _resnet20(config: Config, seed: int, folder: Path) -> dict[str, Any]:
    from hwprune.frontend import load_data, load_model
    from hwprune.sampling import Sampled
    from hwprune.sparsity import make
    from hwprune.steps.planning import candidates_of, prepare
    from hwprune.targets import load

    model = load_model(str(folder / "weights" / "cifar10_resnet20.pth"), arch=config["network"])
    data = load_data(f"cifar10:{folder}?normalize=imagenet", seed=seed)
    data = replace(
        data, train=Sampled(data.train, np.arange(config["train_images"], dtype=np.int64))
    )
    prepared = prepare(model, load("raspberry-pi-5"))
    kinds = (config["values"],)
    candidate = candidates_of(prepared, kinds, config["budget_bytes"])[config["values"]]
    return {
        "module": model.module,
        "teacher": model.module,
        "data": data,
        "names": prepared.template.names,
        "strategy": make(
            STRATEGIES[config["strategy"]], density=candidate.density, **config["options"]
        ),
        "batch_size": 128,
        "fill": candidate.masks,
    }


def _vgg16(config: Config, seed: int) -> dict[str, Any]:
    import torch

    from hwprune.frontend.torchvision_shim import import_torchvision
    from hwprune.ir import Data
    from hwprune.sparsity import make

    torch.manual_seed(seed)
    module = import_torchvision().models.vgg16(weights=None)
    names = [name for name, parameter in module.named_parameters() if parameter.ndim > 1]
    weights = sum(dict(module.named_parameters())[name].numel() for name in names)
    count = round(config["density"] * weights)
    generator = np.random.default_rng(seed)
    noise = Noise(generator.standard_normal((config["train_images"], 3, 32, 32), dtype=np.float32))
    return {
        "module": module,
        "teacher": None,
        "data": Data("noise", noise, noise, noise, 1000, "none"),
        "names": names,
        "strategy": make(
            STRATEGIES[config["strategy"]], density=config["density"], **config["options"]
        ),
        "fill": lambda ranking, fraction: ranking.masks(min(len(ranking), round(count * fraction))),
        "batch_size": 4,
    }


@dataclass(frozen=True)
class Noise:
    """Random images, labelled in turn."""

    images: np.ndarray[Any, np.dtype[np.float32]]

    @property
    def labels(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return (n,) labels."""
        return np.arange(len(self.images), dtype=np.int64)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.images)

    def batch(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[Any, ...]:
        """Return the images at ``indices``."""
        return (self.images[indices],)


def table(experiment: Experiment) -> str:
    """Return the record as a Markdown table."""
    lines = [
        "| network | strategy | events | CPU s an event | largest, of an epoch |"
        " of a 12-epoch run | memory an event adds |",
        "|---|---|---|---|---|---|---|",
    ]
    epochs = [
        "",
        "| ResNet-20 on | precision | views | CPU s a step | teacher | validation | an epoch |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in experiment.rows():
        config, extra = row.config, row.model_extra or {}
        if "views" in config:
            keys = ("step_cpu_seconds", "teacher_cpu_seconds_per_epoch", "validation_cpu_seconds",
                    "epoch_cpu_seconds")  # fmt: skip
            cells = " | ".join(str(extra.get(key, "not run")) for key in keys)
            isa, precision = extra.get("capability", config["isa"]), extra.get("precision", "")
            epochs.append(f"| {isa} | {precision} | {config['views']} | {cells} |")
            continue
        cells = "not run | | | | |"
        if row.status == "run":
            shares = [
                f"{100 * float(extra[key]):.2f} %" if key in extra else ""
                for key in ("largest_event_of_epoch", "overhead_of_run")
            ]
            added = ""
            if "event_added_bytes" in extra:
                mebibytes = float(extra["event_added_bytes"]) / 2**20
                added = f"{mebibytes:,.0f} MiB, {extra['event_added_in_models']} of the model"
            cells = (
                f"{extra['events']} | {extra['event_cpu_seconds']} | {shares[0]} | {shares[1]} | "
                f"{added} |"
            )
        lines.append(f"| {config['network']} | {config['strategy']} | {cells}")
    return "\n".join(lines + epochs)


def main() -> int:
    """Run the rows that were asked for, then print the table."""
    arguments = command_line(__doc__).parse_args()
    experiment = Experiment("cost", ["python", "benchmarks/accuracy/cost.py", "--data-dir", "DIR"])
    folder = Path() if arguments.table else data_folder(arguments.data_dir)
    if folder is None:
        return 0
    return measure_rows(
        arguments, experiment, ROWS, lambda c, seed: run(c, seed, folder, experiment), table
    )


if __name__ == "__main__":
    sys.exit(main())
