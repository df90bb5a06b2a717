"""verifying: a file is compared with its network, and at both speeds where it has two."""

from __future__ import annotations

from pathlib import Path

import pytest
from steps_tools import At, pack, verify, weights_in

from hwprune.errors import VerificationError
from hwprune.ir import Masks
from hwprune.kernels import library
from hwprune.steps.packing import PackedModel
from hwprune.steps.planning import Prepared
from hwprune.steps.verifying import Checked, measure_files
from hwprune.verify import speeds

BUDGET = 9_000
needs_kernels = pytest.mark.skipif(
    library.path() is None, reason="the operator library is not built here"
)


def packed_at(prepared: Prepared, folder: Path) -> tuple[Path, PackedModel]:
    weights = weights_in(prepared)
    sparse = {name: abs(weight) > 0.05 for name, weight in weights.items()}
    packed = pack(prepared, Masks(sparse), "int8", weights, BUDGET)
    path = folder / "model.onnx"
    path.write_bytes(packed.written.data)
    return path, packed


def verified(prepared: Prepared, folder: Path, target: str = "raspberry-pi-5") -> Checked:
    path, packed = packed_at(prepared, folder)
    return verify(path, packed, prepared, BUDGET, target)


def test_a_file_is_right_without_kernels(
    prepared: At, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "path", lambda: None)
    found = verified(prepared(), tmp_path)
    assert found.problems == ()
    assert found.parity is not None
    assert found.speeds is None
    assert found.one_speed == "this installation has no native kernels"


def test_firmware_has_no_kernels(prepared: At, tmp_path: Path) -> None:
    found = verified(prepared("nrf52840"), tmp_path, "nrf52840")
    assert (found.problems, found.speeds) == ((), None)
    assert found.one_speed == "nrf52840 runs firmware"


@needs_kernels
def test_both_speeds_are_compared_and_measured(prepared: At, tmp_path: Path) -> None:
    now = prepared()
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
    assert verified(prepared(), tmp_path).problems == ("with native kernels the outputs differ",)
