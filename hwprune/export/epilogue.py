"""What an operator does with its sum before it leaves: a residual added, an activation applied."""

from __future__ import annotations

from typing import Literal

import onnx
from onnx import AttributeProto

from hwprune.export.body import make_node, refer

Activation = Literal["none", "relu", "relu6", "hard_swish", "silu", "leaky_relu"]

ACTIVATION_LABELS: dict[Activation, str] = {
    "none": "",
    "relu": "Relu",
    "relu6": "Relu6",
    "hard_swish": "HardSwish",
    "silu": "Silu",
    "leaky_relu": "LeakyRelu",
}
# The attributes that the node hands to the activation in its body, with their types.
ACTIVATION_ATTRIBUTES: dict[Activation, dict[str, int]] = {
    "leaky_relu": {"alpha": AttributeProto.FLOAT}
}
# The opset from which on an activation is a standard operator.
ACTIVATION_SINCE: dict[Activation, int] = {"hard_swish": 14}
# The operators that may have a residual and an activation.
FUSIBLE = ("Conv", "Depthwise", "Gemm", "Linear")


def activation_nodes(activation: Activation, source: str, output: str) -> list[onnx.NodeProto]:
    """Return the standard operators of an activation, in the form in which networks have them."""
    if activation == "relu":
        return [make_node("Relu", [source], output)]
    if activation == "relu6":
        return [
            make_node("Constant", [], "l", value_float=0.0),
            make_node("Constant", [], "h", value_float=6.0),
            make_node("Clip", [source, "l", "h"], output),
        ]
    if activation == "hard_swish":
        return [make_node("HardSwish", [source], output)]
    if activation == "silu":
        return [
            make_node("Sigmoid", [source], "g"),
            make_node("Mul", [source, "g"], output),
        ]
    if activation == "leaky_relu":
        node = make_node("LeakyRelu", [source], output)
        refer(node, "alpha", AttributeProto.FLOAT, "alpha")
        return [node]
    return []
