"""benchmarks/zoo.py: docs/networks.md shows its record; our own networks build and run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zoo
import zoo_networks
from common import Experiment

from hwprune.frontend.inputs import parse_input
from hwprune.frontend.probe import example_inputs

PAGE = Path(__file__).resolve().parents[2] / "docs" / "networks.md"
OWN = [
    name
    for name, network in zoo_networks.NETWORKS.items()
    if network.family in ("recurrent", "others")
]


def test_the_page_holds_the_records_tables() -> None:
    assert zoo.table(Experiment("zoo", [])) in PAGE.read_text(encoding="utf-8")


def test_a_row_has_one_of_the_outcomes() -> None:
    exports = {"outcome": "refused", "said": "so", "torch_says": "exports"}
    assert zoo.outcome(exports) == "refused"
    assert zoo.outcome({**exports, "torch_says": "RuntimeError: x"}) == "torch does not export"
    assert zoo.outcome({"outcome": "compiled", "batches": "same"}) == "compiled"
    assert zoo.outcome({"outcome": "compiled", "batches": "batch 1: no"}) == "batch fixed"
    assert zoo.sentence({**exports, "said": "a|b\nc"}) == "refused: a/b"


@pytest.mark.parametrize("name", OWN)
def test_our_own_networks_take_their_inputs(name: str) -> None:
    module = zoo_networks.make(name).eval()
    specs = tuple(map(parse_input, zoo_networks.NETWORKS[name].inputs))
    with torch.no_grad():
        assert module(*example_inputs(specs, batch=3)) is not None
