"""fusing: what follows a layer becomes one node with it, where that means the same."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from export_cases import random_masks, run

from hwprune.encoding import unpack
from hwprune.export.artifact import csr_arrays, read_artifact
from hwprune.export.body import DOMAIN
from hwprune.export.graph import Graph, activation_shapes
from hwprune.export.operators import OPERATORS, altered_functions
from hwprune.export.prunable import find_prunable
from hwprune.export.template import Template, Written
from hwprune.ir import CodecName

CODECS: tuple[CodecName, ...] = ("gap8",)
# The tensors that a network's text may name.
_GENERATOR = np.random.default_rng(0)
TENSORS = {
    name: _GENERATOR.standard_normal(shape).astype(np.float32)
    for name, shape in {
        "a": (4, 4, 3, 3), "ab": (4,), "b": (4, 4, 1, 1), "bb": (4,), "c": (1, 4, 1, 1),
        "dw": (8, 1, 3, 3), "pw": (4, 8, 1, 1), "gw": (4, 2, 3, 3),
        "w": (8, 8), "wb": (8,), "one": (1,),
    }.items()
}  # fmt: skip
TENSORS |= {name: np.float32(size) for name, size in {"zero": 0, "five": 5, "six": 6}.items()}
PAD = "<pads = [1, 1, 1, 1]>"


def template_of(
    text: str, *, shape: str = "N,4,6,6", outputs: str = "y", fuse: bool = True,
    inline: bool = False, codecs: tuple[CodecName, ...] = CODECS, opset: int = 18,
) -> Template:  # fmt: skip
    """Return the template of a network of x, in ONNX's textual form, over ``TENSORS``."""
    made = ", ".join(f"float[{shape}] {name}" for name in outputs.split())
    parsed = onnx.parser.parse_graph(f"g (float[{shape}] x) => ({made}) {{ {text} }}")
    read = {name for node in parsed.node for name in node.input}
    tensors = {name: np.asarray(array) for name, array in TENSORS.items() if name in read}
    graph = Graph.of(parsed.node, parsed.input, parsed.output, tensors, opset)
    prunable, _ = find_prunable(graph.tensors, graph, [n for n in tensors if tensors[n].ndim > 1])
    return Template(graph, prunable, 8, inline, codecs, fuse)


def names(written: Written) -> list[str]:
    """Return the operators of a file, without the codec and value type of ours."""
    return [
        re.sub("(Gap8)?I8", "-", node.op_type)
        for node in onnx.load_from_string(written.data).graph.node
    ]


def sparse(template: Template) -> Written:
    return template.write_sparse(random_masks(template, 0.4), "int8")


def fused(template: Template) -> list[str]:
    """Return the operators of the sparse file, which is as predicted, sound, and bit for bit right.

    The reference is the dense file with the same weights, in the same runtime.
    """
    written = sparse(template)
    assert written.encoding is not None
    assert len(written.data) == written.encoding.file_bytes
    onnx.checker.check_model(written.data, full_check=True)
    assert altered_functions(onnx.load_from_string(written.data)) == []
    tensors = {name: unpack(packed) for name, packed in written.packed.items()} | written.biases
    graph = replace(template.graph, tensors={**template.graph.tensors, **tensors})
    dense = replace(template, graph=graph).write_dense()
    shape = template.graph.structure.inputs[0].shape
    assert shape is not None
    sizes = [int(str(size)) for size in list(shape)[1:]]
    for batch in (0, 1, 33):
        feeds = {"x": np.random.default_rng(1).standard_normal((batch, *sizes), np.float32)}
        found, expected = run(written.data, feeds), run(dense.data, feeds)
        assert found.shape == expected.shape
        assert np.array_equal(found, expected)
    return names(written)


ACTIVATIONS = {
    "Relu": "{y} = Relu({x})",
    "Relu6": "{y} = Clip({x}, zero, six)",
    "HardSwish": "{y} = HardSwish({x})",
    "Silu": "gate = Sigmoid({x}) {y} = Mul({x}, gate)",
    "LeakyRelu": "{y} = LeakyRelu <alpha = 0.3> ({x})",
}


@pytest.mark.parametrize("codec", ["gap8", "dense"])
@pytest.mark.parametrize("label", ACTIVATIONS)
def test_an_activation_is_part_of_its_layer(label: str, codec: CodecName) -> None:
    family = "Dense" if codec == "dense" else "Csr"
    act = ACTIVATIONS[label].format(x="s", y="t")
    conv = template_of(f"s = Conv {PAD} (x, a, ab) {act} y = Conv(t, b)", codecs=(codec,))
    assert fused(conv) == [f"{family}Conv-Bias{label}", f"{family}Conv-"]
    act = ACTIVATIONS[label].format(x="s", y="y")
    linear = template_of(
        f"wt = Transpose(w) m = MatMul(x, wt) k = Add(wb, m) s = Add(x, k) {act}",
        shape="N,5,8", codecs=(codec,),
    )  # fmt: skip
    assert fused(linear) == [f"{family}Linear-BiasAdd{label}"]
    gemm = template_of(
        f"k = Gemm <transB = 1> (x, w, wb) s = Add(k, x) {act}", shape="N,8", codecs=(codec,)
    )
    assert fused(gemm) == [f"{family}Gemm-BiasAdd{label}"]


@pytest.mark.parametrize("codec", ["gap8", "dense"])
def test_depthwise_convolutions_have_names_of_their_own(codec: CodecName) -> None:
    family = "Dense" if codec == "dense" else "Csr"
    template = template_of(
        f"s = Conv {PAD[:-1]}, group = 4> (x, dw) t = Relu(s) u = Conv(t, pw) "
        f"y = Conv {PAD[:-1]}, group = 2> (u, gw)",
        codecs=(codec,),
    )
    assert fused(template) == [f"{family}Depthwise-Relu", f"{family}Conv-", f"{family}Conv-"]


def test_the_default_slope_is_not_written() -> None:
    template = template_of("s = Conv(x, b) y = LeakyRelu(s)")
    assert fused(template) == ["CsrConv-LeakyRelu"]
    model = onnx.load_from_string(sparse(template).data)
    assert "alpha" not in {attribute.name for attribute in model.graph.node[0].attribute}


@pytest.mark.parametrize("order", ["p, q", "q, p"])
@pytest.mark.parametrize("last", ["p", "q"])
def test_a_sum_of_two_layers_is_taken_by_the_first_addend(order: str, last: str) -> None:
    layers = {"p": f"p = Conv {PAD} (x, a, ab)", "q": "q = Conv(x, b, bb)"}
    first = layers["q" if last == "p" else "p"]
    template = template_of(f"{first} {layers[last]} s = Add({order}) y = Relu(s)")
    assert fused(template) == ["CsrConv-Bias", "CsrConv-BiasAddRelu"]
    node = onnx.load_from_string(sparse(template).data).graph.node[-1]
    assert node.name == ("a" if order == "p, q" else "b")


def test_a_layer_stands_after_what_it_adds() -> None:
    template = template_of(
        f"p = Conv {PAD} (x, a) t = Tanh(x) q = Conv(t, b) r = Tanh(q) s = Add(r, p) y = Relu(s)"
    )
    assert fused(template) == ["Tanh", "CsrConv-", "Tanh", "CsrConv-AddRelu"]


def test_residual_blocks_in_a_row() -> None:
    block = "s{n} = Conv {pad} ({x}, a, ab) t{n} = Relu(s{n}) u{n} = Conv(t{n}, b, bb) "
    block += "v{n} = Add({x}, u{n}) w{n} = Relu(v{n}) "
    text = "".join(block.format(n=n, pad=PAD, x=f"w{n - 1}" if n else "x") for n in range(3))
    template = template_of(text + "y = Identity(w2)")
    assert fused(template) == ["CsrConv-BiasRelu", "CsrConv-BiasAddRelu"] * 3 + ["Identity"]


UNFUSED = {
    "read elsewhere": (f"s = Conv {PAD} (x, a) t = Relu(s) y = Mul(s, t)", ["Relu", "Mul"]),
    "broadcast": ("s = Conv(x, c) y = Add(s, x)", ["Add"]),
    "a constant": ("s = Conv(x, b) y = Add(s, one)", ["Add"]),
    "another range": ("s = Conv(x, b) y = Clip(s, zero, five)", ["Clip"]),
    "one bound": ("s = Conv(x, b) y = Clip(s, zero)", ["Clip"]),
    "added to itself": ("s = Conv(x, b) y = Add(s, s)", ["Add"]),
    "a gate that is read twice": (
        "s = Conv(x, b) g = Sigmoid(s) t = Mul(s, g) y = Add(t, g)",
        ["Sigmoid", "Mul", "Add"],
    ),
    "a gated value that another product reads": (
        "s = Conv(x, b) t = Mul(s, x) g = Sigmoid(s) u = Mul(s, g) y = Add(t, u)",
        ["Mul", "Sigmoid", "Mul", "Add"],
    ),
    "an operator that has no name": ("s = Conv(x, b) y = Tanh(s)", ["Tanh"]),
    "a transposed convolution": ("s = ConvTranspose(x, b) y = Relu(s)", ["Relu"]),
    "a matrix that is not transposed": ("s = MatMul(x, w) y = Relu(s)", ["Relu"]),
}


@pytest.mark.parametrize("why", UNFUSED)
def test_what_means_something_else_is_left_alone(why: str) -> None:
    text, after = UNFUSED[why]
    first, *rest = fused(template_of(text, shape="N,8" if "MatMul" in text else "N,4,6,6"))
    assert first.endswith("-")
    assert rest == after


def test_an_unknown_shape_is_not_an_equal_one() -> None:
    text = "s = Conv(x, b) i = NonZero(x) r = GatherND(x, i) q = Expand(x, r) y = Add(s, q)"
    parsed = onnx.parser.parse_graph(f"g (float[N,4,6,6] x) => (float[N,4,6,6] y) {{ {text} }}")
    graph = Graph.of(parsed.node, parsed.input, (), {"b": TENSORS["b"]}, 18)
    assert "q" not in activation_shapes(graph)
    assert activation_shapes(graph)["s"] == ("N", 4, 6, 6)


def test_an_output_of_the_network_stays_one() -> None:
    template = template_of("s = Conv(x, b) y = Relu(s)", outputs="s y")
    assert names(sparse(template)) == ["CsrConv-", "Relu"]


@pytest.mark.parametrize("inline", [False, True])
def test_nothing_is_fused_where_no_kernel_could_run_it(inline: bool) -> None:
    text = "s = Conv(x, b, bb) t = Add(s, x) y = Relu(t)"
    found = fused(template_of(text, fuse=inline, inline=inline))
    assert found[-2:] == ["Add", "Relu"]


def test_a_bias_that_two_layers_read_and_the_bounds_of_a_clip() -> None:
    text = "s = Conv(x, b, bb) t = Clip(s, zero, six) y = Conv(t, b, bb)"
    template = template_of(text)
    assert fused(template) == ["CsrConv-BiasRelu6", "CsrConv-Bias"]
    stored = [
        entry.name for entry in onnx.load_from_string(sparse(template).data).graph.initializer
    ]
    assert not any(name.startswith("C") for name in stored), "the bounds are in the body"


def test_a_tensor_that_something_else_reads_as_well_is_kept() -> None:
    text = "s = Conv(x, b, bb) t = Clip(s, zero, six) y = Clip(t, zero, five)"
    template = template_of(text)
    assert fused(template) == ["CsrConv-BiasRelu6", "Clip"]


def test_a_bias_that_something_else_reads_as_well_is_stored_as_it_is() -> None:
    text = "s = Gemm <transB = 1> (x, w, wb) y = Mul(s, wb)"
    assert fused(template_of(text, shape="N,8")) == ["CsrGemm-Bias", "Mul"]


def test_a_fused_file_is_read_back(tmp_path: object) -> None:
    template = template_of(f"s = Conv {PAD} (x, a, ab) t = Add(s, x) y = Relu(t)")
    written = sparse(template)
    path = f"{tmp_path}/model.onnx"
    with open(path, "wb") as file:
        file.write(written.data)
    (layer,) = read_artifact(path).layers
    assert OPERATORS[layer.operator].residual
    assert OPERATORS[layer.operator].activation == "relu"
    expected = unpack(written.packed["a"])
    assert np.array_equal(csr_arrays(path)["a"].toarray(), expected.reshape(4, -1))


def test_a_changed_epilogue_is_noticed() -> None:
    model = onnx.load_from_string(sparse(template_of("s = Conv(x, b) y = Relu(s)")).data)
    (function,) = [f for f in model.functions if f.name.endswith("Relu")]
    function.node[-1].op_type = "Neg"
    assert altered_functions(model) == [function.name]
    assert model.functions[0].domain == DOMAIN
