"""Links a firmware folder into an image for a chip, and says what it takes.

Nothing of a C library is linked: what a program around the network takes is its own matter. The
image is real all the same: a start-up, a vector table, the runtime, the network and a main that
runs it once, in the memory regions of the chip.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hwprune.errors import InfeasibleError, TargetError, VerificationError
from hwprune.firmware.emit import BOARD
from hwprune.units import format_bytes

# What the network may use of the stack; runs under emulation measure what it does use.
STACK_BYTES = 1024
TIMEOUT_S = 120
# Code that is right in every build: the sums of single precision may not be fused.
OPTIONS = (
    "-std=c11", "-O2", "-ffreestanding", "-fomit-frame-pointer", "-ffunction-sections",
    "-fdata-sections", "-fno-tree-loop-distribute-patterns",
)  # fmt: skip
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")
ARM, RISCV = "arm-none-eabi-", "riscv64-unknown-elf-"
PACKAGES = {ARM: "gcc-arm-none-eabi", RISCV: "gcc-riscv64-unknown-elf"}
# The first release that knows every core below.
OLDEST_GCC = 10


@dataclass(frozen=True, slots=True)
class CoreBuild:
    """How code for a core is built.

    Attributes:
        tools: what the names of the compiler and its tools begin with.
        flags: of the compiler and linker.
    """

    tools: str
    flags: tuple[str, ...]


def _arm(cpu: str, fpu: str = "") -> CoreBuild:
    floats = ("-mfloat-abi=hard", f"-mfpu={fpu}") if fpu else ("-mfloat-abi=soft",)
    return CoreBuild(ARM, ("-mthumb", f"-mcpu={cpu}", *floats))


_RV32 = ("-mabi=ilp32", "-mcmodel=medany", "-msmall-data-limit=0")
# By the names that profiles give to cores.
CORES: dict[str, CoreBuild] = {
    "Cortex-M0": _arm("cortex-m0"),
    "Cortex-M0+": _arm("cortex-m0plus"),
    "Cortex-M3": _arm("cortex-m3"),
    "Cortex-M4": _arm("cortex-m4"),
    "Cortex-M4F": _arm("cortex-m4", "fpv4-sp-d16"),
    "Cortex-M7": _arm("cortex-m7", "fpv5-sp-d16"),
    "Cortex-M33": _arm("cortex-m33", "fpv5-sp-d16"),
    "Cortex-M55": CoreBuild(ARM, ("-mthumb", "-mcpu=cortex-m55", "-mfloat-abi=hard")),
    # GCC 12 does not know it; it runs all of the M55's instructions.
    "Cortex-M85": CoreBuild(ARM, ("-mthumb", "-mcpu=cortex-m55", "-mfloat-abi=hard")),
    "RV32IMC": CoreBuild(RISCV, ("-march=rv32imc", *_RV32)),
    "RV32IMAC": CoreBuild(RISCV, ("-march=rv32imac", *_RV32)),
}


@dataclass(frozen=True, slots=True)
class Chip:
    """The facts of a device that linking needs.

    Attributes:
        name: of the device, for messages.
        core: one of ``CORES``.
        flash_origin, flash_bytes: where an image lies, and how long it may be.
        ram_origin, ram_bytes: likewise for its RAM, the stack's included.
    """

    name: str
    core: str
    flash_origin: int
    flash_bytes: int
    ram_origin: int
    ram_bytes: int


@dataclass(frozen=True, slots=True)
class LinkedImage:
    """An image.

    Attributes:
        chip: what it is linked for.
        elf: the file.
        flash_bytes: .text, .rodata and the initial values of .data.
        ram_bytes: .data, .bss and the room that the stack has.
        stack_bytes: that room.
    """

    chip: Chip
    elf: Path
    flash_bytes: int
    ram_bytes: int
    stack_bytes: int


class ToolchainAbsentError(TargetError):
    """There is no cross compiler for a core here."""


def compiler_for(core: str) -> CoreBuild:
    """Return how a core's code is built, if that can be done here.

    Raises:
        TargetError: no core of this name is known.
        ToolchainAbsentError: its compiler is absent, or too old; the hint installs it.
    """
    build = CORES.get(core)
    if build is None:
        raise TargetError(
            f"images are linked for {', '.join(CORES)}, not for {core}",
            hint="the C library in src/ is made all the same: build it with the chip's own tools",
        )
    compiler = shutil.which(build.tools + "gcc")
    if compiler is None:
        raise ToolchainAbsentError(
            f"there is no {build.tools}gcc to link for {core}",
            hint=f"apt-get install {PACKAGES[build.tools]}",
        )
    version = version_of(build.tools)
    if not version.partition(".")[0].isdigit() or int(version.partition(".")[0]) < OLDEST_GCC:
        raise ToolchainAbsentError(
            f"{compiler} is version {version or 'unknown'}, and {core} needs {OLDEST_GCC} or newer",
            hint=f"apt-get install {PACKAGES[build.tools]}",
        )
    return build


def version_of(tools: str) -> str:
    """Return what a compiler says of its version; nothing where it does not run."""
    try:
        return run_tool([tools + "gcc", "-dumpversion"]).stdout.strip()
    except VerificationError:
        return ""


def run_tool(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a compiler or one of its tools, and return what it gave, whatever its status.

    Raises:
        VerificationError: it cannot be started, or hangs.
    """
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise VerificationError(f"{command[0]} did not end within {TIMEOUT_S} s") from None
    except OSError as error:
        raise VerificationError(f"{command[0]} cannot be run: {error.strerror}") from None


def link(folder: Path, chip: Chip, *, stack_bytes: int = STACK_BYTES) -> LinkedImage:
    """Link the example of a firmware folder as ``folder/image.elf``, by ``folder/image.ld``.

    Args:
        folder: that ``emit.write`` made.
        chip: whose regions it has to fit.
        stack_bytes: the room for the stack.

    Raises:
        TargetError: the core is unknown, or its compiler absent.
        InfeasibleError: the image is longer than flash or RAM; says by how much.
        VerificationError: the compiler refuses the folder.
    """
    main = next((folder / "examples").rglob("*.c"))
    return build(folder, chip, folder / "image.elf", [main], (), stack_bytes)


def build(
    folder: Path,
    chip: Chip,
    elf: Path,
    programs: Sequence[Path],
    options: Sequence[str],
    stack_bytes: int,
) -> LinkedImage:
    """Compile a folder's sources and some programs, and link them for a chip."""
    core = compiler_for(chip.core)
    start = "start_arm.c" if core.tools == ARM else "start_riscv.c"
    sources = [*sorted((folder / "src").glob("*.c")), *programs, BOARD / start, BOARD / "memory.c"]
    script = elf.with_suffix(".ld")
    script.write_text(linker_script(chip, stack_bytes))
    done = run_tool(
        [
            core.tools + "gcc", *core.flags, *OPTIONS, *WARNINGS, *options,
            f"-I{folder / 'src'}", f"-I{BOARD}", "-nostdlib", "-Wl,--gc-sections",
            f"-Wl,-T,{script}", *map(str, sources), "-lgcc", "-o", str(elf),
        ]
    )  # fmt: skip
    if done.returncode:
        _explain(done.stderr, chip)
    return _measured(core, chip, elf, stack_bytes)


def linker_script(chip: Chip, stack_bytes: int) -> str:
    """Return the linker script of a chip."""
    text = (BOARD / "link.ld.in").read_text()
    numbers = {
        "FLASH_ORIGIN": chip.flash_origin, "FLASH_LENGTH": chip.flash_bytes,
        "RAM_ORIGIN": chip.ram_origin, "RAM_LENGTH": chip.ram_bytes, "STACK_BYTES": stack_bytes,
    }  # fmt: skip
    for name, number in numbers.items():
        text = text.replace(f"@{name}@", f"{number:#x}")
    return text


def board_files(chip: Chip, stack_bytes: int = STACK_BYTES) -> dict[str, str]:
    """Return what makes a folder's CMake project build an image for a chip, by path in the folder.

    Nothing for a core that no image is linked for.
    """
    core = CORES.get(chip.core)
    if core is None:
        return {}
    start = "start_arm.c" if core.tools == ARM else "start_riscv.c"
    flags = " ".join((*core.flags, *OPTIONS[1:]))
    return {
        "board/start.c": (BOARD / start).read_text(),
        "board/memory.c": (BOARD / "memory.c").read_text(),
        "board/link.ld": linker_script(chip, stack_bytes),
        TOOLCHAIN_NAME: TOOLCHAIN.format(name=chip.name, tools=core.tools, flags=flags),
    }


TOOLCHAIN_NAME = "board/toolchain.cmake"
TOOLCHAIN = """\
# {name}: cmake -B build -DCMAKE_TOOLCHAIN_FILE=board/toolchain.cmake && cmake --build build
set(CMAKE_SYSTEM_NAME Generic)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_C_COMPILER {tools}gcc)
set(CMAKE_OBJCOPY {tools}objcopy)
set(CMAKE_C_FLAGS_INIT "{flags}")
"""


def _explain(stderr: str, chip: Chip) -> None:
    """Say in our words what the linker found too long; everything else in its own."""
    overflow = re.search(r"region [`']?(FLASH|RAM)'? overflowed by (\d+) byte", stderr)
    if overflow is None:
        raise VerificationError(f"the compiler for {chip.core} fails:\n{stderr.strip()[-2000:]}")
    region, excess = overflow[1], int(overflow[2])
    limit = chip.flash_bytes if region == "FLASH" else chip.ram_bytes
    raise InfeasibleError(
        f"the image takes {limit + excess:,} B of {region.lower().replace('ram', 'RAM')}, and "
        f"{chip.name} has {format_bytes(limit)}: {excess:,} B too many",
        hint="prune more, or take a smaller network" if region == "FLASH" else
        "a smaller input, or fewer channels where the network is widest",
    )  # fmt: skip


def _measured(core: CoreBuild, chip: Chip, elf: Path, stack_bytes: int) -> LinkedImage:
    listing = run_tool([core.tools + "size", "-A", str(elf)]).stdout
    sizes = {m[1]: int(m[2]) for m in re.finditer(r"^(\.\w+)\s+(\d+)", listing, re.MULTILINE)}
    if ".text" not in sizes:
        raise VerificationError(
            f"{core.tools}size says nothing of the image",
            hint=f"apt-get install --reinstall {PACKAGES[core.tools]}",
        )
    return LinkedImage(
        chip, elf,
        sum(sizes.get(name, 0) for name in (".text", ".rodata", ".data")),
        sum(sizes.get(name, 0) for name in (".data", ".bss", ".stack")),
        stack_bytes,
    )  # fmt: skip
