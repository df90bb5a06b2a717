"""Small fp32 ONNX networks, put together node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """Adds one node at a time; each method returns the name of what the node makes."""

    def __init__(self, *shape: int, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, name: str, array: Any, kind: Any = np.float32) -> str:
        self.constants[name] = np.asarray(array, kind)
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        made = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [made], **attributes))
        return made

    def conv(self, x: str, name: str, *shape: int, bias: float = 0.3, **attributes: Any) -> str:
        fan = np.prod(shape[1:])
        weight = self.constant(f"{name}.weight", self.rng.standard_normal(shape) / np.sqrt(fan))
        shift = self.constant(f"{name}.bias", self.rng.standard_normal(shape[0]) * bias)
        return self.node("Conv", x, weight, shift, **attributes)

    def linear(self, x: str, name: str, outputs: int, inputs: int) -> str:
        weight = self.rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)
        shift = self.constant(f"{name}.bias", self.rng.standard_normal(outputs) * 0.3)
        return self.node("Gemm", x, self.constant(f"{name}.weight", weight), shift, transB=1)

    def per_channel(self, name: str, channels: int) -> str:
        return self.constant(name, self.rng.uniform(0.5, 1.5, (1, channels, 1, 1)))

    def model(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.shape])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

    def samples(self, count: int = 32) -> np.ndarray:
        return self.rng.standard_normal((count, *self.shape)).astype(np.float32)


PADS = [1, 1, 1, 1]


def plain() -> onnx.ModelProto:
    """Convolutions of several kinds, an average of all, a matrix product, softmax."""
    b = Builder(3, 12, 10)
    x = b.node("Relu", b.conv("x", "stem", 8, 3, 3, 3, pads=PADS))
    x = b.node("Relu", b.conv(x, "depthwise", 8, 1, 3, 3, pads=PADS, group=8, strides=[2, 2]))
    bounds = b.constant("zero", [0]), b.constant("six", 6)
    x = b.node("Clip", b.conv(x, "wide", 12, 8, 1, 1), *bounds)
    x = b.conv(x, "grouped", 8, 6, 3, 3, pads=[0, 0, 1, 1], group=2, dilations=[2, 1])
    x = b.node("Flatten", b.node("GlobalAveragePool", x))
    return b.model(b.node("Softmax", b.linear(x, "head", 5, 8), axis=-1))


def residual() -> onnx.ModelProto:
    """Three blocks with an identity beside: every sum is an operand of the next."""
    b = Builder(3, 8, 8)
    x = b.node("Relu", b.conv("x", "stem", 8, 3, 3, 3, pads=PADS))
    for block in range(3):
        y = b.node("Relu", b.conv(x, f"{block}.a", 8, 8, 3, 3, pads=PADS))
        x = b.node("Relu", b.node("Add", x, b.conv(y, f"{block}.b", 8, 8, 3, 3, pads=PADS)))
    axes = b.constant("axes", [2, 3], np.int64)
    return b.model(b.linear(b.node("ReduceMean", x, axes, keepdims=0), "head", 4, 8))


def entangled() -> onnx.ModelProto:
    """One tensor in two sums, an average and a join: no scale serves all of them."""
    b = Builder(4, 8, 8)
    a, c = (b.conv("x", name, 4, 4, 3, 3, pads=PADS) for name in ("a", "c"))
    first = b.node("Add", a, c)
    second = b.node("Relu", b.node("Add", a, b.conv(first, "d", 4, 4, 1, 1, bias=3)))
    both = b.node("Add", first, second)
    pooled = b.node("AveragePool", a, kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1])
    joined = b.node("Concat", both, pooled, b.node("Add", pooled, both), axis=1)
    biggest = b.node("MaxPool", joined, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    return b.model(b.conv(biggest, "last", 3, 12, 1, 1), second)


def alone() -> onnx.ModelProto:
    """Activations and constants that no layer before them can take."""
    b = Builder(4, 6, 6)
    x = b.node("Relu", b.node("Mul", "x", b.per_channel("gain", 4)))
    x = b.node("Add", b.per_channel("shift", 4), b.node("Relu", b.node("Identity", x)))
    y = b.conv(x, "conv", 4, 4, 3, 3, pads=PADS)
    normal = [b.constant(f"bn{i}", b.rng.uniform(0.5, 1.5, 4)) for i in range(4)]
    z = b.node("Relu", b.node("BatchNormalization", b.node("Add", x, y), *normal))
    z = b.node("Div", b.node("Sub", z, b.constant("half", 0.5)), b.constant("three", 3))
    weight = b.constant("matrix", b.rng.standard_normal((144, 5)) / 12)
    flat = b.node("Reshape", z, b.constant("shape", [0, -1], np.int64))
    product = b.node("MatMul", flat, weight)
    return b.model(b.node("Add", product, b.constant("offset", b.rng.standard_normal(5))))


def one_dimension() -> onnx.ModelProto:
    b = Builder(2, 40)
    x = b.node("Relu", b.conv("x", "a", 6, 2, 5, strides=[2], pads=[2, 2]))
    x = b.node("MaxPool", x, kernel_shape=[2], strides=[2])
    x = b.node("AveragePool", b.conv(x, "b", 6, 1, 3, group=6), kernel_shape=[2], strides=[2])
    axes = b.constant("axes", [2], np.int64)
    return b.model(b.linear(b.node("ReduceMean", x, axes, keepdims=0), "c", 3, 6))


def cut_average() -> onnx.ModelProto:
    """What Keras makes of an average over part of the map."""
    b = Builder(1, 9, 5)
    x = b.node("Relu", b.conv("x", "a", 6, 1, 3, 3, pads=PADS))
    x = b.node("Relu", b.conv(x, "b", 6, 1, 3, 3, pads=PADS, group=6))
    return first_rows(b, b.node("Relu", b.conv(x, "pointwise", 6, 6, 1, 1)), 8)


def cut_pool() -> onnx.ModelProto:
    """The same of a map that no convolution makes."""
    b = Builder(1, 10, 5)
    x = b.node("Relu", b.conv("x", "a", 6, 1, 3, 3, pads=PADS))
    return first_rows(b, b.node("MaxPool", x, kernel_shape=[2, 1], strides=[1, 1]), 8)


def first_rows(b: Builder, x: str, rows: int) -> onnx.ModelProto:
    parts = [b.constant(f"s{i}", [n], np.int64) for i, n in enumerate((0, rows, 2, 1))]
    axes = b.constant("axes", [2, 3], np.int64)
    pooled = b.node("ReduceMean", b.node("Slice", x, *parts), axes, keepdims=0)
    return b.model(b.linear(pooled, "c", 3, 6))


NETWORKS = {
    made.__name__: made
    for made in (plain, residual, entangled, alone, one_dimension, cut_average, cut_pool)
}


def samples_of(model: onnx.ModelProto, count: int = 64, seed: int = 1) -> np.ndarray:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)
