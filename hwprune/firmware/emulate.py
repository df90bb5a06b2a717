"""Runs a firmware folder on an emulated board of the chip's core, and measures what it does there.

The runtime and the network are those of the image; around them is a harness that takes inputs from
a file and gives back a checksum of every tensor, over semihosting. What is measured is exact, and
is not time: bytes of stack, and instructions where QEMU loads plugins.
"""

from __future__ import annotations

import atexit
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import TargetError, VerificationError
from hwprune.firmware.cycles import CLASSES
from hwprune.firmware.emit import BOARD
from hwprune.firmware.link import STACK_BYTES, Chip, build, compiler_for, run_tool
from hwprune.firmware.memory_plan import MemoryPlan

TIMEOUT_S = 60
WORD = 4
STACK_MARGIN = 32
KIB = 1024


@dataclass(frozen=True, slots=True)
class Board:
    """A machine of QEMU.

    Attributes:
        name: that of the machine.
        program: which QEMU has it.
        chip: its core and memory.
    """

    name: str
    program: str
    chip: Chip


def _board(name: str, core: str, flash: tuple[int, int], ram: tuple[int, int]) -> Board:
    program = "qemu-system-riscv32" if core.startswith("RV") else "qemu-system-arm"
    return Board(name, program, Chip(name, core, flash[0], flash[1] * KIB, ram[0], ram[1] * KIB))


# Memory maps: QEMU's hw/arm and hw/riscv. The first board of a core runs what is made for it.
BOARDS = (
    _board("microbit", "Cortex-M0", (0, 256), (0x20000000, 16)),
    _board("mps2-an385", "Cortex-M3", (0, 4096), (0x20000000, 4096)),
    _board("mps2-an386", "Cortex-M4F", (0, 4096), (0x20000000, 4096)),
    _board("netduinoplus2", "Cortex-M4F", (0x08000000, 1024), (0x20000000, 128)),
    _board("mps2-an500", "Cortex-M7", (0, 4096), (0x20000000, 4096)),
    _board("mps2-an505", "Cortex-M33", (0x10000000, 4096), (0x38000000, 4096)),
    _board("mps3-an547", "Cortex-M55", (0, 512), (0x20000000, 512)),
    _board("virt", "RV32IMAC", (0x80000000, 8192), (0x80800000, 8192)),
)
# Cores whose code another one's board runs unchanged: it has all of their instructions.
STANDS_FOR = {
    "Cortex-M0+": "Cortex-M0",
    "Cortex-M4": "Cortex-M4F",
    "Cortex-M85": "Cortex-M55",
    "RV32IMC": "RV32IMAC",
}


@dataclass(frozen=True, slots=True)
class Emulation:
    """What runs on a board gave.

    Attributes:
        board: the machine's name.
        sums: of each tensor by its name, for each input.
        stack_bytes: the most that a run used of the stack.
        instructions: of one run by layer, in the order of the plan; None without plugins.
        classes: of one run by ``cycles.CLASSES``; likewise.
    """

    board: str
    sums: list[dict[str, int]]
    stack_bytes: int
    instructions: dict[str, int] | None
    classes: dict[str, int] | None


class EmulatorAbsentError(TargetError):
    """There is no QEMU for a core here."""


def board_for(core: str) -> Board:
    """Return the board that runs a core's code.

    Raises:
        TargetError: no board of QEMU has such a core.
        EmulatorAbsentError: that QEMU is not installed; the hint installs it.
    """
    wanted = STANDS_FOR.get(core, core)
    board = next((board for board in BOARDS if board.chip.core == wanted), None)
    if board is None:
        raise TargetError(f"no board of QEMU has a {core}")
    if shutil.which(board.program) is None:
        package = "qemu-system-arm" if board.program.endswith("arm") else "qemu-system-misc"
        raise EmulatorAbsentError(
            f"there is no {board.program} to run {core} code", hint=f"apt-get install {package}"
        )
    return board


def run(
    folder: Path, plan: MemoryPlan, board: Board, x: NDArray[Any], *, core: str | None = None,
    count: bool = True, options: tuple[str, ...] = (),
) -> Emulation:  # fmt: skip
    """Build a firmware folder for a board, and run it there.

    Args:
        folder: that ``emit.write`` made.
        plan: of its network.
        board: on which.
        x: (n, *shape of the input), of int8 or fp32 as its tensors are.
        core: whose code runs; that of the board otherwise.
        count: also count instructions, where QEMU can.
        options: of the compiler.

    Raises:
        TargetError: the compiler or the emulator is absent.
        InfeasibleError: the board has too little memory.
        VerificationError: the run faults, hangs, or gives no result.
    """
    chip = replace(board.chip, core=core or board.chip.core)
    programs = [BOARD / name for name in ("harness.c", "trace.c")]
    tensors = list(plan.placements)
    defines = ("-DHWP_TRACE", f"-DTRACE_TENSORS={len(tensors)}", *options)
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        image = build(folder, chip, room / "run.elf", programs, defines, STACK_BYTES)
        channels, height, width = plan.network.tensors[plan.network.input].chw
        rows = x.reshape(len(x), channels, height, width).transpose(0, 2, 1, 3)
        (room / "input.bin").write_bytes(np.ascontiguousarray(rows).tobytes())
        plugin = _plugin(chip.core, image.elf) if count else []
        done = _emulated(board, image.elf, plugin)
        result = (room / "result.bin").read_bytes() if (room / "result.bin").exists() else b""
    words = struct.unpack(f"<{len(result) // WORD}I", result[: len(result) // WORD * WORD])
    each = len(tensors) + 2
    if done.returncode or len(words) != each * len(x):
        raise VerificationError(
            f"the run on {board.name} ended with status {done.returncode} after "
            f"{len(words) // each} of {len(x)} inputs: {done.stderr.strip()[-500:] or 'silently'}",
            hint="status 99 is a fault of the processor, 4 that the weights were refused",
        )
    runs = [words[start : start + each] for start in range(0, len(words), each)]
    stack = max(run[-1] for run in runs)
    if stack > STACK_BYTES - STACK_MARGIN:  # frames are not written to the last byte
        raise VerificationError(
            f"the run on {board.name} uses all of the stack's {STACK_BYTES:,} B, and perhaps more",
            hint="compilers use the least with -O2",
        )
    lines = [line[6:] for line in done.stderr.splitlines() if line.startswith("count ")]
    counts = [[int(number) for number in line.split()] for line in lines][: len(plan.schedule)]
    counted = len(counts) == len(plan.schedule)
    return Emulation(
        board.name,
        [dict(zip(tensors, run[1:-1], strict=True)) for run in runs],
        stack,
        _by_layer(plan, counts) if counted else None,
        dict(zip(CLASSES, map(sum, zip(*counts, strict=True)), strict=True)) if counted else None,
    )


def _emulated(board: Board, elf: Path, plugin: list[str]) -> subprocess.CompletedProcess[str]:
    command = [
        board.program, "-M", board.name, "-display", "none", "-monitor", "none", "-serial", "none",
        "-semihosting-config", "enable=on,target=native", *plugin,
        *(["-bios", "none"] if board.name == "virt" else []), "-kernel", str(elf),
    ]  # fmt: skip
    try:
        return subprocess.run(
            command, cwd=elf.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise VerificationError(
            f"the run on {board.name} did not end within {TIMEOUT_S} s"
        ) from None


@cache
def _plugin_library() -> Path | None:
    """Build the plugin that counts; None where that cannot be done."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = Path(tempfile.mkdtemp(prefix="hwprune-")) / "count.so"
    source = BOARD / "count.c"
    atexit.register(shutil.rmtree, library.parent, ignore_errors=True)
    command = [compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(library)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else library


def _plugin(core: str, elf: Path) -> list[str]:
    """Return QEMU's options for counting, or none where this QEMU has no plugins."""
    library = _plugin_library()
    program = board_for(core).program
    if library is None or not _has_plugins(program):
        return []
    listing = run_tool([compiler_for(core).tools + "nm", str(elf)]).stdout
    addresses = {name: address for address, _, name in map(str.split, listing.splitlines())}
    begin, end = (f"{mark}=0x{addresses[f'trace_mark_{mark}']}" for mark in ("begin", "end"))
    return ["-plugin", f"{library},{begin},{end}"]


@cache
def _has_plugins(program: str) -> bool:
    return "-plugin" in run_tool([program, "--help"]).stdout


def _by_layer(plan: MemoryPlan, counts: list[list[int]]) -> dict[str, int]:
    """Sum the instructions of the first run's steps by layer, named by what it makes."""
    total = {planned.output: 0 for planned in plan.layers}
    for number, count in zip(plan.schedule, counts, strict=True):
        total[plan.layers[number].output] += count[0]
    return total
