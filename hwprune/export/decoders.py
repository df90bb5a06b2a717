"""Decoding with standard operators: the functions that turn packed arrays into a dense weight.

Bodies use only operators whose result has a shape known from its inputs' shapes: onnxruntime 1.31
does not fold Compress or NonZero. They are the same at every opset from 13 on but for the import
they state.
"""

from __future__ import annotations

import string
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
    if codec in ("gap4", "bitmap", "rice"):  # the others were shipped with the names they have
        nodes = _shortened(nodes, ("v", "i", "w"))
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


def looked_up(nodes: list[onnx.NodeProto], weight: str) -> tuple[list[onnx.NodeProto], str]:
    """Return what decodes the rows x of a weight that is stored dense, and its name.

    Scales are one for each row, of which those of the rows are taken, or else one for all rows:
    the number of a row modulo that of scales.

    Args:
        nodes: what decodes the whole weight, as ``weight_nodes`` has it.
        weight: its name.
    """
    before = [make_node("Gather", ["v", "x"], "g")]
    if any("s" in node.input for node in nodes):
        before += [
            make_node("Shape", ["s"], "l"),
            make_node("Constant", [], "o", value_int=0),
            make_node("Gather", ["l", "o"], "k"),
            make_node("Cast", ["x"], "j", to=TensorProto.INT64),
            make_node("Mod", ["j", "k"], "m"),
            make_node("Gather", ["s", "m"], "t"),
        ]
    taken = {"v": "g", "s": "t"}
    for node in nodes:
        node.input[:] = [taken.get(name, name) for name in node.input]
    return before + nodes, taken.get(weight, weight)


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
    nodes = _shortened(nodes, ("v", "w", COUNT))
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

    With quotients and remainders of (gap - 1) by 2**r, the position of nonzero e (from 0) is
    sum(quotients) * 2**r + sum(remainders) + e, sums up to and with e. The sum of the quotients is
    the number of zeros in the unary stream before the one that ends quotient e: so each bit
    scatters the running count of zeros to the place that the running count of ones gives, zero
    bits to a place 0 that is dropped.

    The remainders come as a table of one row more than there are bit planes and one column per
    nonzero. The last row reads the unary stream, which is never shorter than a plane, and weighs 0:
    so no length that may be 0 is reshaped, and an empty tensor needs no rule of its own.
    """
    one = numpy_helper.from_array(np.array([1], np.int32))
    return [
        make_node("Constant", [], "first", value_ints=[0]),
        make_node("Constant", [], "second", value_ints=[1]),
        int32_constant("two", 2),
        int32_constant("eight", 8),
        *_digits("j", "bits", 2, 8),
        # e: the numbers of the nonzeros
        make_node("Shape", ["v"], "k"),
        make_node("ConstantOfShape", ["k"], "ones", value=one),
        make_node("CumSum", ["ones", "a"], "counted"),
        make_node("Sub", ["counted", "o"], "e"),
        # the bits of a plane: k, rounded up to bytes
        make_node("Cast", ["k"], "k32", to=TensorProto.INT32),
        make_node("Sub", ["eight", "o"], "seven"),
        make_node("Add", ["k32", "seven"], "g1"),
        make_node("Div", ["g1", "eight"], "g2"),
        make_node("Mul", ["g2", "eight"], "plane"),
        # r, and the rows of the table, from 0
        make_node("Gather", ["j", "first"], "r"),
        make_node("Add", ["r", "o"], "h1"),
        make_node("Cast", ["h1"], "h2", to=TensorProto.INT64),
        make_node("ConstantOfShape", ["h2"], "h3", value=one),
        make_node("CumSum", ["h3", "a"], "h4"),
        make_node("Sub", ["h4", "o"], "h5"),
        make_node("Unsqueeze", ["h5", "second"], "h"),
        # the table of bits, weighed
        make_node("Mul", ["h", "plane"], "p1"),
        make_node("Add", ["e", "eight"], "p2"),
        make_node("Add", ["p1", "p2"], "p3"),
        make_node("Gather", ["bits", "p3"], "p4"),
        make_node("Pow", ["two", "h"], "p5"),
        make_node("Pow", ["two", "r"], "divisor"),
        make_node("Mod", ["p5", "divisor"], "p6"),
        make_node("Mul", ["p4", "p6"], "p7"),
        make_node("ReduceSum", ["p7", "first"], "remainders", keepdims=0),
        # the unary stream
        make_node("Mul", ["r", "plane"], "u1"),
        make_node("Add", ["u1", "eight"], "u2"),
        make_node("Cast", ["u2"], "u3", to=TensorProto.INT64),
        make_node("Shape", ["bits"], "u4"),
        make_node("Slice", ["bits", "u3", "u4"], "u"),
        make_node("CumSum", ["u", "a"], "c1"),
        make_node("Mul", ["u", "c1"], "places"),
        make_node("Sub", ["o", "u"], "c2"),
        make_node("CumSum", ["c2", "a"], "zeros"),
        # place 0, and one for each nonzero; what they hold at first is overwritten
        make_node("Concat", ["o", "e"], "z1", axis=0),
        make_node("ScatterElements", ["z1", "places", "zeros"], "z2", axis=0),
        make_node("Shape", ["z2"], "z3"),
        make_node("Slice", ["z2", "second", "z3"], "quotients"),
        # positions
        make_node("Mul", ["quotients", "divisor"], "r1"),
        make_node("CumSum", ["remainders", "a"], "r2"),
        make_node("Add", ["r1", "r2"], "r3"),
        make_node("Add", ["r3", "e"], "positions"),
        make_node("ConstantOfShape", ["n"], "y1"),
        make_node("Cast", ["v"], "f", to=TensorProto.FLOAT),
        make_node("ScatterElements", ["y1", "positions", "f"], "y", axis=0),
        make_node("Reshape", ["y", "s"], "w"),
    ]


def _shortened(nodes: list[onnx.NodeProto], kept: tuple[str, ...]) -> list[onnx.NodeProto]:
    """Give inner values names of one letter while there are any: every use of a name costs."""
    free = (letter for letter in string.ascii_letters if letter not in kept)
    names = {name: name for name in kept}
    for node in nodes:
        for name in node.output:
            if name not in names:
                names[name] = next(free, f"_{len(names)}")
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    return nodes


_BODIES: dict[CodecName, Callable[[CodecName], list[onnx.NodeProto]]] = {
    "gap4": _small_gaps,
    "gap8": _gaps,
    "gap16": _gaps,
    "cols8": _columns,
    "cols16": _columns,
    "bitmap": _bitmap,
    "rice": _rice,
}
