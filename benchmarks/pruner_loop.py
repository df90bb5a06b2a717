"""``hwprune.Pruner`` in a caller's own loop: what does a step cost, is it as good as compile?

Step time: ResNet-20, batches of 128; plain, with masks at 40 KiB, and with int8 values besides. The
three take turns, step by step; medians of processor time on one thread.

Accuracy: int8 at 40 KiB, by ``compile`` and by a loop in plain torch that has its recipe: the same
order, augmentation, rates and loss, distilled. 2,000 images, one epoch in batches of 32; rows from
21 on, the short scale (10,000 images, three epochs, batches of 128). Accuracy is that of the
written file on images of the test set, in onnxruntime. The two loops write the same file, to the
byte, whose hash stands in each row (a small network: tests/test_pruner_and_compile.py).

    python benchmarks/pruner_loop.py --data-dir DIR [--rows 0,2-4] [--table] [--restart]

DIR holds ``cifar-10-batches-py`` and ``weights/cifar10_resnet20.pth``. Row 0 is the step time, then
come the strategies and loops of one seed after the other.
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import Experiment, Stopwatch, command_line, data_folder, measure_rows, scratch

TARGET, BUDGET = "raspberry-pi-zero-2w", 40 * 1024
SMALL = {"images": 2_000, "epochs": 1, "batch_size": 32, "measured_images": 1_000}
SHORT = {"images": 10_000, "epochs": 3, "batch_size": 128, "measured_images": 10_000}
STRATEGIES: dict[str, dict[str, Any]] = {
    "cubic": {}, "bidirectional": {"prune_steps": 20, "exchanges": 10},
}  # fmt: skip
LOOPS = ("compile", "pruner")
ROUNDS = 20
STEP_TIME = {"measured": "step time", "batch": 128, "rounds": ROUNDS}


def rows() -> list[tuple[dict[str, Any], int]]:
    """Return every (config, seed): the step time, then what is compared side by side."""
    compared: list[tuple[dict[str, Any], int]] = [
        (
            {"measured": "accuracy", "strategy": strategy, "options": options, "loop": loop,
             **scale, "budget_bytes": BUDGET},
            seed,
        )
        for scale, seeds in ((SMALL, 5), (SHORT, 5))
        for seed in range(seeds)
        for strategy, options in STRATEGIES.items()
        for loop in LOOPS
    ]  # fmt: skip
    return [(STEP_TIME, 0), *compared]


def step_time(folder: Path, experiment: Experiment) -> None:
    """Time steps of three copies of the network in turn."""
    import torch
    from torch.nn import functional

    from hwprune import Pruner
    from hwprune.frontend import load_model

    torch.set_num_threads(1)
    dense = load_model(str(folder / "weights" / "cifar10_resnet20.pth")).module
    watch = Stopwatch()
    arms: dict[str, Any] = {}
    for name, quantise_from in (("plain", None), ("masks", 1.0), ("int8 values", 0.0)):
        model = copy.deepcopy(dense).train()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
        if quantise_from is not None:
            Pruner(
                model, optimizer, target=TARGET, budget=BUDGET, values="int8", strategy="one-shot",
                example_input=torch.zeros(1, 3, 32, 32), steps=10 * ROUNDS,
                quantise_from=quantise_from,
            )  # fmt: skip
        arms[name] = (model, optimizer, [])
    generator = torch.Generator().manual_seed(0)
    for number in range(ROUNDS + 3):
        images = torch.randn(128, 3, 32, 32, generator=generator)
        classes = torch.randint(0, 10, (128,), generator=generator)
        for model, optimizer, taken in arms.values():
            began = time.process_time()
            optimizer.zero_grad()
            functional.cross_entropy(model(images), classes).backward()
            optimizer.step()
            if number >= 3:
                taken.append(1000 * (time.process_time() - began))
    medians = {name: statistics.median(taken) for name, (*_, taken) in arms.items()}
    experiment.add(
        STEP_TIME, 0, watch.seconds, 0.0, milliseconds=medians, load=os.getloadavg()[0],
        overhead={name: each / medians["plain"] - 1 for name, each in medians.items()},
    )  # fmt: skip


def accuracy(config: dict[str, Any], seed: int, folder: Path, experiment: Experiment) -> None:
    """Train one row, in the loop that it names."""
    from dataclasses import replace

    import numpy as np

    from hwprune.frontend import load_data, load_model
    from hwprune.sampling import Sampled

    watch = Stopwatch()
    data = load_data(f"cifar10:{folder}?normalize=imagenet", seed=seed)
    draws = np.random.default_rng(seed)

    def some(split: Any, most: int) -> Any:
        return Sampled(split, np.sort(draws.permutation(len(split))[:most]))

    data = replace(
        data,
        train=some(data.train, config["images"]),
        validation=some(data.validation, config["measured_images"]),
        test=some(data.test, config["measured_images"]),
    )
    model = load_model(str(folder / "weights" / "cifar10_resnet20.pth"))
    with scratch() as output:
        train = _compiled if config["loop"] == "compile" else _pruned
        report = train(config, seed, model, data, Path(output) / "out")
    metric = report["metric"]
    experiment.add(
        config, seed, watch.seconds, config["epochs"],
        accuracy=metric["final"], dense_accuracy=metric["dense"],
        artifact_bytes=report["artifact"]["bytes"], nonzeros=report["result"]["nonzeros"],
        sha256=report["artifact"]["sha256"], verified=report["verdict"]["verified"],
    )  # fmt: skip


def _recipe_of(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in ("epochs", "batch_size")} | {"precision": "fp32"}


def _compiled(config: dict[str, Any], seed: int, model: Any, data: Any, output: Path) -> Any:
    import torch

    from hwprune.api import model_of
    from hwprune.compiler import compile_model
    from hwprune.job import resolve
    from hwprune.targets import load

    recipe = _recipe_of(config)
    # As a Pruner has it: names are part of a file's bytes, and so of what fits.
    model = model_of(model.module, torch.zeros(1, 3, 32, 32), None, seed=seed)
    job = resolve(
        model, load(TARGET), data, output, budget_bytes=config["budget_bytes"], values="int8",
        strategy=config["strategy"], strategy_options=config["options"], seed=seed, device="cpu",
        recipe=recipe, checkpoint_seconds=1e9,
    )  # fmt: skip
    return compile_model(job).report


def _pruned(config: dict[str, Any], seed: int, model: Any, data: Any, output: Path) -> Any:
    import numpy as np
    import torch
    from torch.nn import functional

    from hwprune import Pruner
    from hwprune.training import Recipe
    from hwprune.training.batches import Batches, augment, epoch_order, steps_per_epoch
    from hwprune.training.module_state import place
    from hwprune.training.optimizer import sgd

    recipe = Recipe(**_recipe_of(config))
    network, teacher = model.module, copy.deepcopy(model.module)
    for each in (network, teacher):
        place(each, "cpu", channels_last=True)
        each.requires_grad_(True)
    teacher.eval()
    batches = Batches(data.train, device="cpu", resident_bytes=2**31, channels_last=True)
    steps = config["epochs"] * steps_per_epoch(batches.size, recipe.batch_size)
    optimizer = sgd(network, recipe)
    pruner = Pruner(
        network, optimizer, target=TARGET, budget=config["budget_bytes"], values="int8",
        strategy=config["strategy"], example_input=torch.zeros(1, 3, 32, 32), steps=steps,
        seed=seed, data=data, **config["options"],
    )  # fmt: skip
    pruner.begin()
    generator, step = torch.Generator().manual_seed(seed), 0
    share, heat = recipe.distillation_weight, recipe.temperature
    for _ in range(config["epochs"]):
        network.train()
        for plain in batches.take(epoch_order(batches.size, recipe.batch_size, generator)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step / steps)
            batch = augment(plain, data.augment, generator)
            optimizer.zero_grad()
            logits = network(*batch.inputs)
            with torch.no_grad():
                wanted = functional.log_softmax(teacher(*batch.inputs) / heat, dim=1)
            soft = functional.log_softmax(logits / heat, dim=1)
            far = functional.kl_div(soft, wanted, reduction="batchmean", log_target=True)
            hard = functional.cross_entropy(logits, batch.labels)
            ((1 - share) * hard + share * (heat * heat * far)).backward()
            optimizer.step()
            step += 1

    def evaluate(session: Any) -> float:
        right, name = 0, session.get_inputs()[0].name
        for index in np.array_split(np.arange(len(data.test)), 40):
            logits = session.run(None, {name: data.test.batch(index)[0]})[0]
            right += int((logits.argmax(1) == data.test.labels[index]).sum())
        return right / len(data.test)

    return pruner.export(output, evaluate=evaluate, metric="accuracy").report


def table(experiment: Experiment) -> str:
    """Return step times, and the two loops side by side: accuracies, and how often files agree."""
    lines = []
    groups: dict[tuple[int, str], dict[str, dict[int, Any]]] = {}
    for row in experiment.rows():
        if row.status != "run":
            continue
        if row.config["measured"] == "step time":
            for name, each in row.milliseconds.items():
                lines.append(f"{name}: {each:.1f} ms a step, {100 * row.overhead[name]:+.1f} %")
        else:
            key = (int(row.config["images"]), str(row.config["strategy"]))
            loops = groups.setdefault(key, {loop: {} for loop in LOOPS})
            loops[str(row.config["loop"])][row.seed] = row
    for (images, strategy), loops in sorted(groups.items()):
        both = [seed for seed in loops["compile"] if seed in loops["pruner"]]
        if not both:
            continue
        means = ", ".join(
            f"{loop} {statistics.mean(100 * rows[seed].accuracy for seed in both):.2f} %"
            for loop, rows in loops.items()
        )
        same = sum(loops["compile"][seed].sha256 == loops["pruner"][seed].sha256 for seed in both)
        lines.append(
            f"{images:,} images, {strategy}: {means} ({len(both)} seeds; the same file in {same})"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the rows that were asked for, then print the table."""
    arguments = command_line(__doc__, resumes=True).parse_args()
    experiment = Experiment(
        "pruner_loop", ["python", "benchmarks/pruner_loop.py", "--data-dir", "DIR"]
    )
    folder = Path() if arguments.table else data_folder(arguments.data_dir)
    if folder is None:
        return 0

    def run(config: dict[str, Any], seed: int) -> None:
        if config["measured"] == "step time":
            step_time(folder, experiment)
        else:
            accuracy(config, seed, folder, experiment)

    return measure_rows(arguments, experiment, rows(), run, table)


if __name__ == "__main__":
    sys.exit(main())
