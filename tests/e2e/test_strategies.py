"""Every strategy and value type, with and without data and labels, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from e2e_tools import KIB12, Runner, accuracy_of, save_npz

from hwprune.frontend import load_data
from hwprune.ir import VALUE_TYPES

pytestmark = pytest.mark.slow


class TestStrategies:
    """On a target whose latency is not measured, to be quick."""

    def compile(
        self, hwprune: Runner, model: Path, out: Path, *more: object, target: str = "nrf52840"
    ) -> dict[str, Any]:
        firmware = ("--no-firmware",) if target == "nrf52840" else ()
        ran = hwprune(
            "compile", model, "--target", target, "--data", "digits", "--budget", KIB12,
            "--max-drop", "off", *firmware, "-o", out, "--json", *more,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        size = (out / "model.onnx").stat().st_size
        assert 0.995 * KIB12 <= size <= KIB12
        return ran.document

    @pytest.mark.parametrize("name", ["iterative", "one-shot", "cubic", "bidirectional"])
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
        assert record["strategy"] == "one-shot"
        actions = [point["action"] for point in record["accuracy"]["trajectory"]]
        assert actions == ["prune", "least squares"]
        assert "least squares on 256 inputs" in " ".join(record["notes"])
        assert record["accuracy"]["final"] > 0.5  # 93 % of the weights are gone; chance is 0.1

    @pytest.mark.parametrize("kind", VALUE_TYPES)
    def test_each_value_type(
        self, hwprune: Runner, digits_pt: Path, tmp_path: Path, kind: str
    ) -> None:
        record = self.compile(
            hwprune, digits_pt, tmp_path / "o", "--epochs", 0, "--values", kind,
            "--strategy", "one-shot", target="raspberry-pi-5",
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
        assert "the share of the dense outputs' variance" in notes
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
        words = ("compile", digits_pt, "--target", "nrf52840", "--data", "digits")
        words = (*words, "--no-firmware", "--budget")
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
        floor: object = "4KiB"
        for _ in range(2):  # what a file says of itself is longer where there is more room
            plan = hwprune("plan", *words, "--budget", floor, "--json").document["plans"]["fp16"]
            floor = plan["floor_bytes"]
        for extra, name in ((0, "a"), (1, "b"), (40, "c")):
            out = tmp_path / name
            ran = hwprune("compile", *words, "--budget", floor + extra, "-o", out)
            assert ran.code == 0, ran.err
            assert (out / "model.onnx").stat().st_size <= floor + extra
            assert hwprune("check", out / "model.onnx").code == 0
        more = ("--data", "digits", "--no-firmware", "--epochs", 1, "--max-drop", "off")
        ran = hwprune("compile", *words, "--budget", floor + 40, *more, "-o", tmp_path / "trained")
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
