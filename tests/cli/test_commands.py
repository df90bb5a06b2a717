from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from hwprune.cli.main import main
from hwprune.kernels import library

WriteArtifact = Callable[..., Path]
PutReport = Callable[..., Path]


@pytest.fixture
def hwprune(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command line: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


Run = Callable[..., tuple[int, str, str]]


# -- check --------------------------------------------------------------------------------------


def test_check_passes(hwprune: Run, write_artifact: WriteArtifact) -> None:
    path = write_artifact()
    code, out, err = hwprune("check", path, "--target", "raspberry-pi-5", "--require", "size<=9kB")
    assert (code, err) == (0, "")
    assert out.startswith(f"{path}: passed; onnx file, on this host")


def test_check_of_several_reports_each_and_the_worst(
    hwprune: Run, write_artifact: WriteArtifact, tmp_path: Path
) -> None:
    good, big = write_artifact("good.onnx"), write_artifact("big.onnx", form="dense")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"nothing")
    limit = f"size<={good.stat().st_size}"
    assert hwprune("check", good, big, "--require", limit)[0] == 3
    code, out, err = hwprune("check", good, bad, big, "--require", limit, "--json")
    assert code == 2
    document = json.loads(out)
    assert list(document) == ["schema_version", "exit_code", "artifacts", "error"]
    assert [each["exit_code"] for each in document["artifacts"]] == [0, 2, 3]
    assert [each["ok"] for each in document["artifacts"]] == [True, False, False]
    assert document["artifacts"][0]["limits"][0]["met"] is True
    assert document["artifacts"][1]["bytes"] is None
    assert document["error"]["type"] == "ArtifactError"
    assert "bad.onnx" in document["error"]["message"]
    assert "1 of 3 artifacts passed" in err


def test_check_json_of_a_pass_has_no_error(hwprune: Run, write_artifact: WriteArtifact) -> None:
    document = json.loads(hwprune("check", write_artifact(), "--json")[1])
    assert document["exit_code"] == 0
    assert "error" not in document
    assert document["artifacts"][0]["nonzeros"] > 0


def test_check_writes_junit(hwprune: Run, write_artifact: WriteArtifact, tmp_path: Path) -> None:
    junit = tmp_path / "out.xml"
    path = write_artifact()
    assert hwprune("check", path, "--require", "size<=1", "--junit", junit)[0] == 3
    root = ElementTree.parse(junit).getroot()
    assert root.get("failures") == "1"
    failure = root.find("testsuite/testcase/failure")
    assert failure is not None
    assert failure.get("type") == "LimitError"
    assert hwprune("check", path, "--junit", tmp_path / "gone" / "out.xml")[0] == 2


# -- inspect ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["functions", "inlined", "dense"])
def test_inspect_accounts_for_every_byte(
    hwprune: Run, write_artifact: WriteArtifact, form: str
) -> None:
    path = write_artifact(form=form)
    code, out, _ = hwprune("inspect", path, "--json")
    assert code == 0
    document = json.loads(out)
    assert next(iter(document)) == "schema_version"
    assert (document["form"], document["bytes"]) == (form, path.stat().st_size)
    assert document["inputs"] == [{"name": "x", "shape": ["N", 3, 4, 4], "dtype": "float"}]
    if form == "dense":
        assert document["layers"] == []
    else:
        assert [layer["name"] for layer in document["layers"]] == ["conv.weight", "fc.weight"]
        assert document["layers"][0]["codec"] == "gap8"
        assert document["layers"][0]["shape"] == [8, 3, 3, 3]
    dense = sum(tensor["bytes"] for tensor in document["dense_tensors"])
    parts = document["layer_bytes"] + dense + document["function_bytes"] + document["graph_bytes"]
    assert 0 <= document["bytes"] - parts < 64  # the file's header
    assert bool(document["functions"]) is (form == "functions")


def test_inspect_for_people(hwprune: Run, write_artifact: WriteArtifact) -> None:
    path = write_artifact()
    out = hwprune("inspect", path)[1]
    for text in ("conv.weight", "fc.weight", "gap8", "function bodies", "x float N×3×4×4"):
        assert text in out
    assert f"{path.stat().st_size:,}" in out
    assert "dense: no packed layer" in hwprune("inspect", write_artifact(form="dense"))[1]


def test_inspect_lists_the_largest_dense_tensors(
    hwprune: Run, write_artifact: WriteArtifact, make_artifact: Callable[..., Any]
) -> None:
    model = make_artifact(form="dense")
    for size in range(1, 31):
        tensor = model.graph.initializer.add(name=f"extra{size}", data_type=1, dims=[size])
        tensor.raw_data = bytes(4 * size)
    out = hwprune("inspect", write_artifact(model=model))[1]
    listed = out[out.index("dense tensor  ") :].split()
    assert (
        listed.index("w1") < listed.index("w0") < listed.index("extra30") < listed.index("extra13")
    )
    assert "extra12" not in listed
    assert "and 12 more of " in out


def test_inspect_of_other_things(hwprune: Run, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_text("text")
    for path in (tmp_path / "x.onnx", tmp_path, tmp_path / "gone"):
        assert hwprune("inspect", path)[0] == 2


HOSTILE = "\x1b]0;title\x07\x1b[2Jred\u202e"


def test_nothing_in_a_file_steers_the_terminal(
    hwprune: Run, write_artifact: WriteArtifact, make_artifact: Callable[..., Any], tmp_path: Path,
    sample_record: dict[str, Any], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = make_artifact()
    for node in model.graph.node:
        node.name = HOSTILE
    model.graph.input[0].name = model.graph.node[0].input[0] = HOSTILE
    model.functions[0].domain = HOSTILE
    path = write_artifact(HOSTILE.replace("/", "") + ".onnx", model=model)

    kept = ("<=", ">=", "functions")  # what a report cannot have otherwise

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poisoned(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [poisoned(inner) for inner in value]
        return HOSTILE if isinstance(value, str) and value not in kept else value

    record = tmp_path / "report.json"
    record.write_text(json.dumps(poisoned(sample_record)))
    for arguments in (
        ["inspect", path], ["check", path], ["bench", path, "--runs", 1], ["report", record],
        ["targets", "show", path], ["targets", "check", path],
    ):  # fmt: skip
        _, out, err = hwprune(*arguments)
        assert "title" in out + err
        for mark in "\x1b\x07\u202e":
            assert mark not in out + err
    for suffix in (".md", ".html"):
        hwprune("report", record, "-o", tmp_path / f"out{suffix}")
        text = (tmp_path / f"out{suffix}").read_text()
        assert "title" in text
        assert not any(mark in text for mark in "\x1b\x07\u202e")


def test_inspect_of_a_type_that_onnx_does_not_know(
    hwprune: Run, write_artifact: WriteArtifact, make_artifact: Callable[..., Any]
) -> None:
    for number in (99, -5):
        model = make_artifact()
        model.graph.input[0].type.tensor_type.elem_type = number
        model.graph.output[0].type.tensor_type.elem_type = number
        path = write_artifact(model=model)
        code, out, _ = hwprune("inspect", path)
        assert code == 0
        assert f"x unknown type {number} " in out
        assert hwprune("check", path)[0] == 5


# -- bench --------------------------------------------------------------------------------------


def test_bench_measures_two_files_in_turn(hwprune: Run, write_artifact: WriteArtifact) -> None:
    a, b = write_artifact("a.onnx"), write_artifact("b.onnx", form="dense")
    code, out, err = hwprune(
        "bench", a, "--against", b, "--runs", 3, "--batch", 2, "--threads", 1, "--json",
        "--target", "raspberry-pi-zero-2w",
    )  # fmt: skip
    assert code == 0
    document = json.loads(out)
    labels = ["artifact", "against"] + (["kernels"] if library.path() is not None else [])
    assert list(document["results"]) == labels
    found = document["results"]["artifact"]
    assert (found["runs"], found["batch"], found["threads"]) == (3, 2, 1)
    assert 0 < found["p50_ms"] <= found["p90_ms"]
    assert found["resident_bytes"] > 0
    assert document["ratio_p50"] == found["p50_ms"] / document["results"]["against"]["p50_ms"]
    assert document["host"].startswith("this host: ")
    assert "measured on this host, not on raspberry-pi-zero-2w" in document["notes"]
    assert "files in turn" in err
    assert any("native kernels" in note for note in document["notes"])
    if "kernels" in labels:
        kernels = document["results"]["kernels"]
        assert kernels["weight_bytes"] > 0
        assert (
            document["ratio_p50_kernels"]
            == kernels["p50_ms"] / document["results"]["against"]["p50_ms"]
        )


def test_bench_refuses_what_it_cannot_stand_for(
    hwprune: Run, write_artifact: WriteArtifact
) -> None:
    path = write_artifact()
    code, _, err = hwprune("bench", path, "--target", "nrf52840")
    assert code == 2
    assert "says nothing about" in err
    code, _, err = hwprune("bench", path, "--target", "jetson-nano")
    assert code == 2
    assert "opset 18" in err


def test_bench_for_people(hwprune: Run, write_artifact: WriteArtifact) -> None:
    code, out, _ = hwprune("bench", write_artifact(), "--runs", 2)
    assert code == 0
    assert "Measured on this host: " in out
    assert "2 runs, 1 thread, batch 1" in out


# -- report -------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path, sample_record: dict[str, Any]) -> Path:
    (tmp_path / "report.json").write_text(json.dumps(sample_record))
    return tmp_path


def test_report_in_the_terminal(hwprune: Run, run_folder: Path) -> None:
    for run in (run_folder, run_folder / "report.json"):
        code, out, _ = hwprune("report", run)
        assert code == 0
        assert out.startswith("✓ Fits and verified")


@pytest.mark.parametrize(
    ("suffix", "starts"), [(".html", "<!doctype html>"), (".md", "# resnet20"), (".json", "{")]
)
def test_report_as_a_file(hwprune: Run, run_folder: Path, suffix: str, starts: str) -> None:
    output = run_folder / f"out{suffix}"
    code, out, err = hwprune("report", run_folder, "-o", output)
    assert (code, out) == (0, "")
    assert str(output) in err
    assert output.read_text().lstrip().startswith(starts)


def test_report_as_json(hwprune: Run, run_folder: Path, sample_record: dict[str, Any]) -> None:
    document = json.loads(hwprune("report", run_folder, "--json")[1])
    assert next(iter(document)) == "schema_version"
    layers = document["result"].pop("layers")
    assert (
        document["result"].items()
        >= {key: value for key, value in sample_record["result"].items() if key != "layers"}.items()
    )
    for layer, given in zip(layers, sample_record["result"]["layers"], strict=True):
        assert layer.items() >= given.items()


def test_report_refusals(hwprune: Run, run_folder: Path) -> None:
    assert hwprune("report", run_folder / "gone")[0] == 2
    for name in ("out.pdf", "out"):
        code, _, err = hwprune("report", run_folder, "-o", run_folder / name)
        assert code == 2
        assert ".html, .md or .json" in err
    assert hwprune("report", run_folder, "-o", run_folder / "gone" / "x.html")[0] == 2


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("bench", "model.onnx", "--kernels-library", "k.so"), "--kernels-library"),
        (("bench", "model.onnx", "--remote-python", "python3"), "--remote-python"),
        (("calibrate", "-o", "ours.toml", "--remote-python", "p"), "--remote-python"),
    ],
)
def test_what_is_of_a_device_needs_one(
    words: tuple[str, ...], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert f"{option} is for --on alone" in error
    assert "--on ssh://USER@HOST" in error
