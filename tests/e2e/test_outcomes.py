"""Runs that miss a limit or fail verification: what they say, and what they leave behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnx
import pytest
import torch
from e2e_tools import KIB12, WRITTEN, Runner, files_in, snapshot


class TestLimits:
    """--require: met, missed, and not to be measured."""

    def words(self, digits_pt: Path, out: Path) -> tuple[object, ...]:
        return ("compile", digits_pt, "--target", "nrf52840", "--budget", KIB12, "-o", out)

    def test_a_limit_that_is_missed(self, hwprune: Runner, digits_pt: Path, tmp_path: Path) -> None:
        out = tmp_path / "o"
        assert hwprune(*self.words(digits_pt, out)).code == 0
        good = snapshot(out)
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
        # The good artifact stays whole, with its report and its checkpoint.
        now = snapshot(out)
        assert {name: now[name] for name in good} == good
        assert set(now) - set(good) == {
            f"rejected/{name}" for name in WRITTEN - {"model.onnx", ".hwprune"} | {"rejected.onnx"}
        }
        assert json.loads((out / "rejected" / "report.json").read_text()) == ran.document
        assert str(out / "rejected" / "rejected.onnx") in "".join(ran.err.split())
        # The next run that is good takes the rejected one away.
        assert hwprune(*self.words(digits_pt, out)).code == 0
        assert files_in(out) == WRITTEN

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
    assert "near chance (" in said
    assert "network's accuracy is near chance: " in said  # in the verdict, not in a note alone
    assert "normalize=" in said


def test_a_file_that_fails_verification_is_rejected(
    hwprune: Runner,
    digits_pt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
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
