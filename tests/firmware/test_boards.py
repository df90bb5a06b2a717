"""Images link into a chip's regions, and boards compute what the reference says."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from random_networks import KINDS, random_input

from hwprune.errors import InfeasibleError, TargetError, VerificationError
from hwprune.firmware import code_size, cycles, emit, emulate, link, memory_plan, reference
from hwprune.firmware.host import checksum
from hwprune.firmware.network import Conv2d, IntegerNetwork, Linear

BOARDS = {board.name: board for board in emulate.BOARDS}
M4 = BOARDS["mps2-an386"].chip


def need_compiler(core: str) -> None:
    try:
        link.compiler_for(core)
    except link.ToolchainAbsentError as error:
        pytest.skip(error.message)


def need_machine(board: emulate.Board) -> None:
    need_compiler(board.chip.core)
    if shutil.which(board.program) is None:
        pytest.skip(f"no {board.program}")
    known = subprocess.run([board.program, "-M", "help"], capture_output=True, text=True).stdout
    if board.name not in known:
        pytest.skip(f"{board.program} has no {board.name}")


@cache
def residual() -> tuple[IntegerNetwork, memory_plan.MemoryPlan]:
    made = KINDS["residual"](np.random.default_rng(1))
    return made, memory_plan.plan(made)


@pytest.mark.parametrize("name", BOARDS)
def test_every_tensor_on_every_board_equals_the_reference(name: str, tmp_path: Path) -> None:
    board = BOARDS[name]
    need_machine(board)
    made, plan = residual()
    x = random_input(np.random.default_rng(2), made)
    expected = reference.run(made, x)
    emit.write(made, tmp_path, plan)
    done = emulate.run(tmp_path, plan, board, x)
    assert len(done.sums) == len(x)
    for i, of_run in enumerate(done.sums):
        assert {n: checksum(expected[n][i]) for n in plan.placements} == of_run
    assert 100 < done.stack_bytes <= link.STACK_BYTES
    if done.instructions is not None:
        assert set(done.instructions) == set(plan.placements)
        assert all(done.instructions.values())
        assert done.classes is not None
        assert done.classes["all"] == sum(done.instructions.values())
        projected, _ = cycles.projected(board.chip.core, plan.instructions)
        assert projected is not None
        assert 0.6 < projected / done.classes["all"] < 1.6
        found = cycles.estimated(board.chip.core, done.classes)
        assert (found is None) == (board.chip.core not in cycles.EXTRA)
        if found is not None:
            assert done.classes["all"] < found[0] <= found[1] < 3 * done.classes["all"]


def test_every_core_has_cycles_or_a_sentence() -> None:
    for core in link.CORES:
        instructions, found = cycles.projected(core, 1e6)
        assert instructions is not None
        assert 5e5 < instructions < 3e6
        assert (found is None) == (cycles.no_table(core) is not None)
        if found is not None:
            assert instructions < found[0] < found[1] < 2 * instructions
    assert cycles.projected("Xtensa LX7", 1e6) == (None, None)
    assert "RISC-V has no table" in str(cycles.no_table("RV32IMC"))
    assert "Cortex-M33" in str(cycles.no_table("Cortex-M33"))


# Instructions, the class that counts each, and the registers that it moves.
CODE = {
    "adds r0, r1": ("all", 1), "ldr r0, [pc, #8]": ("load", 1), "ldrsb r0, [r1, r2]": ("load", 1),
    "str r0, [r1, r2]": ("store", 1), "ldrb r0, [r1, #3]": ("load", 1),
    "strh r0, [r1, #2]": ("store", 1), "ldr r0, [sp, #4]": ("load", 1),
    "push {r4, r5, lr}": ("store", 3), "pop {r4, pc}": ("load", 2),
    "stmia r0!, {r1, r2}": ("store", 2), "ldmia r0!, {r1}": ("load", 1),
    "muls r0, r1, r0": ("multiply", 1), "b .": ("all", 1),
    "ldr.w r8, [r12], #8": ("load", 1), "strb.w r0, [r11, #-7]": ("store", 1),
    "ldmdb r8, {r0, r9, r12}": ("load", 3), "ldrd r8, r9, [r10, #24]": ("load", 2),
    "mul r0, r1, r9": ("multiply", 1), "mla r0, r1, r2, r3": ("accumulate", 1),
    "smlabt r0, r1, r2, r3": ("accumulate", 1), "smmla r0, r1, r2, r3": ("accumulate", 1),
    "smull r0, r1, r2, r3": ("long", 1), "udiv r0, r1, r2": ("divide", 1),
    "vldr s0, [r1]": ("load", 1), "vldmia r0, {s8-s14}": ("load", 7),
    "vmov s0, s1, r0, r1": ("all", 1), "uxtah r9, lr, r8": ("all", 1),
}  # fmt: skip
CLASSES = r"""
#include "count.c"

int main(int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    const unsigned long code = strtoul(argv[i], NULL, 16);
    unsigned registers;
    const int wide = strlen(argv[i]) > 4;
    const int class = class_of(wide ? code >> 16 : code, code & 0xffff, &registers);
    printf("%d %u\n", class, registers);
  }
  return 0;
}
"""


def test_each_instruction_is_counted_in_its_class(tmp_path: Path) -> None:
    need_compiler("Cortex-M4F")
    lines = [".syntax unified", ".thumb", ".align 2", *CODE]
    (tmp_path / "code.s").write_text("\n".join(lines) + "\n")
    tools = link.CORES["Cortex-M4F"]
    subprocess.run([tools.tools + "gcc", *tools.flags, "-c", "code.s"], cwd=tmp_path, check=True)
    listing = subprocess.run(
        [tools.tools + "objdump", "-d", "code.o"], cwd=tmp_path, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    rows = [line.split("\t") for line in listing.splitlines() if line.count("\t") > 1]
    codes = [row[1].strip().replace(" ", "") for row in rows]
    codes = codes[: len(CODE)]  # not what pads them
    (tmp_path / "main.c").write_text(CLASSES)
    subprocess.run(
        ["cc", f"-I{emit.BOARD}", "main.c", "-ffunction-sections", "-Wl,--gc-sections",
         "-o", "main"],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    done = subprocess.run(
        [tmp_path / "main", *codes], capture_output=True, text=True, check=True
    ).stdout
    found = [(cycles.CLASSES[int(a)], int(b)) for a, b in map(str.split, done.splitlines())]
    assert dict(zip(CODE, found, strict=True)) == CODE


# The kinds of layer that the residual network has not.
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"residual", "linear", "conv", "global_pool"}))
@pytest.mark.parametrize("name", ["mps2-an385", "mps2-an386", "mps3-an547", "virt"])
def test_every_kind_of_layer_on_a_core_of_each_arithmetic(
    name: str, kind: str, tmp_path: Path
) -> None:
    need_machine(BOARDS[name])
    rng = np.random.default_rng(7)
    made = KINDS[kind](rng)
    x = random_input(rng, made, samples=2)
    expected = reference.run(made, x)
    plan = memory_plan.plan(made)
    emit.write(made, tmp_path, plan)
    for i, of_run in enumerate(emulate.run(tmp_path, plan, BOARDS[name], x, count=False).sums):
        assert {n: checksum(expected[n][i]) for n in plan.placements} == of_run


@pytest.mark.parametrize("core", link.CORES)
def test_an_image_links_for_every_core_and_its_constants_were_predicted(
    core: str, tmp_path: Path
) -> None:
    need_compiler(core)
    made, plan = residual()
    emitted = emit.write(made, tmp_path, plan)
    image = link.link(tmp_path, replace(M4, core=core))
    listing = subprocess.run(
        [link.CORES[core].tools + "nm", "-S", image.elf], capture_output=True, text=True, check=True
    ).stdout
    sizes = [int(line.split()[1], 16) for line in listing.splitlines() if " r " in line.lower()]
    assert sum(-(-size // 4) * 4 for size in sizes) == emitted.constant_bytes
    assert_code_is_predicted(core, image, plan, emitted)
    assert image.ram_bytes >= plan.ram_bytes + image.stack_bytes


def assert_code_is_predicted(
    core: str, image: link.LinkedImage, plan: memory_plan.MemoryPlan, emitted: emit.EmittedModel
) -> None:
    code = image.flash_bytes - emitted.constant_bytes
    predicted = code_size.code_bytes(core, plan, emitted.formats.values())
    assert code <= predicted <= code * 1.05, "python benchmarks/mcu.py --code-bytes"


@pytest.mark.parametrize("kind", ["average_pool", "max_pool", "softmax", "concat", "flattened"])
@pytest.mark.parametrize("core", ["Cortex-M0", "Cortex-M4F"])
def test_the_code_of_every_operator_was_predicted(core: str, kind: str, tmp_path: Path) -> None:
    need_compiler(core)
    made = KINDS[kind](np.random.default_rng(7))
    plan = memory_plan.plan(made)
    emitted = emit.write(made, tmp_path, plan)
    image = link.link(tmp_path, replace(M4, core=core))
    code = image.flash_bytes - emitted.constant_bytes
    predicted = code_size.code_bytes(core, plan, emitted.formats.values())
    assert code <= predicted, "python benchmarks/mcu.py --code-bytes"
    if any(isinstance(layer, (Conv2d, Linear)) for layer in made.layers):
        assert_code_is_predicted(core, image, plan, emitted)


def test_a_core_that_is_in_no_table_has_the_largest_reserve() -> None:
    _, plan = residual()
    known = [code_size.code_bytes(core, plan, ("rice", "gap8")) for core in link.CORES]
    assert code_size.code_bytes("Xtensa LX7", plan, ("rice", "gap8")) == max(known)


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no CMake")
def test_the_folder_is_a_library_for_cmake(tmp_path: Path) -> None:
    made, plan = residual()
    emit.write(made, tmp_path / "model", plan)
    example = tmp_path / "model" / "examples" / "run_once" / "main.c"
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(program C)\nadd_subdirectory(model)\n"
        f"add_executable(program {example})\ntarget_link_libraries(program model)\n"
    )
    for command in (["cmake", "-B", "build", "-S", "."], ["cmake", "--build", "build"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert subprocess.run([tmp_path / "build" / "program"], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no CMake")
@pytest.mark.parametrize("name", ["microbit", "mps2-an386", "virt"])
def test_the_folder_by_itself_is_an_image_for_its_chip(name: str, tmp_path: Path) -> None:
    chip = BOARDS[name].chip
    need_compiler(chip.core)
    made, plan = residual()
    emit.write(made, tmp_path, plan, board=link.board_files(chip))
    options = "-DCMAKE_TOOLCHAIN_FILE=board/toolchain.cmake", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"
    for command in (["cmake", "-B", "build", *options], ["cmake", "--build", "build"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    commands = (tmp_path / "build" / "compile_commands.json").read_text()
    assert commands.count("-std=c11 ") == commands.count('"file"') > 5
    binary = (tmp_path / "build" / "image.bin").read_bytes()
    assert abs(len(binary) - link.link(tmp_path, chip).flash_bytes) < 64
    if chip.core.startswith("Cortex"):  # the stack's first address, and where to begin
        stack, reset = np.frombuffer(binary[:8], "<u4").tolist()
        assert chip.ram_origin < stack <= chip.ram_origin + chip.ram_bytes
        assert chip.flash_origin < reset < chip.flash_origin + len(binary)


@pytest.mark.parametrize("region", ["flash", "ram"])
def test_one_byte_too_many_is_said_in_our_words(region: str, tmp_path: Path) -> None:
    need_compiler(M4.core)
    made, plan = residual()
    emit.write(made, tmp_path, plan)
    image = link.link(tmp_path, M4)
    taken = image.flash_bytes if region == "flash" else image.ram_bytes
    link.link(tmp_path, replace(M4, **{f"{region}_bytes": taken}))
    with pytest.raises(InfeasibleError, match="the image takes") as caught:
        link.link(tmp_path, replace(M4, **{f"{region}_bytes": taken - 1}))
    assert ("RAM" if region == "ram" else "flash") in caught.value.message
    assert M4.name in caught.value.message


def test_what_cannot_be_built_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, plan = residual()
    emit.write(made, tmp_path, plan)
    with pytest.raises(TargetError, match="not for Xtensa LX7"):
        link.link(tmp_path, replace(M4, core="Xtensa LX7"))
    need_compiler(M4.core)
    (tmp_path / "src" / "model.c").write_text("int broken")
    with pytest.raises(VerificationError, match="the compiler for Cortex-M4F fails"):
        link.link(tmp_path, M4)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(link.ToolchainAbsentError) as caught:
        link.link(tmp_path, M4)
    assert caught.value.hint == "apt-get install gcc-arm-none-eabi"
    with pytest.raises(emulate.EmulatorAbsentError, match="qemu-system-arm"):
        emulate.board_for("Cortex-M4F")


def test_damaged_weights_end_a_run(tmp_path: Path) -> None:
    need_machine(BOARDS["mps2-an386"])
    made, plan = residual()
    emit.write(made, tmp_path, plan)
    model = tmp_path / "src" / "model.c"
    text = model.read_text()
    begin = text.index("counts_b[] = {\n    ") + len("counts_b[] = {\n    ")
    model.write_text(text[:begin] + "255, " + text[begin:])
    x = random_input(np.random.default_rng(2), made)
    with pytest.raises(VerificationError, match="ended with status 4"):
        emulate.run(tmp_path, plan, BOARDS["mps2-an386"], x)


@pytest.mark.parametrize("level", ["-O1", "-Os", "-O3", "-fno-omit-frame-pointer"])
@pytest.mark.parametrize("name", ["microbit", "mps2-an385", "mps2-an386"])
def test_assembly_survives_other_options(name: str, level: str, tmp_path: Path) -> None:
    need_compiler(BOARDS[name].chip.core)
    made, plan = residual()
    emit.write(made, tmp_path, plan)
    main = tmp_path / "examples" / "run_once" / "main.c"
    link.build(tmp_path, BOARDS[name].chip, tmp_path / "a.elf", [main], (level,), link.STACK_BYTES)


def test_a_stack_that_is_all_used_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_machine(BOARDS["mps2-an386"])
    made, plan = residual()
    emit.write(made, tmp_path, plan)
    x = random_input(np.random.default_rng(2), made, samples=1)
    done = emulate.run(tmp_path, plan, BOARDS["mps2-an386"], x, count=False)
    monkeypatch.setattr(emulate, "STACK_BYTES", done.stack_bytes)
    with pytest.raises(VerificationError, match="uses all of the stack"):
        emulate.run(tmp_path, plan, BOARDS["mps2-an386"], x, count=False)


def test_a_run_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_machine(BOARDS["mps2-an386"])
    made, plan = residual()
    emit.write(made, tmp_path, plan)
    run = tmp_path / "src" / "hwp_run.c"
    run.write_text(run.read_text().replace("network->source->read = read;", "for (;;) {}"))
    monkeypatch.setattr(emulate, "TIMEOUT_S", 2)
    monkeypatch.setattr(link, "WARNINGS", ())
    x = random_input(np.random.default_rng(2), made)
    with pytest.raises(VerificationError, match="did not end within 2 s"):
        emulate.run(tmp_path, plan, BOARDS["mps2-an386"], x, count=False)
