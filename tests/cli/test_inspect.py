"""inspect: what it says about the entropy bound."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from hwprune.cli.inspect import command


@pytest.mark.parametrize("value_type", ["int8", "int4", "codebook16", "fp32"])
def test_layers_are_held_against_the_bound(
    write_artifact: Callable[..., Path], value_type: str
) -> None:
    path = str(write_artifact(codec="gap8", value_type=value_type))
    found = json.loads(CliRunner().invoke(command, [path, "--json"]).stdout)
    for layer in found["layers"]:
        assert layer["index_bound_bytes"] < layer["index_bytes"]
        assert layer["value_bound_bytes"] <= layer["value_bytes"]
        assert layer["index_bytes"] + layer["value_bytes"] < layer["bytes"]
    parts = ("index_bound_bytes", "value_bound_bytes")
    total = sum(layer[part] for layer in found["layers"] for part in parts)
    assert found["bound_bytes"] == pytest.approx(total, abs=len(found["layers"]) * 2)
    text = CliRunner().invoke(command, [path]).output
    assert "entropy bound" in text
    assert "bound" in next(line for line in text.splitlines() if line.startswith("layer "))
