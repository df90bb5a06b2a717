"""Decoding with standard operators: the functions that turn packed arrays into a dense weight.

Bodies use only operators whose result has a shape known from its inputs' shapes: onnxruntime 1.31
does not fold Compress or NonZero. They are the same at every opset from 13 on but for the import
they state.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from hwprune.encoding.values import CODEBOOK_ENTRIES, LEVELS, NIBBLE_TYPES
from hwprune.export.body import DOMAIN, int32_constant, make_function, make_node, refer
from hwprune.ir import CodecName, ValueType

CODEC_LABELS: dict[CodecName, str] = {
    "gap4": "Gap4",
    "gap8": "Gap8",
    "gap16": "Gap16",
    "cols8": "Cols8",
    "cols16": "Cols16",
    "bitmap": "Bitmap",
    "rice": "Rice",
    "dense": "",
}


VALUE_LABELS: dict[ValueType, str] = {
    "fp32": "F32",
    "fp16": "F16",
    "int8": "I8",
    "int4": "I4",
    "codebook16": "C4",
    "codebook256": "C8",
}


def decoder_name(codec: CodecName) -> str:
    """Return the name of the function that decodes ``codec``."""
    return f"Decode{CODEC_LABELS[codec]}"


# Takes packed nibbles apart; the name of its value that holds their number.
NIBBLES = "UnpackNibbles"
COUNT = "k"
DECODERS = {decoder_name(codec): codec for codec in CODEC_LABELS if codec != "dense"}


def decoder_body(codec: CodecName, opset: int) -> onnx.FunctionProto:
    """Return (values v, index i; shape) -> dense float32 w."""
    shape = make_node("Constant", [], "s")
    refer(shape, "value_ints", AttributeProto.INTS, "shape")
    nodes = [
        shape,
        make_node("ReduceProd", ["s"], "n", keepdims=1),
        make_node("Constant", [], "a", value_int=0),
        # onnxruntime 1.15 does not load a function with a constant that nothing reads.
        *([] if codec == "bitmap" else [int32_constant("o", [1])]),
        make_node("Cast", ["i"], "j", to=TensorProto.INT32),
        *_BODIES[codec](codec),
    ]
    return make_function(decoder_name(codec), ["v", "i"], "w", nodes, opset, ["shape"])


def weight_functions(codec: CodecName, value_type: ValueType) -> tuple[str, ...]:
    """Return the names of the functions that decode a weight."""
    nibbles = (NIBBLES,) if value_type in NIBBLE_TYPES else ()
    return (() if codec == "dense" else (decoder_name(codec),)) + nibbles


def weight_roles(codec: CodecName, value_type: ValueType) -> tuple[str, ...]:
    """Return the roles of the arrays that hold a weight, in the order of a node's inputs."""
    index = () if codec == "dense" else ("index",)
    if value_type in CODEBOOK_ENTRIES:
        return ("values", *index, "codebook")
    return ("values", *index, "scale") if value_type in LEVELS else ("values", *index)


def weight_attributes(codec: CodecName, value_type: ValueType) -> tuple[str, ...]:
    """Return the attributes that say how to decode a weight."""
    shape = () if codec == "dense" else ("shape",)
    return (*shape, "count") if value_type in NIBBLE_TYPES else shape


def weight_nodes(codec: CodecName, value_type: ValueType) -> tuple[list[onnx.NodeProto], str]:
    """Return what an operator decodes its weight with, and the name of the dense float32 weight.

    The inputs are values v, index i, scale s or codebook c.
    """
    nodes: list[onnx.NodeProto] = []
    values = "v"
    if value_type in NIBBLE_TYPES:
        unpack = make_node(NIBBLES, ["v"], "n", domain=DOMAIN)
        refer(unpack, "count", AttributeProto.INT, "count")
        nodes.append(unpack)
        values = "n"
    if value_type == "int4":
        nodes += [int32_constant("e", 8), make_node("Sub", ["n", "e"], "u")]
        values = "u"
    if value_type == "codebook256":
        nodes.append(make_node("Cast", ["v"], "n", to=TensorProto.INT32))
    if value_type in CODEBOOK_ENTRIES:
        nodes.append(make_node("Gather", ["c", "n"], "u"))
        values = "u"
    weight = values
    if codec != "dense":
        decode = make_node(decoder_name(codec), [values, "i"], "d", domain=DOMAIN)
        refer(decode, "shape", AttributeProto.INTS, "shape")
        nodes.append(decode)
        weight = "d"
    elif value_type != "fp32":
        nodes.append(make_node("Cast", [values], "d", to=TensorProto.FLOAT))
        weight = "d"
    if value_type in LEVELS:
        nodes += [
            make_node("Cast", ["s"], "f", to=TensorProto.FLOAT),
            make_node("Mul", [weight, "f"], "w"),
        ]
        weight = "w"
    return nodes, weight


def nibbles_body(opset: int) -> onnx.FunctionProto:
    """Return (bytes v; count) -> int32 w, the first ``count`` nibbles, the lower one first."""
    count = make_node("Constant", [], COUNT)
    refer(count, "value_int", AttributeProto.INT, "count")
    nodes = [
        count,
        make_node("Cast", ["v"], "j", to=TensorProto.INT32),
        *_digits("j", "d", 16, 2),
        make_node("Constant", [], "a", value_ints=[0]),
        make_node("Unsqueeze", [COUNT, "a"], "e"),
        make_node("Slice", ["d", "a", "e"], "w"),
    ]
    return make_function(NIBBLES, ["v"], "w", nodes, opset, ["count"])


def _digits(source: str, output: str, base: int, count: int) -> list[onnx.NodeProto]:
    """Return what takes int32 numbers apart: ``count`` digits each, the lowest first."""
    return [
        make_node("Constant", [], "d1", value_ints=[1]),
        make_node("Unsqueeze", [source, "d1"], "d2"),
        int32_constant("d3", [base**place for place in range(count)]),
        make_node("Div", ["d2", "d3"], "d4"),
        int32_constant("d5", base),
        make_node("Mod", ["d4", "d5"], "d6"),
        make_node("Constant", [], "d7", value_ints=[-1]),
        make_node("Reshape", ["d6", "d7"], output),
    ]


def _scattered() -> list[onnx.NodeProto]:
    """Return what scatters values v to the places p of z, and 0 where an entry is a mark.

    Each index entry, mark or not, scatters one value: a mark scatters 0 to a place that no nonzero
    holds. So every length is that of the index. m: does the entry carry a value; r: the number of
    the value that it carries, by a running count from 1; number 0 is a zero put before the values,
    for marks before the first of them (there may be none at all).
    """
    return [
        make_node("Cast", ["m"], "u", to=TensorProto.INT32),
        make_node("CumSum", ["u", "a"], "r"),
        make_node("Cast", ["v"], "f1", to=TensorProto.FLOAT),
        make_node("Constant", [], "f0", value_floats=[0.0]),
        make_node("Concat", ["f0", "f1"], "f", axis=0),
        make_node("Gather", ["f", "r"], "g"),
        make_node("Cast", ["m"], "l", to=TensorProto.FLOAT),
        make_node("Mul", ["g", "l"], "t"),
        make_node("ScatterElements", ["z", "p", "t"], "y", axis=0),
    ]


def _gaps(codec: CodecName) -> list[onnx.NodeProto]:
    reach = 2 ** (8 if codec == "gap8" else 16) - 1
    return [
        make_node("Cast", ["i"], "m", to=TensorProto.BOOL),
        int32_constant("k", reach),
        make_node("Where", ["m", "j", "k"], "e"),
        make_node("CumSum", ["e", "a"], "c"),
        make_node("Sub", ["c", "o"], "p"),
        make_node("ConstantOfShape", ["n"], "z"),
        *_scattered(),
        make_node("Reshape", ["y", "s"], "w"),
    ]


def _small_gaps(codec: CodecName) -> list[onnx.NodeProto]:
    # An odd number of entries ends in a skip that was never meant: it may lead out of the tensor,
    # into fifteen places more, which are cut off at the end.
    reach = 15
    return [
        *_digits("j", "q", 16, 2),
        make_node("Cast", ["q"], "m", to=TensorProto.BOOL),
        int32_constant("k", reach),
        make_node("Where", ["m", "q", "k"], "e"),
        make_node("CumSum", ["e", "a"], "c"),
        make_node("Sub", ["c", "o"], "p"),
        make_node("Constant", [], "k1", value_ints=[reach]),
        make_node("Add", ["n", "k1"], "n1"),
        make_node("ConstantOfShape", ["n1"], "z"),
        *_scattered(),
        make_node("Constant", [], "a1", value_ints=[0]),
        make_node("Slice", ["y", "a1", "n"], "y1"),
        make_node("Reshape", ["y1", "s"], "w"),
    ]


def _columns(codec: CodecName) -> list[onnx.NodeProto]:
    # Rows get one column more, into which the marks fall; it is cut off at the end.
    return [
        make_node("Constant", [], "b", value_ints=[-1]),
        make_node("Gather", ["s", "a"], "h0", axis=0),
        make_node("Div", ["n", "h0"], "h"),
        make_node("Cast", ["h"], "h1", to=TensorProto.INT32),
        make_node("Equal", ["j", "h1"], "q"),
        make_node("Not", ["q"], "m"),
        make_node("Cast", ["q"], "q1", to=TensorProto.INT32),
        make_node("CumSum", ["q1", "a"], "c"),
        make_node("Sub", ["c", "o"], "c1"),
        make_node("Add", ["h1", "o"], "d"),
        make_node("Mul", ["c1", "d"], "e"),
        make_node("Add", ["e", "j"], "p"),
        make_node("Reshape", ["h0", "b"], "h2"),
        make_node("Cast", ["d"], "d1", to=TensorProto.INT64),
        make_node("Mul", ["h2", "d1"], "n1"),
        make_node("ConstantOfShape", ["n1"], "z"),
        *_scattered(),
        make_node("Concat", ["h2", "d1"], "x", axis=0),
        make_node("Reshape", ["y", "x"], "y1"),
        make_node("Constant", [], "a1", value_ints=[0]),
        make_node("Constant", [], "o1", value_ints=[1]),
        make_node("Slice", ["y1", "a1", "h", "o1"], "y2"),
        make_node("Reshape", ["y2", "s"], "w"),
    ]


def _bitmap(codec: CodecName) -> list[onnx.NodeProto]:
    # Each weight gathers its value: by the running count of bits, or number 0 where its bit is 0.
    return [
        *_digits("j", "q", 2, 8),
        make_node("CumSum", ["q", "a"], "c"),
        make_node("Mul", ["q", "c"], "r"),
        make_node("Constant", [], "a1", value_ints=[0]),
        make_node("Slice", ["r", "a1", "n"], "p"),
        make_node("Cast", ["v"], "f1", to=TensorProto.FLOAT),
        make_node("Constant", [], "f0", value_floats=[0.0]),
        make_node("Concat", ["f0", "f1"], "f", axis=0),
        make_node("Gather", ["f", "p"], "y"),
        make_node("Reshape", ["y", "s"], "w"),
    ]


def _rice(codec: CodecName) -> list[onnx.NodeProto]:
    """Return the nodes that decode Golomb-Rice gaps.

    With quotients q and remainders l of (gap - 1) by 2**r, the position of nonzero e is
    sum(q) * 2**r + sum(l) + e, sums up to and with e; and the bit that ends its quotient is number
    sum(q) + e of the unary stream. So where the ones of that stream lie is all that is needed: each
    bit scatters its number to the place that the running count of ones gives, zeros to place 0.

    The remainders come as a table of one row more than there are bit planes, the first of them
    weighed by 0, and one column per nonzero: so nothing of unknown length is reshaped, and an empty
    tensor needs no rule of its own.
    """
    one = numpy_helper.from_array(np.array([1], np.int32))
    zero = numpy_helper.from_array(np.array([0], np.int32))
    return [
        make_node("Constant", [], "a0", value_ints=[0]),
        make_node("Constant", [], "a1", value_ints=[1]),
        int32_constant("t", 2),
        int32_constant("b", 8),
        # k nonzeros; e: their numbers from 0; g: the bytes of a plane
        make_node("Shape", ["v"], "k"),
        make_node("ConstantOfShape", ["k"], "k1", value=one),
        make_node("CumSum", ["k1", "a"], "e1"),
        make_node("Sub", ["e1", "o"], "e"),
        make_node("Div", ["e", "b"], "e8"),
        make_node("Mod", ["e", "b"], "em"),
        make_node("Cast", ["k"], "k2", to=TensorProto.INT32),
        make_node("Add", ["k2", "b"], "g1"),
        make_node("Sub", ["g1", "o"], "g2"),
        make_node("Div", ["g2", "b"], "g"),
        # x: the parameter; h: the rows of the table, from 0
        make_node("Slice", ["j", "a0", "a1"], "x"),
        make_node("Add", ["x", "o"], "x1"),
        make_node("Cast", ["x1"], "x2", to=TensorProto.INT64),
        make_node("ConstantOfShape", ["x2"], "h1", value=one),
        make_node("CumSum", ["h1", "a"], "h2"),
        make_node("Sub", ["h2", "o"], "h3"),
        make_node("Unsqueeze", ["h3", "a1"], "h"),
        # the byte of each bit is 1 + (h - 1) * g + e / 8; for row 0, some byte from the end
        make_node("Sub", ["h", "o"], "p1"),
        make_node("Mul", ["p1", "g"], "p2"),
        make_node("Add", ["p2", "e8"], "p3"),
        make_node("Add", ["p3", "o"], "p4"),
        make_node("Gather", ["j", "p4"], "p5"),
        make_node("Pow", ["t", "em"], "p6"),
        make_node("Div", ["p5", "p6"], "p7"),
        make_node("Mod", ["p7", "t"], "p8"),
        make_node("Pow", ["t", "h"], "q1"),
        make_node("Div", ["q1", "t"], "q2"),
        make_node("Mul", ["p8", "q2"], "q3"),
        make_node("ReduceSum", ["q3", "a0"], "l", keepdims=0),
        # the unary stream: its ones, counted, number their places from 1
        make_node("Mul", ["x", "g"], "u1"),
        make_node("Add", ["u1", "o"], "u2"),
        make_node("Shape", ["i"], "u3"),
        make_node("Cast", ["u2"], "u4", to=TensorProto.INT64),
        make_node("Slice", ["j", "u4", "u3"], "u5"),
        *_digits("u5", "u", 2, 8),
        make_node("CumSum", ["u", "a"], "c1"),
        make_node("Mul", ["u", "c1"], "c"),
        make_node("Shape", ["u"], "m1"),
        make_node("ConstantOfShape", ["m1"], "m2", value=one),
        make_node("CumSum", ["m2", "a"], "m"),
        make_node("Add", ["k", "a1"], "z1"),
        make_node("ConstantOfShape", ["z1"], "z2", value=zero),
        make_node("ScatterElements", ["z2", "c", "m"], "z3", axis=0),
        make_node("Slice", ["z3", "a1", "z1"], "z"),
        # positions
        make_node("Sub", ["z", "e1"], "r1"),
        make_node("Pow", ["t", "x"], "r2"),
        make_node("Mul", ["r1", "r2"], "r3"),
        make_node("CumSum", ["l", "a"], "r4"),
        make_node("Add", ["r3", "r4"], "r5"),
        make_node("Add", ["r5", "e"], "r"),
        make_node("ConstantOfShape", ["n"], "y1"),
        make_node("Cast", ["v"], "f", to=TensorProto.FLOAT),
        make_node("ScatterElements", ["y1", "r", "f"], "y", axis=0),
        make_node("Reshape", ["y", "s"], "w"),
    ]


_BODIES: dict[CodecName, Callable[[CodecName], list[onnx.NodeProto]]] = {
    "gap4": _small_gaps,
    "gap8": _gaps,
    "gap16": _gaps,
    "cols8": _columns,
    "cols16": _columns,
    "bitmap": _bitmap,
    "rice": _rice,
}
