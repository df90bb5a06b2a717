"""Models of one packed layer, and what they compute in float64."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hwprune.encoding import pack, unpack
from hwprune.encoding.values import NIBBLE_TYPES, compact_floats
from hwprune.export.body import DOMAIN
from hwprune.export.operators import Operator, function_for
from hwprune.ir import Packed

OPSET = 18


@dataclass(frozen=True, slots=True)
class Layer:
    """One node of domain ``hwprune`` with its arrays."""

    operator: Operator
    packed: Packed
    bias: NDArray[Any] | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def weight(self) -> NDArray[np.float64]:
        return unpack(self.packed).astype(np.float64)


def make_layer(
    operator: Operator,
    shape: tuple[int, ...],
    *,
    density: float,
    seed: int,
    bias_shape: tuple[int, ...] | None = None,
    **attributes: Any,
) -> Layer:
    """A layer with random weights; MatMul and untransposed Gemm count channels on the last axis."""
    generator = np.random.default_rng(seed)
    last = operator.kind == "MatMul" or (operator.kind == "Gemm" and not attributes.get("transB"))
    axis = len(shape) - 1 if last else 0
    weight = generator.standard_normal(shape).astype(np.float32)
    mask = generator.random(shape) < density
    packed = pack(
        "w", weight, mask, codec=operator.codec, value_type=operator.value_type, channel_axis=axis
    )
    bias = None
    if operator.bias:
        bias = generator.standard_normal((shape[axis],) if bias_shape is None else bias_shape)
        bias = compact_floats(bias.astype(np.float32), operator.value_type)
    if operator.activation == "leaky_relu":
        attributes["alpha"] = 0.2
    return Layer(operator, packed, bias, attributes)


def model_of(layer: Layer, rank: int, output_rank: int, **changes: Any) -> onnx.ModelProto:
    """Return the model x [, r] -> y, with every extent free.

    Args:
        layer: the only node.
        rank: the number of axes of x.
        output_rank: the number of axes of y and r.
        changes: arrays by role, and attributes, that take the place of the layer's own.
    """
    operator, packed = layer.operator, layer.packed
    arrays: dict[str, Any] = dict(packed.arrays)
    if layer.bias is not None:
        arrays["bias"] = layer.bias
    arrays |= {role: value for role, value in changes.items() if role in arrays}
    attributes = dict(layer.attributes)
    if operator.codec != "dense":
        attributes["shape"] = list(packed.shape)
    if operator.value_type in NIBBLE_TYPES:
        attributes["count"] = packed.count
    attributes |= {name: value for name, value in changes.items() if name not in arrays}
    names = {"input": "x", "residual": "r"}
    inputs = [names.get(role, role) for role in operator.input_roles]
    node = helper.make_node(operator.name, inputs, ["y"], name="layer", domain=DOMAIN, **attributes)
    functions = [function_for(name, OPSET) for name in operator.functions]

    def free(name: str, axes: int) -> onnx.ValueInfoProto:
        dims = [f"{name}{axis}" for axis in range(axes)]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    given = [free("x", rank)] + ([free("r", output_rank)] if operator.residual else [])
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(array), role) for role, array in arrays.items()
    ]
    graph = helper.make_graph([node], "g", given, [free("y", output_rank)], tensors)
    return helper.make_model(
        graph, functions=functions, ir_version=8,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
    )  # fmt: skip


def model_bytes(*arguments: Any, **options: Any) -> bytes:
    data: bytes = model_of(*arguments, **options).SerializeToString(deterministic=True)
    return data


# -- float64 -------------------------------------------------------------------------------------


def activated(value: NDArray[np.float64], layer: Layer) -> NDArray[np.float64]:
    kind = layer.operator.activation
    if kind == "relu":
        return np.maximum(value, 0)
    if kind == "relu6":
        return np.clip(value, 0, 6)
    if kind == "hard_swish":
        return value * np.clip(value / 6 + 0.5, 0, 1)
    if kind == "silu":
        return value / (1 + np.exp(-value))
    if kind == "leaky_relu":
        return np.where(value < 0, layer.attributes["alpha"] * value, value)
    return value


def convolve(
    x: NDArray[np.float64], weight: NDArray[np.float64], attributes: dict[str, Any]
) -> NDArray[np.float64]:
    """The linear part of Conv by its definition, one kernel tap after the other."""
    axes = weight.ndim - 2
    group = attributes.get("group", 1)
    strides = attributes.get("strides", [1] * axes)
    dilations = attributes.get("dilations", [1] * axes)
    pads = attributes.get("pads", [0] * 2 * axes)
    padded = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[i + axes]) for i in range(axes))])
    kernel = weight.shape[2:]
    out = [
        max(0, (padded.shape[2 + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1)
        for i in range(axes)
    ]
    outputs, inputs = weight.shape[0] // group, weight.shape[1]
    y = np.zeros((x.shape[0], weight.shape[0], *out))
    for tap in itertools.product(*(range(size) for size in kernel)):
        window = tuple(
            slice(tap[i] * dilations[i], tap[i] * dilations[i] + strides[i] * out[i], strides[i])
            for i in range(axes)
        )
        for part in range(group):
            taken = padded[:, part * inputs : (part + 1) * inputs][(..., *window)]
            block = weight[part * outputs : (part + 1) * outputs][(..., *tap)]
            y[:, part * outputs : (part + 1) * outputs] += np.einsum(
                "oi,ni...->no...", block, taken
            )
    return y


def linear(layer: Layer, x: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[Any]:
    kind = layer.operator.kind
    if kind in ("Conv", "Depthwise"):
        return convolve(x, weight, layer.attributes)
    if kind == "Linear" or (kind == "Gemm" and layer.attributes.get("transB")):
        weight = weight.T
    return np.asarray(x @ weight)


def expected(
    layer: Layer, x: NDArray[np.float32], residual: NDArray[np.float32] | None
) -> tuple[NDArray[np.float64], float]:
    """Return the output in float64, and how large an error of float32 sums may be in it."""
    wide = x.astype(np.float64)
    y = linear(layer, wide, layer.weight)
    size = linear(layer, np.abs(wide), np.abs(layer.weight))
    for added in (layer.bias, residual):
        if added is not None:
            term = added.astype(np.float64)
            if added is layer.bias and layer.operator.kind in ("Conv", "Depthwise"):
                term = term.reshape(-1, *[1] * (y.ndim - 2))
            y, size = y + term, size + np.abs(term)
    y = activated(y, layer)
    # What terms cancel is not in the output's range, but their rounding is.
    return y, 1e-5 * np.abs(y).max(initial=0) + 4e-7 * size.max(initial=0)
