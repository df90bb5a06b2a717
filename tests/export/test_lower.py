"""lower: one rule per operator that changed; what has none is refused by operator and layer."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_cases import case_of, random_masks, randomise, relative_error, run
from lowering_cases import KEPT, REFUSED, feed, file_of, lowered_copy, net
from torch import nn

from hwprune.errors import ExportError
from hwprune.export.lower import LOWEST_OPSET, RULES, lower
from hwprune.export.trace import TRACE_OPSET
from hwprune.frontend.torchvision_shim import import_torchvision
from hwprune.ir import TensorSpec

ROOT = Path(__file__).resolve().parents[2]
# Decompositions that sum or divide in another order round differently.
ROUNDED = (
    "LayerNormalization", "Mish", "HardSwish", "If", "Loop", "Scan", "Col2Im", "DFT", "GridSample",
    "STFT", "HannWindow", "HammingWindow", "BlackmanWindow", "Resize",
    "ScatterElements by add", "ScatterElements by mul", "ScatterND by add", "ScatterND by mul",
)  # fmt: skip


@pytest.mark.parametrize("opset", [17, 15, 13])
@pytest.mark.parametrize("what", KEPT)
def test_a_lowered_operator_computes_the_same(what: str, opset: int) -> None:
    for graph in KEPT[what]:
        lowered = lowered_copy(graph, opset)
        assert lowered.opset == opset
        feeds = {"x": feed(graph)}
        found = run(file_of(lowered), feeds)
        if what == "Pad that wraps around":  # onnxruntime has it from opset 19 on
            pads = graph.tensors["p"].reshape(2, -1).T
            expected = np.pad(feeds["x"], pads, mode="wrap")
        else:
            expected = run(file_of(graph), feeds)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        if what in ROUNDED:
            assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
        else:
            assert np.array_equal(found, expected, equal_nan=True)


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_lowered_is_refused_by_operator_and_layer(what: str) -> None:
    with pytest.raises(ExportError) as caught:
        lowered_copy(REFUSED[what], 13)
    assert f"{what.split()[0].strip(',')} (layer 'y') cannot" in caught.value.message
    assert "opset 13: " in caught.value.message
    assert caught.value.hint


def test_an_opset_below_the_lowest_is_refused() -> None:
    with pytest.raises(ExportError, match=f"opset {LOWEST_OPSET - 1}; hwprune writes 13 to 18"):
        lower(net("y = Relu (x)"), LOWEST_OPSET - 1)


def test_the_opset_that_was_traced_is_left_alone() -> None:
    graph = net("y = Mish (x)")
    lower(graph, TRACE_OPSET)
    assert [node.op_type for node in graph.nodes] == ["Mish"]


def test_every_operator_that_changed_has_a_rule_with_a_case_or_is_listed_as_refused() -> None:
    changed = set()
    for schema in onnx.defs.get_all_schemas():
        name = schema.name
        if schema.domain or not onnx.defs.has(name, max_inclusive_version=TRACE_OPSET):
            continue
        since = onnx.defs.get_schema(name, TRACE_OPSET).since_version
        if since > LOWEST_OPSET:
            changed.add(name)
    assert {what.split()[0] for what in KEPT} == set(RULES)
    assert set(RULES) <= changed, "a rule that is never used"
    lowered, refused = (ROOT / "docs/lowering.md").read_text().split("## Refused")
    rows = set(re.findall(r"`([A-Z]\w+)`", "".join(re.findall(r"(?m)^\| (`.*?) \|", lowered))))
    assert rows == set(RULES), "docs/lowering.md has a row for every rule"
    assert set(re.findall(r"`([A-Z]\w+)`", refused)) == changed - set(RULES)


def _vit() -> tuple[nn.Module, tuple[int, ...]]:
    network = import_torchvision().models.VisionTransformer(16, 8, 1, 2, 16, 32, num_classes=5)
    return network, (3, 16, 16)


def _convnext() -> tuple[nn.Module, tuple[int, ...]]:
    convnext = import_torchvision().models.convnext
    blocks = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)]
    return convnext.ConvNeXt(blocks, num_classes=5), (3, 32, 32)


def _padded() -> tuple[nn.Module, tuple[int, ...]]:
    first = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
    return nn.Sequential(first, nn.ReflectionPad2d(2), nn.Conv2d(4, 4, 3)), (3, 8, 8)


class Chunked(nn.Module):
    """Halves its channels, as ShuffleNetV2 and YOLO's C2f do, and has cells of a GRU and Mish."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.other = nn.Conv2d(4, 4, 3, padding=1)
        self.cell = nn.GRUCell(8, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = nn.functional.mish(self.conv(x)).chunk(2, 1)
        joined = torch.cat([one, nn.functional.hardswish(self.other(other))], 1).mean((2, 3))
        state = self.cell(joined, joined.new_zeros(joined.shape[0], 6))
        return self.head(self.cell(joined, state))


def _chunked() -> tuple[nn.Module, tuple[int, ...]]:
    return Chunked(), (3, 8, 8)


@pytest.mark.parametrize("build", [_vit, _convnext, _padded, _chunked])
def test_a_network_of_newer_operators_computes_the_same_at_opset_15(
    build: Callable[[], tuple[nn.Module, tuple[int, ...]]],
) -> None:
    torch.manual_seed(0)
    module, shape = build()
    case = case_of(randomise(module, 1).eval(), (TensorSpec("x", (None, *shape), "float32"),))
    feeds = case.feeds(2)
    template = case.template(15)
    dense = template.write_dense()
    assert onnx.load_from_string(dense.data).opset_import[0].version == 15
    assert relative_error(run(dense.data, feeds), case.run_torch(feeds)) <= 1e-4
    sparse = template.write_sparse(random_masks(template, 0.3), "fp32")
    onnx.checker.check_model(onnx.load_from_string(sparse.data), full_check=True)
    reference = case.run_torch(feeds, case.decoded(template, sparse))
    assert relative_error(run(sparse.data, feeds), reference) <= 1e-4


class Shrunk(nn.Module):
    """Halves an image of any size without aliasing: each size would need a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return nn.functional.interpolate(y, scale_factor=0.5, mode="bilinear", antialias=True)


def test_a_network_that_cannot_be_lowered_is_refused_before_training() -> None:
    case = case_of(
        Shrunk().eval(), (TensorSpec("x", (None, 3, 10, 10), "float32", ((2, "H"), (3, "W"))),)
    )
    feeds = case.feeds(2)
    newest = case.template(18).write_dense()
    assert relative_error(run(newest.data, feeds), case.run_torch(feeds)) <= 1e-5
    with pytest.raises(ExportError, match=r"Resize \(layer '.*upsample.*'\)"):
        case.template(15)
