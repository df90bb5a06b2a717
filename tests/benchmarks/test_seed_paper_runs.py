"""The seed paper's benchmarks from end to end, on the digits: records, resume after a kill."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from hwprune.errors import InputError
from hwprune.frontend import load_data
from hwprune.frontend.zoo import ARCHITECTURES
from hwprune.ir import Data, Model
from hwprune.sampling import Sampled

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "accuracy"
SCALE = {"epochs": 1, "train_images": None, "eval_images": 100}
RECIPE = {"precision": "fp32", "batch_size": 64, "learning_rate": 0.1, "compiled": False}
NAME = "digits-cnn"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], ModuleType]:
    """Return what imports a benchmark whose network is the digits', in folders of the test."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    shared = ("common", "compiling", "networks", "staged", "study")
    names = (*shared, "train_dense", "bytes_at_accuracy", "fig2")
    for name in names:
        sys.modules.pop(name, None)

    def open_network(config: dict[str, Any], folder: Path) -> Model:
        known = ARCHITECTURES[config["network"]]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = known.build().eval()
        return Model(NAME, "untrained", "state-dict", module, NAME, known.inputs)

    def open_(name: str) -> ModuleType:
        common, networks, module = map(importlib.import_module, ("common", "networks", name))
        monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
        monkeypatch.setattr(common, "build", lambda: "0 (a test)")
        for holder in (common, networks):
            monkeypatch.setattr(holder, "BUILD", tmp_path)
        monkeypatch.setattr(module, "open_data", lambda *_: few(), raising=False)
        monkeypatch.setattr(module, "open_network", open_network, raising=False)
        return module

    return open_


def few() -> Data:
    """Return the digits, of which 320 are trained on: five steps an epoch."""
    data = load_data("digits")
    train, rest = Sampled(data.train, np.arange(320)), Sampled(data.validation, np.arange(60))
    return replace(data, train=train, validation=rest)


def stopping(at: int, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the row that a module runs be killed when it tells of epoch ``at``."""
    tell = module._tell

    def told(event: Any, *rest: Any) -> None:
        tell(event, *rest)
        if event.message.startswith(f"epoch {at} of"):
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_tell", told)


def measured(experiment: Any, config: dict[str, Any]) -> Any:
    (row,) = experiment.rows()
    assert (row.status, dict(row.config)) == ("run", config)
    return row


def test_a_staged_row_is_measured_after_each_stage_and_resumes(
    opened: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = opened("study")
    stages = [0.5, 0.9, 0.8]
    config = {"network": NAME, "stages": stages, **SCALE, "recipe": RECIPE}
    whole = study.Experiment("whole", ["python"])
    study.run(config, 3, tmp_path, whole)
    row = measured(whole, config)
    found = row.model_extra["stages"]
    assert [stage["sparsity"] for stage in found] == pytest.approx(stages, abs=1e-4)
    assert [stage["epochs"] for stage in found] == [1, 2, 3]
    assert row.cost.epochs == 3
    assert found[-1]["accuracy"] == row.accuracy
    assert len({stage["accuracy"] for stage in found}) > 1
    assert study.staged.seen_at(row, 0.9) == found[1]
    assert study.staged.seen_at(row, 0.95) is None

    halves = study.Experiment("halves", ["python"])
    with monkeypatch.context() as killing:
        stopping(3, study, killing)  # after the second epoch was kept
        with pytest.raises(KeyboardInterrupt):
            study.run(config, 3, tmp_path, halves)
    assert not halves.done(config, 3)
    assert len(list((tmp_path / "studies" / "halves").glob("*.state"))) == 1
    study.run(config, 3, tmp_path, halves)
    again = measured(halves, config)
    assert any("continued after epoch 2 of 3" in note for note in again.model_extra["notes"])
    assert again.model_extra["stages"] == found
    assert again.model_extra["resumed"] is True
    assert "cpu_seconds" in row.model_extra
    assert "cpu_seconds" not in again.model_extra
    assert not (tmp_path / "studies" / "halves").exists()


def test_a_start_from_random_weights_is_taught_by_the_dense_network(
    opened: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    study = opened("study")
    options = study.arm("rigl", allocation="erk", grow_allocation="towards-erk", updates=2)
    config = {"network": NAME, "sparsity": 0.9, **options, **SCALE, "start": "random",
              "recipe": RECIPE}  # fmt: skip
    experiment = study.Experiment("rigl", ["python"])
    study.run(config, 0, tmp_path, experiment)
    row = measured(experiment, config)
    assert row.model_extra["sparsity"] == pytest.approx(0.9, abs=1e-4)
    assert "stages" not in row.model_extra


def test_a_dense_network_is_trained_kept_and_found_again(
    opened: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dense = opened("train_dense")
    config = {"network": NAME, **SCALE, "epochs": 3, "recipe": RECIPE}
    experiment = dense.Trained("train_dense", ["python"])
    with monkeypatch.context() as killing:
        stopping(2, dense, killing)
        with pytest.raises(KeyboardInterrupt):
            dense.run(config, 0, tmp_path, experiment, device="cpu")
    dense.run(config, 0, tmp_path, experiment, device="cpu")
    row = measured(experiment, config)
    assert any("continued after epoch 1 of 3" in note for note in row.model_extra["notes"])
    assert row.accuracy > 0.3
    assert row.model_extra["compiled"] is False

    path = dense.dense_path(NAME, config, 0)
    assert path.is_relative_to(tmp_path / "smoke")
    module = ARCHITECTURES[NAME].build()
    module.load_state_dict(torch.load(path, weights_only=True))
    accuracy = sys.modules["networks"].test_accuracy(module, few(), "cpu")
    assert accuracy == row.accuracy
    assert experiment.done(config, 0)
    path.write_bytes(path.read_bytes() + b"?")
    assert not experiment.done(config, 0)  # another file: trained anew
    path.unlink()
    assert not experiment.done(config, 0)


def test_a_network_that_is_not_trained_yet_is_said_to_be(
    opened: Callable[[str], ModuleType],
) -> None:
    opened("common")
    networks = sys.modules["networks"]
    with pytest.raises(InputError, match="not trained yet") as caught:
        networks.open_network({"network": "cifar-resnet50", "train_images": None}, Path("DIR"))
    rows = importlib.import_module("train_dense").rows({"epochs": 1, "train_images": None})
    number = int((caught.value.hint or "").split()[-1])
    assert (rows[number][0]["network"], rows[number][1]) == ("cifar-resnet50", 0)


def test_a_study_prunes_the_network_of_its_scale_and_no_other_file(
    opened: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened("common")
    networks = sys.modules["networks"]
    loaded: list[str] = []
    monkeypatch.setattr("hwprune.frontend.load_model", lambda path, arch: loaded.append(path))
    experiment = sys.modules["common"].Experiment("train_dense", ["python"])
    name = "cifar-vgg16-bn"

    def trained(scale: dict[str, Any], weights: bytes) -> Path:
        path: Path = networks.dense_path(name, scale)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(weights)
        experiment.add({"network": name, **scale, "recipe": {}}, 0, 1.0, 1.0,
                       sha256=networks.digest(path))  # fmt: skip
        return path

    full = trained(networks.DENSE_FULL, b"200 epochs")
    short = trained(networks.DENSE_SHORT, b"3 epochs")
    assert full.read_bytes() == b"200 epochs"  # a short training overwrites nothing
    row = {"network": name, "epochs": 12, "train_images": None}
    networks.open_network(row, Path("DIR"))
    networks.open_network({**row, "train_images": 10_000}, Path("DIR"))
    assert loaded == [str(full), str(short)]
    with pytest.raises(InputError, match="not trained yet") as caught:
        networks.open_network({**row, "dense_epochs": 60}, Path("DIR"))
    assert "--epochs 60" in (caught.value.hint or "")
    full.write_bytes(short.read_bytes())
    with pytest.raises(InputError, match=r"not a network that train_dense\.json knows") as caught:
        networks.open_network(row, Path("DIR"))
    assert "train_dense.py" in (caught.value.hint or "")
    assert len(loaded) == 2


def test_a_file_is_compiled_measured_and_set_against_its_entropy(
    opened: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    module = opened("bytes_at_accuracy")
    config = {
        "network": NAME, "budget_bytes": 20_000, "values": "int8", **module.STRATEGY, **SCALE,
        "recipe": RECIPE,
    }  # fmt: skip
    experiment = module.Experiment("bytes_at_accuracy", ["python"])
    module.run(config, 0, tmp_path, experiment)
    extra = measured(experiment, config).model_extra
    assert extra["verified"]
    assert 0 < extra["bound_bytes"] < extra["artifact_bytes"] <= 20_000
    assert not list((tmp_path / "studies").rglob("*.onnx"))
