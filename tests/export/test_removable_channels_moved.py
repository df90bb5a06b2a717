"""removable_channels: channels that operators move, reshape or do not let through."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from dead_nets import TWO, net, tensors, two

from hwprune.export.graph import Graph
from hwprune.export.removable_channels import find_removable

BODY = "h = Conv (x, a, ab)  r = Relu (h)  "


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("f = Flatten (r)", 36),
        ("p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  f = Reshape (p, minus)", 9),
        ("p = AveragePool <kernel_shape = [6, 6]> (r)  f = Reshape (p, wide)", 1),
        ("p = GlobalAveragePool (r)  f = Squeeze (p, spatial)", 1),
        ("f = ReduceMean <keepdims = 0> (r, spatial)", 1),
        ("t = Transpose <perm = [0, 2, 3, 1]> (r)  p = ReduceMax <keepdims = 0> (t, middle)"
         "  f = Identity (p)", 1),
        ("s = Slice (r, from, to, spatial)  f = Flatten (s)", 4),
        ("p = GlobalMaxPool (r)  q = Squeeze (p, spatial)  u = Unsqueeze (q, spatial)"
         "  f = Reshape (u, wide)", 1),
    ],
)  # fmt: skip
def test_features_go_with_their_channel(text: str, width: int) -> None:
    values = tensors(a=(5, 4, 1, 1), ab=(5,), w=(3, 5 * width), wb=(3,))
    values["a"][1] = 0  # a constant that the linear layer takes
    values["w"][:, 3 * width : 4 * width] = 0  # a channel that it does not read
    values |= {
        "minus": np.array([-1, 5 * width]), "wide": np.array([0, 5]), "spatial": np.array([2, 3]),
        "middle": np.array([1, 2]), "from": np.array([0, 0]), "to": np.array([2, 2]),
    }  # fmt: skip
    found = net(f"{BODY}{text}  y = Gemm <transB = 1> (f, w, wb)", values, out="N,3")
    assert found.sizes() == {"a": (3, 4, 1, 1), "ab": (3,), "w": (3, 3 * width)}
    assert found.dead.added["wb"].all()


@pytest.mark.parametrize("pads", [[0, 2, 0, 0, 0, 1, 0, 0], [0, 2, 1, 1, 0, 1, 1, 1]])
def test_padded_channels_go_like_others(pads: list[int]) -> None:
    """As in the shortcuts of ResNets for CIFAR (option A)."""
    size = 6 + 2 * pads[2]
    values = tensors(a=(5, 4, 1, 1), ab=(5,), c=(3, 8, 1, 1), cb=(3,))
    values["c"][:, 4] = 0  # channel 2 of the first layer
    values["pads"] = np.array(pads)
    text = f"{BODY}p = Pad (r, pads)  y = Conv (p, c, cb)"
    found = net(text, values, out=f"N,3,{size},{size}")
    assert found.sizes() == {"a": (4, 4, 1, 1), "ab": (4,), "c": (3, 4, 1, 1)}


def test_a_linear_layer_over_tokens_loses_features() -> None:
    values = tensors(w=(7, 4), wb=(7,), v=(3, 7), vb=(3,))
    values["v"][:, 2] = 0
    values["w"][5] = 0
    text = (
        "a = Transpose <perm = [1, 0]> (w)  h = MatMul (x, a)  hb = Add (h, wb)  e = Erf (hb)"
        "  g = Mul (e, hb)  b = Transpose <perm = [1, 0]> (v)  z = MatMul (g, b)  y = Add (vb, z)"
    )
    found = net(text, values, shape="N,6,4", out="N,6,3")
    assert found.sizes() == {"w": (5, 4), "wb": (5,), "v": (3, 5)}
    assert found.dead.added["vb"].all()


@pytest.mark.parametrize(
    "text",
    [
        "s = Softmax <axis = 1> (r)",
        "s = LRN <size = 3> (r)",
        "t = Shape (r)  s = Reshape (r, t)",
        "t = Reshape (r, shuffle)  u = Transpose <perm = [0, 2, 1, 3, 4]> (t)"
        "  s = Reshape (u, back)",
        "t = Transpose <perm = [0, 2, 3, 1]> (r)  u = Softmax (t)"
        "  s = Transpose <perm = [0, 3, 1, 2]> (u)",
        "t, u = Split <axis = 1, num_outputs = 2> (r)  s = Concat <axis = 1> (u, t)",
    ],
)
def test_what_is_not_understood_keeps_its_channels(text: str) -> None:
    values = tensors(a=(4, 4, 1, 1), ab=(4,), c=(3, 4, 1, 1), cb=(3,))
    values["c"][:, 1] = 0
    values |= {"shuffle": np.array([-1, 2, 2, 6, 6]), "back": np.array([-1, 4, 6, 6])}
    assert not net(f"{BODY}{text}  y = Conv (s, c, cb)", values).dead.removal


def test_channels_that_an_inner_graph_may_read_stay() -> None:
    values = two()
    values["b"][:, 2] = 0
    found = net(TWO, values)
    assert found.dead.removal
    inner = [onnx.parser.parse_graph(f"g () => (float[N] {n}) {{ {n} = Neg (r) }}") for n in "pq"]
    branch = onnx.helper.make_node("If", ["on"], ["s"], then_branch=inner[0], else_branch=inner[1])
    parsed = onnx.parser.parse_graph(
        f"g (float[N,4,6,6] x, bool on) => (float[N,3,6,6] y) {{ {TWO} }}"
    )
    graph = Graph.of([*parsed.node, branch], parsed.input, parsed.output, values, 18)
    dead = find_removable(graph, found.masks, {*values})
    assert not dead.removal
    assert dead.masks.nonzeros == found.masks.nonzeros


ONE_INPUT = (
    "Abs", "Celu", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Neg",
    "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
)  # fmt: skip
TWO_INPUTS = ("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "PRelu")


@pytest.mark.parametrize("operator", [*ONE_INPUT, *TWO_INPUTS, "Clip"])
def test_every_activation_is_computed_as_it_is_run(operator: str) -> None:
    values = tensors(a=(5, 4, 1, 1), ab=(5,), e=(5, 1, 1), c=(3, 5, 1, 1), cb=(3,))
    values["a"][[0, 2]] = 0
    values["ab"][2] = -0.7
    values |= {"e": np.abs(values["e"]), "low": np.float32(0.3), "high": np.float32(6)}
    other = {"Clip": ", low, high"}.get(operator, ", e" if operator in TWO_INPUTS else "")
    before = "k = Relu (h)" if operator == "Pow" else "k = Identity (h)"
    text = f"h = Conv (x, a, ab)  {before}  r = {operator} (k{other})  y = Conv (r, c, cb)"
    found = net(text, values)
    assert found.sizes()["a"] == (3, 4, 1, 1)
    assert ("e" in found.sizes()) == (operator in TWO_INPUTS)
