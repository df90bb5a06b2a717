"""What does a network come to on each device? The benchmark report per built-in profile.

Every profile gets the demo network (digits-cnn, trained here by examples/train_digits.py on the
images that scikit-learn ships) twice, at its default budget and at one that forces at least 90 %
sparsity; and the pretrained ResNet-20 on CIFAR-10 at its default budget, where its data are given.

    python benchmarks/devices.py [--data-dir DIR] [--rows 0-39] [--epochs N] [--page]

DIR holds ``cifar-10-batches-py`` and ``weights/cifar10_resnet20.pth``, the ResNet-20 of
akamaster/pytorch_resnet_cifar10. Rows are saved as they are measured; rows that were saved are not
run again. The record is benchmarks/results/devices.json, and docs/devices.md is written from it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench_record
import devices_page
from common import Experiment, Stopwatch, command_line, data_folder, parse_rows, scratch

from hwprune.errors import ExportError, InfeasibleError
from hwprune.targets import load, names

if TYPE_CHECKING:
    from bench_record import Row

    from hwprune.ir import Plan, ValueType

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "devices.md"
DEMO, RESNET = "digits-cnn", "cifar-resnet20"
FORCED_BYTES = 12 * 1024  # less than a tenth of the demo network's weights fit, in every form
EPOCHS = {DEMO: 12, RESNET: 2}
SEED = 0

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Network:
    """A trained network and the data it is compiled and tested with."""

    checkpoint: Path
    data: str


# -- which rows there are, and which are one measurement ------------------------------------------


def configs(epochs: int | None = None) -> list[Config]:
    """Return one config per row: the demo network's two tables first, then the ResNet-20's.

    A config holds all of a profile that a compilation depends on, so that a row whose profile has
    changed since is another row.
    """
    tables = [(DEMO, None), (DEMO, FORCED_BYTES), (RESNET, None)]
    return [
        _config(network, target, forced, EPOCHS[network] if epochs is None else epochs)
        for network, forced in tables
        for target in names()
    ]


def _config(network: str, target: str, forced: int | None, epochs: int) -> Config:
    profile = load(target)
    runtime = profile.runtime
    return {
        "network": network,
        "target": profile.name,
        "budget": "default" if forced is None else "forced",
        "budget_bytes": profile.budget_bytes if forced is None else forced,
        "epochs": epochs,
        "runtime": runtime.kind,
        "opset": runtime.opset,
        "ir_version": runtime.ir_version,
        "inline_functions": runtime.inline_functions,
        "codecs": list(profile.codecs),
        "value_types": list(profile.value_types),
    }


def outcome_key(config: Mapping[str, Any]) -> Config:
    """Return what the outcome depends on: all but the device's name, and why the budget is that."""
    return {key: value for key, value in config.items() if key not in ("target", "budget")}


def measured_like(config: Config, seed: int, rows: Sequence[Row]) -> Row | None:
    """Return a measured row whose outcome is this row's too; None where there is none."""
    key = outcome_key(config)
    done = (row for row in rows if row.status == "run" and row.seed == seed)
    return next((row for row in done if outcome_key(row.config) == key), None)


def epochs_for(plans: Mapping[ValueType, Plan], asked: int) -> int:
    """Return the epochs to spend: none where some value type keeps every weight."""
    whole = any(plan.limited_by == "weights" for plan in plans.values())
    return 0 if whole else asked


# -- one measurement ------------------------------------------------------------------------------


def measure(config: Config, network: Network) -> dict[str, Any]:
    """Compile one row; return what was found. A budget that cannot be met is a finding too."""
    from hwprune.compiler import compile_model
    from hwprune.export.artifact import read_artifact
    from hwprune.frontend import load_data, load_model
    from hwprune.job import resolve
    from hwprune.steps.fitting import plan_model

    target = load(config["target"])
    budget = config["budget_bytes"]

    def say(status: Any) -> None:
        if "validation" in status.message:
            print(f"    {status.message}", flush=True)

    data = load_data(network.data, seed=SEED)
    with scratch() as output:
        try:
            plans = plan_model(
                load_model(str(network.checkpoint)), target, budget_bytes=budget
            ).plans
            # A second copy of the network: planning has touched the first, training changes it.
            model = load_model(str(network.checkpoint))
            job = resolve(
                model, target, data, Path(output) / "out", budget_bytes=budget, seed=SEED,
                epochs=epochs_for(plans, config["epochs"]),
            )  # fmt: skip
            artifact = compile_model(job, say)
        except (ExportError, InfeasibleError) as error:
            return {"error": error.message, "exit_code": error.exit_code}
        form = read_artifact(artifact.path).form
    return findings(artifact.report, form)


def findings(report: Mapping[str, Any], form: str) -> dict[str, Any]:
    """Return what the record keeps of a compilation's report."""
    result, accuracy, latency = report["result"], report["accuracy"], report["latency"]
    most = report["budget"]["max_nonzeros"]
    layers = result["layers"]
    return {
        "form": form,
        "strategy": report["strategy"],
        "strategy_options": defaults_of(report["strategy"]),
        "value_types_used": sorted({layer["value_type"] for layer in layers}),
        "codecs_used": sorted({layer["codec"] for layer in layers}),
        "weights": result["weights"],
        # null in a report means that the dense model fits: every weight may live.
        "max_nonzeros": result["weights"] if most is None else most,
        "nonzeros": result["nonzeros"],
        "sparsity": result["sparsity"],
        "artifact_bytes": result["artifact_bytes"],
        "dense_accuracy": accuracy["dense"],
        "accuracy": accuracy["final"],
        "samples": accuracy["samples"],
        "split": accuracy["split"],
        "host_latency": {
            "dense": _run(latency["dense"]),
            "artifact": _run(latency["stock"]),
            "host": latency["host"],
            "onnxruntime": latency["onnxruntime"],
        }
        if latency["stock"] is not None
        else None,
        "relative_error": report["parity"]["relative_error"],
        "fits": report["verdict"]["fits"],
        "verified": report["verdict"]["verified"],
        "scope": report["verdict"]["scope"],
        "exit_code": report["verdict"]["exit_code"],
        "trained_epochs": report["epochs"],
    }


def defaults_of(strategy: str) -> dict[str, Any]:
    """Return the options that a strategy has today: its defaults may change after a row was run."""
    from hwprune.sparsity import options_of

    return options_of(strategy)


def _run(run: Mapping[str, Any] | None) -> dict[str, Any] | None:
    kept = ("p50_ms", "p90_ms", "runs", "threads")
    return None if run is None else {key: run[key] for key in kept}


# -- the whole report -----------------------------------------------------------------------------


def fill(wanted: Sequence[Config], experiment: Experiment, networks: Mapping[str, Network]) -> None:
    """Measure rows whose network is here; copy what cannot differ from a row that was measured."""
    for number, config in enumerate(wanted, 1):
        if config["network"] not in networks:
            continue
        label = f"{number}/{len(wanted)} {config['network']} on {config['target']}"
        found = measured_like(config, SEED, experiment.rows())
        if found is not None:
            shared = found.model_dump(exclude={"config", "seed", "status", "cost"})
            print(f"{label}: as {shared['measured_with']}", flush=True)
            # It cost nothing: epochs and seconds were spent on the row it was measured with.
            experiment.add(config, SEED, 0.0, 0, **shared)
            continue
        print(f"{label}: {config['budget_bytes']:,} B", flush=True)
        watch = Stopwatch()
        measured = measure(config, networks[config["network"]])
        spent = measured.get("trained_epochs", 0)
        experiment.add(
            config, SEED, watch.seconds, spent, measured_with=config["target"], **measured
        )


def pretrained_resnet(data_dir: str | None) -> Network | None:
    """Return the ResNet-20 and its data; None, with a clear line, where they are absent."""
    folder = data_folder(data_dir)
    if folder is None:
        return None
    checkpoint = folder / "weights" / "cifar10_resnet20.pth"
    for needed in (checkpoint, folder / "cifar-10-batches-py"):
        if not needed.exists():
            print(f"skipped: there is no {needed}", file=sys.stderr)
            return None
    return Network(checkpoint, f"cifar10:{folder}?normalize=imagenet")


def train_demo(folder: Path) -> Network:
    """Train the demo's network as the demo does: the same script, seed and epochs."""
    checkpoint = folder / "digits.pt"
    trainer = ROOT / "examples" / "train_digits.py"
    subprocess.run([sys.executable, str(trainer), str(checkpoint)], check=True)
    return Network(checkpoint, "digits")


def prepared(asked: set[str], data_dir: str | None, folder: str) -> dict[str, Network]:
    """Return the networks that are asked for and can be had; say which cannot."""
    networks: dict[str, Network] = {}
    if DEMO in asked:
        networks[DEMO] = train_demo(Path(folder))
    if RESNET in asked:
        found = pretrained_resnet(data_dir)
        if found is not None:
            networks[RESNET] = found
        else:
            print(f"the rows of {RESNET} are not run", file=sys.stderr)
    return networks


def main() -> int:
    """Measure the rows that were asked for, then write the page."""
    parser = command_line(__doc__, table=False)
    parser.add_argument(
        "--epochs", type=int,
        help="epochs where weights have to go (default 12 for the demo network, 2 for ResNet-20)",
    )  # fmt: skip
    parser.add_argument("--page", action="store_true", help="write the page and run nothing")
    arguments = parser.parse_args()
    if arguments.epochs is not None and arguments.epochs < 0:
        parser.error("--epochs must be 0 or more")
    every = configs(arguments.epochs)
    experiment = Experiment("devices", ["python", "benchmarks/devices.py", "--data-dir", "DIR"])
    if not arguments.page:
        wanted = [every[number] for number in parse_rows(arguments.rows, len(every))]
        missing = [config for config in wanted if not experiment.done(config, SEED)]
        with scratch() as folder:
            asked = {config["network"] for config in missing}
            networks = prepared(asked, arguments.data_dir, folder)
            fill(missing, experiment, networks)
        experiment.declare((config, SEED) for config in every)
    record = bench_record.read(experiment.path)
    if record is None:
        parser.error("there is no record yet: run without --page")
    PAGE.write_text(devices_page.page(every, SEED, record), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
