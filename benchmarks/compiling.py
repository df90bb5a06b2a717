"""Rows of benchmarks that compile: one network to one budget, measured in the file that is written.

The compiler keeps its state after every epoch, so a row that was interrupted goes on from there.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from common import Experiment, Stopwatch, device_name

if TYPE_CHECKING:
    from hwprune.ir import Artifact, Data, Model


def compile_row(
    experiment: Experiment,
    config: Mapping[str, Any],
    seed: int,
    model: Model,
    data: Data,
    target: str,
    *,
    recipe: Mapping[str, Any] | None = None,
    further: Callable[[Artifact], dict[str, Any]],
) -> None:
    """Compile one row and add it to the record.

    Args:
        experiment: the record.
        config: budget_bytes, values (int8 where it does not say), epochs, strategy and its options.
        seed: of everything that is random.
        model: the dense network.
        data: what it is trained, chosen and measured on.
        target: a profile's name.
        recipe: where fields differ from their defaults.
        further: returns what the row holds besides, of what was compiled.
    """
    from hwprune.compiler import compile_model
    from hwprune.job import resolve
    from hwprune.targets import load

    watch = Stopwatch()
    output = experiment.output_path(config, seed)
    resumed = output.exists()
    output.parent.mkdir(parents=True, exist_ok=True)
    job = resolve(
        model,
        load(target),
        data,
        output,
        budget_bytes=config["budget_bytes"],
        strategy=config["strategy"],
        strategy_options=config["options"],
        values=config.get("values", "int8"),
        epochs=config["epochs"],
        seed=seed,
        recipe=recipe,
        resume=True,
        checkpoint_seconds=0.0,
    )

    def say(status: Any) -> None:
        if "validation" in status.message or "continued" in status.message:
            print(f"  {watch.seconds:6.0f} s  {status.message}", flush=True)

    artifact = compile_model(job, say)
    report = artifact.report
    experiment.add(
        config, seed, seconds_of(report), config["epochs"],
        accuracy=report["accuracy"]["final"],
        dense_accuracy=report["accuracy"]["dense"],
        artifact_bytes=report["artifact"]["bytes"],
        nonzeros=report["result"]["nonzeros"],
        sparsity=report["result"]["sparsity"],
        relative_error=report["parity"]["relative_error"],
        verified=report["verdict"]["verified"],
        samples=report["accuracy"]["samples"],
        device=device_name(job.device),
        precision=precision_of(report),
        resumed=resumed,
        **further(artifact),
    )  # fmt: skip
    shutil.rmtree(output)


def seconds_of(report: Mapping[str, Any]) -> float:
    """Return what a compilation took, in seconds, where it was resumed too.

    The report's own clock begins with the last call; the training's goes on from where it was
    interrupted. So of a resumed row this is a lower bound: what the earlier calls spent before
    training, such as tracing, is not in it.
    """
    trained = [point.get("seconds") or 0.0 for point in report["accuracy"]["trajectory"]]
    return max([float(report["seconds"]), *trained])


def precision_of(report: Mapping[str, Any]) -> str | None:
    """Return what a compilation's forward passes ran in, ``fp32`` or ``bf16``, by its notes."""
    found = (re.search(r"trained in (\w+) on ", str(note)) for note in report["notes"])
    return next((match[1] for match in found if match), None)
