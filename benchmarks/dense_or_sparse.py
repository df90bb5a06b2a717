"""Where does a kernel gain over onnxruntime's dense operator, and does a session choose so?

    python benchmarks/dense_or_sparse.py [--rows 0,2-4] [--table]

Three kinds of row, with one thread where they don't say two. ``network``: one network at one
density; stock onnxruntime with the dense file, ``hwprune.session`` as it is, and with every packed
layer on its kernel (``kernels="all"``). All three are alive in one process and run in turn, in many
short bursts timed by the process's processor time; a ratio is the median over the turns, so that a
busy machine disturbs little. With two threads each has
a process of its own, since threads of one session that wait for work slow the next one down, and is
timed by the clock; beside the ratio of medians stand those of the tenth percentiles and of
processor time, all threads together, and what one run in a hundred exceeds.
Memory is that of fresh
processes (the least of two each): stock onnxruntime with the dense file and with hwprune's, and the
session.
Masks are ``uniform`` (sparse_networks.py), or ``mixed``: every layer keeps a random share of its
weights. ``layers``: what each layer of a network
takes inside the network, dense and with a kernel, by onnxruntime's profiler (the mean of the
fastest quarter of the runs, in microseconds): what the limits of hwprune/kernels/dense_path.py were
read off. ``timed``: what a machine gets whose limits nobody has timed, at worst: here with limits
that leave every layer on its kernel, a session that times the file both ways (``time_both``).
HWPRUNE_SIMD lowers the instruction set of the kernels; each row says which it was.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from common import Experiment, Stopwatch, command_line, measure_rows, scratch
from latency import Engine
from sparse_networks import NETWORKS, Files, uniform_masks, write_files

if TYPE_CHECKING:
    from hwprune.ir import Masks

ORDER = ("resnet20", "vgg16-cifar", "mobilenet-v1")
DENSITIES = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 0.95)
TWO_THREADS = (0.1, 0.2, 0.5, 0.95)
BATCHED = (0.2, 0.35, 0.5, 0.7, 0.95)
LAYER_DENSITIES = (0.2, 0.3, 0.4, 0.5, 0.6)
# Seconds of processor time for each session, in bursts; at least so many turns.
SECONDS, BURST, TURNS, TWO_THREADS_SECONDS = 1.0, 0.03, 9, 3.0
# Until the threads of the process before have stopped waiting for work.
PAUSE = 0.05
Wanted = list[tuple[dict[str, Any], int]]


def rows() -> Wanted:
    """Return every row, and its seed."""
    found: Wanted = []

    def network(
        name: str,
        batch: int,
        density: float,
        masks: str = "uniform",
        seed: int = 0,
        **more: int,
    ) -> None:
        config = {"what": "network", "network": name, "batch": batch}
        found.append(({**config, "density": density, "masks": masks, **more}, seed))

    for name in ORDER:
        found.append(({"what": "layers", "network": name}, 0))
        for density in DENSITIES:
            network(name, 1, density)
        for seed in range(3):
            network(name, 1, 0.5, "mixed", seed)
    for name in ORDER[:2]:
        for density in BATCHED:
            network(name, 64, density)
    for name in ORDER:
        for density in TWO_THREADS:
            network(name, 1, density, threads=2)
    for name in ORDER:
        for density in DENSITIES:
            found.append(({"what": "timed", "network": name, "density": density}, 0))
    return found


def mixed_masks(shapes: Mapping[str, tuple[int, ...]], sparsity: float, seed: int) -> Masks:
    """Return random masks, every layer with its own sparsity between 0 and twice the given one."""
    from hwprune.ir import Masks

    generator = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for name, shape in shapes.items():
        # What comes first stays dense.
        given = {"": (1,), name: shape} if made else {name: shape}
        made[name] = uniform_masks(given, 2 * sparsity * generator.random(), seed)[name]
    return Masks(made)


def options(folder: Path, *, profile: bool = False, threads: int = 1) -> Any:
    """Return the options of a session."""
    import onnxruntime

    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads, made.inter_op_num_threads = threads, 1
    made.enable_profiling = profile
    made.profile_file_prefix = str(folder / "profile")
    return made


def in_turn(runs: Sequence[Callable[[], Any]]) -> list[list[float]]:
    """Run each in turn; return the median time of each in every turn, in ms."""
    turns: list[list[float]] = []
    spent = 0.0
    while spent < SECONDS * len(runs) or len(turns) < TURNS:
        turns.append([])
        for run in runs:
            run()  # fills the caches that another one has emptied
            times: list[float] = []
            while sum(times) < BURST:
                start = time.process_time()
                run()
                times.append(time.process_time() - start)
            spent += sum(times)
            turns[-1].append(1000 * float(np.median(times)))
    return turns


def in_one_process(runs: Sequence[Callable[[], Any]]) -> dict[str, Any]:
    """Return what stock, session and kernels alone take, timed in turn."""
    turns = np.array(in_turn(runs))
    dense_ms, session_ms, kernels_ms = (float(ms) for ms in np.median(turns, axis=0))
    return {
        "dense_ms": dense_ms,
        "session_ms": session_ms,
        "all_kernels_ms": kernels_ms,
        "turns": len(turns),
        "time_ratio": float(np.median(turns[:, 1] / turns[:, 0])),
        "time_ratio_all_kernels": float(np.median(turns[:, 2] / turns[:, 0])),
    }


def in_processes(config: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """Return what each takes in a process of its own, timed in turn."""
    kinds = (("onnxruntime", files.dense), ("hwprune", files.sparse), ("hwprune-all", files.sparse))
    engines = [Engine(kind, sys.executable, kind, Path(str(file)), config) for kind, file in kinds]
    for engine in engines:
        engine.run()  # finds how many runs a burst has
        engine.times.clear()
    used = np.zeros(len(engines))
    turns = 0
    while turns < TURNS or sum(engines[0].times) < 1000 * TWO_THREADS_SECONDS:
        turns += 1
        for i, engine in enumerate(engines):
            time.sleep(PAUSE)
            before = processor_seconds(engine.process.pid)
            engine.run()
            used[i] += processor_seconds(engine.process.pid) - before
    assert not any(engine.error for engine in engines), [engine.error for engine in engines]
    low, middle, high = np.array([np.percentile(e.times, (10, 50, 99)) for e in engines]).T
    cpu = 1000 * used / [turns * engine.burst for engine in engines]
    for engine in engines:
        engine.close()
    names = ("dense_ms", "session_ms", "all_kernels_ms")
    return {
        **dict(zip(names, map(float, middle), strict=True)),
        "turns": turns,
        "time_ratio": float(middle[1] / middle[0]),
        "time_ratio_all_kernels": float(middle[2] / middle[0]),
        "p10_ratio": float(low[1] / low[0]),
        "processor_ratio": float(cpu[1] / cpu[0]),
        "p99_ms": dict(zip(names, map(float, high), strict=True)),
        "processor_ms": dict(zip(names, map(float, cpu), strict=True)),
    }


def processor_seconds(process: int) -> float:
    """Return what all threads of a process have computed so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def runner(session: Any, batch: int, network: str) -> Callable[[], Any]:
    """Return what runs a session once."""
    shape = (batch, *NETWORKS[network][1])
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    feed = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feed)


def layers(config: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Return what each layer takes, dense and at each density with its kernel."""
    import onnxruntime

    import hwprune
    from hwprune.kernels.model_file import ModelFile

    network = config["network"]
    files = [write_files(network, 1 - d, folder, seed=seed) for d in LAYER_DENSITIES]
    profiled = [onnxruntime.InferenceSession(str(files[0].dense), options(folder, profile=True))]
    profiled += [
        hwprune.session(
            str(file.sparse), session_options=options(folder, profile=True), kernels="all"
        )
        for file in files
    ]
    in_turn([runner(session, 1, network) for session in profiled])
    times = [durations(session.end_profiling()) for session in profiled]
    model = ModelFile(Path(str(files[0].sparse)).read_bytes())
    nodes = [node for node in model.nodes if node.domain == "hwprune"]
    assert {len(each) for each in times} == {len(nodes)}
    return {
        "densities": list(LAYER_DENSITIES),
        "layers": [
            {
                "name": node.name,
                "operator": node.operator,
                "weight": list(node.integers("shape") or model.tensors[node.inputs[1]].dims),
                "strides": list(node.integers("strides")),
                "dense_us": times[0][i],
                "kernel_us": [each[i] for each in times[1:]],
            }
            for i, node in enumerate(nodes)
        ],
    }


def durations(path: str) -> list[float]:
    """Return the microseconds of each layer in a profile, in the order in which they run."""
    runs: list[list[float]] = []
    for event in json.loads(Path(path).read_text()):
        operator = event.get("args", {}).get("op_name", "")
        if event["name"] == "model_run":
            runs.append([])  # it comes behind its nodes: what follows belongs to the next
        elif event["name"].endswith("_kernel_time") and operator.startswith(
            ("Csr", "Dense", "Conv", "FusedConv", "Gemm", "MatMul")
        ):
            runs = runs or [[]]
            runs[-1].append(event["dur"])
    whole = np.array([run for run in runs if len(run) == max(map(len, runs))])
    fastest = np.sort(whole, axis=0)[: max(3, len(whole) // 4)]
    return [float(us) for us in fastest.mean(axis=0)]


def network(config: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Return what a network takes in stock onnxruntime, in a session, and with kernels alone."""
    import onnxruntime

    import hwprune
    from hwprune.verify import resident

    name, batch = config["network"], config["batch"]
    masks = mixed_masks if config["masks"] == "mixed" else uniform_masks
    files = write_files(name, 1 - config["density"], folder, seed=seed, make_masks=masks)
    dense, sparse = str(files.dense), str(files.sparse)
    threads = config.get("threads", 1)
    stock = onnxruntime.InferenceSession(dense, options(folder, threads=threads))
    shapes = {stock.get_inputs()[0].name: (batch, *NETWORKS[name][1])}
    chosen = hwprune.session(
        sparse, session_options=options(folder, threads=threads), input_shapes=shapes
    )
    every = hwprune.session(sparse, session_options=options(folder, threads=threads), kernels="all")
    runs = [runner(session, batch, name) for session in (stock, chosen, every)]
    outputs = [np.asarray(run()[0]) for run in runs]
    timed = in_processes(config, files) if threads > 1 else in_one_process(runs)
    loads = [(dense, False), (sparse, False), (sparse, True)]
    used = [[resident(file, kernels=own) for file, own in loads] for _ in range(2)]
    sizes = np.array([[each.resident_bytes for each in again] for again in used]).min(axis=0)
    return {
        "density_of_all": files.nonzeros / files.weights,
        **timed,
        "dense_layers": len(chosen.hwprune.dense),
        "resident_bytes": dict(zip(("dense", "stock", "session"), map(int, sizes), strict=True)),
        "memory_ratio": float(sizes[2] / sizes[1]),
        "memory_ratio_dense": float(sizes[2] / sizes[0]),
        "relative_error": float(np.abs(outputs[1] - outputs[0]).max() / np.abs(outputs[0]).max()),
    }  # fmt: skip


def timed(config: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Return what a session takes that knows no limits and times a file both ways."""
    import onnxruntime

    import hwprune
    from hwprune.kernels import dense_path

    name = config["network"]
    files = write_files(name, 1 - config["density"], folder, seed=seed, make_masks=uniform_masks)
    os.environ["XDG_CACHE_HOME"] = str(folder)
    settings = [options(folder) for _ in range(3)]
    with mock.patch.object(dense_path, "density_limit", return_value=1.0):
        start = time.perf_counter()
        chosen = hwprune.session(str(files.sparse), session_options=settings[0], time_both=True)
        first = time.perf_counter() - start
    (kept,) = (folder / "hwprune" / "speeds").iterdir()
    dense = onnxruntime.InferenceSession(str(files.dense), settings[1])
    every = hwprune.session(str(files.sparse), session_options=settings[2], kernels="all")
    return {
        "density_of_all": files.nonzeros / files.weights,
        **in_one_process([runner(session, 1, name) for session in (dense, chosen, every)]),
        "kept": json.loads(kept.read_text()),
        "kernels": bool(chosen.hwprune.registered),
        "first_session_s": first,
    }


def run(config: Mapping[str, Any], seed: int, experiment: Experiment) -> None:
    """Measure one row and save it."""
    from hwprune.kernels import library

    watch = Stopwatch()
    with scratch() as folder:
        measure = {"layers": layers, "network": network, "timed": timed}[config["what"]]
        measured = measure(config, seed, Path(folder))
    measured["instructions"] = library.instruction_set()
    experiment.add(config, seed, watch.seconds, 0, **measured)


def table(experiment: Experiment) -> str:
    """Return the networks, then the layers, as Markdown; ratios are of ours to stock."""
    lines = [
        "| network | batch | threads | density | masks | dense ms | session / stock "
        "| layers left dense | kernels alone | memory of stock | of the dense file |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    layer_lines = [
        "| network | weight | stride | dense us | "
        + " | ".join(f"{100 * density:g} % stored" for density in LAYER_DENSITIES)
        + " |",
        "|---|---|---|---|" + "---|" * len(LAYER_DENSITIES),
    ]
    timed_lines = [
        "| network | density | dense ms | kernels / dense | chosen | session / dense "
        "| first session, s |",
        "|---|---|---|---|---|---|---|",
    ]
    place = {
        json.dumps([config, seed], sort_keys=True): i for i, (config, seed) in enumerate(rows())
    }
    worst = {"time_ratio": 0.0, "memory_ratio": 0.0, "memory_ratio_dense": 0.0}
    recorded = {
        json.dumps([row.config, row.seed], sort_keys=True): row for row in experiment.rows()
    }
    for key in sorted(recorded.keys() & place.keys(), key=lambda key: place[key]):
        row = recorded[key]
        config, extra = row.config, row.model_extra or {}
        if row.status != "run":
            continue
        if config["what"] == "network":
            worst = {name: max(value, extra[name]) for name, value in worst.items()}
            lines.append(
                f"| {config['network']} | {config['batch']} | {config.get('threads', 1)} "
                f"| {extra['density_of_all']:.2f} "
                f"| {config['masks']} | {extra['dense_ms']:.3g} | {extra['time_ratio']:.2f} "
                f"| {extra['dense_layers']} | {extra['time_ratio_all_kernels']:.2f} "
                f"| {extra['memory_ratio']:.2f} | {extra['memory_ratio_dense']:.2f} |"
            )
            continue
        if config["what"] == "timed":
            timed_lines.append(
                f"| {config['network']} | {extra['density_of_all']:.2f} | {extra['dense_ms']:.3g} "
                f"| {extra['time_ratio_all_kernels']:.2f} "
                f"| {'kernels' if extra['kernels'] else 'stock'} | {extra['time_ratio']:.2f} "
                f"| {extra['first_session_s']:.1f} |"
            )
            continue
        seen = set()
        for layer in extra["layers"]:
            kernel = "x".join(map(str, layer["weight"]))
            stride = (layer["strides"] or [1])[0]
            if (kernel, stride) in seen or not layer["operator"].startswith("Csr"):
                continue
            seen.add((kernel, stride))
            ratios = " | ".join(f"{us / layer['dense_us']:.2f}" for us in layer["kernel_us"])
            layer_lines.append(
                f"| {config['network']} | {kernel} | {stride} | {layer['dense_us']:.0f} "
                f"| {ratios} |"
            )
    said = ", ".join(f"{name} {value:.3f}" for name, value in worst.items())
    return "\n".join([*lines, "", f"worst: {said}", "", *timed_lines, "", *layer_lines])


def main() -> int:
    """Run the rows that were asked for, then print the tables."""
    arguments = command_line(__doc__, data=False).parse_args()
    experiment = Experiment("dense_or_sparse", ["python", "benchmarks/dense_or_sparse.py"])
    return measure_rows(
        arguments,
        experiment,
        rows(),
        lambda config, seed: run(config, seed, experiment),
        table,
    )


if __name__ == "__main__":
    sys.exit(main())
