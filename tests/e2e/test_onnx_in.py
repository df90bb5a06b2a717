"""An ONNX file as MODEL, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from e2e_tools import Runner
from onnx import helper
from onnx_nets import classifier, drawn, model_of

from hwprune.api import compile as compile_network

SHAPE = ("batch", 3, "height", "width")


def write(folder: Path, opset: int = 17) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(classifier(opset, shape=SHAPE).SerializeToString())
    return path


def interface(path: Path) -> list[object]:
    session = onnxruntime.InferenceSession(str(path))
    entries = [*session.get_inputs(), *session.get_outputs()]
    return [(entry.name, entry.shape[: 4 if entry.name == "x" else 0]) for entry in entries]


@pytest.mark.parametrize(
    ("opset", "target", "form"),
    [(11, "raspberry-pi-5", "functions"), (17, "jetson-nano", "inlined"),
     (20, "raspberry-pi-5", "inlined")],
)  # fmt: skip
def test_the_file_keeps_its_interface(
    hwprune: Runner, tmp_path: Path, opset: int, target: str, form: str
) -> None:
    given, out = write(tmp_path, opset), tmp_path / "out"
    ran = hwprune(
        "compile", given, "--target", target, "--form", form, "--budget", "10KiB", "-o", out
    )
    assert ran.code == 0, ran.err
    report = json.loads((out / "report.json").read_text())
    assert {layer["name"] for layer in report["result"]["layers"]} == {
        "stem.weight", "body", "head.weight",
    }  # fmt: skip
    assert 0.1 < report["result"]["sparsity"] < 0.9
    assert report["artifact"]["form"] == form
    assert report["parity"]["relative_error"] < 1e-4
    assert interface(out / "model.onnx") == interface(given)
    for shape in ((1, 3, 8, 8), (5, 3, 12, 20)):
        session = onnxruntime.InferenceSession(str(out / "model.onnx"))
        assert session.run(None, {"x": drawn(*shape)})[0].shape == (shape[0], 10)
    again = hwprune("plan", out / "model.onnx", "--target", target)
    assert (again.code, "was packed by hwprune already" in again.err) == (2, True)


def test_data_fit_what_is_left_and_training_goes_on_from_there(
    hwprune: Runner, tmp_path: Path
) -> None:
    given = write(tmp_path)
    x = drawn(400, 3, 8, 8, seed=11)
    scores = onnxruntime.InferenceSession(str(given)).run(None, {"x": x})[0]
    np.savez(tmp_path / "d.npz", x=x, y=scores.argmax(1))
    words = ("compile", given, "--target", "raspberry-pi-5", "--budget", "6KiB")
    data = ("--data", f"npz:{tmp_path / 'd.npz'}?normalize=none")
    ran = hwprune(*words, *data, "-o", tmp_path / "fitted")
    assert ran.code == 0, ran.err
    report = json.loads((tmp_path / "fitted" / "report.json").read_text())
    notes = " ".join(report["notes"])
    assert "fitted to the dense network's outputs by least squares" in notes
    assert "least squares left" not in notes
    assert report["accuracy"]["dense"] == 1.0
    assert report["accuracy"]["final"] > 0.8
    ran = hwprune(*words, *data, "--epochs", "2", "-o", tmp_path / "trained")
    assert ran.code == 0, ran.err
    trained = json.loads((tmp_path / "trained" / "report.json").read_text())
    assert "on validation: least squares" in " ".join(trained["notes"])
    assert trained["epochs"] == 2
    assert trained["accuracy"]["final"] >= report["accuracy"]["final"] - 0.03
    for option, said in (("--strategy=cubic", "an ONNX file is trained by auto"),):
        refused = hwprune(*words, *data, "--epochs", "2", option, "-o", tmp_path / "no")
        assert (refused.code, said in refused.err) == (2, True)


def test_a_size_that_is_free_in_name_only(hwprune: Runner, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
    ]
    tensors = {"flat": np.array([-1, 192], np.int64), "w": drawn(64, 192)}
    made = model_of(nodes, tensors, shape=("batch", 3, 8, "width"))
    (tmp_path / "net.onnx").write_bytes(made.SerializeToString())
    words = ("compile", tmp_path / "net.onnx", "--target", "raspberry-pi-5", "--budget", "9KiB")
    ran = hwprune(*words, "--input", "x:Nx3x8x8", "-o", tmp_path / "out")
    assert ran.code == 0, ran.err


def test_what_hwprune_left_dense_may_come_back(tmp_path: Path) -> None:
    first = compile_network(
        write(tmp_path), target="raspberry-pi-5", budget="1MiB", output=tmp_path / "dense"
    )
    assert first.report["result"]["sparsity"] == 0
    assert first.report["artifact"]["form"] == "dense"
    second = compile_network(
        first.path, target="raspberry-pi-5", budget="10KiB", output=tmp_path / "sparse"
    )
    assert second.verdict.exit_code == 0
