"""How fast is a sparse file, beside dense onnxruntime and other engines in the same run?

    python benchmarks/latency.py [--data-dir DIR] [--rows 0,2-4] [--deepsparse PYTHON]
                                 [--openvino PYTHON] [--litert PYTHON] [--table]

One row is a network, a sparsity, a batch and a number of threads. All engines of a row are alive at
the same time, each in its own process, and are timed in turn (one thread: in processor time, what
other programs take does not count; rows without a ``clock`` by the clock), so that a busy moment
of the machine meets all of them. ``dense`` is onnxruntime on the dense file, ``stock`` onnxruntime
on hwprune's file without kernels, ``kernels`` with them. DeepSparse 1.8.0 and OpenVINO are timed
where the Python of an environment that holds them is given (DeepSparse wants Python 3.11 or older,
numpy 1.26 and onnx 1.14.1). Rows that name an instruction set have the int8 rivals too, which need
no pruning: onnxruntime's static quantization, OpenVINO's (NNCF, beside OpenVINO), and XNNPACK in
fp32 and int8 (litert-torch, ai-edge-litert and ai-edge-quantizer in LiteRT's environment); they are
calibrated with 16 inputs like those that are timed, and run only on a processor of that
instruction set. Rows with a budget have masks as ``compile`` plans
them, by bytes alone and with a limit on latency, for the core in x86-64.toml; nothing is trained.
Masks: see sparse_networks.py; rows of a trained network need DIR with
its weights, and are left out without it. Rows that were saved are not run again.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import Experiment, Stopwatch, command_line, data_folder, measure_rows, scratch
from latency_rivals import KINDS
from sparse_networks import NETWORKS, TRAINED, Files, Plan, untrained, write_files

if TYPE_CHECKING:
    from hwprune.ir import Model

SPARSITIES = (0.0, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
WORKER = Path(__file__).with_name("latency_worker.py")
RIVALS = Path(__file__).with_name("latency_rivals.py")
RIVAL_NETWORKS = ("resnet20", "vgg16-cifar", "mobilenet-v1", "mobilenet-v2")
RIVAL_SPARSITIES = (0.8, 0.9, 0.95, 0.99)
# Which engine of latency_worker.py runs a rival's file, by the first word of its name.
RIVAL_ENGINES = {"int8": "onnxruntime", "openvino": "openvino", "xnnpack": "litert"}
# Networks, what their files may weigh (5 % but for ResNet-20's), and limits beside bytes alone.
PLANNED = (
    ("vgg16-cifar", 2_944_056, 0.15),
    ("resnet20", 40 * 1024, 0.4),
    ("mobilenet-v1", 844_374, 0.3),
    ("mobilenet-v2", 697_846, 0.5),
    ("resnet50", 5_106_385, 0.25),
)
PROFILE = Path(__file__).with_name("x86-64.toml")
SAMPLES = 16
SEED = 0
ROUNDS = 9
# Long enough that the first, cold runs of a burst do not reach the median.
BURST_SECONDS, MOST_RUNS, FEWEST_RUNS = 0.25, 120, 3
NAMES = {
    "dense": "dense onnxruntime",
    "stock": "hwprune file, stock onnxruntime",
    "kernels": "hwprune kernels",
    "deepsparse": "DeepSparse",
    "openvino": "OpenVINO",
    "int8-qdq": "onnxruntime int8",
    "openvino-int8": "OpenVINO int8",
    "xnnpack": "XNNPACK",
    "xnnpack-int8": "XNNPACK int8",
}
# What the kernels are compared with: all but hwprune's own file.
OTHERS = [name for name in NAMES if name not in ("stock", "kernels")]


def rows() -> list[dict[str, Any]]:
    """Return every row, one thread first: a run may be cut short."""
    order = ["vgg16-cifar", "resnet20", "mobilenet-v1", "resnet50", "mobilenet-v2", "vit-b-16"]
    assert sorted(order) == sorted(NETWORKS)
    cases = [(network, 1, 1) for network in order]
    cases += [("vgg16-cifar", 64, 1), ("resnet20", 64, 1)]
    cases += [(network, 1, 2) for network in order]
    cases += [("vgg16-cifar", 64, 2), ("resnet20", 64, 2)]
    uniform = [
        {"network": network, "sparsity": s, "batch": batch, "threads": threads, "mask": "uniform"}
        for network, batch, threads in cases
        for s in SPARSITIES
    ]
    one = {"batch": 1, "threads": 1}
    trained = [
        {"network": network, "sparsity": s, **one, "mask": "lamp"}
        for network in TRAINED
        for s in SPARSITIES[1:]
    ]
    narrow = [
        {"network": network, "sparsity": s, **one, "mask": "uniform", "values": "int8"}
        for network in ("vgg16-cifar", "resnet20", "mobilenet-v1", "resnet50")
        for s in SPARSITIES[1:]
    ]
    rivals = [
        {"network": network, "sparsity": s, **one, "mask": "uniform", "instructions": "avx512vnni"}
        for network in RIVAL_NETWORKS
        for s in RIVAL_SPARSITIES
    ]
    planned = [
        {"network": network, "sparsity": 0.0, **one, "mask": "planned", "values": "int8",
         "budget_bytes": budget, "require": require}
        for network, budget, fast in PLANNED
        for require in ("", f"latency.p50<={fast:g}x")
    ]  # fmt: skip
    return uniform + trained + narrow + rivals + planned


def instruction_set() -> str:
    """Return the widest that matters here of what this processor has: that of a row."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    known = (
        ("avx512_fp16", "avx512fp16"),
        ("avx512_vnni", "avx512vnni"),
        ("avx512f", "avx512"),
        ("avx2", "avx2"),
        ("asimddp", "neon-dot"),
        ("asimd", "neon"),
    )
    return next((name for flag, name in known if flag in flags), "unknown")


def name_of(config: Mapping[str, Any]) -> str:
    """Return the network's name, with what sets the row apart from random fp32 weights."""
    apart = ["trained, LAMP masks"] if config["mask"] == "lamp" else []
    apart += [f"{config['values']} values"] if "values" in config else []
    return f"{config['network']} ({', '.join(apart)})" if apart else str(config["network"])


class Engine:
    """One engine with one file loaded, in its own process."""

    def __init__(self, label: str, python: str, engine: str, path: Path, config: Mapping[str, Any]):
        """Start it; ``error`` says why it does not run, where it does not."""
        shape = json.dumps(NETWORKS[config["network"]][1])
        command = [python, str(WORKER), engine, str(path)]
        command += [str(config["threads"]), str(config["batch"]), shape]
        command += [config["clock"]] if "clock" in config else []
        self.label, self.error, self.burst = label, "", 0
        self.times: list[float] = []
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.ready = self._read("ready")

    def run(self) -> None:
        """Time one burst."""
        if self.error:
            return
        if not self.burst:
            self.ask(FEWEST_RUNS)
            first = self.answer()  # warm-up, and how long a run takes
            if not first:
                return
            per_run = min(first) / 1000
            self.burst = max(FEWEST_RUNS, min(MOST_RUNS, int(BURST_SECONDS / per_run)))
        # The first fifth of a burst fills the caches that another engine has emptied.
        self.ask(self.burst)
        times = self.answer()
        self.times += times[len(times) // 5 :]

    def ask(self, runs: int) -> None:
        """Have it run so many times; another engine may be asked before it answers."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{runs}\n")
        self.process.stdin.flush()

    def answer(self) -> list[float]:
        """Return the milliseconds of each run that it was asked for; none where it failed."""
        answer = self._read("times")
        return answer if isinstance(answer, list) else []

    def _read(self, word: str) -> Any:
        """Return the worker's next answer; what engines print in between is not one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word + " "):
                return json.loads(line[len(word) + 1 :])
        assert self.process.stderr is not None
        lines = self.process.stderr.read().strip().splitlines()
        self.error = (lines or ["it ended without a word"])[-1][:300]
        return {}

    def close(self) -> dict[str, Any]:
        """End it and return what was measured."""
        self.process.kill()
        self.process.communicate()
        if self.error or not self.times:
            return {"error": self.error}
        times = sorted(self.times)
        deciles = statistics.quantiles(times, n=10)
        return {
            "p50_ms": statistics.median(times),
            "p90_ms": deciles[8],
            "min_ms": times[0],
            "runs": len(times),
            "load_ms": self.ready["load_ms"],
            "grown_bytes": self.ready["grown_bytes"],
            "grown_bytes_after_run": self.ready["grown_bytes_after_run"],
            "version": self.ready["version"],
            "clock": self.ready["clock"],
        }


def rival_files(
    config: Mapping[str, Any], files: Files, folder: Path, model: Model, pythons: Mapping[str, str]
) -> tuple[list[tuple[str, str, str, Path]], dict[str, str]]:
    """Return the engines that run a file of their own, and of those that got none why."""
    import torch

    shape = (SAMPLES, *NETWORKS[config["network"]][1])
    np.save(folder / "samples.npy", np.random.default_rng(1).standard_normal(shape, np.float32))
    torch.save(model.module.state_dict(), folder / "weights.pt")
    shutil.copyfile(files.dense, folder / "dense.onnx")
    engines, failed = [], {}
    for kind, (_, name) in KINDS.items():
        place = kind.partition("-")[0]
        python = sys.executable if place == "int8" else pythons.get(RIVAL_ENGINES[place])
        if python is None:
            continue
        command = [python, str(RIVALS), kind, str(folder), config["network"]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            failed[kind] = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            print(f"  {kind}: {failed[kind]}", flush=True)
        else:
            engines.append((kind, python, RIVAL_ENGINES[place], folder / name))
    return engines, failed


def measure(
    config: Mapping[str, Any],
    files: Files,
    pythons: Mapping[str, str],
    rivals: Sequence[tuple[str, str, str, Path]] = (),
) -> dict[str, Any]:
    """Return what each engine did with a row.

    Args:
        config: the row.
        files: of the network.
        pythons: of the engines that run the dense file.
        rivals: label, interpreter, engine and file of those that run another one.
    """
    sparse = files.sparse
    wanted = [("dense", sys.executable, "onnxruntime", files.dense)]
    if sparse is not None:
        wanted.append(("kernels", sys.executable, "hwprune", sparse))
        wanted.append(("stock", sys.executable, "onnxruntime", sparse))
    wanted += [
        (name, python, name, files.dense) for name, python in pythons.items() if name in NAMES
    ]
    wanted += rivals
    engines = [Engine(*each, config) for each in wanted]
    for _ in range(ROUNDS):
        for engine in engines:
            engine.run()
            time.sleep(0.02)  # a pool that spins after its work is done gives up its core
    exact = [e for e in engines if "values" not in config or e.label in ("kernels", "stock")]
    exact = [e for e in exact if "int8" not in e.label]
    classes = [engine.ready.get("classes") for engine in exact if engine.ready]
    found = {engine.label: engine.close() for engine in engines}
    dense = found["dense"]["p50_ms"]
    return {
        "engines": found,
        "speedup": {k: dense / v["p50_ms"] for k, v in found.items() if "p50_ms" in v},
        # Engines that hold the same weights: int8 values are rounded.
        "same_classes": all(each == classes[0] for each in classes),
        "weights": files.weights,
        "nonzeros": files.nonzeros,
        "dense_bytes": files.dense.stat().st_size,
        "sparse_bytes": None if sparse is None else sparse.stat().st_size,
    }


def in_order(experiment: Experiment) -> list[Any]:
    """Return the record's rows in the order of ``rows``, whenever they were measured."""
    order = rows()
    return sorted(experiment.rows(), key=lambda row: order.index(row.config))


def rivals_table(experiment: Experiment) -> str:
    """Return the rows with every rival: ratios to dense onnxruntime, and who wins.

    The ratios are of the best runs, which other work on the machine does not reach; the last column
    is the one to the fastest rival by medians.
    """
    lines = [
        "| network | sparsity | instructions | dense ms | kernels | "
        + " | ".join(NAMES[name] for name in OTHERS[1:])
        + " | fastest rival | kernels to it | by medians |",
        "|---|---|---|---|---|" + "---|" * (len(OTHERS) + 2),
    ]
    for row in in_order(experiment):
        if "instructions" not in row.config or row.status != "run":
            continue
        extra: dict[str, Any] = row.model_extra or {}
        measured = {name: each for name, each in extra["engines"].items() if "min_ms" in each}
        least = {name: each["min_ms"] for name, each in measured.items()}
        middle = {name: each["p50_ms"] for name, each in measured.items()}
        times = {name: least["dense"] / each for name, each in least.items()}
        others = [name for name in OTHERS if name in least]
        fastest = min(others, key=lambda name: least[name])
        ratio = least[fastest] / least["kernels"]
        median = min(middle[name] for name in others) / middle["kernels"]
        cells = [f"{times[name]:.2f}" if name in times else "-" for name in OTHERS[1:]]
        lines.append(
            f"| {row.config['network']} | {100 * float(row.config['sparsity']):g} % "  # type: ignore[arg-type]
            f"| {row.config['instructions']} | {least['dense']:.3g} | {times['kernels']:.2f} "
            f"| {' | '.join(cells)} | {NAMES[fastest]} "
            f"| {ratio:.2f}{': kernels win' if ratio > 1 else ''} | {median:.2f} |"
        )
    return "\n".join(lines)


def table(experiment: Experiment) -> str:
    """Return the record as Markdown: milliseconds of dense onnxruntime, and ratios to it.

    The ratios are of medians, but for the one of the best runs, which other work on the machine
    does not reach.
    """
    lines = [
        "| network | batch | threads | sparsity | dense ms | kernels ms | kernels |"
        " kernels, best runs | stock | DeepSparse | OpenVINO |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in in_order(experiment):
        config, extra = row.config, row.model_extra or {}
        if "instructions" in config or "require" in config:
            continue  # rivals_table, planned_table
        head = f"| {name_of(config)} | {config['batch']} | {config['threads']} | "
        head += f"{100 * float(config['sparsity']):g} % |"
        if row.status != "run":
            lines.append(f"{head} not run | | | | | | |")
            continue
        engines, speedup = extra["engines"], extra["speedup"]
        kernels = engines.get("kernels", {}).get("p50_ms")
        cells = [f"{engines['dense']['p50_ms']:.3g}", "-" if kernels is None else f"{kernels:.3g}"]
        cells.append(f"{speedup['kernels']:.2f}" if kernels else "-")
        best = engines["dense"]["min_ms"] / engines["kernels"]["min_ms"] if kernels else None
        cells.append("-" if best is None else f"{best:.2f}")
        others = ("stock", "deepsparse", "openvino")
        cells += [f"{speedup[name]:.2f}" if name in speedup else "-" for name in others]
        lines.append(f"{head} {' | '.join(cells)} |")
    return "\n".join(lines)


def planned_table(experiment: Experiment) -> str:
    """Return the rows with masks as ``compile`` plans them: by bytes alone, and with a limit."""
    lines = [
        "| network | file bytes | limit | instructions | weights kept | dense ms | kernels ms |"
        " kernels | kernels, best runs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in in_order(experiment):
        config, extra = row.config, row.model_extra or {}
        if "require" not in config:
            continue
        head = f"| {config['network']} | {config['budget_bytes']:,} "
        head += f"| {config['require'] or 'bytes alone'} |"
        if row.status != "run":
            lines.append(f"{head} not run | | | | | |")
            continue
        dense, kernels = (extra["engines"][name] for name in ("dense", "kernels"))
        cells = [str(extra["host_instructions"]), f"{extra['nonzeros']:,}"]
        cells += [f"{dense['p50_ms']:.3g}", f"{kernels['p50_ms']:.3g}"]
        cells += [f"{dense[key] / kernels[key]:.2f}" for key in ("p50_ms", "min_ms")]
        lines.append(f"{head} {' | '.join(cells)} |")
    return "\n".join(lines)


def loading_table(experiment: Experiment) -> str:
    """Return what loading takes and adds to a fresh process, of the rows with batch 1."""
    lines = [
        "| network | sparsity | load ms: dense | stock | kernels |"
        " MiB added: dense | stock | kernels | file bytes: dense | sparse |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in in_order(experiment):
        config, extra = row.config, row.model_extra or {}
        if row.status != "run" or config["batch"] != 1 or "kernels" not in extra["engines"]:
            continue
        if "instructions" in config or "require" in config:
            continue
        each = [extra["engines"][name] for name in ("dense", "stock", "kernels")]
        cells = [f"{engine['load_ms']:.0f}" for engine in each]
        cells += [f"{engine['grown_bytes'] / 2**20:.1f}" for engine in each]
        cells += [f"{extra['dense_bytes']:,}", f"{extra['sparse_bytes']:,}"]
        share = f"{100 * float(config['sparsity']):g} %"
        lines.append(f"| {name_of(config)} | {share} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run(
    config: Mapping[str, Any],
    seed: int,
    experiment: Experiment,
    pythons: Mapping[str, str],
    data: Path | None,
) -> None:
    """Measure one row and save it."""
    watch = Stopwatch()
    lamp = config["mask"] == "lamp" or (
        config["mask"] == "planned" and config["network"] in TRAINED
    )
    if lamp and data is None:
        print("  left out: trained weights are wanted, give --data-dir DIR")
        return
    here = instruction_set()
    if config.get("instructions", here) != here:
        print(f"  left out: this processor has {here}")
        return
    with scratch() as temporary:
        folder = Path(temporary)
        model = untrained(config["network"], seed) if "instructions" in config else None
        files = write_files(
            config["network"],
            config["sparsity"],
            folder,
            seed=seed,
            values=config.get("values", "fp32"),
            data=data if lamp else None,
            model=model,
            plan=Plan(config["budget_bytes"], config["require"], str(PROFILE))
            if config["mask"] == "planned"
            else None,
        )
        rivals, failed = rival_files(config, files, folder, model, pythons) if model else ([], {})
        measured = measure(config, files, pythons, rivals)
    measured["engines"] |= {name: {"error": reason} for name, reason in failed.items()}
    measured["host_instructions"] = here
    print("  " + ", ".join(f"{name} {value:.2f}" for name, value in measured["speedup"].items()))
    experiment.add(config, seed, watch.seconds, 0, **measured)


def main() -> int:
    """Run the rows that were asked for, then print the tables."""
    parser = command_line(__doc__)
    parser.add_argument("--deepsparse", metavar="PYTHON", help="interpreter that has DeepSparse")
    parser.add_argument("--openvino", metavar="PYTHON", help="interpreter that has OpenVINO")
    parser.add_argument("--litert", metavar="PYTHON", help="interpreter that has LiteRT's tools")
    arguments = parser.parse_args()
    experiment = Experiment("latency", ["python", "benchmarks/latency.py"])
    given = {name: getattr(arguments, name) for name in ("deepsparse", "openvino", "litert")}
    pythons = {name: python for name, python in given.items() if python}
    data = data_folder(arguments.data_dir) if arguments.data_dir else None
    return measure_rows(
        arguments,
        experiment,
        [(config, SEED) for config in rows()],
        lambda config, seed: run(config, seed, experiment, pythons, data),
        lambda record: "\n\n".join(
            each(record) for each in (table, rivals_table, planned_table, loading_table)
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
