"""What do the kernels' inner loops cost on Arm's cores, beside dense loops? Estimated by llvm-mca.

    python benchmarks/llvm_mca.py --mca PROGRAM [--onnxruntime FILE.so] [--table]

Estimated, not measured: llvm-mca plays a loop on LLVM's model of a core, as if each load hit the
first-level cache and each branch were foretold. Three kinds of loop are cut out of disassemblies
(aarch64-linux-gnu-objdump): one nonzero times a tile of the kernels (compute/tile.cpp, built as
`make aarch64` does), for the largest tiles of usual maps; a plain dense product of our own,
4 rows by 16 columns; and of FILE, onnxruntime's wheel for aarch64, the loop with the most
multiply-adds.

A multiply-add is one of 4 lanes. ``as fast at`` is the density up to which a kernel's loop takes
fewer cycles than onnxruntime's dense loop (ours where FILE is not given) for the same layer.
PROGRAM is LLVM 19's: 14's has no models of the newer cores. LLVM has no model of its own for A76
and A78: their rows are by those of Neoverse N1, the same core as A76, and Neoverse N2, which like
A78 has two vector and three load pipes; A72 goes by A57's.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common import ROOT, Experiment, Stopwatch, command_line, measure_rows, scratch

COMPILER = ["aarch64-linux-gnu-g++", "-O3", "-std=c++17", "-c"]
OBJDUMP = ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn"]
# The core of a row, and what LLVM calls the model that stands for it.
CORES = {
    "Cortex-A53": "cortex-a53",
    "Cortex-A72": "cortex-a72",
    "Cortex-A76": "neoverse-n1",
    "Cortex-A78": "neoverse-n2",
}
# Rows and vectors of a tile, and whose largest it is (tile_shape in plan.cpp).
TILES = {
    (3, 8): "32 wide", (6, 4): "16 wide", (8, 2): "8 wide", (4, 1): "4 wide",
    (1, 24): "56x56, pointwise", (1, 17): "14x14, pointwise", (1, 13): "7x7, pointwise",
}  # fmt: skip
ITERATIONS = 200
DENSE = """
typedef float V __attribute__((vector_size(16)));
typedef float U __attribute__((vector_size(16), aligned(4)));
// c[4][16] += a[4][k] * b[k][16], b packed.
extern "C" void dense(const float* a, long row, const float* b, float* c, long k) {
  V sum[4][4] = {};
  for (; k > 0; k -= 4, a += 4) {
    V left[4];
    for (int r = 0; r < 4; ++r) left[r] = *(const U*)(a + r * row);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i, b += 16) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const V right = *(const U*)(b + 4 * v);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) sum[r][v] += left[r][i] * right;
      }
    }
  }
  for (int r = 0; r < 4; ++r)
    for (int v = 0; v < 4; ++v) *(U*)(c + 16 * r + 4 * v) = sum[r][v];
}
"""
LINE = re.compile(r"^\s*([0-9a-f]+):\t(\S+)\s*(.*?)\s*(?://.*)?$")
BRANCH = re.compile(r"^(?:b\.\w+|b|cbn?z|tbn?z)$")
Instruction = tuple[int, str, str]


def rows() -> list[tuple[dict[str, Any], int]]:
    """Return every row, and its seed."""
    loops: list[dict[str, Any]] = [{"loop": "dense, onnxruntime"}, {"loop": "dense, ours"}]
    loops += [{"loop": "kernel", "rows": r, "vectors": v, "maps": m} for (r, v), m in TILES.items()]
    return [(loop, 0) for loop in loops]


def functions(disassembly: Iterator[str]) -> Iterator[tuple[str, list[Instruction]]]:
    """Yield the functions of a listing, or its sections where names are stripped."""
    name, found = "", list[Instruction]()
    for line in disassembly:
        match = LINE.match(line)
        if match:
            found.append((int(match[1], 16), match[2], match[3]))
        elif line.rstrip().endswith(">:"):
            yield name, found
            name, found = line.partition("<")[2].rstrip()[:-2], []
    yield name, found


def loops(code: list[Instruction]) -> Iterator[list[Instruction]]:
    """Yield the innermost loops: from a backward branch's target to the branch, no other within."""
    at = {address: i for i, (address, _, _) in enumerate(code)}
    ends = []
    for i, (_, mnemonic, operands) in enumerate(code):
        if BRANCH.match(mnemonic):
            target = operands.split(",")[-1].split("<")[0].strip().removeprefix("0x")
            start = at.get(int(target, 16)) if re.fullmatch("[0-9a-f]+", target) else None
            if start is not None and start < i < start + 1000:
                ends.append((start, i))
    last = -1  # where the last loop within began: ends are in the order of the code
    for start, end in ends:
        if last < start:
            yield code[start : end + 1]
        last = max(last, start)


def products(loop: list[Instruction]) -> int:
    """Return the multiply-adds of four lanes in a loop."""
    return sum(m in ("fmla", "fmls") and ".4s" in operands for _, m, operands in loop)


def densest(listing: Iterator[str], name: str | None = None) -> list[Instruction]:
    """Return the loop with the most multiply-adds, of functions whose name contains ``name``."""
    found = [
        loop
        for function, code in functions(listing)
        if name is None or name in function
        for loop in loops(code)
        if products(loop) > 0
    ]
    return max(found, key=products)


def estimate(loop: list[Instruction], model: str, mca: str) -> dict[str, float]:
    """Return the cycles of one iteration on a core, and those that its busiest port is taken."""
    lines = [".Lloop:"]
    for _, mnemonic, operands in loop:
        if not BRANCH.match(mnemonic):
            lines.append(f"{mnemonic} {operands}".split("<")[0])
        elif (mnemonic, operands) == loop[-1][1:]:
            before = operands.rpartition(",")[0]
            lines.append(f"{mnemonic} {before + ', ' if before else ''}.Lloop")
    command = [mca, "-mtriple=aarch64", f"-mcpu={model}", f"-iterations={ITERATIONS}", "-"]
    done = subprocess.run(
        command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=True
    )
    cycles = re.search(r"^Total Cycles:\s+(\d+)", done.stdout, re.M)
    pressure = re.search(r"Resource pressure per iteration:\n.*\n(.*)\n", done.stdout)
    assert cycles is not None
    assert pressure is not None
    busiest = max(float(part) for part in pressure[1].split() if part != "-")
    return {"cycles": int(cycles[1]) / ITERATIONS, "busiest_port_cycles": busiest}


def cut(config: Mapping[str, Any], library: Path | None, folder: Path) -> list[Instruction]:
    """Return a row's loop."""
    if config["loop"] == "dense, onnxruntime":
        assert library is not None
        with subprocess.Popen([*OBJDUMP, library], stdout=subprocess.PIPE, text=True) as dump:
            assert dump.stdout is not None
            return densest(dump.stdout)
    ours = config["loop"] == "dense, ours"
    source = folder / "dense.cpp"
    source.write_text(DENSE)
    compiled = folder / "loop.o"
    what = source if ours else ROOT / "hwprune" / "kernels" / "src" / "compute" / "tile.cpp"
    subprocess.run([*COMPILER, "-DHWPRUNE_ISA=neon", what, "-o", compiled], check=True)
    listing = subprocess.run([*OBJDUMP, compiled], capture_output=True, text=True, check=True)
    name = None if ours else f"tileILi4ELi{config['rows']}ELi{config['vectors']}E"
    return densest(iter(listing.stdout.splitlines()), name)


def run(
    config: Mapping[str, Any], seed: int, experiment: Experiment, mca: str, library: Path | None
) -> None:
    """Estimate one row and save it."""
    if config["loop"] == "dense, onnxruntime" and library is None:
        print("  left out: give --onnxruntime FILE.so")
        return
    watch = Stopwatch()
    with scratch() as folder:
        loop = cut(config, library, Path(folder))
    experiment.add(
        config, seed, watch.seconds, 0,
        instructions=len(loop),
        products=products(loop),
        loads=sum(m.startswith("ld") for _, m, _ in loop),
        loads_of_16_bytes=sum(
            (1 + (m == "ldp")) * bool(re.match(r"\{?[qv]\d", o))
            for _, m, o in loop if m.startswith("ld")
        ),
        code=[f"{m} {o}".split(" <")[0] for _, m, o in loop],
        estimates={core: estimate(loop, model, mca) for core, model in CORES.items()},
        models=CORES,
        llvm=subprocess.run([mca, "--version"], capture_output=True, text=True, check=True)
        .stdout.splitlines()[0].strip(),
    )  # fmt: skip


def table(experiment: Experiment) -> str:
    """Return the record as Markdown."""
    lines = [
        "| loop | maps | instructions | multiply-adds | loads | "
        + " | ".join(f"{core} | as fast at" for core in CORES)
        + " |",
        "|---|---|---|---|---|" + "---|---|" * len(CORES),
    ]
    found = {row.key: row for row in experiment.rows() if row.status == "run"}
    order = [row for config, _ in rows() for row in found.values() if row.config == config]
    speeds: list[dict[str, float]] = []
    for row in order:
        extra: dict[str, Any] = row.model_extra or {}
        cycles = {core: extra["estimates"][core]["cycles"] for core in CORES}
        speed = {core: extra["products"] / cycles[core] for core in CORES}
        dense = str(row.config["loop"]).startswith("dense")
        if dense:
            speeds.append(speed)
        cells = []
        for core in CORES:
            share = "" if dense else f"{100 * min(1.0, speed[core] / speeds[0][core]):.0f} %"
            cells += [f"{speed[core]:.2f}", share]
        name = row.config["loop"] if dense else f"{row.config['rows']}x{row.config['vectors']} tile"
        lines.append(
            f"| {name} | {row.config.get('maps', '')} | {extra['instructions']} "
            f"| {extra['products']} | {extra['loads']} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Estimate what is not in the record yet, then print the table."""
    parser = command_line(__doc__, data=False)
    parser.add_argument(
        "--mca", default="llvm-mca-19", metavar="PROGRAM", help="llvm-mca of LLVM 19"
    )
    parser.add_argument(
        "--onnxruntime", type=Path, metavar="FILE", help="onnxruntime's library for aarch64"
    )
    arguments = parser.parse_args()
    experiment = Experiment("llvm_mca", ["python", "benchmarks/llvm_mca.py"])
    return measure_rows(
        arguments,
        experiment,
        rows(),
        lambda config, seed: run(config, seed, experiment, arguments.mca, arguments.onnxruntime),
        table,
    )


if __name__ == "__main__":
    sys.exit(main())
