"""``--form``: functions, or standard operators alone, for a target that takes either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e_tools import Runner
from onnx.reference import ReferenceEvaluator
from torch import nn

import hwprune as package
from hwprune.errors import UsageError
from hwprune.targets import load
from hwprune.verify import runner

ONE_SPEED = "the inlined form has one speed: native kernels run functions, and it has none"


# Every weight fits as int8, so that no choice of masks lies between the plan and the file.
@pytest.mark.parametrize("form", ["functions", "inlined"])
def test_a_file_has_the_form_and_the_bytes_of_its_plan(
    hwprune: Runner, digits_pt: Path, tmp_path: Path, form: str
) -> None:
    words = (
        digits_pt, "--target", "raspberry-pi-5", "--budget", "120KiB", "--values", "int8",
        "--form", form, "--json",
    )  # fmt: skip
    plan = hwprune("plan", *words).document["plans"]["int8"]
    record = hwprune("compile", *words, "-o", tmp_path / "o").document
    path = str(tmp_path / "o" / "model.onnx")
    assert plan["used_bytes"] == record["artifact"]["bytes"] == Path(path).stat().st_size
    assert plan["floor_bytes"] == record["budget"]["floor_bytes"]
    assert package.read_artifact(path).form == form
    inlined = form == "inlined"
    assert (f"latency.kernels: {ONE_SPEED}" in record["notes"]) is inlined
    checked = hwprune("check", path, "--target", "raspberry-pi-5")
    assert checked.code == 0
    assert (ONE_SPEED in " ".join(checked.out.split())) is inlined
    if not inlined:
        return
    x = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    reference = ReferenceEvaluator(path)
    found = reference.run(None, {reference.input_names[0]: x})[0]
    right = runner.run(runner.open_session(path), [x])[0]
    assert np.abs(found - right).max() <= 1e-5 * np.ptp(right)


def test_pruned_files_keep_the_budget_in_the_form(digits_net: nn.Module, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "target": "raspberry-pi-5", "example_input": np.zeros((1, 1, 8, 8), np.float32),
        "budget": "12KiB", "values": "int8", "epochs": 0,
    }  # fmt: skip
    made = {
        form: package.compile(digits_net, form=form, output=tmp_path / str(form), **options)
        for form in (None, "functions", "inlined")
    }
    assert made[None].sha256 == made["functions"].sha256 != made["inlined"].sha256
    for form in ("functions", "inlined"):
        assert made[form].verdict.exit_code == 0
        assert package.read_artifact(made[form].path).form == form


@pytest.mark.parametrize("command", ["plan", "compile"])
def test_a_target_that_folds_no_functions_refuses_them(
    hwprune: Runner, digits_pt: Path, tmp_path: Path, command: str
) -> None:
    words = (command, digits_pt, "--target", "jetson-nano", "--form", "functions")
    more = ("-o", tmp_path / "o") if command == "compile" else ()
    hwprune.refused(*words, *more, says=["jetson-nano needs the inlined form", "leave --form out"])
    assert not (tmp_path / "o").exists()


def test_forms_of_a_target() -> None:
    nano, pi = load("jetson-nano"), load("raspberry-pi-5")
    assert nano.in_form(None) == nano.in_form("inlined") == nano
    assert pi.in_form(None) == pi.in_form("functions") == pi
    assert pi.in_form("inlined").runtime.inline_functions
    with pytest.raises(UsageError, match="form is 'inline'"):
        pi.in_form("inline")


def test_a_limit_on_kernels_is_refused_before_any_work(hwprune: Runner, digits_pt: Path) -> None:
    words = ("compile", digits_pt, "--target", "raspberry-pi-5", "--form", "inlined")
    limit = ("--require", "latency.kernels.p50<=1s")
    hwprune.refused(*words, *limit, says=["the inlined form has one speed"])
