"""verifying: a file is compared with its network, and at both speeds where it has two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hwprune.errors import VerificationError
from hwprune.ir import Masks
from hwprune.kernels import library
from hwprune.steps.packing import PackedModel, pack_model
from hwprune.steps.planning import Prepared, module_weights
from hwprune.steps.verifying import Checked, measure_files, verify_file
from hwprune.targets import load
from hwprune.verify import speeds

At = Callable[[int], Prepared]
needs_kernels = pytest.mark.skipif(
    library.path() is None, reason="the operator library is not built here"
)


def packed_at(prepared: Prepared, folder: Path) -> tuple[Path, PackedModel]:
    weights = {name: weight.copy() for name, weight in module_weights(prepared).items()}
    sparse = {name: abs(weight) > 0.05 for name, weight in weights.items()}
    packed = pack_model(prepared, Masks(sparse), "int8", weights)
    path = folder / "model.onnx"
    path.write_bytes(packed.written.data)
    return path, packed


def verified(prepared: Prepared, folder: Path) -> Checked:
    path, packed = packed_at(prepared, folder)
    return verify_file(path, packed.written, packed.masks, prepared, None)


def test_a_file_is_right_without_kernels(
    prepared: At, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "path", lambda: None)
    found = verified(prepared(9_000), tmp_path)
    assert found.problems == ()
    assert found.parity is not None
    assert found.speeds is None
    assert found.one_speed == "this installation has no native kernels"


def test_firmware_has_no_kernels(prepared: At, tmp_path: Path) -> None:
    board = replace(prepared(9_000), target=load("nrf52840"))
    found = verified(board, tmp_path)
    assert (found.problems, found.speeds) == ((), None)
    assert found.one_speed == "nrf52840 runs firmware"


@needs_kernels
def test_both_speeds_are_compared_and_measured(prepared: At, tmp_path: Path) -> None:
    now = prepared(9_000)
    found = verified(now, tmp_path)
    assert found.problems == ()
    assert found.one_speed is None
    assert found.speeds is not None
    assert found.speeds.relative_error <= 1e-5
    measured = measure_files(
        tmp_path / "model.onnx", now.template.write_dense(), None, folder=tmp_path, threads=1,
        with_latency=True, with_kernels=True,
    )  # fmt: skip
    assert set(measured.latency) == set(measured.memory) == {"dense", "stock", "kernels"}
    assert measured.memory["stock"].weight_bytes is None
    assert (measured.memory["kernels"].weight_bytes or 0) > 0


@needs_kernels
def test_kernels_that_compute_something_else_are_a_problem(
    prepared: At, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(*_: object, **__: object) -> None:
        raise VerificationError("with native kernels the outputs differ")

    monkeypatch.setattr(speeds, "compare_speeds", differs)
    assert verified(prepared(9_000), tmp_path).problems == (
        "with native kernels the outputs differ",
    )
