"""What a device needs to know travels with the file, in it and beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from e2e_tools import Runner

from hwprune.frontend import load_data

COMPILE = ("--target", "raspberry-pi-5", "--data", "digits", "--epochs", "0", "--max-drop", "off")


@pytest.mark.usefixtures("traced_once")
def test_a_file_says_how_to_feed_it(hwprune: Runner, digits_pt: Path, tmp_path: Path) -> None:
    ran = hwprune("compile", digits_pt, *COMPILE, "--budget", "40KiB", "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    path = tmp_path / "out" / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    held = session.get_modelmeta().custom_metadata_map
    assert {key: value.strip() for key, value in held.items()} == record["metadata"]
    assert not record["left_out"]
    assert int(held["nonzeros"]) == record["result"]["nonzeros"]
    assert (held["target"], held["budget"]) == ("raspberry-pi-5", str(40 * 1024))
    assert json.loads(held["classes"]) == list("0123456789")
    assert held["data"].startswith("digits ")
    # Anyone can do it by the file alone.
    how, test = json.loads(held["preprocessing"]), load_data("digits").test
    stored = test.stored(np.arange(5))  # type: ignore[attr-defined]
    made = (stored / how["scale"] - how["mean"][0]) / how["std"][0]
    assert np.allclose(made, test.batch(np.arange(5))[0], atol=1e-5)
    shown = hwprune("inspect", path).out
    for line in ("1. divide by 16", "2. subtract the mean 0.30", "4. give float32, NCHW"):
        assert line in shown
    layers = hwprune("inspect", path, "--json").document["layers"]
    reported = {each["name"]: each["packed_bytes"] for each in record["result"]["layers"]}
    assert reported == {each["name"]: each["bytes"] for each in layers}
    plan = hwprune("plan", digits_pt, *COMPILE[:4], "--budget", "40KiB", "--json").document
    kind = record["result"]["layers"][0]["value_type"]
    assert plan["plans"][kind]["max_nonzeros"] == record["budget"]["max_nonzeros"]


@pytest.mark.usefixtures("traced_once")
def test_the_card_beside_it_is_what_hugging_face_reads(
    hwprune: Runner, digits_pt: Path, tmp_path: Path
) -> None:
    ran = hwprune("compile", digits_pt, *COMPILE, "--budget", "24KiB", "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    head, _, body = (
        (tmp_path / "out" / "README.md").read_text().removeprefix("---\n").partition("\n---\n")
    )
    values = dict(line.split(": ", 1) for line in head.splitlines())
    front = {key: json.loads(value) for key, value in values.items()}
    assert front["pipeline_tag"] == "image-classification"
    (entry,) = front["model-index"]
    (result,) = entry["results"]
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert result["metrics"][0]["value"] == record["metric"]["final"]
    assert result["dataset"]["name"] == "digits"
    # What it says to run runs.
    code = [line[4:] for line in body.splitlines() if line.startswith("    ")]
    start = code.index("import numpy as np, onnxruntime")
    snippet = "\n".join(code[start : code.index("outputs = session.run(None, {name: x})") + 1])
    test = load_data("digits").test
    names = {"stored": test.stored(np.arange(50))}  # type: ignore[attr-defined]
    snippet = snippet.replace('"model.onnx"', repr(str(tmp_path / "out" / "model.onnx")))
    exec(snippet, names)
    found = np.mean(names["outputs"][0].argmax(1) == test.labels[:50])
    assert found > 0.6


@pytest.mark.usefixtures("traced_once")
def test_a_file_that_normalises_by_itself(hwprune: Runner, digits_pt: Path, tmp_path: Path) -> None:
    sizes, finals = [], []
    for name, more in (("plain", ()), ("bytes", ("--embed-preprocessing", "nhwc"))):
        out = tmp_path / name
        ran = hwprune("compile", digits_pt, *COMPILE, "--budget", "24KiB", *more, "-o", out)
        assert ran.code == 0, ran.err
        record = json.loads((out / "report.json").read_text())
        sizes.append(record["artifact"]["bytes"])
        finals.append(record["metric"]["final"])
    assert max(sizes) <= 24 * 1024
    session = onnxruntime.InferenceSession(tmp_path / "bytes" / "model.onnx")
    (entry,) = session.get_inputs()
    assert (entry.type, entry.shape[1:]) == ("tensor(uint8)", [8, 8, 1])
    data = load_data("digits")
    stored = data.test.stored(np.arange(len(data.test)))  # type: ignore[attr-defined]
    logits = session.run(None, {entry.name: np.moveaxis(stored, 1, -1)})[0]
    assert np.mean(logits.argmax(1) == data.test.labels) == pytest.approx(finals[1])
    assert abs(finals[0] - finals[1]) < 0.05  # a few weights fewer
    checked = hwprune(
        "check", tmp_path / "bytes", "--data", "digits", "--target", "raspberry-pi-5",
        "--require", f"accuracy>={finals[1] - 1e-9}",
    )  # fmt: skip
    assert checked.code == 0, checked.err
    assert "the file does the rest" in hwprune("inspect", tmp_path / "bytes" / "model.onnx").out


def test_what_cannot_be_embedded_says_why(hwprune: Runner, digits_pt: Path, tmp_path: Path) -> None:
    embed = ("--embed-preprocessing", "nchw", "-o", tmp_path / "out")
    hwprune.refused("compile", digits_pt, "--target", "jetson-nano", *embed, says=["give --data"])
    hwprune.refused(
        "compile", digits_pt, "--target", "nrf52840", "--data", "digits", *embed,
        says=["reads int8"],
    )  # fmt: skip
    hwprune.refused(
        "compile", digits_pt, "--target", "jetson-nano", "--data", "digits?normalize=raw255",
        *embed, says=["holds no bytes that are to be normalised"],
    )  # fmt: skip
