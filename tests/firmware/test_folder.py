"""A firmware folder is checked from its files alone, with whatever tools are or are not there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from random_networks import KINDS

from hwprune.errors import InfeasibleError, TargetError, VerificationError
from hwprune.firmware import emit, emulate, link, memory_plan
from hwprune.firmware.network import IntegerNetwork
from hwprune.firmware.qlinear import to_onnx
from hwprune.targets import Target, load, names
from hwprune.verify import Step
from hwprune.verify.firmware import (
    QLINEAR_NAME,
    STACK_BYTES,
    board_files,
    check_firmware,
    chip_of,
    linked,
    planned,
    sha256_of,
)

CHIP = "nrf52840"


@cache
def network() -> IntegerNetwork:
    return KINDS["residual"](np.random.default_rng(1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "firmware"
    chip = load(CHIP)
    emit.write(network(), place, planned(network(), chip), board=board_files(chip))
    (place / QLINEAR_NAME).write_bytes(to_onnx(network()).SerializeToString())
    return place


def step(result_of: str, name: str, target: Target, **given: object) -> Step:
    checked = check_firmware(result_of, target=target, **given)  # type: ignore[arg-type]
    return next(step for step in checked.result.steps if step.name == name)


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put programs of these names before all others."""
    room = tmp_path / "bin"
    room.mkdir()
    monkeypatch.setenv("PATH", f"{room}{os.pathsep}{os.environ['PATH']}")
    emulate._has_plugins.cache_clear()

    def put(name: str, text: str) -> None:
        (room / name).write_text(f"#!/bin/sh\n{text}\n")
        (room / name).chmod(0o755)

    return put


@pytest.fixture
def no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(core: str) -> None:
        raise TargetError(f"no board of QEMU has a {core}")

    monkeypatch.setattr(emulate, "board_for", none)


def needs(*programs: str) -> None:
    missing = [name for name in programs if not any(
        (Path(room) / name).exists() for room in os.environ["PATH"].split(os.pathsep)
    )]  # fmt: skip
    if missing:
        pytest.skip(f"no {' and no '.join(missing)}")


def test_an_image_over_the_budget_is_said_after_linking(folder: Path, no_board: None) -> None:
    needs("arm-none-eabi-gcc")
    image = link.link(folder, link.Chip("m", "Cortex-M4F", 0, 1 << 20, 0x20000000, 1 << 18))
    fits = step(str(folder), "links", load(CHIP), budget_bytes=image.flash_bytes)
    assert (fits.outcome, fits.exit_code) == ("passed", 0)
    over = step(str(folder), "links", load(CHIP), budget_bytes=image.flash_bytes - 1)
    assert (over.outcome, over.exit_code) == ("failed", 3)
    assert f"takes {image.flash_bytes:,} B of flash, the budget is" in over.message
    # Without one that is given, that of the report counts, for its own target.
    (folder.parent / "report.json").write_text(
        json.dumps(
            {
                "schema_version": 2, "target": CHIP, "budget": {"bytes": 1000},
                "firmware": {"sha256": sha256_of(folder)},
            }
        )
    )  # fmt: skip
    assert step(str(folder), "links", load(CHIP)).exit_code == 3
    assert step(str(folder), "links", load("nrf52833")).exit_code == 0


@pytest.mark.parametrize("version", ["9.3.1", "", "of a cat"])
def test_a_compiler_that_is_too_old_links_nothing(
    folder: Path, tool: Callable[[str, str], None], version: str
) -> None:
    tool("arm-none-eabi-gcc", f"echo {version}")
    found = step(str(folder), "links", load(CHIP))
    assert (found.outcome, found.exit_code) == ("skipped", 0)
    assert f"is version {version or 'unknown'}, and Cortex-M4F needs 10 or newer" in found.message
    assert "apt-get install gcc-arm-none-eabi" in found.message
    assert check_firmware(str(folder), target=load(CHIP)).result.scope == "not linked, not run"


KNOWN = 'if [ "$1" = -dumpversion ]; then echo 12.2.1; exit; fi'


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (f"{KNOWN}; echo internal compiler error >&2; exit 4", "internal compiler error"),
        (f"{KNOWN}; kill -SEGV $$", "the compiler for Cortex-M4F fails"),
        (f"{KNOWN}; exec sleep 30", "arm-none-eabi-gcc did not end within 1 s"),
        (KNOWN, "arm-none-eabi-size says nothing of the image"),  # it writes no file
    ],
)
def test_a_compiler_that_fails_is_an_error(
    folder: Path, tool: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch,
    program: str, said: str,
) -> None:  # fmt: skip
    needs("arm-none-eabi-size")
    monkeypatch.setattr(link, "TIMEOUT_S", 1)
    tool("arm-none-eabi-gcc", program)
    found = step(str(folder), "links", load(CHIP))
    assert (found.outcome, found.exit_code) == ("failed", 5)
    assert said in found.message


def test_a_tool_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="no-such-tool cannot be run"):
        link.run_tool([str(tmp_path / "no-such-tool")])


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ('case "$*" in *--help*) exit;; esac; exec sleep 30', "did not end within 1 s"),
        ("exec sleep 30", "qemu-system-arm did not end within 1 s"),
        ("echo no such machine >&2; exit 1", "ended with status 1 after 0 of 2 inputs: no such"),
        ("exit 0", "ended with status 0 after 0 of 2 inputs"),
    ],
)
def test_an_emulator_that_hangs_or_fails_is_an_error(
    folder: Path, tool: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch,
    program: str, said: str,
) -> None:  # fmt: skip
    needs("arm-none-eabi-gcc")
    monkeypatch.setattr(emulate, "TIMEOUT_S", 1)
    real = link.run_tool
    monkeypatch.setattr(
        emulate, "run_tool", lambda command: with_timeout(1, real, command, monkeypatch)
    )
    tool("qemu-system-arm", program)
    found = step(str(folder), "runs bit-equal", load(CHIP))
    assert (found.outcome, found.exit_code) == ("failed", 5)
    assert said in found.message


def with_timeout(
    seconds: int, run: Callable[..., object], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> object:
    with monkeypatch.context() as patched:
        patched.setattr(link, "TIMEOUT_S", seconds)
        return run(command)


@pytest.mark.parametrize("name", ["esp32-s3", "without origins"])
def test_what_cannot_be_linked_is_a_c_library_and_says_so(
    folder: Path, tmp_path: Path, name: str
) -> None:
    if name != "esp32-s3":
        lines = Path(load(CHIP).source_path).read_text().splitlines()
        kept = [line for line in lines if "_origin" not in line and "aliases" not in line]
        (tmp_path / "own.toml").write_text("\n".join(kept))
        name = str(tmp_path / "own.toml")
    target = load(name)
    emit.write(network(), folder, planned(network(), target))
    checked = check_firmware(str(folder), target=target)
    assert checked.result.scope == "not linked, not run"
    assert checked.result.exit_code == 0
    said = checked.facts.why_not or ""
    if target.name == "esp32-s3":
        assert "not for Xtensa LX7" in said
        assert "the C library in src/ is made all the same" in said
    else:
        assert "no memory.flash_origin and memory.ram_origin" in said
        assert "add both, with their source" in said


@cache
def microcontrollers() -> list[str]:
    return [name for name in names() if load(name).kind == "microcontroller"]


@pytest.mark.slow  # half a second each
@pytest.mark.parametrize("name", microcontrollers())
def test_every_profile_links_into_its_own_regions(name: str, tmp_path: Path) -> None:
    target = load(name)
    chip = chip_of(target)
    assert (chip.core not in link.CORES) == target.core.startswith("Xtensa")
    if chip.core not in link.CORES:
        return
    needs(link.CORES[chip.core].tools + "gcc")
    emit.write(network(), tmp_path, planned(network(), target))
    image = linked(tmp_path, target)
    listing = link.run_tool([link.CORES[chip.core].tools + "nm", str(image.elf)]).stdout
    places = {name: int(place, 16) for place, _, name in map(str.split, listing.splitlines())}
    assert chip.flash_origin <= places["model_network"] < chip.flash_origin + image.flash_bytes
    assert chip.ram_origin <= places["stack_end"] <= chip.ram_origin + chip.ram_bytes
    assert image.flash_bytes <= chip.flash_bytes == target.memory_bytes


def test_an_edited_weight_is_found(folder: Path) -> None:
    source = folder / "src" / "model.c"
    text = source.read_text()
    begin = text.index("values_b[] = {\n    ") + len("values_b[] = {\n    ")
    end = text.index(",", begin)
    source.write_text(f"{text[:begin]}{int(text[begin:end]) ^ 1}{text[end:]}")
    found = step(str(folder), "as written", load(CHIP))
    assert (found.outcome, found.exit_code) == ("failed", 5)
    line = text[:begin].count("\n") + 1
    assert found.message.startswith(
        f"src/model.c is not what {QLINEAR_NAME} makes, from line {line}"
    )


def test_an_edited_linker_script_is_found_and_other_formats_are_none_of_a_checks_business(
    tmp_path: Path,
) -> None:
    chip = load(CHIP)
    plan = planned(network(), chip)
    formats = {name: "words" for name in emit.layer_formats(network(), plan)}
    emit.write(network(), tmp_path, plan, formats, board_files(chip))  # type: ignore[arg-type]
    (tmp_path / QLINEAR_NAME).write_bytes(to_onnx(network()).SerializeToString())
    assert step(str(tmp_path), "as written", chip).outcome == "passed"
    script = tmp_path / "board" / "link.ld"
    script.write_text(script.read_text().replace("ALIGN(8)", "ALIGN(4)"))
    found = step(str(tmp_path), "as written", chip)
    assert found.message.startswith(f"board/link.ld is not what {QLINEAR_NAME} makes")


def test_a_folder_for_less_ram_is_checked_as_it_was_planned(tmp_path: Path) -> None:
    least = memory_plan.plan(network()).ram_bytes - 300
    limited = load(CHIP).within_ram(least + STACK_BYTES)
    place = tmp_path / "firmware"
    plan = planned(network(), limited)
    assert plan.ram_bytes <= least < memory_plan.plan(network()).ram_bytes
    emit.write(network(), place, plan, board=board_files(limited))
    (place / QLINEAR_NAME).write_bytes(to_onnx(network()).SerializeToString())
    assert step(str(place), "as written", load(CHIP)).outcome == "passed"
    assert step(str(place), "as written", load("nrf52833")).outcome == "passed"
    header = place / "src" / "model.h"
    header.write_text(header.read_text().replace("MODEL_RAM_LIMIT ", "MODEL_RAM_LIMIT 1"))
    assert "is not what" in step(str(place), "as written", load(CHIP)).message


def test_a_ram_that_is_a_byte_short_is_refused(
    folder: Path, tmp_path: Path, no_board: None
) -> None:
    def with_ram(size: int) -> Target:
        place = tmp_path / "own.toml"
        place.write_text(
            f'extends = "{CHIP}"\n[memory]\nram_bytes = {{ value = {size}, source = "a test" }}\n'
        )
        return load(str(place))

    low, high = 0, 1 << 16
    while low + 1 < high:
        middle = (low + high) // 2
        try:
            planned(network(), with_ram(middle))
            high = middle
        except InfeasibleError:
            low = middle
    short = step(str(folder), "fits in RAM", with_ram(low))
    assert (short.outcome, short.exit_code) == ("failed", 4)
    assert "of RAM at '" in short.message
    # What the plan grants, the linker grants too.
    needs("arm-none-eabi-gcc")
    emit.write(network(), folder, planned(network(), with_ram(high)))
    linked = step(str(folder), "links", with_ram(high))
    assert linked.outcome == "passed", linked.message
