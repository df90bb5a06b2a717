"""For every rule of lower.py, small networks that need it: in ONNX's text, at the opset of traces.

``KEPT``: they compute the same at an older opset; ``REFUSED``: they are refused there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hwprune.export.graph import Graph, message_of
from hwprune.export.lower import lower
from hwprune.export.trace import TRACE_OPSET

Tensors = dict[str, NDArray[Any]]
SHAPE = (2, 4, 6, 6)


def net(
    text: str,
    tensors: Tensors | None = None,
    *,
    shape: tuple[int | str, ...] = SHAPE,
    out: int = TensorProto.FLOAT,
    rank: int | None = None,
    inferred: bool = False,
) -> Graph:
    """Return a network of x that makes y, whose rank is said where nobody can infer it.

    Between them types and shapes are known where they are ``inferred``, as in a trace.
    """
    sizes = ",".join(map(str, shape))
    parsed = onnx.parser.parse_graph(f"g (float[{sizes}] x) => (float[N] y) {{ {text} }}")
    made = helper.make_tensor_value_info("y", out, None if rank is None else [None] * rank)
    graph = Graph.of(parsed.node, parsed.input, [made], tensors or {}, TRACE_OPSET)
    if inferred:
        model = onnx.load_from_string(file_of(graph, check=False))
        infos = onnx.shape_inference.infer_shapes(model).graph.value_info
        values = {value.name: value for node in graph.nodes for value in node.outputs}
        for info in infos:
            values[info.name].shape = ir.serde.deserialize_type_proto_for_shape(info.type)
            values[info.name].type = ir.serde.deserialize_type_proto_for_type(info.type)
    return graph


def feed(graph: Graph) -> NDArray[np.float32]:
    """Return numbers for x; a size that is not fixed is 5."""
    shape = graph.structure.inputs[0].shape
    assert shape is not None
    sizes = [size if isinstance(size, int) else 5 for size in shape]
    return np.linspace(-2, 3, int(np.prod(sizes)), dtype=np.float32).reshape(sizes)


def lowered_copy(graph: Graph, opset: int) -> Graph:
    """Return a copy at an older opset."""
    copy = graph.copy()
    lower(copy, opset)
    return copy


def file_of(graph: Graph, *, check: bool = True) -> bytes:
    """Return a checked file of a network as it is."""
    made = helper.make_graph(
        [message_of(node) for node in graph.nodes],
        "g",
        [ir.to_proto(value) for value in graph.structure.inputs],
        [ir.to_proto(value) for value in graph.structure.outputs],
        [numpy_helper.from_array(array, name) for name, array in graph.tensors.items()],
    )
    imports = [helper.make_opsetid("", graph.opset)]
    model = helper.make_model(made, opset_imports=imports, ir_version=8)
    if check:
        onnx.checker.check_model(onnx.shape_inference.infer_shapes(model), full_check=True)
    data: bytes = model.SerializeToString()
    return data


def _ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _floats(*shape: int) -> NDArray[np.float32]:
    return np.linspace(0.5, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def _recurrent(name: str, gates: int) -> list[Graph]:
    tensors = {"w": _floats(1, 3 * gates, 4), "r": _floats(1, 3 * gates, 3) - 1}
    text = f"h, l = {name} <hidden_size = 3, layout = 0> (x, w, r)  y = Identity (h)"
    return [net(text, tensors, shape=(6, "N", 4))]


def _bitwise(kind: int, name: str) -> Graph:
    low = -40 if np.issubdtype(helper.tensor_dtype_to_np_dtype(kind), np.signedinteger) else 0
    text = f"f = Mul (x, k)  b = Add (f, l)  w = Cast <to = {kind}> (b)"
    tensors = {"k": np.float32(17.3), "l": np.float32(low + 40)}
    if name == "BitwiseNot":
        return net(f"{text}  y = BitwiseNot (w)", tensors, out=kind, inferred=True)
    tensors["m"] = np.array([3, 7, 12, 100, 0, 77]).astype(helper.tensor_dtype_to_np_dtype(kind))
    return net(f"{text}  y = {name} (w, m)", tensors, out=kind, inferred=True)


def _scattered(reduction: str) -> list[Graph]:
    places = np.array([[[[0, 5, -1, 0]]]], np.int64).repeat(6, 2).repeat(4, 1).repeat(2, 0)
    rows = _ints(1, -1, 1, 0).reshape(4, 1)
    cells = _ints(*(0, 3, 1, 3, 0, 3)).reshape(3, 2)
    return [
        net(
            f'y = ScatterElements <axis = 3, reduction = "{reduction}"> (x, i, u)',
            {"i": places, "u": _floats(2, 4, 6, 4) - 1},
        ),
        net(
            f"t = Transpose <perm = [3, 0, 1, 2]> (x)  y = ScatterElements <reduction = "
            f'"{reduction}"> (t, i, u)',
            {"i": places.transpose(3, 0, 1, 2), "u": _floats(4, 2, 4, 6) - 1},
            rank=4,
            inferred=True,
        ),
        net(
            f'y = ScatterND <reduction = "{reduction}"> (x, i, u)',
            {"i": rows, "u": _floats(4, 4, 6) - 1},
            shape=("N", 4, 6),
            rank=3,
        ),
        net(
            f'y = ScatterND <reduction = "{reduction}"> (x, i, u)',
            {"i": cells, "u": _floats(3, 6) - 1},
            shape=(2, 4, 6),
            rank=3,
        ),
        net(
            f"t = Transpose <perm = [1, 0, 2]> (x)  u = Gather <axis = 0> (t, g)  y = ScatterND "
            f'<reduction = "{reduction}"> (t, i, u)',
            {"i": rows, "g": _ints(3, 2, 1, 0)},
            shape=("N", 4, 6),
            rank=3,
            inferred=True,
        ),
    ]


def _window(name: str) -> list[Graph]:
    return [
        net(f"s = Size (x)  y = {name} <periodic = {periodic}> (s)", shape=(3, 4), rank=1)
        for periodic in (0, 1)
    ]


_BRANCHES = (
    "<then_branch = g () => (float[2,4,6,6] t) { t = THEN (x) },"
    " else_branch = h () => (float[2,4,6,6] e) { e = Neg (x) }>"
)
_WRAPS = [(0, 0, 2, 1, 0, 0, 0, 3), (0, 1, 6, 0, 0, 4, 0, 0), (0,) * 8, (1, 0, 0, 0, 2, 0, 0, 0)]

KEPT: dict[str, list[Graph]] = {
    **{
        name: [
            net(f"y = {name} <keepdims = 0> (x, a)", {"a": _ints(2, 3)}),
            net(f"y = {name} (x, a)", {"a": _ints()}),
            net(f"y = {name} (x)"),
        ]
        for name in (
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceProd",
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceSumSquare",
        )
    },
    **{
        name: [net(f"y = {name} (x, b)", {"b": _floats(4, 1, 1)})]
        for name in ("Add", "Sub", "Mul", "Div", "Pow", "PRelu")
    },
    **{
        name: [net(f"c = {name} (x, b)  y = Where (c, x, b)", {"b": _floats(4, 1, 1)})]
        for name in ("LessOrEqual", "GreaterOrEqual")
    },
    "Where": [net("c = Less (x, b)  y = Where (c, x, b)", {"b": _floats(4, 1, 1)})],
    **{name: [net(f"y = {name} (x)")] for name in ("Relu", "Identity", "LeakyRelu")},
    "CumSum": [net("y = CumSum (x, a)", {"a": np.array(1, np.int64)})],
    "If": [
        net(f"y = If {_BRANCHES.replace('THEN', name)} (c)", {"c": np.array(True)})
        for name in ("Relu", "Mish")
    ],
    "Loop": [
        net(
            "y = Loop <body = b (int64 i, bool go, float[2,4,6,6] s) => (bool on, float[2,4,6,6] t)"
            " { on = Identity (go)  t = Mish (s) }> (n, c, x)",
            {"n": np.array(3, np.int64), "c": np.array(True)},
            rank=4,
        )
    ],
    "Scan": [
        net(
            "l, y = Scan <num_scan_inputs = 1, body = b (float[4,6,6] s, float[4,6,6] e) =>"
            " (float[4,6,6] t, float[4,6,6] o) { t = Add (s, e)  o = Mish (t) }> (z, x)",
            {"z": np.zeros((4, 6, 6), np.float32)},
        )
    ],
    "GRU": _recurrent("GRU", 3),
    "LSTM": _recurrent("LSTM", 4),
    "RNN": _recurrent("RNN", 1),
    **{
        name: [
            _bitwise(kind, name)
            for kind in (TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.INT8)
        ]
        for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot")
    },
    **{name: _window(name) for name in ("HannWindow", "HammingWindow", "BlackmanWindow")},
    "BatchNormalization": [
        net(
            "y = BatchNormalization <training_mode = 0> (x, a, b, c, d)",
            {name: _floats(4) for name in "abcd"},
        )
    ],
    "CastLike": [
        net("y = CastLike (x, t)", {"t": np.zeros(1, np.int32)}, out=TensorProto.INT32),
        net("y = CastLike (x, x)"),
    ],
    "Col2Im": [
        net(
            f"y = Col2Im <{given}> (x, i, b)", {"i": _ints(*image), "b": _ints(*block)}, shape=shape
        )
        for given, image, block, shape in (
            ("strides = [2, 2]", (6, 6), (2, 2), ("N", 12, 9)),
            ("pads = [1, 1, 1, 1]", (4, 5), (3, 3), (2, 18, 20)),
            ("strides = [2, 3], dilations = [2, 1]", (6, 7), (2, 2), (2, 4, 4)),
        )
    ],
    "DFT": [
        net("y = DFT <axis = 1, onesided = 1> (x)", shape=("N", 9, 1)),
        net("y = DFT <axis = 1> (x)", shape=(2, 8, 1)),
        net("y = DFT <axis = 2> (x)", shape=(2, 3, 5, 2)),
        net("y = DFT <axis = 1, inverse = 1> (x)", shape=(2, 6, 3, 2)),
        # Of half a spectrum that is cut off onnxruntime makes something else than NumPy.
        *(
            net(f"y = DFT <axis = 1{given}> (x, l)", {"l": np.int64(length)}, shape=(2, 6, parts))
            for given, parts, lengths in (
                ("", 2, (5, 9)),
                (", inverse = 1", 2, (5, 10)),
                (", onesided = 1", 1, (5, 9)),
                (", onesided = 1, inverse = 1", 2, (10, 11)),
            )
            for length in lengths
        ),
    ],
    "GridSample": [
        net(
            f'y = GridSample <mode = "{mode}", padding_mode = "{padding}", align_corners = {align}>'
            " (x, g)",
            {"g": np.linspace(-1.3, 1.2, 2 * 3 * 5 * 2, dtype=np.float32).reshape(2, 3, 5, 2)},
            rank=4,
        )
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection")
        for align in (0, 1)
    ]
    + [
        net(
            f'y = GridSample <mode = "{mode}", padding_mode = "{padding}"> (x, g)',
            {"g": np.linspace(-2.3, 3.2, 2 * 3 * 5 * 2, dtype=np.float32).reshape(2, 3, 5, 2)},
            rank=4,
            shape=(2, 4, "H", "W"),
        )
        for mode, padding in (("bilinear", "zeros"), ("bicubic", "reflection"))
    ],
    "HardSwish": [net("y = HardSwish (x)")],
    "LayerNormalization": [
        net(
            "y = LayerNormalization <epsilon = 0.001> (x, s, b)",
            {"s": _floats(6), "b": _floats(6) - 1},
        ),
        net("y = LayerNormalization (x, s)", {"s": _floats(6)}),
        net(
            "y = LayerNormalization <axis = -2> (x, s, b)", {"s": _floats(6, 6), "b": _floats(6, 6)}
        ),
        net(
            "y = LayerNormalization <axis = 2> (x, s, b)", {"s": _floats(6, 6), "b": _floats(6, 6)}
        ),
        net(
            "a, m, d = LayerNormalization (x, s)  y = Concat <axis = 3> (a, m, d)",
            {"s": _floats(6)},
        ),
    ],
    "Mish": [net("y = Mish (x)")],
    "Pad": [
        net("y = Pad (x, p)", {"p": _ints(0, 0, 1, 1, 0, 0, 1, 1)}),
        net('y = Pad <mode = "reflect"> (x, p)', {"p": _ints(0, 0, 2, 1, 0, 0, 0, 3)}),
        net('y = Pad <mode = "edge"> (x, p)', {"p": _ints(0, 0, 2, 1, 0, 0, 0, 3)}),
        net(
            "y = Pad (x, p, v, a)", {"p": _ints(1, 2, 0, 3), "v": np.float32(7), "a": _ints(-1, 1)}
        ),
    ],
    "Pad that wraps around": [
        net('y = Pad <mode = "wrap"> (x, p)', {"p": _ints(*pads)}) for pads in _WRAPS
    ],
    "Reshape": [
        net("y = Reshape <allowzero = 1> (x, s)", {"s": _ints(2, -1)}),
        net("s = Shape (x)  t = Neg (x)  y = Reshape <allowzero = 1> (t, s)", rank=4),
    ],
    "Resize": [
        net(
            'y = Resize <mode = "linear", antialias = 0, keep_aspect_ratio_policy = "stretch">'
            " (x, , s)",
            {"s": np.float32([1, 1, 2, 2])},
        ),
        net('y = Resize <axes = [3, -2], mode = "linear"> (x, , s)', {"s": np.float32([2, 0.5])}),
        net(
            'y = Resize <axes = [2, 3], mode = "nearest"> (x, , , s)',
            {"s": _ints(9, 4)},
            shape=("N", 4, 6, 6),
            rank=4,
        ),
        *(
            net(
                f'y = Resize <axes = [2, 3], keep_aspect_ratio_policy = "{policy}"> (x, , , s)',
                {"s": _ints(9, 7)},
            )
            for policy in ("not_larger", "not_smaller")
        ),
        *(
            net(
                f'y = Resize <antialias = 1, mode = "{mode}"{more}> (x, , {"," * sizes} s)',
                {"s": _ints(2, 4, 5, 13) if sizes else np.float32([1, 1, 0.4, 0.75])},
                shape=(2, 4, 16, 12),
            )
            for mode in ("linear", "cubic")
            for more in ("", ", cubic_coeff_a = -0.5, exclude_outside = 1")
            for sizes in (0, 1)
        ),
    ],
    "RoiAlign": [
        net(
            'y = RoiAlign <coordinate_transformation_mode = "output_half_pixel", output_height = 2,'
            " output_width = 2, sampling_ratio = 2> (x, r, b)",
            {"r": np.float32([[0, 1, 4, 5], [1, 1, 3, 3]]), "b": _ints(0, 1)},
        )
    ],
    "ScatterElements": [
        net(
            'y = ScatterElements <axis = 1, reduction = "none"> (x, i, u)',
            {"i": np.zeros((1, 1, 1, 2), np.int64), "u": np.float32([[[[7, 8]]]])},
        )
    ],
    "ScatterND": [
        net("y = ScatterND (x, i, u)", {"i": _ints(1, 2).reshape(1, 2), "u": _floats(1, 6, 6)})
    ],
    **{
        f"{name} by {how}": [
            graph for graph in _scattered(how) if any(node.op_type == name for node in graph.nodes)
        ]
        for name in ("ScatterElements", "ScatterND")
        for how in ("add", "mul", "max", "min")
    },
    "Shape": [
        net("y = Shape (x)", out=TensorProto.INT64),
        net("y = Shape <start = 1> (x)", out=TensorProto.INT64),
        net("y = Shape <start = -3, end = -1> (x)", out=TensorProto.INT64),
    ],
    "STFT": [
        net("y = STFT (x, s, w)", {"s": _ints(3)[0], "w": _floats(8)}, shape=("N", 32, 1)),
        net(
            "y = STFT <onesided = 0> (x, s, , l)",
            {"s": _ints(4)[0], "l": _ints(6)[0]},
            shape=(2, 32, 1),
        ),
    ],
    "Split": [
        net("y, r = Split <axis = 1> (x, s)", {"s": _ints(3, 1)}),
        net("a, b, c = Split <axis = 3, num_outputs = 3> (x)  y = Concat <axis = 3> (c, a, b)"),
        net("a, b = Split <axis = -1, num_outputs = 2> (x)  y = Mul (b, a)", shape=(3, 8)),
        net("a, b, c, y = Split <axis = 1, num_outputs = 4> (x)", shape=(2, 7)),
        net("a, b = Split <num_outputs = 2> (x)  y = Concat <axis = 0> (b, a)", shape=("N", 3)),
    ],
    "Trilu": [
        net("y = Trilu <upper = 0> (x)"),
        net("y = Trilu (x, k)", {"k": np.array(-2, np.int64)}),
        net("y = Trilu (x)", shape=(2, "N", "M")),
        net("y = Trilu <upper = 0> (x, k)", {"k": np.array(1, np.int64)}, shape=("N", 3)),
        net("r = Size (x)  q = Sub (r, l)  y = Trilu (x, q)", {"l": _ints(286)[0]}),
    ],
}

REFUSED = {
    "Pad, wrapping and cutting": net(
        'y = Pad <mode = "wrap"> (x, p)', {"p": _ints(0, 0, -1, 0, 0, 0, 1, 0)}
    ),
    "Pad of axes that are computed": net(
        "a = Shape (x)  y = Pad (x, p, , a)", {"p": _ints(*[1] * 8)}
    ),
    "Resize with antialiasing of sizes that vary": net(
        'y = Resize <antialias = 1, mode = "linear"> (x, , s)',
        {"s": np.float32([1, 1, 0.5, 0.5])},
        shape=(2, 3, "H", 6),
    ),
    "Resize that keeps proportions that vary": net(
        'y = Resize <axes = [2, 3], keep_aspect_ratio_policy = "not_larger"> (x, , , s)',
        {"s": _ints(4, 4)},
        shape=(2, 3, "H", 6),
    ),
    "ReduceMean over axes that are computed": net("a = Shape (x)  y = ReduceMean (x, a)"),
    "ReduceMax that reduces nothing": net(
        "y = ReduceMax <noop_with_empty_axes = 1> (x, a)", {"a": _ints()}
    ),
    "Reshape to nothing": net("y = Reshape <allowzero = 1> (x, s)", {"s": _ints(0, 3)}),
    "BatchNormalization that trains": net(
        "y, m, v = BatchNormalization <training_mode = 1> (x, a, b, c, d)",
        {name: _floats(4) for name in "abcd"},
    ),
    "LayerNormalization over axes that are not known": net(
        "s = Relu (x)  y = LayerNormalization <axis = 1> (x, s)"
    ),
    "RoiAlign by half pixels": net(
        "y = RoiAlign (x, r, b)", {"r": np.float32([[0, 1, 4, 5]]), "b": _ints(0)}
    ),
    "CastLike to a type that nobody knows": net("t = Relu (x)  y = CastLike (x, t)"),
    "GridSample in three dimensions": net(
        "y = GridSample (x, g)", {"g": _floats(1, 3, 3, 3, 3)}, shape=(1, 2, 4, 4, 4), rank=5
    ),
    "DFT of a length that varies": net("y = DFT (x)", shape=(2, "H", 1)),
    "STFT of complex numbers": net(
        "y = STFT (x, s, w)", {"s": _ints(3)[0], "w": _floats(8)}, shape=(2, 32, 2)
    ),
}
