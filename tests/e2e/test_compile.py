"""``hwprune compile`` from the command to a verified folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from e2e_tools import WRITTEN, Runner, accuracy_of, files_in, masks_of, state_of

import hwprune as package
from hwprune.frontend import load_data
from hwprune.frontend.zoo import ARCHITECTURES


@pytest.fixture(scope="module")
def resnet20_pt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("resnet20")
    torch.save(ARCHITECTURES["cifar-resnet20"].build().state_dict(), folder / "model.pt")
    return folder / "model.pt"


def test_the_command_of_the_readme(
    hwprune: Runner, resnet20_pt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(resnet20_pt.parent)
    ran = hwprune("compile", "model.pt", "--target", "jetson-nano")
    assert ran.code == 0, ran.err
    assert "recognised as cifar-resnet20" in ran.out
    assert "the dense fp32 model fits" in ran.out
    assert "pruning starts at a budget below" in ran.out
    assert "nothing was pruned, which starts below " in ran.out.splitlines()[0]
    assert "accuracy unknown" in ran.out.splitlines()[0]
    assert "\ngo on with  " in ran.out
    folder = resnet20_pt.parent / "model-jetson-nano"
    assert files_in(folder) == WRITTEN - {"checkpoint/masks.safetensors"}
    read = onnx.load(folder / "model.onnx")
    assert {entry.domain: entry.version for entry in read.opset_import} == {"": 15}
    assert read.ir_version == 8
    assert not read.functions
    record = json.loads((folder / "report.json").read_text())
    assert record["verdict"]["fits"]
    assert record["verdict"]["verified"]
    assert record["budget"]["bytes"] == 2 * 1024**2
    assert record["result"]["sparsity"] == 0
    artifact = "model-jetson-nano/model.onnx"
    assert hwprune("check", artifact, "--target", "jetson-nano").code == 0


def test_what_fits_a_target_without_fp32_is_quantised(
    hwprune: Runner, digits_pt: Path, tmp_path: Path
) -> None:
    ran = hwprune("plan", digits_pt, "--target", "rp2040")
    assert (ran.code, "dense fp32 model fits" in ran.out) == (0, False)
    ran = hwprune("compile", digits_pt, "--target", "rp2040", "-o", tmp_path / "int8", "--json")
    assert ran.code == 0, ran.err
    assert ran.document["budget"]["bytes"] > 1024**2  # the dense file has 300 kB
    layers = ran.document["result"]["layers"]
    assert {layer["value_type"] for layer in layers} == {"int8"}
    assert ran.document["result"]["sparsity"] < 0.02  # what is zero as int8
    assert hwprune("check", tmp_path / "int8/model.onnx", "--target", "rp2040").code == 0
    assert hwprune("compile", digits_pt, "--target", "nrf52840", "-o", tmp_path / "fp32").code == 0
    ran = hwprune("check", tmp_path / "fp32/model.onnx", "--target", "rp2040")
    assert ran.code == 5
    assert "value type fp32 (the dense weights" in ran.out


@pytest.mark.parametrize(
    ("target", "budget", "scope"),
    [
        ("raspberry-pi-zero-2w", "64KiB", "onnx file, on this host"),
        ("nrf52840", "48KiB", "onnx-size-only, not linked"),
    ],
)
def test_a_network_is_pruned_into_its_budget(
    hwprune: Runner, resnet20_pt: Path, tmp_path: Path, target: str, budget: str, scope: str
) -> None:
    out = tmp_path / "out"
    ran = hwprune("compile", resnet20_pt, "--target", target, "--budget", budget, "-o", out)
    assert ran.code == 0, ran.err
    size = (out / "model.onnx").stat().st_size
    limit = int(budget.removesuffix("KiB")) * 1024
    assert 0.995 * limit <= size <= limit
    assert files_in(out) == WRITTEN
    record = json.loads((out / "report.json").read_text())
    assert record["verdict"]["scope"] == scope
    assert scope.replace("onnx", "ONNX") in ran.out
    assert record["artifact"]["bytes"] == record["budget"]["used_bytes"] == size
    assert record["result"]["nonzeros"] == sum(
        layer["nonzeros"] for layer in record["result"]["layers"]
    )
    assert 0.7 < record["result"]["sparsity"] < 0.95
    assert record["parity"]["relative_error"] <= 1e-4
    measured = target != "nrf52840"
    assert (record["latency"]["stock"] is not None) is measured
    assert ("kernels" in json.dumps(record["notes"])) is measured
    assert hwprune("check", out / "model.onnx", "--target", target, "--require",
                   f"size<={budget}").code == 0  # fmt: skip
    shown = hwprune("report", out)
    assert shown.code == 0
    assert scope.replace("onnx", "ONNX") in shown.out
    assert hwprune("inspect", out / "model.onnx").code == 0


FIELDS = {
    "": "schema_version verdict model target strategy epochs artifact budget result metric "
    "accuracy latency parity environment command seed seconds notes",
    "verdict": "fits verified scope limits exit_code",
    "artifact": "path bytes sha256",
    "budget": "bytes floor_bytes max_nonzeros used_bytes slack_bytes",
    "result": "nonzeros weights sparsity artifact_bytes layers",
    "metric": "name higher_is_better split samples dense extreme final trajectory",
    "accuracy": "dense extreme final metric split samples trajectory",
    "latency": "dense stock kernels host onnxruntime",
    "parity": "relative_error top1_agreement",
}


@pytest.fixture(scope="module")
def trained(
    hwprune: Runner, digits_pt: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A bidirectional run with data, limits that are met, and every part of the report filled."""
    out = tmp_path_factory.mktemp("trained") / "out"
    ran = hwprune(
        "compile", digits_pt, "--target", "raspberry-pi-5", "--data", "digits", "--budget", "12KiB",
        "--epochs", "3", "--strategy", "bidirectional-single", "-o", out, "--json",
        "--require", "size<=12KiB", "--require", "sparsity>=0.9",
        "--require", "parity<=1e-4", "--require", "accuracy_drop<=1",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.document == json.loads((out / "report.json").read_text())
    return out, ran.document


def test_the_report_has_every_field_in_the_contract(trained: tuple[Path, dict[str, Any]]) -> None:
    _, record = trained
    for path, names in FIELDS.items():
        part = record[path] if path else record
        assert [key for key in part if key in names.split()] == names.split(), path
    layers = record["result"]["layers"]
    assert len(layers) == 4
    for layer in layers:
        assert {"name", "shape", "nonzeros", "codec", "value_type", "bytes"} <= layer.keys()
        assert layer["index_bytes"] + layer["value_bytes"] < layer["bytes"]
    assert [limit["met"] for limit in record["verdict"]["limits"]] == [True] * 4
    assert record["epochs"] == 3
    assert record["strategy"] == "bidirectional-single"
    run = record["latency"]["stock"]
    assert run["threads"] == run["batch"] == 1
    assert run["p50_ms"] <= run["p90_ms"]
    assert record["latency"]["host"]
    assert record["accuracy"]["trajectory"]


def test_the_page_stands_alone(trained: tuple[Path, dict[str, Any]]) -> None:
    page = (trained[0] / "report.html").read_text()
    assert "<script src" not in page
    assert 'src="http' not in page
    assert "url(http" not in page
    assert "<link" not in page
    assert "@import" not in page
    assert "features.2.0.weight" in page


def test_the_accuracy_in_the_report_is_that_of_the_file(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    out, record = trained
    assert record["accuracy"]["final"] == pytest.approx(accuracy_of(out / "model.onnx"), abs=1e-9)
    assert record["accuracy"]["split"] == "test"
    assert record["accuracy"]["samples"] == len(load_data("digits").test)


def test_what_was_pruned_is_exactly_zero(trained: tuple[Path, dict[str, Any]]) -> None:
    out, record = trained
    state, masks = state_of(out), masks_of(out)
    assert sum(int(mask.sum()) for mask in masks.values()) == record["result"]["nonzeros"]
    for name, mask in masks.items():
        assert set(np.unique(mask)) <= {0, 1}
        assert not state[name][mask == 0].any(), name
        assert state[name][mask == 1].all(), name


def test_the_file_holds_what_the_masks_say(trained: tuple[Path, dict[str, Any]]) -> None:
    out, record = trained
    masks = masks_of(out)
    arrays = package.csr_arrays(str(out / "model.onnx"))
    assert set(arrays) == set(masks)
    for layer in record["result"]["layers"]:
        name = layer["name"]
        shape = layer["stored_shape"] or layer["shape"]  # smaller where channels were dead
        stored = arrays[name].toarray().reshape(shape) != 0
        assert np.array_equal(without_empty(stored), without_empty(masks[name] == 1)), name


def without_empty(mask: np.ndarray) -> np.ndarray:
    """Return a mask without the channels of which nothing lives."""
    for axis in (0, 1):
        others = tuple(at for at in range(mask.ndim) if at != axis)
        mask = mask.compress(mask.any(axis=others), axis=axis)
    return mask
