"""ONNX files as MODEL: what is read, what is refused, and torch beside onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import helper, numpy_helper
from onnx_nets import classifier, drawn, model_of

from hwprune.errors import HwpruneError, ModelError, UsageError
from hwprune.export.trace import trace
from hwprune.frontend import load_model, onnx_file
from hwprune.frontend.onnx_ops import OPERATORS
from hwprune.ir import TensorSpec

WEIGHTS = {"stem.weight", "body", "head.weight"}
INT = np.int64


@pytest.fixture
def path(tmp_path: Path) -> Callable[..., str]:
    """Write a model; return where."""

    def write(model: onnx.ModelProto, name: str = "net.onnx") -> str:
        (tmp_path / name).write_bytes(model.SerializeToString())
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 20])
def test_a_file_keeps_its_names_and_its_numbers(path: Callable[..., str], opset: int) -> None:
    model = load_model(path(classifier(opset), "weights.pt"))
    assert (model.kind, model.name, model.trainable) == ("onnx", "weights", True)
    assert model.module.in_torch
    assert model.inputs == (TensorSpec("x", (None, 3, 8, 8), "float32"),)
    named = dict(model.module.named_parameters())
    assert named.keys() > WEIGHTS
    assert {"bn.mean", "bn.var"} == dict(model.module.named_buffers()).keys()
    x = torch.from_numpy(drawn(5, 3, 8, 8, seed=9))
    with torch.no_grad():
        torch.testing.assert_close(model.module(x), model.module.as_given(x))
    structure = trace(model).graph.structure
    assert [str(size) for size in structure.inputs[0].shape] == ["batch", "3", "8", "8"]
    assert [value.name for value in structure.outputs] == ["y"]


def test_the_oldest_files_list_their_tensors_as_inputs(path: Callable[..., str]) -> None:
    made = classifier(11, ir_version=3)
    made.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in made.graph.initializer
    )
    assert [spec.name for spec in load_model(path(made)).inputs] == ["x"]


def test_both_computations_follow_the_parameters(path: Callable[..., str]) -> None:
    module = load_model(path(classifier())).module
    x = torch.from_numpy(drawn(2, 3, 8, 8))
    with torch.no_grad():
        before = module.as_given(x)
        dict(module.named_parameters())["head.bias"].add_(1)
        torch.testing.assert_close(module.as_given(x), before + 1)
        torch.testing.assert_close(module(x), before + 1)


def test_dynamic_sizes_are_tried_as_input_says(path: Callable[..., str]) -> None:
    file = path(classifier(shape=("n", 3, "height", "")))
    spec = load_model(file, inputs=["x:Nx3x96x32"]).inputs[0]
    assert (spec.shape, spec.free) == ((None, 3, 96, 32), ((2, "height"), (3, "D3")))
    assert load_model(file).inputs[0].shape == (None, 3, 64, 64)
    assert load_model(file, sample_shapes=[(3, 16, 24)]).inputs[0].shape == (None, 3, 16, 24)


@pytest.mark.parametrize("size", [-1, 0])
def test_sizes_that_exporters_write_for_any_are_any(path: Callable[..., str], size: int) -> None:
    proto = classifier()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
    model = load_model(path(proto))
    assert model.inputs[0].shape == (None, 3, 8, 8)
    assert len(model.module.as_given(torch.zeros(5, 3, 8, 8))) == 5


@pytest.mark.parametrize(
    ("inputs", "says"),
    [(["y:Nx3x8x8"], "has no input y"), (["x:Nx1x8x8"], "has the input x:Nx3x8x8")],
)
def test_inputs_that_the_file_does_not_have(
    path: Callable[..., str], inputs: list[str], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        load_model(path(classifier()), inputs=inputs)


def test_the_batch_is_as_the_file_says(path: Callable[..., str]) -> None:
    with pytest.raises(UsageError, match="keeps the sizes that it states"):
        load_model(path(classifier()), fixed_batch=True)


# -- refused --------------------------------------------------------------------------------------


def external(made: onnx.ModelProto, **entries: object) -> onnx.ModelProto:
    """Let the first tensor lie in another file."""
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return made


def test_external_data_are_read_from_beside_the_file(
    path: Callable[..., str], tmp_path: Path
) -> None:
    weight = drawn(32, 3, 3, 3, seed=3)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(b"12345678" + weight.tobytes())
    made = external(classifier(), location="data/w.bin", offset=8, length=weight.nbytes)
    module = load_model(path(made)).module
    assert np.array_equal(module.state_dict()["stem.weight"].numpy(), weight)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"location": "../secret.bin"}, "not below its own folder"),
        ({"location": "/etc/passwd"}, "not below its own folder"),
        ({"location": "link.bin"}, "not below its own folder"),
        ({"location": ""}, "not below its own folder"),
        ({"location": "absent.bin"}, "which is not there"),
        ({"location": "short.bin"}, "takes 3,456 bytes from 0"),
        ({"location": "short.bin", "offset": -4}, "takes 3,456 bytes from -4"),
        ({"location": "short.bin", "length": 4}, "takes 3,456 bytes"),
        ({"location": "short.bin", "offset": "x"}, "cannot be used"),
    ],
)
def test_external_data_that_are_not_the_files(
    path: Callable[..., str], tmp_path: Path, entries: dict[str, object], says: str
) -> None:
    (tmp_path.parent / "secret.bin").write_bytes(bytes(4096))
    (tmp_path / "short.bin").write_bytes(bytes(100))
    (tmp_path / "link.bin").symlink_to(tmp_path.parent / "secret.bin")
    with pytest.raises(ModelError, match=says):
        load_model(path(external(classifier(), **entries)))


def huge(made: onnx.ModelProto) -> None:
    made.graph.initializer[0].dims[0] = 2**40


def larger(made: onnx.ModelProto) -> None:
    made.graph.initializer[0].dims[0] = 2**10


def negative(made: onnx.ModelProto) -> None:
    made.graph.initializer[0].dims[0] = -32


def huge_constant(made: onnx.ModelProto) -> None:
    made.graph.node[3].attribute[0].t.dims[0] = 2**40


def packed(made: onnx.ModelProto) -> None:
    made.opset_import.append(helper.make_opsetid("hwprune", 1))


def quantised(made: onnx.ModelProto) -> None:
    made.graph.node[4].op_type = "QLinearConv"


def halves(made: onnx.ModelProto) -> None:
    half = np.zeros((32, 3, 3, 3), np.float16)
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(half, "stem.weight"))


def training(made: onnx.ModelProto) -> None:
    made.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))


def not_finite(made: onnx.ModelProto) -> None:
    weight = np.full((10, 32), np.nan, np.float32)
    made.graph.initializer[6].CopyFrom(numpy_helper.from_array(weight, "head.weight"))


def sparse(made: onnx.ModelProto) -> None:
    made.graph.sparse_initializer.add()


def dangling(made: onnx.ModelProto) -> None:
    made.graph.node[0].input[0] = "nobody"


def in_a_list(made: onnx.ModelProto) -> None:
    last = made.graph.output[0].name
    made.graph.node.append(helper.make_node("SequenceConstruct", [last], ["several"]))
    made.graph.output.append(helper.make_tensor_sequence_value_info("several", 1, None))


def of_text(made: onnx.ModelProto) -> None:
    made.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.STRING


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (huge, "tensor 'stem.weight' declares 1099511627776x3x3x3 elements"),
        (larger, "says that its tensor stem.weight .* and holds 3,456"),
        (negative, "the shape -32x3x3x3"),
        (huge_constant, "declares 1099511627776x32x3x3 elements"),
        (packed, "was packed by hwprune already"),
        (quantised, "were quantised already"),
        (halves, "has weights of float16"),
        (training, "in training mode"),
        (not_finite, "NaN or infinite"),
        (sparse, "sparse tensors"),
        (dangling, "cannot be used"),
        (of_text, "of type string"),
        (in_a_list, "has the output several, a sequence"),
    ],
)  # fmt: skip
def test_refused_in_one_sentence(
    path: Callable[..., str], spoil: Callable[[onnx.ModelProto], None], says: str
) -> None:
    made = classifier()
    spoil(made)
    with pytest.raises(ModelError, match=says) as caught:
        load_model(path(made))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("cut", [1, 3, 2, 40])
def test_a_file_that_was_cut(path: Callable[..., str], tmp_path: Path, cut: int) -> None:
    whole = classifier().SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) * cut // 41])
    with pytest.raises(HwpruneError):
        load_model(str(tmp_path / "cut.onnx"))


# -- torch beside onnxruntime ---------------------------------------------------------------------

X = (2, 4, 9, 9)
SIZES = np.array([1, 1, 2, 2], np.float32)
CASES: dict[str, tuple[str, dict[str, Any], list[Any]]] = {
    "conv, uneven pads": ("Conv", {"pads": [0, 1, 2, 1], "strides": [2, 1]}, [drawn(6, 4, 3, 3)]),
    "conv, same": ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [drawn(6, 4, 3, 3)]),
    "conv, same lower": ("Conv", {"auto_pad": "SAME_LOWER"}, [drawn(6, 4, 2, 2), drawn(6)]),
    "conv, groups": ("Conv", {"group": 4, "dilations": [2, 2]}, [drawn(4, 1, 3, 3)]),
    "transposed": ("ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1],
                                     "output_padding": [1, 1]}, [drawn(4, 6, 3, 3), drawn(6)]),
    "norm": ("BatchNormalization", {"epsilon": 1e-3},
             [drawn(4), drawn(4), drawn(4), np.abs(drawn(4))]),
    "instance norm": ("InstanceNormalization", {}, [drawn(4), drawn(4)]),
    "layer norm": ("LayerNormalization", {"axis": -1}, [drawn(9), drawn(9)]),
    "max pool": ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, []),
    "max pool, uneven": ("MaxPool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, []),
    "average pool": ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, []),
    "average pool, ceil": ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2],
                                           "ceil_mode": 1}, []),
    "global": ("GlobalMaxPool", {}, []),
    "mean": ("ReduceMean", {"axes": [2, 3], "keepdims": 0}, []),
    "sum": ("ReduceSum", {"keepdims": 1}, [np.array([1], INT)]),
    "norm over all": ("ReduceL2", {"axes": [1]}, []),
    "reshape": ("Reshape", {}, [np.array([0, 2, -1], INT)]),
    "reshape to nothing": ("Reshape", {}, [np.array([], INT)]),
    "flatten": ("Flatten", {"axis": 2}, []),
    "transpose": ("Transpose", {}, []),
    "slice": ("Slice", {}, [np.array([1, -3], INT), np.array([99, -1], INT),
                            np.array([1, 3], INT)]),
    "slice, backwards": ("Slice", {}, [np.array([-1], INT), np.array([-99], INT),
                                       np.array([2], INT), np.array([-2], INT)]),
    "gather": ("Gather", {"axis": 1}, [np.array([[3, -1], [0, 1]], INT)]),
    "unsqueeze": ("Unsqueeze", {}, [np.array([0, -1], INT)]),
    "pad": ("Pad", {"mode": "reflect"}, [np.array([0, 0, 1, 2, 0, 0, 3, 0], INT)]),
    "pad with a number": ("Pad", {}, [np.array([0, 1, 0, 0, 0, 0, 0, 2], INT), np.float32(7)]),
    "resize": ("Resize", {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
                          "nearest_mode": "floor"}, [None, SIZES]),
    "resize, linear": ("Resize", {"mode": "linear"}, [None, SIZES]),
    "expand": ("Expand", {}, [np.array([3, 1, 1, 1, 1], INT)]),
    "tile": ("Tile", {}, [np.array([1, 2, 1, 1], INT)]),
    "clip": ("Clip", {}, [np.float32(-0.5), np.float32(0.5)]),
    "hard sigmoid": ("HardSigmoid", {"alpha": 0.1}, []),
    "leaky": ("LeakyRelu", {"alpha": 0.3}, []),
    "prelu": ("PRelu", {}, [drawn(4, 1, 1)]),
    "elu": ("Elu", {"alpha": 0.7}, []),
    "softmax": ("Softmax", {"axis": 1}, []),
    "mul": ("Mul", {}, [drawn(4, 1, 1)]),
    "einsum": ("Einsum", {"equation": "nchw,cd->ndhw"}, [drawn(4, 5)]),
    "mod": ("Mod", {"fmod": 1}, [np.float32(100)]),
    "divide": ("Div", {}, [1 + np.abs(drawn(9))]),
    "depth to space": ("DepthToSpace", {"blocksize": 2}, []),
    "depth to space, by column": ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, []),
}  # fmt: skip
ALONE = [
    "Relu", "Sigmoid", "Tanh", "Erf", "Softplus", "HardSwish", "Selu", "Abs", "Neg", "Exp", "Floor",
    "Ceil", "Round", "Sign", "Sin", "Cos", "Identity", "GlobalAveragePool", "LogSoftmax", "Dropout",
]  # fmt: skip
CASES |= {name: (name, {}, []) for name in ALONE}


@pytest.mark.parametrize("case", CASES)
def test_an_operator_computes_what_onnxruntime_does(path: Callable[..., str], case: str) -> None:
    operator, given, operands = CASES[case]
    names = ["" if each is None else f"t{at}" for at, each in enumerate(operands)]
    tensors = {n: np.asarray(each) for n, each in zip(names, operands, strict=True) if n}
    node = helper.make_node(operator, ["x", *names], ["y"], **given)
    shape = (1,) * 4 if case == "reshape to nothing" else ("n", *X[1:])
    model = load_model(path(model_of([node], tensors, shape=shape)))
    assert model.module.in_torch, model.notes
    x = torch.from_numpy(drawn(*model.inputs[0].with_batch(2), seed=3))
    with torch.no_grad():
        torch.testing.assert_close(model.module(x), model.module.as_given(x), rtol=1e-4, atol=1e-5)


def test_of_shapes_and_of_several_outputs(path: Callable[..., str]) -> None:
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=1),
        helper.make_node("Shape", ["a"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "zero"], ["batches"]),
        helper.make_node("Concat", ["batches", "rest"], ["flat"], axis=0),
        helper.make_node("Reshape", ["a", "flat"], ["y"]),
        helper.make_node("Cast", ["b"], ["c"], to=onnx.TensorProto.INT64),
        helper.make_node("Div", ["c", "two"], ["d"]),
        helper.make_node("Cast", ["d"], ["z"], to=onnx.TensorProto.FLOAT),
    ]
    tensors = {
        "zero": np.array([0], INT), "first": np.array(0, INT), "rest": np.array([-1], INT),
        "two": np.array(2, INT),
    }  # fmt: skip
    module = load_model(
        path(model_of(nodes, tensors, outputs=("y", "z"), shape=X, opset=13))
    ).module
    x = torch.from_numpy(9 * drawn(*X))
    assert module.in_torch
    for one, other in zip(module(x), module.as_given(x), strict=True):
        assert torch.equal(one, other)


def test_what_torch_lacks_is_said(path: Callable[..., str]) -> None:
    made = classifier()
    made.graph.node.insert(0, helper.make_node("Celu", ["x"], ["x2"]))
    made.graph.node[1].input[0] = "x2"
    model = load_model(path(made))
    assert "Celu" not in OPERATORS
    assert not model.module.in_torch
    assert "torch lacks Celu" in model.notes[-1]
    assert model.module(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


def test_an_operator_that_torch_computes_otherwise_is_not_trusted(
    path: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPERATORS, "Relu", torch.abs)  # type: ignore[arg-type]
    model = load_model(path(classifier()))
    assert not model.module.in_torch
    assert "torch computes something else" in model.notes[-1]


def test_functions_that_double_at_each_step_are_not_inlined(path: Callable[..., str]) -> None:
    made = model_of([helper.make_node("F0", ["x"], ["y"], domain="d")], {})
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    made.opset_import.append(domains[1])
    for step in range(26):
        called = [
            helper.make_node(f"F{step + 1}", [one], [other], domain="d")
            for one, other in (("x", "a"), ("a", "y"))
        ]
        last = [helper.make_node("Relu", ["x"], ["y"])]
        nodes = called if step < 25 else last
        made.functions.append(helper.make_function("d", f"F{step}", ["x"], ["y"], nodes, domains))
    with pytest.raises(ModelError, match="stand for more than 1,000,000 nodes"):
        load_model(path(made))


LOOP = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] y) <float[4,4] w = {WEIGHTS}, int64 m = {ROUNDS}, bool c = {1}> {
  h = MatMul(x, w)
  y = Loop <body = b (int64 i, bool go, float[N,4] s) => (bool on, float[N,4] t) {
    on = Identity(go)
    t = Neg(s)
  }> (m, c, h)
}"""


@pytest.mark.parametrize("rounds", [3, 2**62])
def test_a_loop_that_does_not_end_is_given_up(
    path: Callable[..., str], monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    monkeypatch.setattr(onnx_file, "_LOOP_SECONDS", 0.5)
    text = LOOP.replace("ROUNDS", str(rounds)).replace("WEIGHTS", ",".join(map(str, range(16))))
    written = path(onnx.parser.parse_model(text))
    if rounds > 3:
        with pytest.raises(ModelError, match=r"loop does not end within 0\.5 s of CPU time"):
            load_model(written)
        return
    x = torch.ones(2, 4)
    weights = torch.arange(16.0).reshape(4, 4)
    torch.testing.assert_close(load_model(written).module(x), -(x @ weights))
