"""How long does `hwprune plan` take on a large network, as a whole process, and where?

    python benchmarks/plan.py [--rows 0] [--runs 3] [--table]

VGG16 as torchvision has it (138,344,128 weights, random here: a file of 553 MB in the temporary
folder). Wall-clock seconds depend on what else the machine does, so each run also records the CPU
seconds of its process and how busy the machine was. The record is benchmarks/results/plan.json.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import Experiment, Stopwatch, command_line, measure_rows, scratch

ROWS: tuple[dict[str, Any], ...] = (
    {"arch": "torchvision:vgg16", "target": "raspberry-pi-5", "values": "auto"},
    {"arch": "torchvision:vgg16", "target": "jetson-nano", "values": "auto"},
)
SEED = 0

Run = dict[str, float]


def save(arch: str, path: Path) -> None:
    """Write the state dict of a torchvision network with random weights."""
    import torch

    from hwprune.frontend.arch import find_arch

    torch.manual_seed(SEED)
    torch.save(find_arch(arch).build().state_dict(), path)


def whole(command: list[str]) -> Run:
    """Run a command; return its seconds, its CPU seconds and its peak resident bytes."""
    load = os.getloadavg()[0]
    watch = Stopwatch()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = watch.seconds
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_rss_bytes": used.ru_maxrss * 1024,
        "load_average_before": round(load, 1),
    }


def stages(checkpoint: str, config: dict[str, Any]) -> dict[str, Run]:
    """Do what the command does, step by step, in this process; return what each step took."""
    from hwprune.cli.modelling import collector_paused

    found: dict[str, Run] = {}
    last = [time.perf_counter(), time.process_time()]

    def done(name: str) -> None:
        now = [time.perf_counter(), time.process_time()]
        found[name] = {
            "seconds": round(now[0] - last[0], 2),
            "cpu_seconds": round(now[1] - last[1], 2),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        last[:] = now

    with collector_paused():
        __import__("torch")
        done("import torch")
        from hwprune.frontend import load_model

        model = load_model(checkpoint, arch=config["arch"], mapped=True)
        done("load and check the network")
        from hwprune.steps.planning import candidates_of, prepare, value_types
        from hwprune.targets import load

        target = load(config["target"])
        done("import the rest")
        prepared = prepare(model, target)
        done("trace and measure the fixed cost")
        candidates_of(prepared, value_types(target, config["values"]), target.budget_bytes)
        done("rank and solve")
    return found


def run(config: dict[str, Any], runs: int, experiment: Experiment) -> None:
    """Measure one row."""
    watch = Stopwatch()
    with scratch() as folder:
        checkpoint = Path(folder) / "model.pt"
        # In a process of its own: what a child's peak memory is counted from is its parent's size.
        subprocess.run(
            [sys.executable, __file__, "--save", config["arch"], str(checkpoint)], check=True
        )
        words = ["plan", str(checkpoint), "--arch", config["arch"], "--target", config["target"]]
        command = [sys.executable, "-m", "hwprune.cli", *words, "--values", config["values"]]
        repeated = [whole(command) for _ in range(runs)]
        worker = [sys.executable, __file__, "--stages", str(checkpoint), json.dumps(config)]
        printed = subprocess.run(worker, check=True, capture_output=True, text=True).stdout
    medians = {
        f"median_{key}": statistics.median(one[key] for one in repeated)
        for key in ("seconds", "cpu_seconds")
    }
    experiment.add(
        config, SEED, watch.seconds, 0, **medians,
        peak_rss_bytes=max(one["peak_rss_bytes"] for one in repeated),
        runs=repeated, stages=json.loads(printed),
    )  # fmt: skip


def table(experiment: Experiment) -> str:
    """Return the record as Markdown."""
    lines = [
        "| network | target | seconds | CPU seconds | peak memory | load before |",
        "|---|---|---|---|---|---|",
    ]
    for row in experiment.rows():
        if row.status != "run":
            continue
        extra: dict[str, Any] = row.model_extra or {}
        loads = sorted(one["load_average_before"] for one in extra["runs"])
        lines.append(
            f"| {row.config['arch']} | {row.config['target']} | {extra['median_seconds']:.1f} "
            f"| {extra['median_cpu_seconds']:.1f} | {extra['peak_rss_bytes'] / 1024**3:.2f} GiB "
            f"| {loads[0]} to {loads[-1]} |"
        )
        for name, stage in extra["stages"].items():
            lines.append(
                f"| - {name} | | {stage['seconds']:.1f} | {stage['cpu_seconds']:.1f} | | |"
            )
    return "\n".join(lines)


def main() -> int:
    """Run the rows that were asked for, then print the table."""
    if sys.argv[1:2] == ["--stages"]:
        print(json.dumps(stages(sys.argv[2], json.loads(sys.argv[3]))))
        return 0
    if sys.argv[1:2] == ["--save"]:
        save(sys.argv[2], Path(sys.argv[3]))
        return 0
    parser = command_line(__doc__, data=False)
    parser.add_argument("--runs", type=int, default=3, help="whole processes a row (default 3)")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs must be 1 or more")
    experiment = Experiment("plan", ["python", "benchmarks/plan.py"])
    return measure_rows(
        arguments,
        experiment,
        [(config, SEED) for config in ROWS],
        lambda config, _: run(config, arguments.runs, experiment),
        table,
    )


if __name__ == "__main__":
    sys.exit(main())
