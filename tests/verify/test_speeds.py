"""Where a file has two, both say the same; where it has one, the reason is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hwprune.errors import VerificationError
from hwprune.export.artifact import read_artifact
from hwprune.kernels import dense_path, library
from hwprune.verify import (
    check,
    compare_kernels,
    kernels_unavailable_reason,
    measure,
    parity,
    parse_limit,
    resident,
    runner,
)
from hwprune.verify.parity import MAX_ERROR_OF_KERNELS, Parity

WriteArtifact = Callable[..., Path]

needs_kernels = pytest.mark.skipif(
    library.path() is None, reason="the operator library is not built here"
)
STEP = "native kernels agree"


@needs_kernels
@pytest.mark.parametrize("batch", ["N", 4])
@pytest.mark.parametrize("value_type", ["fp32", "fp16", "int8"])
def test_both_speeds_agree(
    write_artifact: WriteArtifact, value_type: str, batch: int | str
) -> None:
    path = str(write_artifact(value_type=value_type, batch=batch))
    assert kernels_unavailable_reason(read_artifact(path)) is None
    found = compare_kernels(read_artifact(path))
    assert found.relative_error <= MAX_ERROR_OF_KERNELS
    assert found.top1_agreement == 1.0
    assert "same top-1" in str(found)
    assert check(path).speeds == found


@needs_kernels
def test_the_kernels_really_run(
    write_artifact: WriteArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_path, "density_limit", lambda layer: 1.0)
    session = runner.open_session(str(write_artifact()), kernels=True)
    assert len(session.hwprune.registered) == 2
    with pytest.raises(VerificationError, match="does not run with kernels"):
        runner.open_session(str(write_artifact("d.onnx", form="dense")), kernels=True)


@needs_kernels
@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Parity(2e-5, 1.0), "2.0e-05"),
        (Parity(1e-9, 0.5), "class"),
        (Parity(float("nan"), 1.0), "nan"),
    ],
)
def test_other_outputs_fail_the_gate(
    write_artifact: WriteArtifact, monkeypatch: pytest.MonkeyPatch, found: Parity, text: str
) -> None:
    path = str(write_artifact())
    monkeypatch.setattr(parity, "compare", lambda *_, **__: found)
    with pytest.raises(VerificationError, match=text):
        compare_kernels(read_artifact(path))
    result = check(path)
    assert [step.name for step in result.failures] == [STEP]
    assert result.exit_code == 5


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"form": "dense"}, "a dense file has one speed"),
        ({"form": "inlined"}, "the inlined form has one speed"),
        ({}, "no native kernels"),
    ],
)
def test_one_speed_has_its_reason(
    write_artifact: WriteArtifact,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
    reason: str,
) -> None:
    monkeypatch.setattr(library, "path", lambda: None)
    path = str(write_artifact(**options))
    step = next(step for step in check(path).steps if step.name == STEP)
    assert step.outcome == "skipped"
    assert reason in step.message
    result = check(path, limits=[parse_limit("latency.kernels.p50<=1s")], runs=2)
    assert result.exit_code == 2
    assert reason in result.failures[0].message


@needs_kernels
def test_a_layer_that_no_kernel_is_for_is_no_second_speed(write_artifact: WriteArtifact) -> None:
    path = str(write_artifact(codec="dense"))
    reason = kernels_unavailable_reason(read_artifact(path))
    assert check(path).exit_code == 0
    if reason is None:
        assert runner.open_session(path, kernels=True).hwprune.registered
    else:
        with pytest.raises(VerificationError, match="does not run with kernels"):
            runner.open_session(path, kernels=True)


@needs_kernels
def test_latency_and_memory_are_measured_at_both_speeds(write_artifact: WriteArtifact) -> None:
    path = str(write_artifact(channels=64))
    found = measure({"stock": path, "kernels": path}, runs=3, warmup=1, kernels={"kernels"})
    assert set(found) == {"stock", "kernels"}
    assert resident(path).weight_bytes is None
    used = resident(path, kernels=True)
    assert used.weight_bytes is not None
    assert 0 < used.weight_bytes < used.resident_bytes
    wanted = ["latency.kernels.p50<=10s", "latency.stock.p50<=10s", "latency.p50<=10s"]
    result = check(path, limits=[parse_limit(text) for text in wanted], runs=3)
    assert result.exit_code == 0
    values = {limit.field: limit.value for limit in result.limits}
    assert values["latency.p50"] == values["latency.kernels.p50"]
