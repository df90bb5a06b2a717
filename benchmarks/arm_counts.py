"""How many instructions do a kernel and onnxruntime's dense operator take on 64-bit Arm?

    python benchmarks/arm_counts.py --root DIR [--rows 0,2-4] [--table]

Emulated and counted, not timed: stock onnxruntime's wheel for aarch64 and hwprune.session with
every packed layer on its kernel run under qemu-user, one thread, and a plugin (arm_count.c) counts
what the emulated processor executes in one run of a session, Python around it included. A ratio of
instructions is no ratio of times: kernels have fewer multiply-adds among them than dense loops do,
and more loads; llvm_mca.py estimates what that costs.

Rows are a chain of three equal layers, so that activations change between onnxruntime's layout and
ours only at its ends, or a whole network; masks are uniform (of a chain, also its first layer).
``dense`` is counted once, with the dense file; the kernels at each density.

DIR holds an aarch64 Python 3.11, onnxruntime and numpy: Debian's packages (python3.11-minimal,
libpython3.11-minimal, libpython3.11-stdlib, libc6, libgcc-s1, libstdc++6, zlib1g, libexpat1,
libssl3, libffi8 of arm64, by `apt-get download` and `dpkg -x`) in DIR, the wheels that `pip
download --platform manylinux_2_28_aarch64 --only-binary :all:` brings, unpacked, in DIR/site. A
file DIR/proc/cpuinfo of an Arm board must be there too: onnxruntime reads the host's otherwise, and
faults. The kernels are built here, as `make aarch64` does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import BUILD, ROOT, Experiment, Stopwatch, command_line, measure_rows, scratch
from sparse_networks import NETWORKS, uniform_masks, write_files

if TYPE_CHECKING:
    from hwprune.ir import Masks, Model

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.85)
NETWORK_DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
CORE = "cortex-a72"
LAYERS = 3
# Channels, kernel, side of the map; of a linear layer features and rows.
CONVOLUTIONS = (
    (16, 3, 32), (32, 3, 16), (64, 3, 8), (128, 3, 16), (256, 3, 8), (512, 3, 4),
    (128, 1, 56), (256, 1, 28), (512, 1, 14), (1024, 1, 7),
)  # fmt: skip
LINEAR = ((512, 1), (1024, 1), (512, 64))
MARK = 0x5EED0000
GUEST = f"""
import json, os, sys
import numpy as np, onnxruntime
import hwprune.kernels
options = json.loads(sys.argv[1])
shape = options["shape"]
x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
def mark(number):
    try:
        os.getpgid({MARK} + number)
    except OSError:
        pass
reference = None
for number, path in enumerate(options["files"]):
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    if number == 0:
        session = onnxruntime.InferenceSession(path, settings)
    else:
        session = hwprune.kernels.session(path, session_options=settings, kernels="all")
        assert session.hwprune.registered, session.hwprune
    feed = {{session.get_inputs()[0].name: x}}
    session.run(None, feed)
    mark(2 * number)
    y = session.run(None, feed)[0]
    mark(2 * number + 1)
    assert np.isfinite(y).all()
    print(json.dumps({{"instructions": hwprune.kernels.status(), "sum": float(np.abs(y).sum())}}))
"""


def rows() -> list[tuple[dict[str, Any], int]]:
    """Return every row, and its seed."""
    found: list[dict[str, Any]] = [
        {"what": "conv", "channels": channels, "kernel": kernel, "side": side}
        for channels, kernel, side in CONVOLUTIONS
    ]
    found += [{"what": "linear", "channels": width, "batch": batch} for width, batch in LINEAR]
    found += [{"what": "network", "network": name} for name in ("resnet20", "mobilenet-v1")]
    return [({**config, "core": CORE}, 0) for config in found]


def chain(config: Mapping[str, Any], seed: int) -> Model:
    """Return a chain of equal layers with random weights."""
    import torch
    from torch import nn

    from hwprune.ir import Model, TensorSpec

    torch.manual_seed(seed)
    width = config["channels"]
    module = nn.Sequential()
    for _ in range(LAYERS):
        if config["what"] == "conv":
            side = config["kernel"]
            module.append(nn.Conv2d(width, width, side, padding=side // 2))
        else:
            module.append(nn.Linear(width, width))
        module.append(nn.ReLU())
    inputs = (TensorSpec("input", (None, *shape_of(config)[1:]), "float32"),)
    return Model("chain", "chain", "state-dict", module.eval(), "chain", inputs)


def shape_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of a row's input."""
    if config["what"] == "network":
        return 1, *NETWORKS[config["network"]][1]
    if config["what"] == "linear":
        return config["batch"], config["channels"]
    return 1, config["channels"], config["side"], config["side"]


def every_layer(shapes: Mapping[str, tuple[int, ...]], sparsity: float, seed: int) -> Masks:
    """Return random masks that leave the same share of every layer, the first one included."""
    from hwprune.ir import Masks

    found = uniform_masks({"": (1,), **shapes}, sparsity, seed)
    return Masks({name: np.asarray(found[name]) for name in shapes})


def guest(root: Path) -> list[str]:
    """Return the command that runs an aarch64 Python which counts, given a script."""
    build = BUILD / "aarch64-counts"
    tools = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    tools.append("-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++")
    plugin = build / "arm_count.so"
    source = Path(__file__).with_name("arm_count.c")
    for command in (
        ["cmake", "-B", build, "-S", ROOT, *tools],
        ["cmake", "--build", build, "--target", "hwprune_kernels"],
        ["cc", "-O2", "-shared", "-fPIC", source, "-o", plugin],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    package = build / "hwprune"
    (package / "kernels").mkdir(parents=True, exist_ok=True)
    for name in ("__init__.py", "errors.py", *(f"kernels/{p.name}" for p in kernels_sources())):
        shutil.copyfile(ROOT / "hwprune" / name, package / name)
    shutil.copy(build / "libhwprune_kernels.so", package / "kernels")
    path = f"PYTHONPATH={root / 'site'}:{build}"
    python = root / "usr" / "bin" / "python3.11"
    return ["qemu-aarch64", "-cpu", CORE, "-E", path, "-E", "OMP_NUM_THREADS=1", "-L", str(root),
            "-plugin", str(plugin), str(python), "-P", "-c", GUEST]  # fmt: skip


def kernels_sources() -> list[Path]:
    """Return the Python files of hwprune.kernels, which need nothing but numpy and onnxruntime."""
    return sorted((ROOT / "hwprune" / "kernels").glob("*.py"))


def run(config: Mapping[str, Any], seed: int, experiment: Experiment, root: Path) -> None:
    """Count one row and save it."""
    watch = Stopwatch()
    network = config["what"] == "network"
    densities = NETWORK_DENSITIES if network else DENSITIES
    with scratch() as temporary:
        folder = Path(temporary)
        made = [
            write_files(
                config["network"] if network else "chain",
                1 - density,
                folder,
                seed=seed,
                make_masks=None if network else every_layer,
                model=None if network else chain(config, seed),
            )
            for density in densities
        ]
        files = [str(made[0].dense), *(str(each.sparse) for each in made)]
        given = json.dumps({"shape": shape_of(config), "files": files})
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(
            [*guest(root), given], env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"the guest ended with {done.returncode}: {done.stderr[-2000:]}")
    marks = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("mark ")]
    numbers = np.array(marks, dtype=np.int64)
    assert numbers[:, 0].tolist() == list(range(2 * len(files)))
    counts = numbers[1::2, 1:] - numbers[0::2, 1:]
    experiment.add(
        config, seed, watch.seconds, 0,
        densities=list(densities),
        instructions=json.loads(done.stdout.splitlines()[0])["instructions"],
        emulator=version("qemu-aarch64"),
        compiler=version("aarch64-linux-gnu-g++"),
        onnxruntime=wheel_version(root),
        dense=counted(counts[0]),
        kernels=[counted(each) for each in counts[1:]],
        ratio=[float(each[0] / counts[0][0]) for each in counts[1:]],
    )  # fmt: skip
    print("  " + ", ".join(f"{d:g}: {c[0] / counts[0][0]:.2f}" for d, c in
                           zip(densities, counts[1:], strict=True)), flush=True)  # fmt: skip


def counted(numbers: Any) -> dict[str, int]:
    """Return a row's counts by class."""
    return dict(zip(("all", "vector", "memory"), map(int, numbers), strict=True))


def version(program: str) -> str:
    """Return what a program says of itself."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return said.stdout.splitlines()[0]


def wheel_version(root: Path) -> str:
    """Return the version of the guest's onnxruntime."""
    return (
        next((root / "site").glob("onnxruntime-*.dist-info")).name.split("-")[1].split(".dist")[0]
    )


def name_of(config: Mapping[str, Any]) -> str:
    """Return what a row counts, as tables call it."""
    if config["what"] == "network":
        return str(config["network"])
    width = config["channels"]
    if config["what"] == "linear":
        return f"{width}x{width}, {config['batch']} row{'s' * (config['batch'] > 1)}"
    side = config["side"]
    return f"{width}x{width}x{config['kernel']}x{config['kernel']} at {side}x{side}"


def table(experiment: Experiment) -> str:
    """Return the record as Markdown: instructions of the kernels over those of the dense one."""
    lines = [
        "| three layers of, or network | dense, million | of them vector "
        + "".join(f"| {100 * density:g} % " for density in DENSITIES)
        + "|",
        "|---|---|---|" + "---|" * len(DENSITIES),
    ]
    order = [config for config, _ in rows()]
    for row in sorted(experiment.rows(), key=lambda row: order.index(row.config)):
        if row.status != "run":
            continue
        extra: dict[str, Any] = row.model_extra or {}
        found = dict(zip(extra["densities"], extra["ratio"], strict=True))
        dense = extra["dense"]
        cells = [f"{found[d]:.2f}" if d in found else "" for d in DENSITIES]
        lines.append(
            f"| {name_of(row.config)} | {dense['all'] / 1e6:.1f} "
            f"| {100 * dense['vector'] / dense['all']:.0f} % | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Count the rows that were asked for, then print the table."""
    parser = command_line(__doc__, data=False)
    parser.add_argument("--root", type=Path, help="the folder with an aarch64 Python")
    arguments = parser.parse_args()
    if arguments.root is None and not arguments.table:
        parser.error("--root: name the folder with an aarch64 Python, see the top of this file")
    experiment = Experiment("arm_counts", ["python", "benchmarks/arm_counts.py", "--root", "DIR"])
    return measure_rows(
        arguments,
        experiment,
        rows(),
        lambda config, seed: run(config, seed, experiment, arguments.root.resolve()),
        table,
    )


if __name__ == "__main__":
    sys.exit(main())
