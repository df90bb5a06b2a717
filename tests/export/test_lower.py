"""lower: one rule per operator that changed; what has none is refused by operator and layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_cases import case_of, random_masks, randomise, relative_error, run
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from hwprune.errors import ExportError
from hwprune.export.graph import Graph
from hwprune.export.lower import LOWEST_OPSET, RULES, lower
from hwprune.frontend.torchvision_shim import import_torchvision
from hwprune.ir import TensorSpec

X = np.linspace(-2, 3, 2 * 4 * 6 * 6, dtype=np.float32).reshape(2, 4, 6, 6)


def _graph(
    operator: str, tensors: dict[str, NDArray[Any]] | None = None, *inputs: str, **given: Any
) -> Graph:
    """One node that reads x and then tensors, at opset 18."""
    node = helper.make_node(operator, ["x", *inputs], ["layer1.out"], **given)
    return Graph(
        (node,),
        (helper.make_tensor_value_info("x", TensorProto.FLOAT, list(X.shape)),),
        (helper.make_tensor_value_info("layer1.out", TensorProto.FLOAT, None),),
        tensors or {},
        18,
    )


def _data(graph: Graph) -> bytes:
    made = helper.make_graph(
        list(graph.nodes),
        "g",
        list(graph.inputs),
        list(graph.outputs),
        [numpy_helper.from_array(array, name) for name, array in graph.tensors.items()],
    )
    if graph.nodes[0].op_type == "Shape":
        made.output[0].type.tensor_type.elem_type = TensorProto.INT64
    imports = [helper.make_opsetid("", graph.opset)]
    model = helper.make_model(made, opset_imports=imports, ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def _ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


ONE = np.float32([1.5]).reshape(1, 1, 1, 1)
KEPT: dict[str, tuple[Graph, ...]] = {
    **{
        name: (
            _graph(name, {"axes": _ints(2, 3)}, "axes", keepdims=0),
            _graph(name, {"axes": _ints()}, "axes"),
            _graph(name),
        )
        for name, rule in RULES.items()
        if name.startswith("Reduce")
    },
    **{name: (_graph(name, {"b": ONE}, "b"),) for name in ("Add", "Sub", "Mul", "Div", "Pow")},
    **{name: (_graph(name, {"b": ONE}, "b"),) for name in ("PRelu", "Min", "Max")},
    **{name: (_graph(name),) for name in ("Relu", "Identity", "LeakyRelu", "Shape")},
    "Clip": (_graph("Clip", {"a": np.float32(-1), "b": np.float32(1)}, "a", "b"),),
    "CumSum": (_graph("CumSum", {"a": np.array(1, np.int64)}, "a"),),
    "Pad": (
        _graph("Pad", {"p": _ints(0, 0, 1, 1, 0, 0, 1, 1)}, "p"),
        _graph("Pad", {"p": _ints(0, 0, 2, 1, 0, 0, 0, 3)}, "p", mode="reflect"),
        _graph("Pad", {"p": _ints(0, 0, 2, 1, 0, 0, 0, 3)}, "p", mode="edge"),
    ),
    "Split": (_graph("Split", {"s": _ints(4)}, "s", axis=1),),
    "AveragePool": (_graph("AveragePool", kernel_shape=[2, 2]),),
    "Resize": (
        _graph(
            "Resize", {"s": np.float32([1, 1, 2, 2])}, "", "s",
            mode="linear", antialias=0, keep_aspect_ratio_policy="stretch",
        ),
    ),
    "Reshape": (_graph("Reshape", {"s": _ints(2, -1)}, "s", allowzero=1),),
    "BatchNormalization": (
        _graph(
            "BatchNormalization",
            {name: np.linspace(0.5, 2, 4, dtype=np.float32) for name in "abcd"},
            *"abcd",
            training_mode=0,
        ),
    ),
    "ScatterElements": (
        _graph(
            "ScatterElements",
            {"i": np.zeros((1, 1, 1, 2), np.int64), "u": np.float32([[[[7, 8]]]])},
            "i", "u", axis=1, reduction="none",
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("opset", [15, 13])
@pytest.mark.parametrize("operator", KEPT)
def test_a_lowered_operator_computes_the_same(operator: str, opset: int) -> None:
    for graph in KEPT[operator]:
        lowered = lower(graph, opset)
        assert lowered.opset == opset
        expected, found = run(_data(graph), {"x": X}), run(_data(lowered), {"x": X})
        assert found.shape == expected.shape
        assert np.array_equal(found, expected, equal_nan=True)


REFUSED = {
    "Pad with axes": _graph("Pad", {"p": _ints(1, 1), "a": _ints(2)}, "p", "", "a"),
    "Split without sizes": _graph("Split", None, num_outputs=1),
    "Resize of some axes": _graph(
        "Resize", {"s": np.float32([2, 2])}, "", "s", axes=[2, 3], mode="linear"
    ),
    "ReduceMean over axes that are computed": _graph("ReduceMean", None, "x"),
    "Reduce with noop": _graph("ReduceMax", {"a": _ints()}, "a", noop_with_empty_axes=1),
    "Scatter with a reduction": _graph("ScatterND", None, "i", "u", reduction="max"),
    "Reshape to nothing": _graph("Reshape", {"s": _ints(0, 3)}, "s", allowzero=1),
    "Shape of a part": _graph("Shape", None, start=1),
    "BatchNormalization that trains": _graph("BatchNormalization", None, training_mode=1),
    "LayerNormalization that gives its mean": Graph(
        (
            helper.make_node(
                "LayerNormalization", ["x", "s"], ["layer1.out", "layer1.mean"], axis=-1
            ),
        ),
        _graph("Relu").inputs,
        _graph("Relu").outputs,
        {"s": np.ones(6, np.float32)},
        18,
    ),
    "LayerNormalization over axes that are not known": _graph(
        "LayerNormalization", None, "x", axis=1
    ),
    "Mish": _graph("Mish"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_lowered_is_refused_by_operator_and_layer(what: str) -> None:
    graph = REFUSED[what]
    with pytest.raises(ExportError) as caught:
        lower(graph, 13)
    assert graph.nodes[0].op_type in caught.value.message
    assert "'layer1.out'" in caught.value.message
    assert "opset 13" in caught.value.message
    assert caught.value.hint


def test_an_opset_below_the_lowest_is_refused() -> None:
    with pytest.raises(ExportError, match=f"opset {LOWEST_OPSET - 1}; hwprune writes 13 to 18"):
        lower(_graph("Relu"), LOWEST_OPSET - 1)


def test_the_opset_that_was_traced_is_left_alone() -> None:
    graph = _graph("Mish")
    assert lower(graph, 18) is graph


def test_every_rule_is_tried_here() -> None:
    # These need inputs of other types; their rule is that nothing needs to change.
    plain = {"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Where", "Cast", "ScatterND"}
    assert set(RULES) - plain - {"LayerNormalization"} == set(KEPT)


SIX, PLANE = np.linspace(0.5, 2, 6, dtype=np.float32), np.ones((6, 6), np.float32)


@pytest.mark.parametrize(
    "graph",
    [
        _graph("LayerNormalization", {"s": SIX, "b": SIX - 1}, "s", "b", epsilon=1e-3),
        _graph("LayerNormalization", {"s": SIX}, "s"),
        _graph("LayerNormalization", {"s": PLANE, "b": PLANE}, "s", "b", axis=-2),
        _graph("LayerNormalization", {"s": PLANE, "b": PLANE}, "s", "b", axis=2),
    ],
)
def test_a_layer_normalization_becomes_its_arithmetic(graph: Graph) -> None:
    lowered = lower(graph, 13)
    assert "LayerNormalization" not in {node.op_type for node in lowered.nodes}
    expected, found = run(_data(graph), {"x": X}), run(_data(lowered), {"x": X})
    # onnxruntime takes the variance from squares, which rounds more than differences do.
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "pads", [(0, 0, 2, 1, 0, 0, 0, 3), (0, 1, 6, 0, 0, 4, 0, 0), (0,) * 8, (1, 0, 0, 0, 2, 0, 0, 0)]
)
def test_padding_that_wraps_around_becomes_slices(pads: tuple[int, ...]) -> None:
    lowered = lower(_graph("Pad", {"p": _ints(*pads)}, "p", mode="wrap"), 13)
    sizes = [(pads[axis], pads[axis + 4]) for axis in range(4)]
    found = run(_data(lowered), {"x": X})
    assert np.array_equal(found, np.pad(X, sizes, mode="wrap"))


def test_padding_that_cuts_and_wraps_is_refused() -> None:
    with pytest.raises(ExportError, match="Pad"):
        lower(_graph("Pad", {"p": _ints(0, 0, -1, 0, 0, 0, 1, 0)}, "p", mode="wrap"), 15)


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


@pytest.mark.parametrize("build", [_vit, _convnext, _padded])
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


class Sampled(nn.Module):
    """Looks its image up at fixed places: GridSample came at opset 16 and has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.linspace(-1, 1, 8).reshape(1, 2, 2, 2).expand(x.shape[0], 2, 2, 2)
        return nn.functional.grid_sample(self.conv(x), places, align_corners=False)


def test_a_network_that_cannot_be_lowered_is_refused_before_training() -> None:
    case = case_of(Sampled().eval(), (TensorSpec("x", (None, 3, 8, 8), "float32"),))
    feeds = case.feeds(2)
    newest = case.template(18).write_dense()
    assert relative_error(run(newest.data, feeds), case.run_torch(feeds)) <= 1e-5
    with pytest.raises(ExportError, match=r"GridSample \(layer '.*grid_sampler.*'\)"):
        case.template(15)
