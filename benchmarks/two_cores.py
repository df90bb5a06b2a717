"""What can two threads give on this machine at best, and what do they give?

    python benchmarks/two_cores.py [--rows 0,2-4] [--table]

Two processes that run the same file with one thread each share nothing but the machine: caches,
memory, its clock, and what else runs on it. How much faster both together are than one alone is
what the second core adds, and about as much as a second thread can. Three sessions of one file
take turns, burst by burst: one process alone, two at once, one with two threads. Masks are uniform,
batch 1; the same for dense onnxruntime. Ratios of medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import Experiment, Stopwatch, command_line, measure_rows, scratch
from latency import ROUNDS, SEED, Engine
from sparse_networks import write_files

NETWORKS = ("vgg16-cifar", "resnet50")
SPARSITIES = (0.9, 0.95)


def rows() -> list[dict[str, Any]]:
    """Return every row."""
    return [
        {"network": network, "sparsity": sparsity, "batch": 1, "engine": engine}
        for network in NETWORKS
        for sparsity in SPARSITIES
        for engine in ("hwprune", "onnxruntime")
    ]


def measure(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the medians of the three, in milliseconds, and what the second core gives each."""

    def engine(threads: int) -> Engine:
        given = {**config, "threads": threads, "clock": "wall"}
        return Engine("", sys.executable, config["engine"], path, given)

    first, second, threaded = engine(1), engine(1), engine(2)
    for each in (first, second, threaded):
        each.run()  # finds how many runs a burst has
        each.times.clear()
    alone: list[float] = []
    for _ in range(ROUNDS):
        first.run()
        alone += first.times
        first.times.clear()
        for each in (first, second):
            each.ask(each.burst)
        for each in (first, second):
            times = each.answer()
            # One of them may begin before the other, and end after it.
            second.times += times[len(times) // 5 : -len(times) // 5]
        threaded.run()
        time.sleep(0.02)  # a pool that spins after its work is done gives up its core
    one, both, two = (statistics.median(t) for t in (alone, second.times, threaded.times))
    for each in (first, second, threaded):
        each.close()
    return {
        "alone_ms": one,
        "two_processes_ms": both,
        "two_threads_ms": two,
        "processes_scale": 2 * one / both,
        "threads_scale": one / two,
    }


def run(config: Mapping[str, Any], seed: int, experiment: Experiment) -> None:
    """Measure one row and save it."""
    watch = Stopwatch()
    with scratch() as folder:
        files = write_files(config["network"], config["sparsity"], Path(folder), seed=seed)
        file = files.sparse if config["engine"] == "hwprune" else files.dense
        assert file is not None
        measured = measure(config, file)
    experiment.add(config, seed, watch.seconds, 0, **measured)


def table(experiment: Experiment) -> str:
    """Return the record as Markdown."""
    lines = [
        "| network | sparsity | engine | one thread, ms | two processes | two threads |",
        "|---|---|---|---|---|---|",
    ]
    order = rows()
    for row in sorted(experiment.rows(), key=lambda row: order.index(row.config)):
        config, extra = row.config, row.model_extra or {}
        share = f"{100 * float(config['sparsity']):g} %"  # type: ignore[arg-type]
        cells = ["not run", "", ""]
        if row.status == "run":
            cells = [f"{extra['alone_ms']:.3g}"]
            cells += [f"{extra[name]:.2f}" for name in ("processes_scale", "threads_scale")]
        lines.append(
            f"| {config['network']} | {share} | {config['engine']} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the rows that were asked for, then print the table."""
    arguments = command_line(__doc__, data=False).parse_args()
    experiment = Experiment("two_cores", ["python", "benchmarks/two_cores.py"])
    return measure_rows(
        arguments,
        experiment,
        [(config, SEED) for config in rows()],
        lambda config, seed: run(config, seed, experiment),
        table,
    )


if __name__ == "__main__":
    sys.exit(main())
