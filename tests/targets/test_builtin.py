"""The profiles that come with hwprune: complete, sourced, and equal to what the sources say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hwprune.encoding import CODECS
from hwprune.errors import TargetError
from hwprune.ir import VALUE_TYPES
from hwprune.targets import aliases, load, names, registry

FOLDER = Path(registry.__file__).parent
BOARDS = {
    "raspberry-pi-zero-2w": 512 * 1024,
    "raspberry-pi-3b-plus": 512 * 1024,
    "raspberry-pi-4b": 1024 * 1024,
    "raspberry-pi-5": 2 * 1024 * 1024,
    "jetson-nano": 2 * 1024 * 1024,
    "jetson-orin-nano": 2 * 1024 * 1024,
}
# name: (core, clock_hz, flash_bytes, ram_bytes)
MICROCONTROLLERS = {
    "stm32f411": ("Cortex-M4F", 100_000_000, 524_288, 131_072),
    "stm32f412": ("Cortex-M4F", 100_000_000, 1_048_576, 262_144),
    "stm32f446": ("Cortex-M4F", 180_000_000, 524_288, 131_072),
    "stm32f746": ("Cortex-M7", 216_000_000, 1_048_576, 262_144),
    "stm32h743": ("Cortex-M7", 480_000_000, 2_097_152, 524_288),
    "stm32l476": ("Cortex-M4F", 80_000_000, 1_048_576, 98_304),
    "stm32u575": ("Cortex-M33", 160_000_000, 2_097_152, 786_432),
    "nrf52840": ("Cortex-M4F", 64_000_000, 1_048_576, 262_144),
    "nrf52833": ("Cortex-M4F", 64_000_000, 524_288, 131_072),
    "nrf51822": ("Cortex-M0", 16_000_000, 262_144, 16_384),
    "stm32l072": ("Cortex-M0+", 32_000_000, 196_608, 20_480),
    "rp2040": ("Cortex-M0+", 133_000_000, 2_097_152 - 256, 262_144),
    "rp2350": ("Cortex-M33", 150_000_000, 4_194_304, 524_288),
    "esp32-s3": ("Xtensa LX7", 240_000_000, 8_388_608, 491_520),
    "arduino-nano-33-ble": ("Cortex-M4F", 64_000_000, 950_272, 262_144),
    "nrf54l15": ("Cortex-M33", 128_000_000, 1_462_272, 192_512),
    "stm32n657": ("Cortex-M55", 800_000_000, 523_264, 1_048_576),
    "ra8m1": ("Cortex-M85", 480_000_000, 2_064_384, 917_504),
    "esp32-c3": ("RV32IMC", 160_000_000, 4_194_304, 327_680),
    "esp32-c6": ("RV32IMAC", 160_000_000, 4_194_304, 524_288),
    "rp2350-riscv": ("Hazard3 RV32IMAC", 150_000_000, 4_194_304, 524_288),
}


def test_the_profiles_are_exactly_these() -> None:
    assert names() == sorted([*BOARDS, *MICROCONTROLLERS])


@pytest.mark.parametrize("name", sorted([*BOARDS, *MICROCONTROLLERS]))
def test_profile_is_usable(name: str) -> None:
    target = load(name)
    assert target.name == name
    assert 0 < target.budget_bytes < target.memory_bytes
    assert f"{target.budget_bytes:,} B" in target.budget_reason
    assert "dense" in target.codecs
    assert "int8" in target.value_types
    assert target.runtime.ir_version == 8
    assert Path(target.source_path).name == f"{name}.toml"


@pytest.mark.parametrize(("name", "budget_bytes"), BOARDS.items())
def test_board_budget_is_the_last_level_cache(name: str, budget_bytes: int) -> None:
    target = load(name)
    assert target.kind == "linux"
    assert target.budget_bytes == budget_bytes
    assert target.memory_bytes == target.ram_bytes
    assert set(target.value_types) == set(VALUE_TYPES)
    assert set(target.codecs) == set(CODECS)


@pytest.mark.parametrize(("name", "expected"), MICROCONTROLLERS.items())
def test_microcontroller_numbers(name: str, expected: tuple[str, int, int, int]) -> None:
    core, clock_hz, flash_bytes, ram_bytes = expected
    target = load(name)
    assert target.kind == "microcontroller"
    assert (target.core, target.clock_hz) == (core, clock_hz)
    assert (target.memory_bytes, target.ram_bytes) == (flash_bytes, ram_bytes)
    assert target.budget_bytes == flash_bytes - 4_096 - flash_bytes // 4
    assert target.budget_reason.startswith(f"flash {flash_bytes:,} B - runtime 4,096 B - ")
    assert (target.runtime.kind, target.runtime.opset) == ("firmware", 18)


@pytest.mark.parametrize("name", MICROCONTROLLERS)
def test_an_image_lies_in_what_the_reserves_leave(name: str) -> None:
    target = load(name)
    facts = {row.field: row.value for row in target.facts()}
    regions = target.regions
    assert regions is not None
    assert (regions.flash_bytes, regions.ram_bytes) == (target.memory_bytes, target.ram_bytes)
    head = facts.get("memory.flash_reserved_head_bytes", 0)
    assert regions.flash_origin == facts["memory.flash_origin"] + head
    end = facts["memory.flash_origin"] + facts["memory.flash_bytes"]
    assert regions.flash_origin + regions.flash_bytes <= end
    assert regions.ram_origin == facts["memory.ram_origin"]


def test_a_board_s_bootloader_is_in_front_of_the_image() -> None:
    regions = load("arduino-nano-33-ble").regions
    assert regions is not None
    assert (regions.flash_origin, regions.flash_bytes) == (0x10000, 0xE8000)
    assert load("nrf52840").regions is not None
    assert load("raspberry-pi-5").regions is None


def test_a_core_without_fpu_decodes_int8_only() -> None:
    for name in MICROCONTROLLERS:
        fpu = {row.field: row.value for row in load(name).facts()}["cpu.fpu"]
        assert (load(name).value_types == ("int8",)) == (fpu == "none"), name


def test_jetson_nano_gets_what_its_old_runtime_reads() -> None:
    runtime = load("jetson-nano").runtime
    assert (runtime.version, runtime.opset, runtime.ir_version) == ("1.11", 15, 8)
    assert runtime.inline_functions
    for name in BOARDS.keys() - {"jetson-nano"}:
        runtime = load(name).runtime
        assert (runtime.opset, runtime.inline_functions) == (18, False)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_number_has_a_source(path: Path) -> None:
    def bare(table: dict[str, Any], place: str) -> list[str]:
        found = []
        for key, value in table.items():
            if isinstance(value, dict) and "value" not in value:
                found += bare(value, f"{place}{key}.")
            elif isinstance(value, dict):
                assert len(value["source"]) > 10, place + key
                assert "shared/" not in value["source"]
                assert "DEVICES" not in value["source"]
            elif not isinstance(value, (str, list)):
                found.append(place + key)
        return found

    assert bare(registry._read(path), "") == []


def test_what_has_no_strong_source_says_so() -> None:
    confirmed = {row.field: row.confirmed for row in load("raspberry-pi-4b").facts()}
    assert confirmed["memory.last_level_cache_bytes"]
    assert not confirmed["cpu.peak_fp32_flop_per_s"]
    assert not {row.field: row.confirmed for row in load("jetson-nano").facts()}[
        "runtime.ir_version"
    ]


def test_microcontrollers_are_confirmed_by_what_their_vendors_publish() -> None:
    open_facts = {
        (target.name, row.field)
        for target in map(load, names())
        if target.kind == "microcontroller"
        for row in target.facts()
        if not row.confirmed
    }
    assert open_facts == {("ra8m1", "cpu.fpu")}  # two of its sources do not agree


def test_facts_carry_units() -> None:
    units = {row.field: row.unit for row in load("jetson-nano").facts()}
    assert units["memory.ram_bytes"] == "B"
    assert units["memory.bandwidth_bytes_per_s"] == "B/s"
    assert units["cpu.clock_hz"] == "Hz"
    assert units["accelerator.peak_fp16_flop_per_s"] == "FLOP/s"
    assert units["runtime.opset"] == ""
    field, value, unit, source, confirmed = load("raspberry-pi-4b").facts()[1]
    assert (field, value, unit, confirmed) == ("cpu.cores", 4, "", True)
    assert source.endswith("bcm2711.adoc")


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("nano-33-ble", "arduino-nano-33-ble"),
        ("microbit-v2", "nrf52833"),
        ("microbit-v1", "nrf51822"),
        ("microbit", "nrf51822"),
        ("raspberry-pi-pico", "rp2040"),
        ("pico", "rp2040"),
        ("raspberry-pi-pico-2", "rp2350"),
        ("rpi-4", "raspberry-pi-4b"),
        ("jetson-orin-nano-8gb", "jetson-orin-nano"),
        ("Raspberry_Pi 3B+", "raspberry-pi-3b-plus"),
        ("STM32F411", "stm32f411"),
    ],
)
def test_aliases_and_case(alias: str, name: str) -> None:
    assert load(alias).name == name


def test_aliases_are_unique_and_can_be_typed() -> None:
    listed = [alias for name in names() for alias in load(name).aliases]
    assert len(listed) == len(set(listed))
    assert not set(listed) & set(names())
    assert aliases() == {alias: load(alias).name for alias in listed}


def test_a_repeated_alias_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('aliases = ["both"]\n')
    (tmp_path / "two.toml").write_text('aliases = ["both"]\n')
    with pytest.raises(TargetError, match=r"two\.toml: aliases: \"both\" already names one"):
        registry._index(tmp_path)
    (tmp_path / "two.toml").write_text('aliases = ["one"]\n')
    with pytest.raises(TargetError, match='"one" already names one'):
        registry._index(tmp_path)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("[!_]*.toml")), ids=lambda path: path.stem)
def test_a_built_in_file_may_be_given_by_path(path: Path) -> None:
    assert load(str(path)).name == path.stem


def test_no_torch() -> None:
    code = (
        "import sys, hwprune.targets as t, hwprune.cli.targets\n"
        "[t.load(n) for n in t.names()]\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'scipy'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
