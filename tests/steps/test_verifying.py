"""verifying: a file is compared with its network, and at both speeds where it has two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from steps_tools import At, pack, verify, weights_in
from torch import nn

import hwprune
from hwprune.errors import ExportError
from hwprune.export.template import Written
from hwprune.ir import Masks, Model, TensorSpec
from hwprune.kernels import library
from hwprune.steps.packing import PackedModel
from hwprune.steps.planning import Prepared, prepare
from hwprune.steps.verifying import check_export, measure_files, verify_file
from hwprune.targets import load
from hwprune.tasks import CLASSIFICATION
from hwprune.verify import CheckResult, parity

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


def verified(prepared: Prepared, folder: Path, target: str = "raspberry-pi-5") -> CheckResult:
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
    assert found.no_kernels == "this installation has no native kernels"


def test_firmware_has_no_kernels(prepared: At, tmp_path: Path) -> None:
    found = verified(prepared("nrf52840"), tmp_path, "nrf52840")
    assert (found.problems, found.speeds) == ((), None)
    assert found.no_kernels == "nrf52840 runs firmware"


@needs_kernels
def test_both_speeds_are_compared_and_measured(prepared: At, tmp_path: Path) -> None:
    now = prepared()
    found = verified(now, tmp_path)
    assert found.problems == ()
    assert found.no_kernels is None
    assert found.speeds is not None
    assert found.speeds.relative_error <= 1e-5
    measured = measure_files(
        tmp_path / "model.onnx", now.template.write_dense(), None, CLASSIFICATION, folder=tmp_path,
        threads=1,
        with_latency=True, with_kernels=True,
    )  # fmt: skip
    assert set(measured.latency) == set(measured.memory) == {"dense", "stock", "kernels"}
    assert measured.memory["stock"].weight_bytes is None
    assert (measured.memory["kernels"].weight_bytes or 0) > 0


@needs_kernels
def test_kernels_that_compute_something_else_are_a_problem(
    prepared: At, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = parity.compare

    def differs(*arguments: Any, **options: Any) -> parity.Parity:
        found = real(*arguments, **options)
        kernels = options["limit"] == parity.MAX_ERROR_OF_KERNELS
        return replace(found, relative_error=2e-5) if kernels else found

    monkeypatch.setattr(parity, "compare", differs)
    found = verified(prepared(), tmp_path)
    assert [step.name for step in found.failures] == ["native kernels agree"]
    assert "with native kernels the outputs differ" in found.problems[0]


# -- against the network ------------------------------------------------------------------------


class Boxes(nn.Module):
    """Boxes from queries, as detection heads give them: hardly any range, or none at all."""

    def __init__(self, scale: float, shift: float = 0.0) -> None:
        super().__init__()
        self.body, self.norm, self.boxes = nn.Linear(24, 32), nn.LayerNorm(32), nn.Linear(32, 4)
        self.temperature = nn.Parameter(torch.ones([]))
        with torch.no_grad():
            self.boxes.weight.mul_(scale)
            self.boxes.bias.add_(shift)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        boxes = torch.sigmoid(self.boxes(self.norm(torch.relu(self.body(x)))))
        return boxes, self.temperature.exp()  # 0-d, as CLIP's logit_scale is


def boxes_at(scale: float, shift: float = 0.0) -> Prepared:
    torch.manual_seed(0)
    spec = TensorSpec("x", (None, 24), "float32")
    model = Model("boxes", "boxes.pt", "state-dict", Boxes(scale, shift).eval(), None, (spec,))
    return prepare(model, load("raspberry-pi-5"))


def judged(made: Prepared, written: Written, folder: Path) -> CheckResult:
    path = folder / "boxes.onnx"
    path.write_bytes(written.data)
    return verify_file(
        path, written, None, made.model, made.template,
        target=load("raspberry-pi-5"), budget_bytes=100_000, data=None,
    )  # fmt: skip


def changed(written: Written, factor: float, size: float) -> Written:
    """Return the file with one weight of its first matrix multiplied: that of a rank in size."""
    model = onnx.load_from_string(written.data)
    stored = next(t for t in model.graph.initializer if len(t.dims) == 2)
    array = onnx.numpy_helper.to_array(stored).copy()
    array.flat[np.argsort(np.abs(array), axis=None)[int(size * array.size)]] *= factor
    stored.CopyFrom(onnx.numpy_helper.from_array(array, stored.name))
    return replace(written, data=model.SerializeToString(deterministic=True))


@pytest.mark.parametrize(
    ("scale", "shift"),
    # the last as the scores of a detection head that finds nothing
    [(1.0, 0), (1e-2, 0), (1e-4, 0), (1e-6, 0), (0.0, 0), (1e-5, -11.5)],
)
def test_an_output_that_hardly_varies_is_right(scale: float, shift: float, tmp_path: Path) -> None:
    made = boxes_at(scale, shift)
    found = judged(made, made.template.write_dense(), tmp_path)
    assert found.problems == ()
    assert found.parity is not None
    assert found.parity.relative_error <= parity.MAX_ERROR_TO_NETWORK


@pytest.mark.parametrize(
    ("scale", "factor", "size"), [(1.0, 1.01, 0.5), (1e-2, 1.1, 0.5), (1e-3, 1.5, 0.9)]
)
def test_one_wrong_weight_is_caught(
    scale: float, factor: float, size: float, tmp_path: Path
) -> None:
    made = boxes_at(scale)
    found = judged(made, changed(made.template.write_dense(), factor, size), tmp_path)
    assert [step.name for step in found.failures] == ["same as the network"]
    assert "outputs differ from the torch network" in found.problems[0]


def test_an_export_that_is_another_network_is_refused(tmp_path: Path) -> None:
    """Before training: an operator that torch exports as another one, or a size that is fixed."""
    made = boxes_at(1.0)
    dense = made.template.write_dense()
    check_export(made.model, dense, tmp_path / "dense.onnx")
    with pytest.raises(ExportError, match=r"boxes is another network.* outputs differ by .*range"):
        check_export(made.model, changed(dense, 1e3, 0.5), tmp_path / "dense.onnx")
    fixed = onnx.load_from_string(dense.data)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    fixed.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 25
    with pytest.raises(ExportError, match="boxes is another network once it is exported: "):
        check_export(
            made.model, replace(dense, data=fixed.SerializeToString()), tmp_path / "dense.onnx"
        )


class Sides(nn.Module):
    """Looks the difference of two numbers up, which must not be negative."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(64, 16), nn.Linear(16, 4)

    def forward(self, ends: torch.Tensor) -> torch.Tensor:
        return self.fc(self.table(ends[:, 1] - ends[:, 0]))


def test_numbers_that_a_network_does_not_take_are_not_compared_on(tmp_path: Path) -> None:
    artifact = hwprune.compile(
        Sides(), target="raspberry-pi-5", example_input=torch.zeros(1, 2, dtype=torch.int64),
        budget=3500, epochs=0, output=tmp_path,
    )  # fmt: skip
    assert artifact.verdict.exit_code == 0


def test_nothing_is_trained_of_a_network_that_exports_as_another(tmp_path: Path) -> None:
    class Halved(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return y if torch.compiler.is_exporting() else y / 2

    with pytest.raises(ExportError, match="halved is another network once it is exported"):
        hwprune.compile(
            Halved(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), target="raspberry-pi-5",
            example_input=torch.zeros(1, 8), budget=2000, epochs=0, output=tmp_path / "out",
        )  # fmt: skip
    assert not list((tmp_path / "out").glob("*.onnx"))


def test_a_file_that_is_not_the_written_one_is_caught(prepared: At, tmp_path: Path) -> None:
    now = prepared()
    path, packed = packed_at(now, tmp_path)
    size = len(packed.written.data)

    def failures(packed: PackedModel, budget: int) -> list[str]:
        return [step.name for step in verify(path, packed, now, budget).failures]

    assert failures(packed, size) == []
    assert failures(packed, size - 1) == ["budget"]
    assert packed.masks is not None
    whole = Masks({name: np.ones_like(packed.masks[name]) for name in packed.masks})
    assert failures(replace(packed, masks=whole), size) == ["packed weights"]
    path.write_bytes(path.read_bytes() + b"\x3a\x00")  # an empty graph, merged: the same model
    assert failures(packed, size + 2) == ["as written"]
