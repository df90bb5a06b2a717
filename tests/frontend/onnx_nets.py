"""Small ONNX files, made node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Floats = NDArray[np.float32]


def drawn(*shape: int, seed: int = 0) -> Floats:
    """Seeded noise."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    tensors: dict[str, NDArray[Any]],
    *,
    shape: Sequence[int | str] = ("batch", 3, 8, 8),
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """A model with the float input x, and outputs of unknown shapes."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )


def classifier(opset: int = 17, **given: Any) -> onnx.ModelProto:
    """Conv, BN, ReLU, Conv, ReLU, mean, Gemm: ten scores of 3x8x8, 10,634 weights of 32 channels.

    The second filter is a Constant, as some exporters write it.
    """
    body = numpy_helper.from_array(drawn(32, 32, 3, 3, seed=1) / 12)
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization", ["a", "bn.scale", "bn.bias", "bn.mean", "bn.var"], ["b"]
        ),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Constant", [], ["body"], value=body),
        helper.make_node("Conv", ["c", "body", "body.bias"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["h"]),
        helper.make_node("Gemm", ["h", "head.weight", "head.bias"], ["y"], transB=1),
    ]
    tensors = {
        "stem.weight": drawn(32, 3, 3, 3), "bn.scale": 1 + drawn(32, seed=2) / 10,
        "bn.bias": drawn(32, seed=3), "bn.mean": drawn(32, seed=4),
        "bn.var": 1 + np.abs(drawn(32, seed=5)), "body.bias": drawn(32, seed=6),
        "head.weight": drawn(10, 32, seed=7), "head.bias": drawn(10, seed=8),
    }  # fmt: skip
    return model_of(nodes, tensors, opset=opset, **given)
