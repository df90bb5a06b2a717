"""The operators of domain ``hwprune`` and the model-local functions that carry their meaning.

A pruned layer is one node, such as ``CsrConvGap8I8Bias``: compressed rows, a convolution, 8-bit
gaps, int8 values, with a bias. The layout is part of the name, and a shipped name never changes
meaning. The file holds a function of that name whose body is standard operators: decode, then the
ordinary operator. Decoding is a function of its own (``DecodeGap8``), so that each further operator
costs a few hundred bytes and not a second copy of it.

Bodies use only operators whose result has a shape known from its inputs' shapes: onnxruntime 1.31
does not fold Compress or NonZero. They are the same at every opset from 13 on but for the import
they state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from hwprune.ir import CodecName, ValueType

DOMAIN = "hwprune"
DOMAIN_VERSION = 1

_CODEC_LABELS: dict[CodecName, str] = {
    "gap8": "Gap8",
    "gap16": "Gap16",
    "cols8": "Cols8",
    "cols16": "Cols16",
    "dense": "",
}
_VALUE_LABELS: dict[ValueType, str] = {"fp32": "F32", "fp16": "F16", "int8": "I8"}

# The attributes that the node hands to the standard operator in its body, with their types.
_INTS, _INT = AttributeProto.INTS, AttributeProto.INT
OPERATOR_ATTRIBUTES: dict[str, dict[str, int]] = {
    "Conv": {"strides": _INTS, "pads": _INTS, "dilations": _INTS, "group": _INT},
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
}


@dataclass(frozen=True, slots=True)
class Operator:
    """What an operator's name says.

    Attributes:
        kind: the standard operator it stands for, a key of ``OPERATOR_ATTRIBUTES``.
        codec: how positions are stored.
        value_type: how values are stored.
        bias: whether its last input is a bias.
    """

    kind: str
    codec: CodecName
    value_type: ValueType
    bias: bool

    @property
    def name(self) -> str:
        """Return the operator's name in domain ``hwprune``."""
        family = "Dense" if self.codec == "dense" else "Csr"
        bias = "Bias" if self.bias else ""
        return (
            f"{family}{self.kind}{_CODEC_LABELS[self.codec]}{_VALUE_LABELS[self.value_type]}{bias}"
        )

    @property
    def input_roles(self) -> tuple[str, ...]:
        """Return the roles of its inputs, in order."""
        roles = ["input", "values"]
        if self.codec != "dense":
            roles.append("index")
        if self.value_type == "int8":
            roles.append("scale")
        if self.bias:
            roles.append("bias")
        return tuple(roles)

    @property
    def functions(self) -> tuple[str, ...]:
        """Return the names of all functions that a node of this operator needs."""
        return (self.name,) if self.codec == "dense" else (self.name, decoder_name(self.codec))


OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for kind in OPERATOR_ATTRIBUTES
    for codec in _CODEC_LABELS
    for value_type in _VALUE_LABELS
    for bias in ((False, True) if kind in ("Conv", "ConvTranspose", "Gemm") else (False,))
    for operator in (Operator(kind, codec, value_type, bias),)
}


def decoder_name(codec: CodecName) -> str:
    """Return the name of the function that decodes ``codec``."""
    return f"Decode{_CODEC_LABELS[codec]}"


_DECODERS = {decoder_name(codec): codec for codec in _CODEC_LABELS if codec != "dense"}


def function_for(name: str, opset: int) -> onnx.FunctionProto | None:
    """Return the function that belongs to ``name``, or None where the name is not one of ours.

    Args:
        name: an operator's or a decoder's name.
        opset: the opset of the standard operators in the body.
    """
    if name in _DECODERS:
        return _decoder(_DECODERS[name], opset)
    return _operator_body(OPERATORS[name], opset) if name in OPERATORS else None


def altered_functions(model: onnx.ModelProto) -> list[str]:
    """Return the names in domain ``hwprune`` whose body is not the one written here, to the byte.

    A function of our domain that hwprune never writes counts as altered, and so does a missing one.
    """
    opset = next(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0
    )
    altered, present = [], set()
    for function in model.functions:
        if function.domain != DOMAIN:
            continue
        present.add(function.name)
        expected = function_for(function.name, opset)
        if expected is None or serialised(expected) != serialised(function):
            altered.append(function.name)
    needed = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    for operator in sorted(needed):
        functions = OPERATORS[operator].functions if operator in OPERATORS else (operator,)
        altered += [name for name in functions if name not in present and name not in altered]
    return altered


def serialised(message: Any) -> bytes:
    """Return a message's bytes in the one order that both sides of a comparison share."""
    data: bytes = message.SerializeToString(deterministic=True)
    return data


# -- bodies ---------------------------------------------------------------------------------------


def _reference(node: onnx.NodeProto, attribute: str, kind: int, parameter: str) -> None:
    """Let a node's attribute take its value from the function's parameter of the given name."""
    entry = node.attribute.add()
    entry.name, entry.ref_attr_name, entry.type = attribute, parameter, kind


def _node(
    operator: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any
) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], domain=domain or None, **attributes)


def _int32(output: str, value: int | list[int]) -> onnx.NodeProto:
    return _node("Constant", [], output, value=numpy_helper.from_array(np.array(value, np.int32)))


def _function(
    name: str, inputs: list[str], output: str, nodes: list[onnx.NodeProto], opset: int,
    attributes: Iterable[str],
) -> onnx.FunctionProto:  # fmt: skip
    imports = [helper.make_opsetid("", opset)]
    if any(node.domain == DOMAIN for node in nodes):
        imports.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    return helper.make_function(
        DOMAIN, name, inputs, [output], nodes, imports, attributes=list(attributes)
    )


def _decoder(codec: CodecName, opset: int) -> onnx.FunctionProto:
    """Return (values v, index i; shape) -> dense float32 w.

    Each index entry, mark or not, scatters one value: a mark scatters 0 to a place that no nonzero
    holds. So every length is that of the index. m: does the entry carry a value; p: its place; r:
    the number of the value that it carries, by a running count from 1; number 0 is a zero put
    before the values, for marks before the first of them (there may be none at all).
    """
    shape = _node("Constant", [], "s")
    _reference(shape, "value_ints", _INTS, "shape")
    nodes = [
        shape,
        _node("ReduceProd", ["s"], "n", keepdims=1),
        _node("Constant", [], "a", value_int=0),
        _int32("o", [1]),
        _node("Cast", ["i"], "j", to=TensorProto.INT32),
    ]
    if codec in ("gap8", "gap16"):
        reach = 2 ** (8 if codec == "gap8" else 16) - 1
        nodes += [
            _node("Cast", ["i"], "m", to=TensorProto.BOOL),
            _int32("k", reach),
            _node("Where", ["m", "j", "k"], "e"),
            _node("CumSum", ["e", "a"], "c"),
            _node("Sub", ["c", "o"], "p"),
            _node("ConstantOfShape", ["n"], "z"),
        ]
    else:
        # Rows get one column more, into which the marks fall; it is cut off at the end.
        nodes += [
            _node("Constant", [], "b", value_ints=[-1]),
            _node("Gather", ["s", "a"], "h0", axis=0),
            _node("Div", ["n", "h0"], "h"),
            _node("Cast", ["h"], "h1", to=TensorProto.INT32),
            _node("Equal", ["j", "h1"], "q"),
            _node("Not", ["q"], "m"),
            _node("Cast", ["q"], "q1", to=TensorProto.INT32),
            _node("CumSum", ["q1", "a"], "c"),
            _node("Sub", ["c", "o"], "c1"),
            _node("Add", ["h1", "o"], "d"),
            _node("Mul", ["c1", "d"], "e"),
            _node("Add", ["e", "j"], "p"),
            _node("Reshape", ["h0", "b"], "h2"),
            _node("Cast", ["d"], "d1", to=TensorProto.INT64),
            _node("Mul", ["h2", "d1"], "n1"),
            _node("ConstantOfShape", ["n1"], "z"),
        ]
    nodes += [
        _node("Cast", ["m"], "u", to=TensorProto.INT32),
        _node("CumSum", ["u", "a"], "r"),
        _node("Cast", ["v"], "f1", to=TensorProto.FLOAT),
        _node("Constant", [], "f0", value_floats=[0.0]),
        _node("Concat", ["f0", "f1"], "f", axis=0),
        _node("Gather", ["f", "r"], "g"),
        _node("Cast", ["m"], "l", to=TensorProto.FLOAT),
        _node("Mul", ["g", "l"], "t"),
        _node("ScatterElements", ["z", "p", "t"], "y", axis=0),
    ]
    if codec in ("gap8", "gap16"):
        nodes.append(_node("Reshape", ["y", "s"], "w"))
    else:
        nodes += [
            _node("Concat", ["h2", "d1"], "x", axis=0),
            _node("Reshape", ["y", "x"], "y1"),
            _node("Constant", [], "a1", value_ints=[0]),
            _node("Constant", [], "o1", value_ints=[1]),
            _node("Slice", ["y1", "a1", "h", "o1"], "y2"),
            _node("Reshape", ["y2", "s"], "w"),
        ]
    return _function(decoder_name(codec), ["v", "i"], "w", nodes, opset, ["shape"])


_ROLE_NAMES = {"input": "x", "values": "v", "index": "i", "scale": "s", "bias": "b"}


def _operator_body(operator: Operator, opset: int) -> onnx.FunctionProto:
    """Return decode, scale, then the standard operator."""
    nodes: list[onnx.NodeProto] = []
    attributes = list(OPERATOR_ATTRIBUTES[operator.kind])
    if operator.codec == "dense":
        weight = "v"
        if operator.value_type != "fp32":
            nodes.append(_node("Cast", ["v"], "d", to=TensorProto.FLOAT))
            weight = "d"
    else:
        decode = _node("Decode" + _CODEC_LABELS[operator.codec], ["v", "i"], "d", domain=DOMAIN)
        _reference(decode, "shape", _INTS, "shape")
        nodes.append(decode)
        attributes.insert(0, "shape")
        weight = "d"
    if operator.value_type == "int8":
        nodes += [
            _node("Cast", ["s"], "f", to=TensorProto.FLOAT),
            _node("Mul", ["d", "f"], "w"),
        ]
        weight = "w"
    bias: list[str] = []
    if operator.bias:
        bias = ["b"]
        if operator.value_type != "fp32":
            nodes.append(_node("Cast", ["b"], "c", to=TensorProto.FLOAT))
            bias = ["c"]
    if operator.kind == "Linear":
        nodes += [
            _node("Transpose", [weight], "t", perm=[1, 0]),
            _node("MatMul", ["x", "t"], "y"),
        ]
    else:
        node = _node(operator.kind, ["x", weight, *bias], "y")
        for name, kind in OPERATOR_ATTRIBUTES[operator.kind].items():
            _reference(node, name, kind, name)
        nodes.append(node)
    inputs = [_ROLE_NAMES[role] for role in operator.input_roles]
    return _function(operator.name, inputs, "y", nodes, opset, attributes)


@cache
def _known(name: str, opset: int) -> onnx.FunctionProto:
    """Return the function of a name that is ours; not to be changed."""
    function = function_for(name, opset)
    assert function is not None, name
    return function


def expand(node: onnx.NodeProto, prefix: str, opset: int) -> list[onnx.NodeProto]:
    """Return what a node of our domain stands for, for runtimes that cannot fold a function.

    Args:
        node: a node of domain ``hwprune``.
        prefix: put before every inner name, so that two expansions never meet.
        opset: the opset of the bodies.
    """
    function = _known(node.op_type, opset)
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
        nodes += expand(copy, prefix + "_", opset) if copy.domain == DOMAIN else [copy]
    return nodes
