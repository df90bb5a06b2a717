"""What the accuracy studies share: one network, one strategy, one seed, and what came of it.

A study's row fine-tunes a pretrained network along a strategy to a number of nonzeros, or to the
bytes of a whole file, or through stages (staged.py), and measures it on the test set, in torch.
Rows of one study differ in their configuration only, so that arms at the same epochs, nonzeros and
recipe can be paired by seed.

A row that was killed goes on from its last epoch: its state lies below build/studies until the row
is in the record. On CUDA steps go through torch.compile, unless TORCHDYNAMO_DISABLE=1 is set.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import staged
from common import (
    Experiment,
    Stopwatch,
    command_line,
    data_folder,
    device_name,
    measure_rows,
)
from networks import (
    BUILD,
    fresh_network,
    open_data,
    open_network,
    source_digest,
    test_accuracy,
    untrained,
)

Config = dict[str, Any]

TARGET = "raspberry-pi-5"
# What a comparison is worth costs an accelerator; the short one proves mechanics and gives hints.
FULL: Config = {"epochs": 12, "train_images": None}
SHORT: Config = {"epochs": 3, "train_images": 10_000}
# Whether it runs at all; its record is no result, and lies below build/smoke.
SMOKE: Config = {"epochs": 1, "train_images": 256, "eval_images": 200}
Rows = list[tuple[Config, int]]


def arm(strategy: str, **options: Any) -> Config:
    """Return the part of a configuration that says how connections come and go."""
    return {"strategy": strategy, "options": options}


def run(config: Config, seed: int, folder: Path, experiment: Experiment) -> None:
    """Train one row and add it to the record.

    Args:
        config: network; sparsity, or budget_bytes and values, with strategy and options; or
            stages (and regrow); epochs (of each stage); train_images (None for all); recipe, where
            fields differ from their defaults; ``start: random`` for a network that is not trained,
            with the dense one as its teacher, ``start: scratch`` for one without a teacher; data,
            where it is not cifar10; sharing, for residual stages that share their weights;
            dense_epochs, where the dense network was not trained as long as its scale has it;
            eval_images in a trial.
        seed: of the split, the batches and the strategy.
        folder: the data folder.
        experiment: the record.
    """
    from hwprune.extreme import extreme_hooks
    from hwprune.extreme.sharing import share
    from hwprune.steps.planning import prepare
    from hwprune.targets import load
    from hwprune.training import Checkpoint, FinetuneConfig, Recipe, finetune
    from hwprune.training.devices import resolve

    watch, cpu = Stopwatch(), time.process_time()
    scratch = config.get("start") == "scratch"
    model = fresh_network(config, seed) if scratch else open_network(config, folder)
    data = open_data(config, folder, seed)
    saved = share(model.module, pretrained=model.trained).saved if config.get("sharing") else 0
    prepared = prepare(model, load(TARGET))
    device = resolve()
    checkpoint = Checkpoint(experiment.state_path(config, seed), resume=True, every_seconds=0.0)
    resumed = checkpoint.path.exists()
    module = model.module
    if config.get("start") == "random":
        module = untrained(config["network"], seed)
    compiled = device.startswith("cuda")
    given = {"per_round": "stages" in config, "compiled": compiled, **config.get("recipe", {})}
    recipe = replace(Recipe(), epochs=config["epochs"], **given)
    result = finetune(
        FinetuneConfig(
            module=module,
            data=data,
            names=prepared.template.names,
            recipe=recipe,
            teacher=None if scratch else model.module,
            seed=seed,
            device=device,
            progress=lambda event: _tell(event, watch),
            checkpoint=checkpoint,
            observe=(lambda now: test_accuracy(now, data, device)) if "stages" in config else None,
            hooks=extreme_hooks,
            **_course(config, prepared, saved),
        )
    )
    tested = test_accuracy(module, data, device)
    stages = {}
    if "stages" in config:
        weights = result.masks.weights
        found = staged.points(result.trajectory, weights, tested, result.final_metric)
        stages = {"stages": found}
    experiment.add(
        config, seed, max(watch.seconds, result.seconds), result.cost_epochs,
        accuracy=tested,
        validation_accuracy=result.final_metric,
        dense_validation_accuracy=result.dense_metric,
        extreme_validation_accuracy=result.extreme_metric,
        nonzeros=result.masks.nonzeros,
        sparsity=1 - result.masks.nonzeros / (result.masks.weights + saved),
        steps=result.steps,
        # The CPU's clock does not go on from an earlier process.
        **({} if resumed else {"cpu_seconds": round(time.process_time() - cpu, 1)}),
        resumed=resumed,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        device=device_name(device),
        precision=result.precision,
        compiled=recipe.compiled,
        dense_sha256=None if scratch else source_digest(model),
        **stages,
        trajectory=[
            {key: point[key] for key in ("epoch", "action", "nonzeros")}
            | {"accuracy": point["metric"]}
            for point in result.trajectory
            if point["metric"] is not None
        ],
        notes=list(result.notes),
    )  # fmt: skip
    checkpoint.discard()


def _course(config: Config, prepared: Any, saved: int) -> dict[str, Any]:
    """Return the strategy and what fills its budget: connections, or a file's bytes.

    A sparsity is one of the network as it was: what sharing has saved counts among its weights.
    """
    from hwprune.sparsity import make
    from hwprune.steps.planning import candidates_of

    if "sparsity" in config or "stages" in config:
        sparsity = config["stages"][-1] if "stages" in config else config["sparsity"]
        count = round((1 - sparsity) * (prepared.template.weights + saved))
        if "stages" in config:
            strategy = staged.course(config["stages"], **config.get("regrow", {}))
        else:
            density = count / prepared.template.weights
            strategy = make(config["strategy"], density=density, **config["options"])
        return {
            "strategy": strategy,
            "fill": lambda ranking, fraction: ranking.masks(
                min(len(ranking), round(count * fraction))
            ),
        }
    kinds = (config["values"],)
    candidate = candidates_of(prepared, kinds, config["budget_bytes"])[config["values"]]
    return {
        "strategy": make(config["strategy"], density=candidate.density, **config["options"]),
        "fill": candidate.masks,
    }


def _tell(event: Any, watch: Stopwatch) -> None:
    if event.metric is not None:
        accuracy = f"{100 * event.metric:.2f} %"
        print(f"  {watch.seconds:6.0f} s  {event.message}, validation {accuracy}", flush=True)


def spread(values: Sequence[float]) -> str:
    """Return the mean of accuracies in per cent, with the standard deviation where there is one."""
    if not values:
        return "not run"
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def differences(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """Return by how many points the first arm is ahead, for each seed that both have.

    Args:
        first: accuracy by seed.
        second: the same.
    """
    return [100 * (first[seed] - second[seed]) for seed in sorted({*first} & {*second})]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of two or more values (Student's t)."""
    from scipy import stats

    mean = statistics.mean(values)
    error = statistics.stdev(values) / len(values) ** 0.5
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - reach, mean + reach


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> str:
    """Return the mean of ``differences`` in points, with its 95 % interval, as text."""
    ahead = differences(first, second)
    if not ahead:
        return ""
    mean = statistics.mean(ahead)
    if len(ahead) < 2:
        return f"{mean:+.2f} (one seed)"
    low, high = interval(ahead)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


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
    *,
    full: Config = FULL,
    short: Config = SHORT,
    measure: Callable[[Config, int, Path, Experiment], None] = run,
) -> int:
    """Run the rows of a study that were asked for, then print its table.

    Args:
        doc: the study's docstring.
        name: of its file and its record.
        rows: the rows at a scale: epochs and train_images.
        table: the record at a scale, as text.
        full: the scale that is worth something.
        short: the scale of a CPU.
        measure: what runs a row.
    """
    from hwprune.errors import HwpruneError

    parser = command_line(doc, resumes=True)
    parser.add_argument("--short", action="store_true", help=f"the scale of a CPU: {short}")
    parser.add_argument("--smoke", action="store_true", help=f"the mechanics only: {SMOKE}")
    parser.add_argument("--epochs", type=int, help="instead of the scale's: rows of their own")
    parser.add_argument(
        "--dense-epochs", type=int, help="of the dense network, instead of its scale's: other rows"
    )
    arguments = parser.parse_args()
    scale = SMOKE if arguments.smoke else short if arguments.short else full
    for name_, value in (("epochs", arguments.epochs), ("dense_epochs", arguments.dense_epochs)):
        if value is not None:
            if value < 1:
                parser.error("epochs must be 1 or more")
            scale = {**scale, name_: value}
    command = ["python", f"benchmarks/accuracy/{name}.py", "--data-dir", "DIR"]
    experiment = Experiment(name, command)
    if arguments.smoke:
        experiment.path = BUILD / "smoke" / f"{name}.json"
    folder = Path() if arguments.table else data_folder(arguments.data_dir)
    if folder is None:
        return 0
    try:
        return measure_rows(
            arguments,
            experiment,
            rows(scale),
            lambda config, seed: measure(config, seed, folder, experiment),
            lambda experiment: table(experiment, scale),
        )
    except HwpruneError as error:
        print(f"{error.message}\n{error.hint or ''}", file=sys.stderr)
        return error.exit_code
