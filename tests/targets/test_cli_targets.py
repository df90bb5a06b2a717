"""``hwprune targets``: list, show and check, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hwprune.cli.targets import command
from hwprune.errors import TargetError
from hwprune.targets import load, names


def run(*arguments: str) -> str:
    # HwpruneError passes through: the command line's edge turns it into a message and exit code.
    result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(*arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run(*arguments))
    assert next(iter(document)) == "schema_version"
    return document


@pytest.mark.parametrize("arguments", [(), ("list",)])
def test_list_names_every_profile(arguments: tuple[str, ...]) -> None:
    lines = run(*arguments).splitlines()
    assert {line.split()[0] for line in lines[1:] if line.strip()} >= set(names())
    row = next(line for line in lines if line.startswith("raspberry-pi-4b"))
    assert "4x Cortex-A72" in row
    assert "1,048,576 B" in row
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("arguments", [("--json",), ("list", "--json"), ("--json", "list")])
def test_list_json(arguments: tuple[str, ...]) -> None:
    targets = run_json(*arguments)["targets"]
    assert {target["name"] for target in targets} == set(names())
    by_name = {target["name"]: target for target in targets}
    assert by_name["jetson-nano"]["budget_bytes"] == 2_097_152
    assert "pico" in by_name["rp2040"]["aliases"]


def test_show_prints_sources_and_marks_what_is_unconfirmed() -> None:
    text = run("show", "raspberry-pi-zero-2w")
    assert "rp3a0.adoc" in text
    assert "536,870,912 B" in text
    assert "last-level cache 524,288 B = model budget" in text
    assert text.count("(unconfirmed)") == sum(
        not row.confirmed for row in load("raspberry-pi-zero-2w").facts()
    )


def test_show_json() -> None:
    target = run_json("show", "microbit", "--json")["target"]
    assert target["name"] == "nrf51822"
    assert target["runtime"]["kind"] == "firmware"
    facts = {fact["field"]: fact for fact in target["facts"]}
    assert facts["memory.flash_bytes"] == {
        "field": "memory.flash_bytes",
        "value": 262_144,
        "unit": "B",
        "source": "Zephyr dts/arm/nordic/nrf51822_qfaa.dtsi",
        "confirmed": True,
    }


def test_show_unknown() -> None:
    with pytest.raises(TargetError):
        run("show", "jetson")


def test_check(tmp_path: Path) -> None:
    path = tmp_path / "mine"  # any name will do here: it is a file for certain
    path.write_text('extends = "nrf52840"\ndescription = "[red]mine[/red]"\n')
    text = run("check", str(path))
    assert text.startswith(f"OK: {path} describes mine, microcontroller")
    assert "= model budget 782,336 B" in text
    path.write_text('extends = "ra8m1"\n')
    assert "cpu.fpu" in run("check", str(path))
    path.write_text('extends = "nrf52840"\ndescription = "[red]mine[/red]"\n')
    document = run_json("check", str(path), "--json")
    assert document["ok"] is True
    assert document["target"]["budget_bytes"] == 782_336
    assert "[red]mine[/red]" in run("show", str(path))


def test_check_reports_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "nrf52840"\ncolour = "red"\n')
    with pytest.raises(TargetError, match="colour: unknown field"):
        run("check", str(path))
    with pytest.raises(TargetError, match="is a folder"):
        run("check", str(tmp_path))
    with pytest.raises(TargetError, match="does not exist"):
        run("check", str(tmp_path / "none"))
