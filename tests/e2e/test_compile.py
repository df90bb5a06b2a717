"""``hwprune compile`` from the command to a verified folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from e2e_tools import Runner, files_in, masks_of, save_npz, state_of

import hwprune as package
from hwprune.frontend import load_data
from hwprune.frontend.zoo import ARCHITECTURES
from hwprune.ir import VALUE_TYPES

WRITTEN = {
    ".hwprune", "model.onnx", "report.json", "report.html",
    "checkpoint/weights.safetensors", "checkpoint/masks.safetensors",
}  # fmt: skip
KIB12 = 12 * 1024


def accuracy_of(path: Path) -> float:
    """An evaluation that shares no code with hwprune's own."""
    data = load_data("digits")
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    assert data.test.labels is not None
    (images,) = data.test.batch(np.arange(len(data.test)))
    (scores,) = session.run(None, {session.get_inputs()[0].name: images})
    return float(np.mean(scores.argmax(1) == data.test.labels))


@pytest.fixture(scope="module")
def resnet20_pt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("resnet20")
    torch.save(ARCHITECTURES["cifar-resnet20"].build().state_dict(), folder / "model.pt")
    return folder / "model.pt"


@pytest.mark.usefixtures("traced_once")
def test_the_command_of_the_readme(
    hwprune: Runner, resnet20_pt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(resnet20_pt.parent)
    ran = hwprune("compile", "model.pt", "--target", "jetson-nano")
    assert ran.code == 0, ran.err
    assert "recognised as cifar-resnet20" in ran.out
    assert "the dense fp32 model fits" in ran.out
    assert "pruning starts at a budget below" in ran.out
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


@pytest.mark.usefixtures("traced_once")
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


@pytest.mark.usefixtures("traced_once")
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
    assert scope in ran.out
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
    assert scope in shown.out
    assert hwprune("inspect", out / "model.onnx").code == 0


FIELDS = {
    "": "schema_version verdict model target strategy epochs artifact budget result accuracy "
    "latency parity environment command seed seconds notes",
    "verdict": "fits verified scope limits exit_code",
    "artifact": "path bytes sha256",
    "budget": "bytes floor_bytes max_nonzeros used_bytes slack_bytes",
    "result": "nonzeros weights sparsity artifact_bytes layers",
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
        "--epochs", "3", "-o", out, "--require", "size<=12KiB", "--require", "sparsity>=0.9",
        "--require", "parity<=1e-4", "--require", "accuracy_drop<=1", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.document == json.loads((out / "report.json").read_text())
    return out, ran.document


def test_the_report_has_every_field_in_the_contract(trained: tuple[Path, dict[str, Any]]) -> None:
    _, record = trained
    for path, names in FIELDS.items():
        part = record[path] if path else record
        assert list(part)[: len(names.split())] == names.split(), path
    assert [set(layer) for layer in record["result"]["layers"]] == [
        {"name", "shape", "nonzeros", "codec", "value_type", "bytes"}
    ] * 4
    assert [limit["met"] for limit in record["verdict"]["limits"]] == [True] * 4
    assert record["epochs"] == 3
    assert record["strategy"] == "bidirectional"
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
    out, _ = trained
    masks = masks_of(out)
    arrays = package.csr_arrays(str(out / "model.onnx"))
    assert set(arrays) == set(masks)
    for name, array in arrays.items():
        stored = array.toarray().reshape(masks[name].shape) != 0
        assert np.array_equal(stored, masks[name] == 1), name


@pytest.mark.usefixtures("traced_once")
class TestStrategies:
    """On a target whose latency is not measured, to be quick."""

    def compile(self, hwprune: Runner, model: Path, out: Path, *more: object) -> dict[str, Any]:
        ran = hwprune(
            "compile", model, "--target", "nrf52840", "--data", "digits", "--budget", KIB12,
            "-o", out, "--json", *more,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        size = (out / "model.onnx").stat().st_size
        assert 0.995 * KIB12 <= size <= KIB12
        return ran.document

    @pytest.mark.parametrize("name", ["iterative", "one-shot", "cubic", "cyclic"])
    def test_each_strategy(
        self, hwprune: Runner, digits_pt: Path, tmp_path: Path, name: str
    ) -> None:
        words = ("--strategy", name, "--epochs", 1, "--values", "int8")
        record = self.compile(hwprune, digits_pt, tmp_path / "o", *words)
        assert record["strategy"] == name
        assert record["epochs"] == 1
        assert record["accuracy"]["final"] == accuracy_of(tmp_path / "o" / "model.onnx")
        actions = {point["action"] for point in record["accuracy"]["trajectory"]}
        assert {"prune", "train"} <= actions

    def test_the_same_seed_gives_the_same_bytes(
        self, hwprune: Runner, digits_pt: Path, tmp_path: Path
    ) -> None:
        files = []
        for number in range(2):
            self.compile(hwprune, digits_pt, tmp_path / str(number), "--epochs", 1, "--seed", 7)
            files.append((tmp_path / str(number) / "model.onnx").read_bytes())
        assert files[0] == files[1]

    def test_without_training_data_still_choose(
        self, hwprune: Runner, digits_pt: Path, tmp_path: Path
    ) -> None:
        record = self.compile(hwprune, digits_pt, tmp_path / "o", "--epochs", 0)
        assert record["epochs"] == 0
        assert record["strategy"] == "bidirectional"
        actions = [point["action"] for point in record["accuracy"]["trajectory"]]
        assert "regrow" in actions
        assert "train" not in actions
        assert record["accuracy"]["final"] > 0.5  # 93 % of the weights are gone; chance is 0.1

    @pytest.mark.parametrize("kind", VALUE_TYPES)
    def test_each_value_type(
        self, hwprune: Runner, digits_pt: Path, tmp_path: Path, kind: str
    ) -> None:
        record = self.compile(
            hwprune, digits_pt, tmp_path / "o", "--epochs", 0, "--values", kind,
            "--strategy", "one-shot", "--target", "raspberry-pi-5",
        )  # fmt: skip
        assert {layer["value_type"] for layer in record["result"]["layers"]} == {kind}
        assert record["parity"]["relative_error"] <= 1e-4

    def test_labels_may_be_absent(self, hwprune: Runner, digits_pt: Path, tmp_path: Path) -> None:
        data = load_data("digits?normalize=none")
        (images,) = data.train.batch(np.arange(300))
        spec = save_npz(tmp_path / "plain.npz", x=images)
        ran = hwprune(
            "compile", digits_pt, "--target", "nrf52840", "--budget", KIB12, "--epochs", 1,
            "--data", spec, "-o", tmp_path / "o", "--json",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        accuracy = ran.document["accuracy"]
        assert accuracy["final"] is accuracy["dense"] is None
        notes = " ".join(ran.document["notes"])
        assert "agreement with the dense model" in notes
        assert "the test split has no labels" in notes

    def test_without_data_it_says_what_it_cannot_do(
        self, hwprune: Runner, digits_pt: Path, tmp_path: Path
    ) -> None:
        ran = hwprune(
            "compile", digits_pt, "--target", "nrf52840", "--budget", KIB12, "-o", tmp_path / "o"
        )
        assert ran.code == 0, ran.err
        assert "nothing was trained" in " ".join(ran.out.split())
        assert "no --data was given" in ran.out

    def test_quantising_alone_may_be_enough(
        self, hwprune: Runner, digits_pt: Path, tmp_path: Path
    ) -> None:
        words = ("compile", digits_pt, "--target", "nrf52840", "--data", "digits", "--budget")
        ran = hwprune(*words, "80KiB", "--strategy", "dense", "-o", tmp_path / "a", "--json")
        assert ran.code == 0, ran.err
        record = ran.document
        assert record["budget"]["max_nonzeros"] == record["result"]["weights"]
        assert record["epochs"] == 0
        assert {layer["codec"] for layer in record["result"]["layers"]} == {"dense"}
        assert record["result"]["artifact_bytes"] <= 80 * 1024
        assert record["accuracy"]["final"] == accuracy_of(tmp_path / "a" / "model.onnx")
        assert "quantising alone meets the budget" in " ".join(record["notes"])
        refused = hwprune.refused(
            *words, "70KiB", "--strategy", "dense", "-o", tmp_path / "b", code=4,
            says=["nothing may be pruned"],
        )  # fmt: skip
        assert refused.out == ""
        assert not (tmp_path / "b").exists()

    def test_budgets_just_above_the_floor(
        self, hwprune: Runner, digits_pt: Path, tmp_path: Path
    ) -> None:
        words = (digits_pt, "--target", "nrf52840", "--values", "fp16")
        floor = hwprune("plan", *words, "--budget", "4KiB", "--json").document["plans"]["fp16"][
            "floor_bytes"
        ]
        for extra, name in ((0, "a"), (1, "b"), (40, "c")):
            out = tmp_path / name
            ran = hwprune("compile", *words, "--budget", floor + extra, "-o", out)
            assert ran.code == 0, ran.err
            assert (out / "model.onnx").stat().st_size <= floor + extra
            assert hwprune("check", out / "model.onnx").code == 0
        more = ("--data", "digits", "--epochs", 1, "-o", tmp_path / "trained")
        ran = hwprune("compile", *words, "--budget", floor + 40, *more)
        assert ran.code == 0, ran.err  # below the budget there is no room to prune into
        hwprune.refused(
            "compile", *words, "--budget", floor - 1, "-o", tmp_path / "d", code=4,
            says=[f"{floor:,} B", "function bodies"],
        )  # fmt: skip

    @pytest.mark.parametrize("target", ["nrf52840", "jetson-nano"])
    def test_a_layer_that_loses_every_connection(
        self, hwprune: Runner, digits_pt: Path, tmp_path: Path, target: str
    ) -> None:
        state = torch.load(digits_pt)
        state["features.1.0.weight"] = state["features.1.0.weight"] * 0
        torch.save(state, tmp_path / "cut.pt")
        words = ("compile", tmp_path / "cut.pt", "--arch", "digits-cnn", "--target", target)
        ran = hwprune(*words, "--budget", "9KiB", "-o", tmp_path / "o", "--json")
        assert ran.code == 0, ran.err
        layers = {layer["name"]: layer for layer in ran.document["result"]["layers"]}
        assert layers["features.1.0.weight"]["nonzeros"] == 0
        assert hwprune("check", tmp_path / "o" / "model.onnx").code == 0


@pytest.mark.usefixtures("traced_once")
class TestLimits:
    """--require: met, missed, and not to be measured."""

    def words(self, digits_pt: Path, out: Path) -> tuple[object, ...]:
        return ("compile", digits_pt, "--target", "nrf52840", "--budget", KIB12, "-o", out)

    def test_a_limit_that_is_missed(self, hwprune: Runner, digits_pt: Path, tmp_path: Path) -> None:
        out = tmp_path / "o"
        assert hwprune(*self.words(digits_pt, out)).code == 0
        good = (out / "model.onnx").read_bytes()
        ran = hwprune(
            *self.words(digits_pt, out), "--require", "sparsity>=0.5", "--require",
            "nonzeros<=10", "--json",
        )  # fmt: skip
        assert ran.code == 3
        verdict = ran.document["verdict"]
        assert [limit["met"] for limit in verdict["limits"]] == [True, False]
        assert verdict["exit_code"] == 3
        assert verdict["fits"]
        assert ran.document["artifact"]["path"] == "rejected.onnx"
        assert (out / "model.onnx").read_bytes() == good
        assert (out / "rejected.onnx").exists()
        assert json.loads((out / "report.json").read_text()) == ran.document
        # The next run that is good takes the rejected one away.
        assert hwprune(*self.words(digits_pt, out)).code == 0
        assert not (out / "rejected.onnx").exists()

    def test_a_first_run_that_misses_writes_no_model(
        self, hwprune: Runner, digits_pt: Path, tmp_path: Path
    ) -> None:
        ran = hwprune(*self.words(digits_pt, tmp_path / "o"), "--require", "nonzeros<=10")
        assert ran.code == 3
        assert "rejected.onnx" in ran.out
        assert files_in(tmp_path / "o") == WRITTEN - {"model.onnx"} | {"rejected.onnx"}

    @pytest.mark.parametrize(
        ("limit", "reason"),
        [
            ("accuracy>=0.5", "accuracy needs data with labels"),
            ("ram<=100KiB", "linked firmware"),
            ("latency.p50<=3ms", "says nothing about a microcontroller"),
        ],
    )
    def test_what_cannot_be_measured_is_refused_before_any_work(
        self,
        hwprune: Runner,
        digits_pt: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        limit: str,
        reason: str,
    ) -> None:
        from hwprune.steps import planning

        def never(model: object) -> None:
            raise AssertionError("the network was traced")

        monkeypatch.setattr(planning, "trace", never)
        words = (*self.words(digits_pt, tmp_path / "o"), "--require", limit)
        hwprune.refused(*words, says=[reason])
        assert not (tmp_path / "o").exists()


def test_an_accuracy_near_chance_gets_a_hint(
    hwprune: Runner, digits_pt: Path, tmp_path: Path
) -> None:
    state = torch.load(digits_pt)
    state["classifier.weight"] = state["classifier.weight"].flip(0)  # another order of classes
    torch.save(state, tmp_path / "flipped.pt")
    ran = hwprune(
        "compile", tmp_path / "flipped.pt", "--target", "raspberry-pi-5", "--data", "digits",
        "-o", tmp_path / "o",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    said = " ".join(ran.out.split())
    assert "near chance" in said
    assert "normalize=" in said


def test_a_file_that_fails_verification_is_rejected(
    hwprune: Runner,
    digits_pt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    traced_once: None,
) -> None:
    from hwprune import compiler

    real = compiler.write_file

    def flip(path: Path, data: bytes) -> None:
        model = onnx.load_from_string(data)
        biases = [t for t in model.graph.initializer if len(t.dims) == 1 and t.data_type == 1]
        biases += [t for t in model.graph.initializer if t.data_type == 10]
        raw = bytearray(biases[0].raw_data)
        raw[-1] ^= 0x40
        biases[0].raw_data = bytes(raw)
        real(path, model.SerializeToString(deterministic=True))

    monkeypatch.setattr(compiler, "write_file", flip)
    words = ("compile", digits_pt, "--target", "nrf52840", "--budget", KIB12, "-o", tmp_path / "o")
    ran = hwprune(*words, "--require", "nonzeros<=10", "--json")
    assert ran.code == 5  # worse than the limit that is missed as well
    verdict = ran.document["verdict"]
    assert not verdict["verified"]
    assert any("problem: outputs differ" in note for note in ran.document["notes"])
    assert not (tmp_path / "o" / "model.onnx").exists()
    assert (tmp_path / "o" / "rejected.onnx").exists()
    assert os.listdir(tmp_path) == ["o"]
