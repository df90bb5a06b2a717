"""Decoding with standard operators: the functions that turn packed arrays into a dense weight.

Bodies use only operators whose result has a shape known from its inputs' shapes: onnxruntime 1.31
does not fold Compress or NonZero. They are the same at every opset from 13 on but for the import
they state.
"""

from __future__ import annotations

import onnx
from onnx import AttributeProto, TensorProto

from hwprune.export.body import int32_constant, make_function, make_node, refer
from hwprune.ir import CodecName

CODEC_LABELS: dict[CodecName, str] = {
    "gap8": "Gap8",
    "gap16": "Gap16",
    "cols8": "Cols8",
    "cols16": "Cols16",
    "dense": "",
}


def decoder_name(codec: CodecName) -> str:
    """Return the name of the function that decodes ``codec``."""
    return f"Decode{CODEC_LABELS[codec]}"


DECODERS = {decoder_name(codec): codec for codec in CODEC_LABELS if codec != "dense"}


def decoder_body(codec: CodecName, opset: int) -> onnx.FunctionProto:
    """Return (values v, index i; shape) -> dense float32 w.

    Each index entry, mark or not, scatters one value: a mark scatters 0 to a place that no nonzero
    holds. So every length is that of the index. m: does the entry carry a value; p: its place; r:
    the number of the value that it carries, by a running count from 1; number 0 is a zero put
    before the values, for marks before the first of them (there may be none at all).
    """
    shape = make_node("Constant", [], "s")
    refer(shape, "value_ints", AttributeProto.INTS, "shape")
    nodes = [
        shape,
        make_node("ReduceProd", ["s"], "n", keepdims=1),
        make_node("Constant", [], "a", value_int=0),
        int32_constant("o", [1]),
        make_node("Cast", ["i"], "j", to=TensorProto.INT32),
    ]
    if codec in ("gap8", "gap16"):
        reach = 2 ** (8 if codec == "gap8" else 16) - 1
        nodes += [
            make_node("Cast", ["i"], "m", to=TensorProto.BOOL),
            int32_constant("k", reach),
            make_node("Where", ["m", "j", "k"], "e"),
            make_node("CumSum", ["e", "a"], "c"),
            make_node("Sub", ["c", "o"], "p"),
            make_node("ConstantOfShape", ["n"], "z"),
        ]
    else:
        # Rows get one column more, into which the marks fall; it is cut off at the end.
        nodes += [
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
        ]
    nodes += [
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
    if codec in ("gap8", "gap16"):
        nodes.append(make_node("Reshape", ["y", "s"], "w"))
    else:
        nodes += [
            make_node("Concat", ["h2", "d1"], "x", axis=0),
            make_node("Reshape", ["y", "x"], "y1"),
            make_node("Constant", [], "a1", value_ints=[0]),
            make_node("Constant", [], "o1", value_ints=[1]),
            make_node("Slice", ["y1", "a1", "h", "o1"], "y2"),
            make_node("Reshape", ["y2", "s"], "w"),
        ]
    return make_function(decoder_name(codec), ["v", "i"], "w", nodes, opset, ["shape"])
