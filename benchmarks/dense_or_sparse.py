"""Where does a kernel gain over onnxruntime's dense operator, and does a session choose so?

    python benchmarks/dense_or_sparse.py [--rows 0,2-4] [--table] [--fit]

Two kinds of row. ``layers``: what each layer of a network takes inside the network, dense and with
a kernel at several densities, by onnxruntime's profiler (the mean of the fastest quarter of the
runs, in microseconds). ``network``: one network at one sparsity; dense onnxruntime,
``hwprune.session`` as it is, and with every packed layer on its kernel (``kernels="all"``). All
sessions of a row are alive in one process with one thread and run in turn, in many short bursts;
networks are timed by the process's processor time and the minimum is kept, so that a busy machine
disturbs little. Masks are uniform (see sparse_networks.py). ``--fit`` fits
hwprune/kernels/costs.py to the layers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import Experiment, Stopwatch, command_line, measure_rows, scratch
from sparse_networks import NETWORKS, write_files

SEED = 0
DENSITIES = (0.2, 0.3, 0.5, 0.7)
ORDER = ("resnet20", "vgg16-cifar", "mobilenet-v1")
# Seconds of processor time for each session, in bursts; at least so many of these.
SECONDS, BURST, ROUNDS = 0.7, 0.03, 4


def rows() -> list[dict[str, Any]]:
    """Return every row, the shortest first."""
    found = [{"what": "layers", "network": network, "batch": 1} for network in ORDER]
    cases = [(network, 1) for network in ORDER] + [("resnet20", 64), ("vgg16-cifar", 64)]
    return found + [
        {"what": "network", "network": network, "batch": batch, "sparsity": sparsity}
        for network, batch in cases
        for sparsity in (0.0, 0.3, 0.5, 0.7)
    ]


def options(folder: Path, *, profile: bool) -> Any:
    """Return the options of a session with one thread."""
    import onnxruntime

    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = made.inter_op_num_threads = 1
    made.enable_profiling = profile
    made.profile_file_prefix = str(folder / "profile")
    return made


def in_turn(runs: Sequence[Callable[[], Any]]) -> list[float]:
    """Run each in turn; return the least processor time of each, in ms."""
    best, spent, rounds = [float("inf")] * len(runs), 0.0, 0
    while spent < SECONDS * len(runs) or rounds < ROUNDS:
        rounds += 1
        for i, run in enumerate(runs):
            run()  # fills the caches that another one has emptied
            burst = time.process_time() + BURST
            while True:
                start = time.process_time()
                run()
                end = time.process_time()
                best[i] = min(best[i], 1000 * (end - start))
                spent += end - start
                if end > burst:
                    break
    return best


def runner(session: Any, batch: int, shape: Sequence[int]) -> Callable[[], Any]:
    """Return what runs a session once."""
    x = np.random.default_rng(SEED).standard_normal((batch, *shape)).astype(np.float32)
    feed = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feed)


def layers(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what each packed layer takes, dense and at each density."""
    import onnx
    import onnxruntime

    import hwprune
    from hwprune.kernels.dense_model import densify
    from hwprune.kernels.dense_path import layer_problems
    from hwprune.kernels.model_file import read_model

    network = config["network"]
    files = [write_files(network, 1 - d, folder, seed=SEED).sparse for d in DENSITIES]
    models = [read_model(file.read_bytes()) for file in files if file is not None]
    packed = {i: n for i, n in enumerate(models[0].nodes) if n.domain == "hwprune"}
    dense = onnx.load_from_string(densify(models[0], packed.keys()).data)
    convolutions = {n.output[0]: n.name for n in dense.graph.node if n.op_type in _LAYERS}
    producers = {n.output[0]: n for n in dense.graph.node}

    def layer_of(event: str) -> str | None:
        # A fused node is named after its last output: back to the layer that it begins with.
        name = event.removesuffix("_nchwc")
        while name in producers and name not in convolutions:
            name = producers[name].input[0]
        return convolutions.get(name, event if event in convolutions.values() else None)

    sessions = [
        onnxruntime.InferenceSession(dense.SerializeToString(), options(folder, profile=True))
    ]
    sessions += [
        hwprune.session(str(file), session_options=options(folder, profile=True), kernels="all")
        for file in files
    ]
    runs = [runner(session, config["batch"], NETWORKS[network][1]) for session in sessions]
    in_turn(runs)
    dense_times, *kernel_times = [durations(session.end_profiling()) for session in sessions]
    found = {layer_of(event): us for event, us in dense_times.items()}
    problems = [layer_problems(model, {}) for model in models]
    return {
        "layers": [
            {
                "name": node.name,
                "problem": stated(problems[0][i]),
                "dense_us": found[node.name],
                "density": [p[i].nonzeros / p[i].weights for p in problems],
                "kernel_us": [times[node.name] for times in kernel_times],
            }
            for i, node in packed.items()
            if node.name in found and i in problems[0] and node.name in kernel_times[0]
        ]
    }


def stated(problem: Any) -> dict[str, Any]:
    """Return a layer's problem as a record has it."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name in problem.__slots__
        if (value := getattr(problem, name)) is not None
    }


_LAYERS = ("Conv", "Gemm", "MatMul")


def durations(path: str) -> dict[str, float]:
    """Return the microseconds of each layer in a profile."""
    times: dict[str, list[float]] = {}
    for event in json.loads(Path(path).read_text()):
        operator = event.get("args", {}).get("op_name", "")
        ours = operator.startswith(("Csr", "Dense"))
        if event["name"].endswith("_kernel_time") and (ours or operator in (*_LAYERS, "FusedConv")):
            times.setdefault(event["name"][: -len("_kernel_time")], []).append(event["dur"])
    return {name: float(np.mean(sorted(t)[: max(3, len(t) // 4)])) for name, t in times.items()}


def network(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what a network takes dense, as a session chooses, and with kernels alone."""
    import onnxruntime

    import hwprune

    shape = NETWORKS[config["network"]][1]
    files = write_files(config["network"], config["sparsity"], folder, seed=SEED)
    dense = onnxruntime.InferenceSession(str(files.dense), options(folder, profile=False))
    file = str(files.sparse or files.dense)
    given = {dense.get_inputs()[0].name: (config["batch"], *shape)}
    chosen = hwprune.session(
        file, session_options=options(folder, profile=False), input_shapes=given
    )
    every = hwprune.session(file, session_options=options(folder, profile=False), kernels="all")
    sessions = [dense, chosen, every]
    if config["sparsity"] == 0:
        # What dense layers would take one by one, each with a layout of its own.
        sessions.append(
            onnxruntime.InferenceSession(
                file, options(folder, profile=False), disabled_optimizers=["NchwcTransformer"]
            )
        )
    runs = [runner(session, config["batch"], shape) for session in sessions]
    outputs = [np.asarray(run()[0]) for run in runs]
    best = in_turn(runs)
    return {
        "dense_ms": best[0],
        "session_ms": best[1],
        "all_kernels_ms": best[2],
        "speedup": best[0] / best[1],
        "speedup_all_kernels": best[0] / best[2],
        "dense_unblocked_ms": best[3] if len(best) > 3 else None,
        "dense_layers": len(chosen.hwprune.dense),
        "relative_error": float(np.abs(outputs[1] - outputs[0]).max() / np.abs(outputs[0]).max()),
    }


def run(config: Mapping[str, Any], seed: int, experiment: Experiment) -> None:
    """Measure one row and save it."""
    watch = Stopwatch()
    with scratch() as folder:
        measure = layers if config["what"] == "layers" else network
        measured = measure(config, Path(folder))
    experiment.add(config, seed, watch.seconds, 0, **measured)


def table(experiment: Experiment) -> str:
    """Return the networks, then the layers, as Markdown; ratios are of dense to ours."""
    lines = [
        "| network | batch | sparsity | dense ms | session | layers left dense | kernels alone |",
        "|---|---|---|---|---|---|---|",
    ]
    layer_lines = [
        "| network | input | weight | stride | dense us | "
        + " | ".join(f"{100 * density:g} % stored" for density in DENSITIES)
        + " |",
        "|---|---|---|---|---|" + "---|" * len(DENSITIES),
    ]
    order = rows()
    for row in sorted(experiment.rows(), key=lambda row: order.index(row.config)):
        config, extra = row.config, row.model_extra or {}
        if row.status != "run":
            continue
        if config["what"] == "network":
            lines.append(
                f"| {config['network']} | {config['batch']} "
                f"| {100 * float(config['sparsity']):g} % "  # type: ignore[arg-type]
                f"| {extra['dense_ms']:.3g} | {extra['speedup']:.2f} | {extra['dense_layers']} "
                f"| {extra['speedup_all_kernels']:.2f} |"
            )
            continue
        seen = set()
        for layer in extra["layers"]:
            p = layer["problem"]
            key = (p["inputs"], p["outputs"], *p["kernel"], *p["strides"], *p["spatial"])
            if key in seen or min(layer["density"]) == 1:
                continue
            seen.add(key)
            size = "x".join(str(n) for n in p["spatial"])
            kernel = "x".join(str(n) for n in (p["outputs"], p["inputs"], *p["kernel"]))
            ratios = " | ".join(f"{layer['dense_us'] / us:.2f}" for us in layer["kernel_us"])
            layer_lines.append(
                f"| {config['network']} | {size} | {kernel} | {p['strides'][0]} "
                f"| {layer['dense_us']:.0f} | {ratios} |"
            )
    return "\n".join([*lines, "", *layer_lines])


def fit(experiment: Experiment) -> None:
    """Print the constants of costs.py that fit the recorded layers best, and how far they are off.

    Non-negative least squares of the relative errors.
    """
    from scipy.optimize import nnls

    from hwprune.kernels import library
    from hwprune.kernels.costs import BYTES_PER_NONZERO, STREAMED_BYTES, Problem

    dense, kernel = [], []
    for row in experiment.rows():
        for layer in (row.model_extra or {}).get("layers", ()):
            stored = layer["problem"].items()
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored}
            p = Problem(**given)
            if p.is_linear or p.is_depthwise or p.inputs < 8:
                continue
            macs, pointwise = p.weights * p.positions, int(np.prod(p.kernel)) == 1
            read = p.inputs * int(np.prod(p.spatial))
            work = [macs * (not pointwise), macs * pointwise, 4 * p.weights, read]
            dense.append([layer["dense_us"], *work, p.outputs * p.positions, 1])
            for density, us in zip(layer["density"], layer["kernel_us"], strict=True):
                nonzeros = round(density * p.weights)
                estimate = library.estimate(p.specification, nonzeros, 1, 1)
                far = nonzeros * BYTES_PER_NONZERO > STREAMED_BYTES
                kernel.append([us, estimate * (not far), estimate * far, 1])
    for name, lines in (("dense", dense), ("kernel", kernel)):
        data = np.array(lines, float)
        time_ns, work_done = 1000 * data[:, 0], data[:, 1:]
        keep = np.ones(len(data), dtype=bool)
        for _ in range(4):  # a time that something else disturbed is not the layer's
            constants, _ = nnls(work_done[keep] / time_ns[keep, None], np.ones(keep.sum()))
            error = work_done @ constants / time_ns
            keep = np.abs(np.log(error)) < 0.4
        shares = " ".join(f"{q:.2f}" for q in np.quantile(error, [0.05, 0.25, 0.5, 0.75, 0.95]))
        print(name, ", ".join(f"{value:.3g}" for value in constants))
        print(
            f"  {len(data)} times, {keep.sum()} used; estimate / time at 5 25 50 75 95 %: {shares}"
        )


def main() -> int:
    """Run the rows that were asked for, then print the tables."""
    parser = command_line(__doc__, data=False)
    parser.add_argument("--fit", action="store_true", help="fit the costs to the record and stop")
    arguments = parser.parse_args()
    experiment = Experiment("dense_or_sparse", ["python", "benchmarks/dense_or_sparse.py"])
    if arguments.fit:
        fit(experiment)
        return 0
    return measure_rows(
        arguments,
        experiment,
        [(config, SEED) for config in rows()],
        lambda config, seed: run(config, seed, experiment),
        table,
    )


if __name__ == "__main__":
    sys.exit(main())
