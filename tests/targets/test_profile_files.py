"""A user's own profile: extends, its mistakes in words, and files that are not profiles."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from hwprune.errors import TargetError
from hwprune.targets import Target, load, load_file, names
from hwprune.targets.explain import _model_of
from hwprune.targets.schema import Fact, Profile

DOCS = Path(__file__).resolve().parents[2] / "docs" / "targets.md"
BLOCKS = re.findall(r"^```toml\n(.*?)^```", DOCS.read_text("utf-8"), re.DOTALL | re.MULTILINE)
EXTENDING, COMPLETE = BLOCKS


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def failure(path: Path, text: str) -> TargetError:
    with pytest.raises(TargetError) as caught:
        load(write(path, text))
    message = caught.value.message
    assert path.name in message
    assert len(message.splitlines()) <= 10
    assert "pydantic" not in message
    assert "Traceback" not in message
    assert caught.value.exit_code == 2
    return caught.value


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "mine.toml"


# -- the documentation --------------------------------------------------------------------------


def test_documented_complete_example(tmp_path: Path) -> None:
    target = load(write(tmp_path / "gecko.toml", COMPLETE))
    assert (target.name, target.kind, target.core) == ("gecko", "microcontroller", "Cortex-M33")
    assert target.budget_bytes == (1536 - 24) * 1024 - 4_096 - 262_144


def test_documented_extending_example(tmp_path: Path) -> None:
    target = load(write(tmp_path / "doorbell.toml", EXTENDING))
    assert target.name == "doorbell"
    assert target.aliases == ()
    assert target.budget_reason in DOCS.read_text("utf-8")
    assert target.core == load("nrf52840").core


def test_every_field_is_documented() -> None:
    text = DOCS.read_text("utf-8")

    def fields(model: type[BaseModel]) -> list[str]:
        found = []
        for name, info in model.model_fields.items():
            found.append(name)
            inner = _model_of(info.annotation)
            if inner is not None and not issubclass(inner, Fact):
                found += fields(inner)
        return found

    assert [name for name in fields(Profile) if name not in text] == []


# -- extends ------------------------------------------------------------------------------------


def test_extends_replaces_a_value_with_its_source(mine: Path) -> None:
    target = load(
        write(
            mine,
            'extends = "rpi-4"\n[memory]\n'
            'last_level_cache_bytes = { value = "2MiB", source = "me" }',
        )
    )
    rows = {row.field: row for row in target.facts()}
    assert rows["memory.last_level_cache_bytes"].value == target.budget_bytes == 2 * 1024**2
    assert rows["memory.last_level_cache_bytes"].source == "me"
    assert rows["memory.ram_bytes"] == load("raspberry-pi-4b").facts()[4]


def test_a_new_value_cannot_keep_the_old_source(mine: Path) -> None:
    error = failure(mine, 'extends = "rpi-4"\n[memory]\nram_bytes = { value = "2GiB" }')
    assert "memory.ram_bytes.source: missing" in error.message


def test_extends_a_file_that_extends(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", 'extends = "stm32f411"\ndescription = "a"')
    (tmp_path / "sub").mkdir()
    path = write(tmp_path / "sub" / "b.toml", 'extends = "../a.toml"\nvalue_types = ["int8"]')
    target = load(path)
    assert (target.name, target.description, target.value_types) == ("b", "a", ("int8",))


def test_extends_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", 'extends = "./b.toml"')
    path = write(tmp_path / "b.toml", 'extends = "a.toml"')
    with pytest.raises(TargetError, match=r"circle: b\.toml extends a\.toml extends b\.toml"):
        load(path)
    own = write(tmp_path / "own.toml", 'extends = "own.toml"')
    with pytest.raises(TargetError, match=r"circle: own\.toml extends own\.toml"):
        load(own)
    for number in range(1200):  # a long one is said shortly
        write(tmp_path / f"{number}.toml", f'extends = "{(number + 1) % 1200}.toml"')
    with pytest.raises(TargetError, match=r"3\.toml extends \(1,193 more\) extends 1197\.toml"):
        load(tmp_path / "0.toml")


def test_extends_nothing_known(mine: Path) -> None:
    error = failure(mine, 'extends = "jetson-nan"')
    assert 'extends: "jetson-nan" is not a device profile' in error.message
    assert "jetson-nano" in (error.hint or "")
    assert "expected the name of a profile" in failure(mine, "extends = 3").message
    with pytest.raises(TargetError, match=r"gone\.toml does not exist"):
        load(write(mine, 'extends = "gone.toml"'))


def test_an_inherited_mistake_names_the_file_it_is_in(tmp_path: Path) -> None:
    broken = COMPLETE.replace("cores = { value = 1,", "cores = { value = 0,")
    write(tmp_path / "base.toml", broken)
    error = failure(tmp_path / "child.toml", 'extends = "base.toml"\n[cpu]\n')
    assert "cpu.cores.value = 0 (inherited from " in error.message
    assert "base.toml" in error.message


def test_base_profiles_serve_extends_only(mine: Path) -> None:
    with pytest.raises(TargetError, match="is not a device profile"):
        load("_microcontroller")
    assert not [name for name in names() if name.startswith("_")]
    table = COMPLETE[COMPLETE.index("[cpu]") : COMPLETE.index("[budget]")]
    target = load(write(mine, f'extends = "_microcontroller"\n{table}'))
    assert target.budget_bytes == 1512 * 1024 * 3 // 4 - 4_096


# -- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("jetsn-nano", "jetson-nano"),
        ("stm32f41", "stm32f411"),
        ("raspberry-pi-4", None),
        ("raspbery-pi-5", "raspberry-pi-5"),
        ("esp32", "esp32-s3"),
        ("nrf52", "nrf52840"),
    ],
)
def test_did_you_mean(wrong: str, meant: str | None) -> None:
    if meant is None:
        assert load(wrong)
        return
    with pytest.raises(TargetError, match=f'"{wrong}" is not a device profile') as caught:
        load(wrong)
    assert f"did you mean {meant}" in f"{caught.value.hint} " or meant in (caught.value.hint or "")


@pytest.mark.parametrize("nonsense", ["", " ", "zzzzzz", "\x1b[31m", "\0", "-", "a" * 10_000])
def test_a_name_like_nothing(nonsense: str) -> None:
    with pytest.raises(TargetError) as caught:
        load(nonsense)
    assert "hwprune targets" in (caught.value.hint or "")
    assert "did you mean" not in (caught.value.hint or "")
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 200


def test_a_profile_may_not_pass_for_a_built_in_one(tmp_path: Path) -> None:
    text = 'extends = "stm32f411"'
    error = failure(tmp_path / "jetson-nano.toml", text)
    assert "name: 'jetson-nano' already names the built-in jetson-nano" in error.message
    assert "pico" in failure(tmp_path / "x.toml", f'{text}\naliases = ["pico"]').message
    assert load(write(tmp_path / "jetson-nano.toml", f'{text}\nname = "mine"')).name == "mine"


def test_name_from_the_file(tmp_path: Path) -> None:
    assert load(write(tmp_path / "My Board.toml", 'extends = "pico"')).name == "my-board"
    error = failure(tmp_path / "größe.toml", 'extends = "pico"')
    assert "expected lower-case letters" in error.message


# -- what is wrong, in words --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('kind = "microcontroller"', 'kind = "toaster"', 'kind = "toaster": expected "linux" or'),
        ("clock_hz = {", "clok_hz = {", "cpu.clok_hz: unknown field; did you mean 'clock_hz'?"),
        ("clock_hz = {", "clok_hz = {", "cpu.clock_hz: missing; expected { value = ..."),
        ("[cpu]", "xyz = 1\n[cpu]", "xyz: unknown field; expected one of name, description"),
        (
            '{ value = "1536KiB", source = "EFR32MG24 data sheet, ordering code F1536" }',
            "1_572_864",
            'flash_bytes = 1572864: expected { value = ..., source = "where it is written" }',
        ),
        (
            '"1536KiB"',
            '"a lot"',
            "memory.flash_bytes.value = \"a lot\": 'a lot' is not a size; expec",
        ),
        ('"1536KiB"', '"-1KiB"', "is negative; expected the flash that holds the image"),
        ('"1536KiB"', "true", "memory.flash_bytes.value = true: expected the flash that"),
        ('"1536KiB"', "1.5", "memory.flash_bytes.value = 1.5: expected"),
        ('"1536KiB"', "0", "memory.flash_bytes.value = 0: expected the flash"),
        ('"1536KiB"', "1" + "0" * 400, "... : expected".replace(" :", ":")),
        ('"256KiB"', "nan", "memory.ram_bytes.value = NaN: expected"),
        ("78_000_000", '"78 MHz"', 'cpu.clock_hz.value = "78 MHz": expected a whole number of her'),
        ('"single"', '"half"', 'cpu.fpu.value = "half": expected the floating-point unit: "none"'),
        ('"int8"]', '"int2"]', 'value_types[2] = "int2": expected a list of "fp32", "fp16", "int8'),
        ('"int8"]', '"fp32"]', "no entry twice; expected a list of"),
        ('["fp32", "fp16", "int8"]', "[]", "value_types = []: expected a list of"),
        ('["fp32", "fp16", "int8"]', '"int8"', 'value_types = "int8": expected a list of'),
        (
            'on our sensor board"',
            '\\u001b[2J"',
            'description = "EFR32MG24 \\u001b[2J": expected a l',
        ),
        (
            "opset = { value = 18",
            "opset = { value = 3",
            "runtime.opset.value = 3: expected the ONNX",
        ),
        (
            "value = 18, ",
            "value = 18, sorce = 1, ",
            "opset.sorce: unknown field; did you mean 'source'",
        ),
        (
            '"firmware"',
            '"onnxruntime"',
            'runtime.kind = "onnxruntime": expected "firmware" for micr',
        ),
        ("value = 262_144", "value = 99_999_999", "expected between 1 and 1,548,288 B"),
        (
            "ir_version = { value = 8",
            "ir_version = { value = 7",
            "runtime.ir_version = 7: expected 8",
        ),
        ('"24KiB"', '"2MiB"', "memory.flash_reserved_*_bytes: take all of the flash"),
        ("0x0800_0000", "-1", "flash_origin.value = -1: expected where the flash begins"),
        ("0x2000_0000", "4294967296", "expected where that memory begins: an address from 0"),
        ("ram_origin =", "# ", "memory.flash_origin, memory.ram_origin: expected both or neither"),
        (
            "ram_origin =",
            'ram_reserved_tail_bytes = { value = "1MiB", source = "x" }\nram_origin =',
            "memory.ram_reserved_*_bytes: take all of the RAM",
        ),
        (COMPLETE, 'description = "x"', "cpu: missing; expected the table [cpu]"),
        (COMPLETE, 'cpu = 3\ndescription = "x"', "cpu = 3: expected the table [cpu]"),
    ],
)
def test_error_texts(mine: Path, old: str, new: str, expected: str) -> None:
    assert old in COMPLETE
    error = failure(mine, COMPLETE.replace(old, new, 1))
    assert expected in error.message
    assert error.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[budget]\nruntime_bytes = { value = 1, source = 'x' }", "for a microcontroller only"),
        ("[runtime]\nkind = 'firmware'", 'runtime.kind = "firmware": expected "onnxruntime"'),
        ("[budget]\ndefault_bytes = { value = '99GiB', source = 'x' }", "expected between 1 and"),
        ("kind = 'microcontroller'", "memory.flash_bytes: missing"),
    ],
)
def test_contradictions_of_a_board(mine: Path, text: str, expected: str) -> None:
    assert expected in failure(mine, f'extends = "raspberry-pi-5"\n{text}').message


def test_default_bytes_states_the_budget(mine: Path) -> None:
    text = 'extends = "rp2040"\n[budget]\ndefault_bytes = { value = "64KiB", source = "our rule" }'
    target: Target = load(write(mine, text))
    assert target.budget_bytes == 65_536
    assert "65,536 B" in target.budget_reason


# -- files that are not profiles ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"PK\x03\x04\x00\x00", "not a text file"),
        (b"\x80\x02}q", "byte 0 is not UTF-8"),
        ('description = "größe"'.encode("latin-1"), "is not UTF-8"),
        (b"kind = ", "is not TOML"),
        (b"kind = 'a'\nkind = 'b'", "is not TOML"),
        (b"x = " + b"[" * 100_000, "is not TOML"),
        (b"x = " + b"9" * 10_000, "is not TOML"),
        (b"#" * (2 << 20), "at most 1 MiB"),
        (b"a" + b".a" * 20000 + b" = 1", "more than 64 parts"),
        (b"[a" + b".a" * 20000 + b"]", "more than 64 parts"),
        (b"a = " + b"[" * 20000, "nested too deeply"),
    ],
)
def test_not_a_profile(mine: Path, content: bytes, expected: str) -> None:
    mine.write_bytes(content)
    with pytest.raises(TargetError) as caught:
        load(str(mine))
    assert expected in caught.value.message
    assert str(mine) in caught.value.message
    assert len(caught.value.message) < 500


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbf" + COMPLETE.replace("\n", "\r\n").encode())
    assert load(path).name == "windows"


def test_folder_and_missing_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    for path, expected in (
        (folder, "is a folder"),
        (tmp_path / "none.toml", "does not exist"),
        (tmp_path / ("x" * 5000 + ".toml"), ""),
        (tmp_path / "nul\0.toml", ""),
    ):
        with pytest.raises(TargetError) as caught:
            load_file(path)
        assert expected in caught.value.message


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe.toml"
    os.mkfifo(path)
    with pytest.raises(TargetError, match="not a regular file"):
        load(path)


def test_a_long_chain_of_profiles_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "0.toml", 'extends = "jetson-nano"\ndescription = "the first"\n')
    for number in range(1, 1500):
        write(tmp_path / f"{number}.toml", f'extends = "{number - 1}.toml"\n')
    target = load(tmp_path / "1499.toml")
    assert (target.name, target.description) == ("1499", "the first")


@pytest.mark.parametrize(
    "place", ["x", "cpu", "cpu.x", "cpu.core", "cpu.core.value", "description"]
)
def test_deep_tables_are_refused_in_words(tmp_path: Path, place: str) -> None:
    deep = f"{place}{'.a' * 2_000} = 1\n"
    below = write(tmp_path / "below.toml", 'extends = "jetson-nano"\n' + deep)
    failure(Path(below), Path(below).read_text())
    failure(tmp_path / "above.toml", 'extends = "below.toml"\n' + deep)
