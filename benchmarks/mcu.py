"""What do the networks of MLPerf Tiny take on microcontrollers, pruned: flash, RAM, instructions?

By shape: weights and masks are random, with the first layer and depthwise layers left dense, since
neither bytes nor instructions depend on values. Images are linked for the memory of QEMU's boards,
run there, and every tensor is compared with the reference. Instructions are exact and emulated;
they are not cycles: of those there is an estimate where the core's manual says them.

    flash          .text + .rodata + .data of an image with a main that runs the network once
    ram            arena, taps, state and output of the network, and the stack that a run used
    instructions   of one inference, by layer
    macs           multiply-accumulates with weights that are kept

    python benchmarks/mcu.py [--rows 0,2-4] [--table]
    python benchmarks/mcu.py --code-bytes     the table of hwprune/firmware/code_size.py, again
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import Config, Experiment, Stopwatch, command_line, measure_rows

from hwprune.errors import InfeasibleError
from hwprune.firmware import code_size, emit, emulate, link, memory_plan, reference
from hwprune.firmware.cycles import estimated
from hwprune.firmware.fixed_point import settled_average, settled_scales
from hwprune.firmware.formats import FORMATS, FormatName
from hwprune.firmware.host import checksum
from hwprune.firmware.link import Chip
from hwprune.firmware.network import (
    UNCLAMPED,
    Add,
    Conv2d,
    GlobalAveragePool,
    IntegerLayer,
    IntegerNetwork,
    Linear,
    Pair,
    Quad,
    QuantizedTensor,
    Reshape,
    Weighted,
    window_output,
)

SPARSITIES = (0.8, 0.9, 0.95)
# Layer by layer where there is room, the least that a plan can do with, and that with some flash
# spent on formats that are faster to decode.
RAM = ("roomy", "least", "least and fast")
# ResNet-8 layer by layer, but for sums that take the place of what they add to; with the stack.
IN_PLACE, IN_PLACE_BYTES = "36 KiB", 36 * 1024
SPARE_BYTES = 4096
STACK_BYTES = 512  # of which a run uses 440 or so
BOARDS = ("mps2-an386", "mps2-an385", "microbit", "mps3-an547", "virt")
SCALE = np.float32(1 / 16)
# Of an accumulator, in steps of the output: what calibration gives for a layer's inner values.
SPREAD = 40.0


@dataclass
class Builder:
    """Makes a network layer by layer, by shape."""

    name: str
    shape: tuple[int, ...]
    density: float
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    tensors: dict[str, QuantizedTensor] = field(default_factory=dict)
    layers: list[IntegerLayer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tensor("x", self.shape)

    def tensor(self, name: str, shape: tuple[int, ...]) -> str:
        """Add a tensor."""
        self.tensors[name] = QuantizedTensor(name, shape, SCALE, -128)
        return name

    def weights(self, shape: tuple[int, ...], dense: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return int8 weights with the exact number of nonzeros, and their scales."""
        size = int(np.prod(shape))
        kept = size if dense else round(size * self.density)
        flat = np.zeros(size, np.int8)
        places = self.rng.choice(size, kept, replace=False)
        flat[places] = self.rng.integers(1, 128, kept) * self.rng.choice([-1, 1], kept)
        weight = flat.reshape(shape)
        spread = 70 * np.sqrt((weight.astype(float) ** 2).reshape(len(weight), -1).sum(1)) + 1000
        return weight, (SPREAD / spread).astype(np.float32)

    def conv(
        self, x: str, name: str, channels: int, kernel: Pair, stride: int = 1, *,
        dense: bool = False, depthwise: bool = False,
    ) -> str:  # fmt: skip
        """Add a convolution whose output is its input's size by the stride."""
        given, rows, columns = self.tensors[x].chw
        pads = tuple(
            max(0, (-(-size // stride) - 1) * stride + k - size)
            for size, k in zip((rows, columns), kernel, strict=True)
        )
        quad: Quad = (pads[0] // 2, pads[1] // 2, -(-pads[0] // 2), -(-pads[1] // 2))
        groups = given if depthwise else 1
        channels = given if depthwise else channels
        weight, scales = self.weights((channels, given // groups, *kernel), dense or depthwise)
        bias = self.rng.integers(-500, 500, channels).astype(np.int32)
        strides = (stride, stride)
        self.layers.append(
            Conv2d(name, (x,), name, weight, scales, bias, strides, quad, groups=groups)
        )
        size = window_output((rows, columns), kernel, strides, quad, (1, 1))
        return self.tensor(name, (channels, *size))

    def add(self, a: str, b: str, name: str) -> str:
        """Add a sum."""
        self.layers.append(Add(name, (a, b), name, (64, 64)))
        return self.tensor(name, self.tensors[a].shape)

    def linear(self, x: str, name: str, outputs: int) -> str:
        """Add a linear layer."""
        weight, scales = self.weights((outputs, self.tensors[x].size), False)
        bias = self.rng.integers(-500, 500, outputs).astype(np.int32)
        self.layers.append(Linear(name, (x,), name, weight, scales, bias))
        return self.tensor(name, (outputs,))

    def head(self, x: str, outputs: int) -> IntegerNetwork:
        """Add the average of each channel and a linear layer; return the network."""
        channels = self.tensors[x].shape[0]
        self.layers.append(GlobalAveragePool("average", (x,), "average"))
        given = self.tensors[x]
        average = QuantizedTensor("average", (channels, 1, 1), SCALE, -128)
        self.tensors["average"] = replace(average, scale=settled_average(given, average))
        self.layers.append(Reshape("flat", ("average",), "flat"))
        self.tensors["flat"] = replace(self.tensors["average"], name="flat", shape=(channels,))
        return self.done(self.linear("flat", "output", outputs))

    def settled(self, layer: Weighted) -> np.ndarray:
        """Return the scales of a layer's weights, as a chip can compute with them."""
        x, y = self.tensors[layer.inputs[0]], self.tensors[layer.output]
        return settled_scales(layer.weight, layer.bias, layer.weight_scale, x, y, layer.clamp)

    def done(self, output: str) -> IntegerNetwork:
        """Return the network."""
        layers = [
            replace(layer, weight_scale=self.settled(layer))
            if isinstance(layer, (Conv2d, Linear))
            else layer
            for layer in self.layers
        ]
        network = IntegerNetwork(self.name, self.tensors, "x", (output,), tuple(layers))
        network.validate()
        return network


def resnet8(density: float) -> IntegerNetwork:
    b = Builder("resnet8", (3, 32, 32), density)
    x = b.conv("x", "stem", 16, (3, 3), dense=True)
    for stage, channels in enumerate((16, 32, 64), 1):
        stride = 1 if stage == 1 else 2
        y = b.conv(x, f"stage{stage}_a", channels, (3, 3), stride)
        y = b.conv(y, f"stage{stage}_b", channels, (3, 3))
        if stride > 1:
            x = b.conv(x, f"stage{stage}_shortcut", channels, (1, 1), stride)
        x = b.add(y, x, f"stage{stage}_sum")
    return b.head(x, 10)


def ds_cnn(density: float) -> IntegerNetwork:
    b = Builder("ds_cnn", (1, 49, 10), density)
    x = b.conv("x", "stem", 64, (10, 4), 2, dense=True)
    for block in range(1, 5):
        x = b.conv(x, f"depthwise{block}", 0, (3, 3), depthwise=True)
        x = b.conv(x, f"pointwise{block}", 64, (1, 1))
    return b.head(x, 12)


MOBILENET = (
    (16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (128, 1), (128, 1), (128, 1),
    (128, 1), (256, 2), (256, 1),
)  # fmt: skip


def mobilenet_v1_025(density: float) -> IntegerNetwork:
    b = Builder("mobilenet_v1_025", (3, 96, 96), density)
    x = b.conv("x", "stem", 8, (3, 3), 2, dense=True)
    for block, (channels, stride) in enumerate(MOBILENET, 1):
        x = b.conv(x, f"depthwise{block}", 0, (3, 3), stride, depthwise=True)
        x = b.conv(x, f"pointwise{block}", channels, (1, 1))
    return b.head(x, 2)


def autoencoder(density: float) -> IntegerNetwork:
    b = Builder("autoencoder", (640,), density)
    x = "x"
    for place, width in enumerate((128, 128, 128, 128, 8, 128, 128, 128, 128, 640)):
        x = b.linear(x, f"dense{place}", width)
    return b.done(x)


NETWORKS: dict[str, Callable[[float], IntegerNetwork]] = {
    "resnet8": resnet8,
    "ds_cnn": ds_cnn,
    "mobilenet_v1_025": mobilenet_v1_025,
    "autoencoder": autoencoder,
}
ROWS: list[tuple[Config, int]] = [
    ({"network": network, "sparsity": sparsity, "ram": ram}, 0)
    for network in NETWORKS
    for sparsity in SPARSITIES
    for ram in RAM
]
ROWS += [
    ({"network": "resnet8", "sparsity": sparsity, "ram": IN_PLACE}, 0) for sparsity in SPARSITIES
]
ROWS += [
    ({"network": "resnet8", "sparsity": 0.9, "ram": ram, "activations": "fp32"}, 0)
    for ram in RAM[:2]
]


def least_plan(network: IntegerNetwork, roomy: memory_plan.MemoryPlan) -> memory_plan.MemoryPlan:
    """Return the plan of the least RAM, by bisection."""
    best, low = roomy, 0
    while low + 1 < best.ram_bytes:
        middle = (low + best.ram_bytes) // 2
        try:
            best = memory_plan.plan(network, middle)
        except InfeasibleError:
            low = middle
    return best


def measure(config: Config) -> dict[str, Any]:
    """Return what one network takes, and what it does on each board that is here and holds it."""
    network = NETWORKS[config["network"]](1 - config["sparsity"])
    if "activations" in config:
        network = in_fp32(network)
    plan = memory_plan.plan(network)
    if config["ram"] == IN_PLACE:
        plan = memory_plan.plan(network, IN_PLACE_BYTES - STACK_BYTES)
    elif config["ram"] != "roomy":
        plan = least_plan(network, plan)
    weighted = [layer for layer in network.layers if isinstance(layer, (Conv2d, Linear))]
    pixels = {layer.name: network.macs(layer) // layer.weight.size for layer in weighted}
    x = np.random.default_rng(1).integers(-128, 128, (1, *network.tensors["x"].shape))
    x = (x / np.float32(64)).astype(np.float32) if "activations" in config else x.astype(np.int8)
    expected = reference.run(network, x)
    measured: dict[str, Any] = {
        "nonzeros": sum(int(np.count_nonzero(layer.weight)) for layer in weighted),
        "macs": sum(int(np.count_nonzero(la.weight)) * pixels[la.name] for la in weighted),
        "plan_bytes": plan.ram_bytes,
        "streamed": list(plan.streamed),
        "boards": {},
    }
    boards = {board.name: board for board in emulate.BOARDS if board.name in BOARDS}
    # No board of QEMU has a Cortex-M0 and much RAM; a Cortex-M3 runs its code unchanged.
    roomy = boards["mps2-an385"]
    roomy = replace(roomy, chip=replace(roomy.chip, core="Cortex-M0"))
    for label, board in {**boards, "mps2-an385, Cortex-M0's code": roomy}.items():
        with tempfile.TemporaryDirectory() as folder:
            spare = SPARE_BYTES if config["ram"] == "least and fast" else 0
            formats = emit.layer_formats(network, plan, spare, board.chip.core)
            emitted = emit.write(network, Path(folder), plan, formats)
            measured["constant_bytes"] = emitted.constant_bytes
            try:
                image = link.link(Path(folder), board.chip)
                text = runtime_text_bytes(image.elf, board.chip)
                done = emulate.run(Path(folder), plan, board, x)
            except InfeasibleError as error:
                measured["boards"][label] = {"too_large": error.message}
                continue
        sums = {name: checksum(expected[name][0]) for name in plan.placements}
        found = done.instructions or {}
        measured["boards"][label] = {
            "core": board.chip.core,
            "label": "emulated",
            "equal": sums == done.sums[0],
            "flash_bytes": image.flash_bytes,
            "runtime_text_bytes": text,
            "ram_bytes": image.ram_bytes - image.stack_bytes + done.stack_bytes,
            "stack_bytes": done.stack_bytes,
            "instructions": sum(found.values()),
            "convolution_instructions": sum(
                count for name, count in found.items() if name in pixels
            ),
            "by_layer": found,
            "estimated_cycles": list(estimated(board.chip.core, done.classes or {}) or ()),
        }
    return measured


def runtime_text_bytes(elf: Path, chip: Chip) -> int:
    """Return the bytes of an image's functions that come from the runtime's sources.

    In the order of the table of symbols those of one file, which are local, stand behind its name.
    """
    tools = link.CORES[chip.core].tools
    file, size = "", 0
    said = link.run_tool([f"{tools}nm", "--debug-syms", "--no-sort", "--print-size", str(elf)])
    assert said.returncode == 0, said.stderr
    for line in said.stdout.splitlines():
        *numbers, kind, name = line.split()
        file = name if kind == "a" else file
        ours = file.startswith("hwp_") if kind == "t" else name.startswith("hwp_")
        if kind in "tT" and ours and len(numbers) == 2:
            size += int(numbers[1], 16)
    return size


def in_fp32(network: IntegerNetwork) -> IntegerNetwork:
    """Return a network with activations of fp32."""
    layers: list[IntegerLayer] = []
    for layer in network.layers:
        if isinstance(layer, (Conv2d, Linear)):
            layer = replace(layer, bias=layer.bias.astype(np.float32), clamp=UNCLAMPED)
        elif isinstance(layer, Add):
            layer = replace(layer, clamp=UNCLAMPED)
        layers.append(layer)
    tensors = {
        name: QuantizedTensor(name, tensor.shape, np.float32(1), 0)
        for name, tensor in network.tensors.items()
    }
    return replace(network, tensors=tensors, layers=tuple(layers), activations="fp32")


def measure_code() -> dict[str, Any]:
    """Return what the runtime's code takes on each core, and what each part of it adds."""
    b = Builder("one_convolution", (2, 8, 8), 0.5)
    one_int8 = b.done(b.conv("x", "y", 4, (3, 3)))
    sizes: dict[str, dict[str, int]] = {}
    parts = [*code_size.KERNELS.values(), *(f"decode_{name}" for name in FORMATS)]

    def size(core: str, network: IntegerNetwork, form: FormatName, symbol: str) -> int:
        """Return an image without its constants; the linker keeps the symbol too."""
        room = Chip(core, core, 0, 1 << 24, 0x20000000, 1 << 24)
        with tempfile.TemporaryDirectory() as folder:
            plan = memory_plan.plan(network)
            emitted = emit.write(network, Path(folder), plan, {"y": form})
            main = next((Path(folder) / "examples").rglob("*.c"))
            options = (f"-Wl,-u,{symbol}",)
            image = link.build(Path(folder), room, Path(folder) / "a.elf", [main], options, 1024)
        return image.flash_bytes - emitted.constant_bytes

    for core, one in itertools.product(link.CORES, (one_int8, in_fp32(one_int8))):
        dense = size(core, one, "dense", "reset")
        added = {part: size(core, one, "dense", f"hwp_{part}") - dense for part in parts}
        rice = size(core, one, "rice", "reset")
        added["decode_dense"] = dense + added["decode_rice"] - rice
        added["output"] = size(core, replace(one, outputs=("y", "y")), "dense", "reset") - dense
        row = code_size.row_of(core, one)
        sizes[row] = {"base": dense - added["decode_dense"], **added}
        print(row, sizes[row], file=sys.stderr)
    versions = {build.tools + "gcc": link.version_of(build.tools) for build in link.CORES.values()}
    return {"measured_with": versions, "bytes": sizes}


def table(experiment: Experiment) -> str:
    """Return the record as a table."""
    lines = [
        "| network | sparsity | RAM | board | flash B | RAM B | stack B | M instructions | equal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in experiment.rows():
        boards = (row.model_extra or {}).get("boards", {})
        assert isinstance(boards, dict)
        for board, found in boards.items():
            ram = ", ".join(
                str(row.config[key]) for key in ("ram", "activations") if key in row.config
            )
            head = f"| {row.config['network']} | {row.config['sparsity']} | {ram} "
            if "too_large" in found:
                lines.append(head + f"| {board} | | | | does not fit | |")
                continue
            lines.append(
                head + f"| {board} | {found['flash_bytes']:,} | {found['ram_bytes']:,} | "
                f"{found['stack_bytes']} | {found['instructions'] / 1e6:.2f} | {found['equal']} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line(__doc__, data=False)
    parser.add_argument(
        "--code-bytes", action="store_true", help="measure the runtime's code again"
    )
    options = parser.parse_args(arguments)
    if options.code_bytes:
        code_size.TABLE.write_text(json.dumps(measure_code(), indent=1) + "\n")
        return 0
    experiment = Experiment("mcu", ["python", "benchmarks/mcu.py"])

    def run(config: Config, seed: int) -> None:
        watch = Stopwatch()
        measured = measure(config)
        experiment.add(config, seed, watch.seconds, 0, **measured)

    return measure_rows(options, experiment, ROWS, run, table)


if __name__ == "__main__":
    sys.exit(main())
