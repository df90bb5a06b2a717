"""Does what is done with an ONNX file grow with the file, or faster?

    python benchmarks/growth.py [--rows 0] [--table]

Chains of nodes (n, and 10 n), and a node with a name of 1 and 10 MB, in `check`, `inspect`, `plan`
and a session of kernels, each a process of its own. CPU seconds, of which those of starting and
importing (the same work on a file of ten nodes) are taken off for the ratio, which is 10 where work
is linear. The record is benchmarks/results/growth.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import Experiment, Stopwatch, command_line, measure_rows, scratch

COMMANDS = ("check", "inspect", "session", "plan")
ROWS: tuple[dict[str, Any], ...] = (
    *({"of": "nodes", "command": each, "sizes": [10_000, 100_000]} for each in COMMANDS),
    *({"of": "letters of a name", "command": each, "sizes": [10**6, 10**7]} for each in COMMANDS),
    {"of": "nodes", "command": "plan", "sizes": [1_000, 10_000]},
    {"of": "nodes", "command": "onnxruntime alone", "sizes": [10_000, 100_000]},
)  # fmt: skip
SEED = 0
SESSION = "import sys; from hwprune.kernels import session; session(sys.argv[1])"
ALONE = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""
SCRIPTS = {"session": SESSION, "onnxruntime alone": ALONE}
SMALL = 10


def chain(path: Path, nodes: int, name: str = "") -> None:
    """Write a layer and behind it a chain of nodes that no optimiser of ours takes away."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    made = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["v0"]),
    ]
    for number in range(nodes - 2):
        last = "y" if number == nodes - 3 else f"v{number + 1}"
        kind = ("Neg", "Relu")[number % 2]
        made.append(helper.make_node(kind, [f"v{number}"], [last], name="" if number else name))
    weight = np.random.default_rng(SEED).standard_normal((64, 10)).astype(np.float32)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        made, "chain", [value("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [value("y", TensorProto.FLOAT, ["n", 10])], [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def cpu_seconds(command: str, path: Path) -> float:
    """Return the CPU seconds of a command on a file."""
    words = [sys.executable, "-m", "hwprune", command, str(path)]
    if command == "plan":
        words += ["--target", "jetson-nano", "--budget", str(path.stat().st_size)]
    elif command in SCRIPTS:
        words = [sys.executable, "-c", SCRIPTS[command], str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} failed")
    return used.ru_utime + used.ru_stime


def run(config: dict[str, Any], experiment: Experiment) -> None:
    """Measure one row."""
    watch = Stopwatch()
    with scratch() as folder:
        path, found = Path(folder) / "chain.onnx", []
        for size in (SMALL, *config["sizes"]):
            if config["of"] == "nodes":
                chain(path, size)
            else:
                chain(path, SMALL, "a" * size)
            found.append(cpu_seconds(config["command"], path))
    base, less, more = found
    experiment.add(
        config, SEED, watch.seconds, 0, base_cpu_seconds=round(base, 2),
        cpu_seconds=[round(less, 2), round(more, 2)],
        ratio=round((more - base) / max(less - base, 0.01), 1),
    )  # fmt: skip


def table(experiment: Experiment) -> str:
    """Return the record as Markdown."""
    lines = [
        "| what | of | n | CPU s | 10 n | CPU s | 10 nodes alone, CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in experiment.rows():
        if row.status != "run":
            continue
        extra: dict[str, Any] = row.model_extra or {}
        less, more = extra["cpu_seconds"]
        first, second = row.config["sizes"]
        lines.append(
            f"| {row.config['command']} | {row.config['of']} | {first:,} | {less:.2f} "
            f"| {second:,} | {more:.2f} | {extra['base_cpu_seconds']:.2f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure what is not in the record yet."""
    arguments = command_line(__doc__, data=False).parse_args()
    experiment = Experiment("growth", ["python", "benchmarks/growth.py"])
    return measure_rows(
        arguments, experiment, [(row, SEED) for row in ROWS],
        lambda config, _: run(config, experiment), table,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
