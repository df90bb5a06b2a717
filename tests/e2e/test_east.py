"""EAST through the command line, from a checkpoint and from random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from e2e_tools import Runner, accuracy_of, state_of

import hwprune as python
from hwprune.errors import UsageError
from hwprune.frontend import load_model

pytestmark = pytest.mark.slow

KIB12 = 12 * 1024
# Four blocks alike, so that the last three share two tensors.
RESIDUAL = """
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(2))

    def forward(self, x):
        y = F.relu(self.norms[0](self.first(x)))
        return torch.relu_(x + self.norms[1](self.second(y)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.stage = nn.Sequential(*(Block() for _ in range(4)))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stage(F.relu(self.norm(self.stem(x)), inplace=True))
        return self.head(x.mean((2, 3)))
"""
# What DyReLU would leave behind: its means, sigmoids and the larger of two lines.
DYNAMIC = {"Max", "Sigmoid", "Tanh", "Greater", "Where"}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "short.toml"
    path.write_text(
        'batch_size = 64\nschedule = "step"\ngrad_clip = 1.0\ndistillation_weight = 0.0\n'
        'quantise_from = 1.0\n[strategy]\nname = "east"\ncycle_steps = 4\nupdates = 6\n'
    )
    return path


class TestEast:
    """On a target whose latency is not measured, to be quick."""

    def words(self, recipe: Path, out: Path, *more: object) -> tuple[object, ...]:
        return (
            "--target", "nrf52840", "--data", "digits", "--budget", KIB12, "--values", "int8",
            "--no-firmware", "--max-drop", "off", "--recipe", recipe, "-o", out, "--json", *more,
        )  # fmt: skip

    def test_from_scratch(self, hwprune: Runner, recipe: Path, tmp_path: Path) -> None:
        out = tmp_path / "o"
        ran = hwprune("compile", "--arch", "digits-cnn", *self.words(recipe, out, "--epochs", 3))
        assert ran.code == 0, ran.err
        record, path = ran.document, out / "model.onnx"
        assert record["strategy"] == "east"
        assert 0.99 * KIB12 <= path.stat().st_size <= KIB12
        assert record["accuracy"]["final"] == accuracy_of(path) > 0.4
        notes = " ".join(record["notes"])
        assert "trained from scratch: digits-cnn with random weights, seed 0" in notes
        assert "DyReLU stood in for 3 ReLUs" in notes
        points = [p["nonzeros"] for p in record["accuracy"]["trajectory"]]
        assert max(points) > 2.5 * points[-1]  # the cycles went above the budget
        model = onnx.load(path)
        operators = {node.op_type for node in model.graph.node} | {
            node.op_type for function in model.functions for node in function.node
        }
        assert "Relu" in operators
        assert not operators & DYNAMIC
        assert not any("dyrelu" in name for name in state_of(out))
        start = load_model(None, arch="digits-cnn", seed=0).module.state_dict()
        assert state_of(out).keys() == start.keys()
        weight = state_of(out)["features.1.0.weight"]
        assert not np.array_equal(weight[weight != 0], start["features.1.0.weight"][weight != 0])

    def test_all_parts_together_on_a_residual_network(
        self, hwprune: Runner, recipe: Path, tmp_path: Path
    ) -> None:
        net, out = tmp_path / "net.py", tmp_path / "o"
        net.write_text(RESIDUAL)
        words = [*self.words(recipe, out, "--epochs", 2)]
        words[words.index(KIB12)] = "8KiB"
        ran = hwprune("compile", "--arch", f"{net}:Net", *words)
        assert ran.code == 0, ran.err
        notes = " ".join(ran.document["notes"])
        assert "6 layers share 2 tensors" in notes
        assert "DyReLU stood in for 9 ReLUs" in notes
        path = out / "model.onnx"
        assert path.stat().st_size <= 8 * 1024
        assert ran.document["accuracy"]["final"] == accuracy_of(path) > 0.2
        assert hwprune("check", path, "--target", "nrf52840").code == 0

    def test_from_a_checkpoint_with_a_part_left_out(
        self, hwprune: Runner, recipe: Path, digits_pt: Path, tmp_path: Path
    ) -> None:
        recipe.write_text(recipe.read_text() + "dyrelu = false\n")
        words = self.words(recipe, tmp_path / "o", "--epochs", 1)
        ran = hwprune("compile", digits_pt, *words)
        assert ran.code == 0, ran.err
        assert "DyReLU" not in " ".join(ran.document["notes"])
        assert ran.document["recipe"]["strategy.dyrelu"] is False

    def test_random_weights_have_to_be_trained(
        self, hwprune: Runner, recipe: Path, tmp_path: Path
    ) -> None:
        words = ("compile", "--arch", "digits-cnn", "--target", "nrf52840", "-o", tmp_path / "o")
        hwprune.refused(*words, says=("random weights", "--data"))
        hwprune.refused(
            *words, "--data", "digits", "--epochs", 0, says=("random weights", "--epochs")
        )
        hwprune.refused(
            *words, "--data", "digits", "--budget", "900KiB",
            says=("nothing would be pruned", "lower --budget"),
        )  # fmt: skip
        hwprune.refused("compile", "--target", "nrf52840", says=("neither a MODEL nor an --arch",))
        with pytest.raises(UsageError, match="neither a MODEL nor an --arch"):
            python.compile(None, target="nrf52840")
        with pytest.raises(UsageError, match="digits-cnn has random weights"):
            python.compile(None, arch="digits-cnn", target="nrf52840", output=tmp_path / "o")
