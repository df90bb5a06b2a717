"""The operators of domain ``hwprune`` and the model-local functions that carry their meaning.

A pruned layer is one node, such as ``CsrConvGap8I8Bias``: compressed rows, a convolution, 8-bit
gaps, int8 values, with a bias. The layout is part of the name, and a shipped name never changes
meaning. What follows the layer may be part of it: ``CsrConvGap8I8BiasAddRelu`` adds a second input
of the sum's shape and applies Relu. The file holds a function of that name whose body is standard
operators: decode, the ordinary operator, what follows it. Decoding is a function of its own
(``DecodeGap8``), so that each further operator costs a few hundred bytes and not a second copy.

Bodies use only operators whose result has a shape known from its inputs' shapes: onnxruntime 1.31
does not fold Compress or NonZero. They are the same at every opset from 13 on but for the import
they state.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, Literal

import onnx
from onnx import AttributeProto, TensorProto, helper

from hwprune.encoding.values import NIBBLE_TYPES
from hwprune.export.body import DOMAIN, make_function, make_node, refer
from hwprune.export.decoders import (
    CODEC_LABELS,
    COUNT,
    DECODERS,
    NIBBLES,
    VALUE_LABELS,
    decoder_body,
    looked_up,
    nibbles_body,
    weight_attributes,
    weight_functions,
    weight_nodes,
    weight_roles,
)
from hwprune.ir import CodecName, ValueType

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
# The attributes that the node hands to the standard operator in its body, with their types.
_INTS, _INT = AttributeProto.INTS, AttributeProto.INT
OPERATOR_ATTRIBUTES: dict[str, dict[str, int]] = {
    "Conv": {"strides": _INTS, "pads": _INTS, "dilations": _INTS, "group": _INT},
    # a Conv whose groups have one input channel each: it has a kernel when stored dense, too
    "Depthwise": {"strides": _INTS, "pads": _INTS, "dilations": _INTS, "group": _INT},
    "ConvTranspose": {
        "strides": _INTS,
        "pads": _INTS,
        "dilations": _INTS,
        "group": _INT,
        "output_padding": _INTS,
    },
    "Gemm": {"transB": _INT},
    "MatMul": {},
    # y = x @ transpose(w): a linear layer over any number of leading axes
    "Linear": {},
    # no layer: the decoded weight, for whatever reads it (LSTM, Gather, Einsum, Slice before those)
    "Weight": {},
    # rows of a table that is stored dense, of which only those that are looked up are decoded
    "Gather": {},
}
# What these attributes are where nobody says so; lists hold as many of it as there are axes.
ATTRIBUTE_DEFAULTS: dict[str, int | float] = {
    "strides": 1, "pads": 0, "dilations": 1, "output_padding": 0, "group": 1, "transB": 0,
    "alpha": 0.01,
}  # fmt: skip
LISTS = ("strides", "pads", "dilations", "output_padding")


def default_of(attribute: str, axes: int) -> int | float | list[int | float]:
    """Return what an attribute is where nobody says so, of a layer over ``axes`` axes."""
    value = ATTRIBUTE_DEFAULTS[attribute]
    if attribute not in LISTS:
        return value
    return [value] * axes * (2 if attribute == "pads" else 1)


@dataclass(frozen=True, slots=True)
class Operator:
    """What an operator's name says.

    Attributes:
        kind: what it computes, a key of ``OPERATOR_ATTRIBUTES``; but for Linear and Depthwise it
            is the standard operator.
        codec: how positions are stored.
        value_type: how values are stored.
        bias: whether it adds a bias, one number per output channel.
        residual: whether its last input is added, a tensor of the output's shape.
        activation: what is applied to the sum.
    """

    kind: str
    codec: CodecName
    value_type: ValueType
    bias: bool
    residual: bool = False
    activation: Activation = "none"

    @property
    def name(self) -> str:
        """Return the operator's name in domain ``hwprune``."""
        family = "Dense" if self.codec == "dense" else "Csr"
        stored = CODEC_LABELS[self.codec] + VALUE_LABELS[self.value_type]
        added = ("Bias" if self.bias else "") + ("Add" if self.residual else "")
        return f"{family}{self.kind}{stored}{added}{ACTIVATION_LABELS[self.activation]}"

    @property
    def input_roles(self) -> tuple[str, ...]:
        """Return the roles of its inputs, in order."""
        roles = [] if self.kind == "Weight" else ["input"]
        roles += weight_roles(self.codec, self.value_type)
        if self.bias:
            roles.append("bias")
        if self.residual:
            roles.append("residual")
        return tuple(roles)

    @property
    def attributes(self) -> dict[str, int]:
        """Return the attributes of its node and their types, but for how the weight is stored."""
        return OPERATOR_ATTRIBUTES[self.kind] | ACTIVATION_ATTRIBUTES.get(self.activation, {})

    @property
    def signature(self) -> tuple[object, ...]:
        """Return what it computes, however its weight is stored."""
        return self.kind, self.bias, self.residual, self.activation

    @property
    def fused(self) -> bool:
        """Return whether it stands for more than the layer itself."""
        linear_bias = self.kind == "Linear" and self.bias
        return self.residual or self.activation != "none" or linear_bias

    @property
    def functions(self) -> tuple[str, ...]:
        """Return the names of all functions that a node of this operator needs, its own last."""
        return (*weight_functions(self.codec, self.value_type), self.name)


def _operators() -> list[Operator]:
    both: tuple[bool, ...] = (False, True)
    found = []
    for kind, codec, value_type in product(OPERATOR_ATTRIBUTES, CODEC_LABELS, VALUE_LABELS):
        if codec == "dense" and value_type in NIBBLE_TYPES:
            continue  # bitmap and rice store every element for next to nothing
        if codec != "dense" and kind == "Gather":
            continue  # whole tensors are decoded: see Weight
        biases = (False,) if kind in ("MatMul", "Weight", "Gather") else both
        residuals = both if kind in FUSIBLE else (False,)
        activations = tuple(ACTIVATION_LABELS) if kind in FUSIBLE else ("none",)
        found += [
            Operator(kind, codec, value_type, bias, residual, activation)
            for bias, residual, activation in product(biases, residuals, activations)
        ]
    return found


OPERATORS: dict[str, Operator] = {operator.name: operator for operator in _operators()}


def plain_name(name: str) -> str:
    """Return a function's own name, where another program has put a prefix before it."""
    longest = max(map(len, OPERATORS))
    starts = range(max(0, len(name) - longest), len(name))
    return name[next((place for place in starts if is_ours(name[place:])), 0) :]


def is_ours(name: str) -> bool:
    """Return whether hwprune writes a function of this name."""
    return name in OPERATORS or name in DECODERS or name == NIBBLES


def function_for(
    name: str, opset: int, declared: Collection[str] | None = None
) -> onnx.FunctionProto | None:
    """Return the function that belongs to ``name``, or None where the name is not one of ours.

    An operator whose activation is no standard operator at ``opset`` has no function there.

    Args:
        name: an operator's or a decoder's name.
        opset: the opset of the standard operators in the body.
        declared: the attributes that the file's nodes of this name have, beside those that say how
            the weight is stored; the body is without the others, which so have their defaults. All
            of the operator's where None.
    """
    if name in DECODERS:
        return decoder_body(DECODERS[name], opset)
    if name == NIBBLES:
        return nibbles_body(opset)
    operator = OPERATORS.get(name)
    if operator is None or opset < ACTIVATION_SINCE.get(operator.activation, 0):
        return None
    function = _operator_body(operator, opset)
    if declared is not None:
        _drop_attributes(function, operator.attributes.keys() - set(declared))
    return function


def _drop_attributes(function: onnx.FunctionProto, names: Collection[str]) -> None:
    """Leave attributes of a function to the defaults of the operators in its body."""
    left = [name for name in function.attribute if name not in names]
    del function.attribute[:]
    function.attribute.extend(left)
    for node in function.node:
        for entry in [entry for entry in node.attribute if entry.ref_attr_name in names]:
            node.attribute.remove(entry)


def altered_functions(model: onnx.ModelProto) -> list[str]:
    """Return the names in domain ``hwprune`` whose body is not the one written here, to the byte.

    A function of our domain that hwprune never writes counts as altered, and so do a missing one, a
    second one of the name, and one to which a node gives an attribute that it does not declare:
    kernels would heed it.
    """
    opset = next(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0
    )
    altered, declared = [], dict[str, set[str]]()
    for function in model.functions:
        if function.domain != DOMAIN:
            continue
        expected = function_for(function.name, opset, function.attribute)
        same = expected is not None and serialised(expected) == serialised(function)
        if function.name in declared or not same:
            altered.append(function.name)
        declared[function.name] = set(function.attribute)
    given: dict[str, set[str]] = {}
    for node in (node for node in model.graph.node if node.domain == DOMAIN):
        given.setdefault(node.op_type, set()).update(entry.name for entry in node.attribute)
    for operator, names in sorted(given.items()):
        functions = OPERATORS[operator].functions if operator in OPERATORS else (operator,)
        wrong = [name for name in functions if name not in declared]
        if not names <= declared.get(operator, names):
            wrong.append(operator)
        altered += [name for name in wrong if name not in altered]
    return altered


def serialised(message: Any) -> bytes:
    """Return a message's bytes in the one order that both sides of a comparison share."""
    data: bytes = message.SerializeToString(deterministic=True)
    return data


# -- bodies ---------------------------------------------------------------------------------------


_ROLE_NAMES = {
    "input": "x", "values": "v", "index": "i", "scale": "s", "codebook": "c", "bias": "b",
    "residual": "r",
}  # fmt: skip


def _operator_body(operator: Operator, opset: int) -> onnx.FunctionProto:
    """Return decode, scale, the standard operator, then what follows it."""
    stored = operator.codec, operator.value_type
    nodes, weight = weight_nodes(*stored)
    if operator.kind == "Gather":
        nodes, weight = looked_up(nodes, weight)
    attributes = [*weight_attributes(*stored), *operator.attributes]
    bias: list[str] = []
    if operator.bias:
        bias = ["b"]
        if operator.value_type != "fp32":
            bias = ["k" if "codebook" in operator.input_roles else "c"]
            nodes.append(make_node("Cast", ["b"], *bias, to=TensorProto.FLOAT))
    nodes += _sum(operator, weight, bias)
    nodes += activation_nodes(operator.activation, "a", "y")
    inputs = [_ROLE_NAMES[role] for role in operator.input_roles]
    return make_function(operator.name, inputs, "y", nodes, opset, attributes)


def _sum(operator: Operator, weight: str, bias: list[str]) -> list[onnx.NodeProto]:
    """Return the nodes of op(x, w) + bias + residual: y, or a where an activation follows."""
    result = "y" if operator.activation == "none" else "a"
    inner = "p" if operator.residual else result
    if operator.kind in ("Weight", "Gather"):
        return [make_node("Identity", [weight], result)]
    if operator.kind == "Linear":
        nodes = [
            make_node("Transpose", [weight], "t", perm=[1, 0]),
            make_node("MatMul", ["x", "t"], "m" if bias else inner),
        ]
        if bias:
            nodes.append(make_node("Add", ["m", *bias], inner))
    else:
        standard = "Conv" if operator.kind == "Depthwise" else operator.kind
        nodes = [make_node(standard, ["x", weight, *bias], inner)]
        for name, kind in OPERATOR_ATTRIBUTES[operator.kind].items():
            refer(nodes[0], name, kind, name)
    if operator.residual:
        nodes.append(make_node("Add", [inner, "r"], result))
    return nodes


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


@cache
def known_function(
    name: str, opset: int, declared: tuple[str, ...] | None = None
) -> onnx.FunctionProto:
    """Return the function of a name that is ours (``function_for``); not to be changed."""
    function = function_for(name, opset, declared)
    assert function is not None, name
    return function


def expand(node: onnx.NodeProto, prefix: str, opset: int) -> list[onnx.NodeProto]:
    """Return what a node of our domain stands for, for runtimes that cannot fold a function.

    Args:
        node: a node of domain ``hwprune``.
        prefix: put before every inner name, so that two expansions never meet.
        opset: the opset of the bodies.
    """
    function = known_function(node.op_type, opset)
    names = dict(zip(function.input, node.input, strict=True))
    names |= dict(zip(function.output, node.output, strict=True))
    given = {attribute.name: attribute for attribute in node.attribute}
    nodes: list[onnx.NodeProto] = []
    for inner in function.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(inner)
        del copy.input[:], copy.output[:], copy.attribute[:]
        copy.input.extend(names.get(name, prefix + name) for name in inner.input)
        copy.output.extend(names.get(name, prefix + name) for name in inner.output)
        for attribute in inner.attribute:
            if not attribute.ref_attr_name:
                copy.attribute.add().CopyFrom(attribute)
            elif attribute.ref_attr_name in given:
                entry = copy.attribute.add()
                entry.CopyFrom(given[attribute.ref_attr_name])
                entry.name = attribute.name
        if copy.op_type == "Constant":
            _as_tensor(copy.attribute[0])
        # Both functions that decode a weight have names of their own.
        inside = _nibbles_prefix(prefix) if copy.op_type == NIBBLES else prefix + "_"
        nodes += expand(copy, inside, opset) if copy.domain == DOMAIN else [copy]
    return nodes


def _as_tensor(entry: onnx.AttributeProto) -> None:
    """Turn a list of numbers into a tensor: onnxruntime before 1.12 reads a list as one number."""
    kinds = {"value_ints": TensorProto.INT64, "value_floats": TensorProto.FLOAT}
    if entry.name in kinds:
        numbers = [*entry.ints, *entry.floats]
        tensor = helper.make_tensor("", kinds[entry.name], [len(numbers)], numbers)
        entry.CopyFrom(helper.make_attribute("value", tensor))


def _nibbles_prefix(prefix: str) -> str:
    return prefix + "n_"


def count_name(prefix: str) -> str:
    """Return what the constant is called that holds an expanded node's attribute ``count``."""
    return _nibbles_prefix(prefix) + COUNT
