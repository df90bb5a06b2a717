"""lower: one rule per operator that changed; what has none is refused by operator and layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from export_cases import case_of, relative_error, run
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from hwprune.errors import ExportError
from hwprune.export.graph import Graph
from hwprune.export.lower import LOWEST_OPSET, RULES, lower
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
    "Pad": (_graph("Pad", {"p": _ints(0, 0, 1, 1, 0, 0, 1, 1)}, "p"),),
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
    "LayerNormalization": _graph("LayerNormalization", {"s": np.ones(6, np.float32)}, "s"),
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
    assert set(RULES) - plain == set(KEPT)


def test_a_network_that_cannot_be_lowered_is_refused_before_training() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)).eval()
    case = case_of(module, (TensorSpec("x", (None, 4), "float32"),))
    feeds = case.feeds(2)
    newest = case.template(18).write_dense()
    assert relative_error(run(newest.data, feeds), case.run_torch(feeds)) <= 1e-5
    with pytest.raises(ExportError, match=r"LayerNormalization \(layer '.*layer_norm.*'\)"):
        case.template(15)
