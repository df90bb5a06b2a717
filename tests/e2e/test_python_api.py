"""``hwprune.compile`` for those who have a network in memory."""

from __future__ import annotations

import copy
import json
import runpy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from e2e_tools import save_npz
from torch import nn

import hwprune
from hwprune.errors import (
    DataError,
    HwpruneError,
    InfeasibleError,
    ModelError,
    OutputError,
    TargetError,
    UnsafeModelError,
    UsageError,
)

EXAMPLE = torch.zeros(1, 1, 8, 8)


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """A run that would succeed, into a folder of its own."""
    return {
        "target": "nrf52840", "example_input": EXAMPLE, "budget": "12KiB", "output": tmp_path / "o",
    }  # fmt: skip


def test_a_module_is_compiled_and_not_changed(
    digits_net: nn.Module, options: dict[str, Any], tmp_path: Path
) -> None:
    network = copy.deepcopy(digits_net).train()
    before = copy.deepcopy(network.state_dict())
    artifact = hwprune.compile(network, data="digits", epochs=1, max_drop="off", **options)
    assert artifact.verdict.exit_code == 0
    assert artifact.verdict.fits
    assert artifact.verdict.verified
    assert artifact.path == str(tmp_path / "o" / "model.onnx")
    assert artifact.bytes == Path(artifact.path).stat().st_size <= 12 * 1024
    written = json.loads((tmp_path / "o" / "report.json").read_text())
    assert written["accuracy"] == json.loads(json.dumps(artifact.report["accuracy"]))
    assert network.training
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    read = hwprune.read_artifact(artifact.path)
    assert read.sha256 == artifact.sha256
    assert sum(layer.nonzeros for layer in read.layers) == written["result"]["nonzeros"]


def test_a_path_an_example_in_numpy_and_a_half_precision_module(
    digits_pt: Path, digits_net: nn.Module, options: dict[str, Any]
) -> None:
    options.pop("example_input")
    plain = hwprune.compile(digits_pt, **options)
    again = hwprune.compile(str(digits_pt), arch="digits-cnn", **options)
    assert plain.sha256 == again.sha256
    half = copy.deepcopy(digits_net).half()
    made = hwprune.compile(half, **options, example_input=np.zeros((1, 1, 8, 8), np.float16))
    assert made.verdict.verified
    assert next(half.parameters()).dtype == torch.float16


def test_a_pickled_module_needs_permission(
    digits_net: nn.Module, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(digits_net, tmp_path / "whole.pt")
    with pytest.raises(UnsafeModelError):
        hwprune.compile(tmp_path / "whole.pt", **options)
    artifact = hwprune.compile(tmp_path / "whole.pt", unsafe_load=True, **options)
    assert artifact.verdict.exit_code == 0


def test_without_output_a_folder_is_made_and_taken_away_after_a_failure(
    digits_net: nn.Module,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    options["output"] = None
    with pytest.raises(InfeasibleError):
        hwprune.compile(digits_net, **(options | {"budget": 10}))
    assert list(tmp_path.iterdir()) == []
    artifact = hwprune.compile(digits_net, **options)
    assert Path(artifact.path).parent.parent == tmp_path


def test_a_missed_limit_is_a_verdict(digits_net: nn.Module, options: dict[str, Any]) -> None:
    artifact = hwprune.compile(digits_net, require="nonzeros<=10", **options)
    assert artifact.verdict.exit_code == 3
    assert artifact.path.endswith("rejected.onnx")


WRONG: dict[str, tuple[dict[str, Any], type[HwpruneError], str]] = {
    "budget float": ({"budget": 12288.0}, UsageError, "12288.0"),
    "budget negative": ({"budget": -1}, UsageError, "-1 bytes"),
    "budget text": ({"budget": "much"}, UsageError, "not a size"),
    "values": ({"values": "int4"}, UsageError, "int4"),
    "strategy": ({"strategy": "best"}, UsageError, "no strategy 'best'"),
    "target": ({"target": "abacus"}, TargetError, "abacus"),
    "no input": ({"example_input": None}, UsageError, "not known"),
    "input shape": ({"example_input": torch.zeros(1, 3, 8, 8)}, ModelError, "does not take"),
    "scalar": ({"example_input": torch.zeros(())}, UsageError, "no batch axis"),
    "text": ({"example_input": "1x1x8x8"}, UsageError, "no tensor or array, but a str"),
    "epochs": ({"epochs": -1}, UsageError, "epochs is -1"),
    "half an epoch": ({"epochs": 1.5, "data": "digits"}, UsageError, "epochs is 1.5"),
    "seed": ({"seed": -3, "data": "digits"}, UsageError, "seed is -3"),
    "large seed": ({"seed": 2**70, "data": "digits"}, UsageError, "seed is"),
    "recipe": ({"recipe": {"rate": 1}, "data": "digits"}, UsageError, "rate: unknown field"),
    "recipe value": ({"recipe": {"batch_size": 0}}, UsageError, "batch_size is 0"),
    "data": ({"data": "mnist"}, DataError, "not a data source"),
    "limit": ({"require": ["size<=?"]}, UsageError, "not a size"),
    "unmeasured": ({"require": ["accuracy>=0.9"]}, UsageError, "needs data with labels"),
    "output": ({"output": "/dev/null"}, OutputError, "is a file|cannot be written"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(digits_net: nn.Module, options: dict[str, Any], name: str) -> None:
    change, error, message = WRONG[name]
    with pytest.raises(error, match=message) as caught:
        hwprune.compile(digits_net, **(options | change))
    assert caught.value.exit_code == 2
    assert not options["output"].exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (3, "model is a"),
        ([nn.Linear(2, 2)], "model is a"),
        (None, "neither a MODEL nor an --arch"),
    ],
)
def test_what_is_no_model(model: Any, message: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=message):
        hwprune.compile(model, **options)


def test_weights_that_are_not_numbers(digits_net: nn.Module, options: dict[str, Any]) -> None:
    broken = copy.deepcopy(digits_net)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN or infinite"):
        hwprune.compile(broken, **options)


def test_data_that_do_not_fit(
    digits_net: nn.Module, options: dict[str, Any], tmp_path: Path
) -> None:
    images = np.random.default_rng(0).random((40, 3, 8, 8), dtype=np.float32)
    spec = save_npz(tmp_path / "d.npz", x=images, y=np.arange(40) % 10)
    with pytest.raises(DataError, match="samples have the shape 3x8x8"):
        hwprune.compile(digits_net, data=spec, **options)


def test_training_that_diverges_is_said(digits_net: nn.Module, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        hwprune.compile(digits_net, data="digits", recipe={"learning_rate": 1e9}, **options)
    assert not options["output"].exists()


class Writer:
    """What TensorBoard's and MLflow's loggers are called with."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, name: str, value: float, *, global_step: int) -> None:
        self.scalars.append((name.removeprefix("hwprune/"), value, global_step))

    def log_metrics(self, values: dict[str, float], *, step: int) -> None:
        self.scalars += [(name, value, step) for name, value in values.items()]


@pytest.mark.parametrize("name", ["to_tensorboard", "to_mlflow"])
def test_loggers_get_each_epoch(digits_net: nn.Module, options: dict[str, Any], name: str) -> None:
    loggers = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "loggers.py"))
    writer = Writer()
    artifact = hwprune.compile(
        digits_net, data="digits", epochs=2, values="int8", max_drop="off",
        progress=loggers[name](writer), **options,
    )  # fmt: skip
    assert artifact.verdict.exit_code == 0
    epochs = [(value, step) for key, value, step in writer.scalars if key == "epoch"]
    assert [value for value, _ in epochs] == [1, 2]
    steps = [step for _, step in epochs]
    assert steps[1] == 2 * steps[0]
    names = {key for key, _, _ in writer.scalars}
    assert names == {"epoch", "loss", "accuracy", "nonzeros", "bytes"}
    last = {key: value for key, value, step in writer.scalars if step == steps[1]}
    assert last["bytes"] <= 12 * 1024
    trajectory = artifact.report["metric"]["trajectory"]
    assert last["accuracy"] == [p["value"] for p in trajectory if p["action"] == "train"][-1]


def test_what_the_command_line_has_python_has(
    digits_net: nn.Module, options: dict[str, Any]
) -> None:
    output = options.pop("output")
    plan = hwprune.plan(digits_net, **options)
    artifact = hwprune.compile(digits_net, epochs=0, output=output, **options)
    kind = artifact.report["result"]["layers"][0]["value_type"]
    assert plan.plans[kind].max_nonzeros == artifact.report["budget"]["max_nonzeros"]
    assert hwprune.check(artifact.path, target="nrf52840", require="size<=12KiB").ok
    found = hwprune.check(artifact.path, require=["size<=1KiB"])
    assert (found.ok, found.exit_code) == (False, 3)
    measured = hwprune.bench(artifact.path, runs=3)
    assert measured["results"]["artifact"]["p50_ms"] > 0
    with pytest.raises(UsageError, match="microcontroller"):
        hwprune.bench(artifact.path, target="nrf52840")
    record = hwprune.report.read(output)
    assert record.artifact.sha256 == artifact.sha256
    assert "not linked" in hwprune.report.render.markdown(record).lower()
    assert hwprune.targets.load("nrf52840").name == "nrf52840"
