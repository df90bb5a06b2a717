"""deadness: what goes, what stays, and that the network computes the same without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
from export_cases import relative_error, run
from numpy.typing import NDArray

from hwprune.export.deadness import Dead, find_dead
from hwprune.export.graph import Graph, attributes
from hwprune.export.prunable import find_prunable
from hwprune.export.shrink import cut, spread
from hwprune.export.template import Template
from hwprune.ir import CodecName, Masks

CODECS: tuple[CodecName, ...] = ("gap8", "dense")
PAD = "<pads = [1, 1, 1, 1]>"
Tensors = dict[str, NDArray[Any]]


def tensors(seed: int = 0, **shapes: tuple[int, ...]) -> Tensors:
    """Return random tensors; those of one axis positive, so that no Relu hides their constants."""
    generator = np.random.default_rng(seed)
    made: Tensors = {}
    for name, shape in shapes.items():
        array = generator.standard_normal(shape).astype(np.float32)
        made[name] = np.abs(array) + np.float32(0.1) if len(shape) < 2 else array
    return made


@dataclass(frozen=True)
class Net:
    """A network of x, and what was found in it."""

    graph: Graph
    masks: Masks
    dead: Dead
    settable: set[str]

    def template(self, graph: Graph) -> Template:
        prunable, _ = find_prunable(graph, graph, [*self.masks])
        return Template(graph, prunable, 8, False, CODECS)

    @property
    def dropped(self) -> Graph:
        """The network with its useless connections zero, and their constants added elsewhere."""
        values = dict(self.graph.tensors)
        for name in self.masks:
            values[name] = np.where(self.dead.masks[name], values[name], np.float32(0))
        for name, array in self.dead.added.items():
            values[name] = values[name] + array
        return replace(self.graph, tensors=values)

    @property
    def small(self) -> Template:
        return self.template(self.dropped).without(self.dead.removal)

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of tensors that lost something."""
        small = self.small.graph.tensors
        return {
            name: small[name].shape
            for name in self.dead.removal.kept
            if name in small  # a network may lose a tensor's last reader
        }


def net(
    text: str,
    values: Tensors,
    *,
    shape: str = "N,4,6,6",
    out: str = "N,3,6,6",
    settable: set[str] | None = None,
    opset: int = 18,
) -> Net:
    """Return a network in ONNX's textual form, after checking that removal changes nothing."""
    parsed = onnx.parser.parse_graph(f"g (float[{shape}] x) => (float[{out}] y) {{ {text} }}")
    graph = Graph(tuple(parsed.node), tuple(parsed.input), tuple(parsed.output), values, opset)
    matrices = [n for n in values if values[n].ndim > 1 and values[n].dtype == np.float32]
    prunable, _ = find_prunable(graph, graph, matrices)
    masks = Masks({tensor.name: values[tensor.name] != 0 for tensor in prunable})
    free = {*values} if settable is None else settable
    found = Net(graph, masks, find_dead(graph, masks, free), free)
    check(found)
    return found


def check(found: Net) -> None:
    """Check that both steps keep the function, that they are consistent, and that they end."""
    entry = found.graph.inputs[0].type.tensor_type.shape.dim
    generator = np.random.default_rng(1)
    for batch in (1, 3):
        sizes = [batch, *(dim.dim_value for dim in entry[1:])]
        feeds = {"x": generator.standard_normal(sizes).astype(np.float32)}
        whole = run(found.template(found.graph).write_dense().data, feeds)
        dropped = run(found.template(found.dropped).write_dense().data, feeds)
        small = run(found.small.write_dense().data, feeds)
        assert small.shape == whole.shape
        assert relative_error(dropped, whole) < 1e-6
        assert relative_error(small, whole) < 1e-6
    kept = found.dead.removal.kept
    left = Masks({name: cut(name, found.dead.masks[name], kept) for name in found.masks})
    assert left.nonzeros == found.dead.masks.nonzeros, "a living connection was cut off"
    assert all(min(left[name].shape) >= 1 for name in left)
    written = found.small.write_sparse(left, "fp32")  # asserts the predicted size
    assert relative_error(run(written.data, feeds), whole) < 1e-6
    again = find_dead(found.dropped, found.dead.masks, found.settable)
    assert again.masks.nonzeros == found.dead.masks.nonzeros
    assert not again.added
    assert lengths(again) == lengths(found.dead)


def lengths(dead: Dead) -> dict[str, dict[int, int]]:
    return {
        name: {axis: index.size for axis, index in axes.items()}
        for name, axes in dead.removal.kept.items()
    }


# -- which channels go ----------------------------------------------------------------------------

TWO = f"h = Conv {PAD} (x, a, ab)  r = Relu (h)  y = Conv {PAD} (r, b, bb)"


def two() -> Tensors:
    return tensors(a=(5, 4, 3, 3), ab=(5,), b=(3, 5, 3, 3), bb=(3,))


def test_nothing_goes_where_nothing_is_dead() -> None:
    found = net(TWO, two())
    assert not found.dead.removal
    assert found.dead.masks.nonzeros == found.masks.nonzeros
    template = found.template(found.graph)
    assert template.without(found.dead.removal) is template


def test_a_channel_that_nobody_reads_goes_with_its_row_and_bias() -> None:
    values = two()
    values["b"][:, 2] = 0
    found = net(TWO, values)
    assert found.sizes() == {"a": (4, 4, 3, 3), "ab": (4,), "b": (3, 4, 3, 3)}
    assert not found.dead.masks["a"][2].any()
    assert found.dead.masks.nonzeros == found.masks.nonzeros - 36
    assert np.array_equal(found.dead.removal.kept["a"][0], [0, 1, 3, 4])


def test_a_channel_that_is_always_zero_goes_with_what_reads_it() -> None:
    values = two()
    values["a"][[1, 3]] = 0
    values["ab"][[1, 3]] = -0.5
    found = net(TWO, values)
    assert found.sizes() == {"a": (3, 4, 3, 3), "ab": (3,), "b": (3, 3, 3, 3)}
    assert not found.dead.masks["b"][:, [1, 3]].any()
    assert not found.dead.added


def test_a_constant_stays_where_the_border_would_notice() -> None:
    values = two()
    values["a"][1] = 0
    found = net(TWO, values)
    assert not found.dead.removal
    assert not found.dead.added


def test_a_constant_moves_into_the_next_bias_where_nothing_is_padded() -> None:
    values = two()
    values["a"][1] = 0
    text = TWO.replace(f"y = Conv {PAD}", "y = Conv")
    found = net(text, values, out="N,3,4,4")
    assert found.sizes()["b"] == (3, 4, 3, 3)
    expected = values["b"][:, 1].sum(axis=(1, 2)) * values["ab"][1]
    assert np.allclose(found.dead.added["bb"], expected, rtol=1e-5)


@pytest.mark.parametrize("settable", [{"ab"}, {"ab", "bb"}])
def test_a_constant_stays_where_the_bias_cannot_be_set(settable: set[str]) -> None:
    values = two()
    values["a"][1] = 0
    text = TWO.replace(f"y = Conv {PAD}", "y = Conv")
    found = net(text, values, out="N,3,4,4", settable=settable)
    assert bool(found.dead.removal) == ("bb" in settable)


def test_a_constant_stays_where_its_reader_shares_the_bias() -> None:
    values = two() | tensors(c=(3, 3, 1, 1))
    values["a"][1] = 0
    text = TWO.replace(f"y = Conv {PAD}", "z = Conv") + "  y = Conv (z, c, bb)"
    assert not net(text, values, out="N,3,4,4").dead.removal


def test_a_constant_that_one_reader_needs_stays_for_all() -> None:
    values = two() | tensors(c=(3, 5, 1, 1), cb=(3,))
    values["a"][1] = 0
    text = f"{TWO.replace('y =', 'z =')}  p = Conv (r, c, cb)  y = Add (z, p)"
    found = net(text, values)
    assert not found.dead.removal
    assert not found.dead.added
    assert found.dead.masks.nonzeros == found.masks.nonzeros


def test_a_constant_moves_into_the_means_behind_where_the_layer_has_no_bias() -> None:
    values = tensors(
        a=(5, 4, 1, 1), ab=(5,), b=(3, 5, 1, 1), s=(7,), t=(7,), m=(7,), v=(7,),
        c=(3, 7, 1, 1),
    )  # fmt: skip
    values["a"][1] = 0
    text = (
        "h = Conv (x, a, ab)  r = Relu (h)  z = Conv (r, b)"
        "  p = MaxPool <kernel_shape = [2, 2]> (z)  q = MaxPool <kernel_shape = [2, 2]> (x)"
        "  j = Concat <axis = 1> (q, p)  n = BatchNormalization (j, s, t, m, v)  k = Relu (n)"
        "  y = Conv (k, c)"
    )
    found = net(text, values, out="N,3,5,5")
    assert found.sizes()["b"] == (3, 4, 1, 1)
    assert np.array_equal(found.dead.added["m"] != 0, [False] * 4 + [True] * 3)
    # A padded reader of the pooled sum would see the border.
    padded = text.replace("y = Conv", f"w = Conv {PAD} (p, d)  u = Conv (k, c)  y = Add")
    padded = padded.replace("Add (k, c)", "Add (u, w)")
    assert not net(padded, values | tensors(d=(3, 3, 3, 3)), out="N,3,5,5").dead.removal


def test_what_only_fed_a_dead_channel_is_dead() -> None:
    values = two() | tensors(c=(3, 3, 1, 1), cb=(3,))
    values["b"][1, :] *= np.array([0, 0, 1, 0, 0])[:, None, None]  # row 1 reads channel 2 alone
    values["b"][[0, 2], 2] = 0
    values["c"][:, 1] = 0  # and nobody reads row 1
    found = net(f"{TWO.replace('y =', 'z =')}  q = Relu (z)  y = Conv (q, c, cb)", values)
    assert found.sizes() == {
        "a": (4, 4, 3, 3), "ab": (4,), "b": (2, 4, 3, 3), "bb": (2,), "c": (3, 2, 1, 1),
    }  # fmt: skip


def test_a_layer_never_loses_all_its_channels() -> None:
    values = two()
    values["a"][:] = 0
    values["ab"] = -values["ab"]
    found = net(TWO, values)
    assert found.sizes() == {"a": (1, 4, 3, 3), "ab": (1,), "b": (3, 1, 3, 3)}
    assert found.dead.masks.nonzeros == 0


def test_inputs_and_outputs_stay() -> None:
    values = two()
    values["a"][:, 1] = 0
    values["b"][1] = 0
    assert not net(TWO, values).dead.removal


# -- what is tied together ------------------------------------------------------------------------

RESIDUAL = (
    f"h = Conv {PAD} (x, a, ab)  r = Relu (h)  i = Conv {PAD} (r, b, bb)  s = Add (r, i)"
    f"  t = Relu (s)  y = Conv {PAD} (t, c)"
)


def residual() -> Tensors:
    return tensors(a=(5, 4, 3, 3), ab=(5,), b=(5, 5, 3, 3), bb=(5,), c=(3, 5, 3, 3))


def test_a_residual_channel_goes_everywhere_or_nowhere() -> None:
    values = residual()
    values["c"][:, 1] = 0
    assert not net(RESIDUAL, values).dead.removal  # the inner layer reads it
    values["b"][:, 1] = 0
    found = net(RESIDUAL, values)
    assert found.sizes() == {
        "a": (4, 4, 3, 3), "ab": (4,), "b": (4, 4, 3, 3), "bb": (4,), "c": (3, 4, 3, 3),
    }  # fmt: skip


def test_a_residual_channel_that_one_addend_fills_stays() -> None:
    values = residual()
    values["a"][1], values["ab"][1] = 0, -1
    found = net(RESIDUAL, values)
    assert not found.dead.removal
    assert not found.dead.masks["b"][:, 1].any()  # it reads zeros there


def test_a_zero_that_a_sum_reads_stays_a_zero() -> None:
    values = tensors(
        a=(4, 4, 1, 1), ab=(4,), b=(5, 4, 1, 1), bb=(5,), d=(5, 4, 3, 3), c=(3, 5, 3, 3)
    )  # fmt: skip
    values["a"][1] = 0
    values["b"][2] = 0
    values["b"][2, 1], values["bb"][2] = -5, 2  # 2 without what it reads, below 0 with it
    values["ab"][1] = 1
    text = (
        f"g = Conv (x, a, ab)  r = Relu (g)  h = Conv (r, b, bb)  z = Relu (h)"
        f"  i = Conv {PAD} (x, d)  s = Add (z, i)  y = Conv {PAD} (s, c)"
    )
    found = net(text, values)
    assert found.sizes()["a"] == (3, 4, 1, 1)
    assert found.dead.added["bb"][2] == -5


def test_a_zero_that_one_use_of_a_shared_layer_reads_stays_a_zero() -> None:
    values = tensors(a=(4, 4, 1, 1), ab=(4,), w=(4, 4, 1, 1), e=(4, 4, 3, 3), c=(3, 4, 3, 3))
    values["a"][1], values["ab"][1] = 0, -1
    text = (
        f"g = Conv (x, a, ab)  r = Relu (g)  h = Conv (r, w)  i = Conv {PAD} (x, e)"
        f"  j = Conv (i, w)  s = Add (h, j)  y = Conv {PAD} (s, c)"
    )
    assert not net(text, values).dead.removal


def test_a_concatenation_shifts_what_comes_after() -> None:
    values = tensors(
        a=(3, 4, 3, 3), b=(4, 4, 1, 1), s=(7,), t=(7,), m=(7,), v=(7,), c=(3, 7, 1, 1), cb=(3,)
    )
    values["c"][:, [1, 5]] = 0
    found = net(
        f"g = Conv {PAD} (x, a)  h = Conv (x, b)  j = Concat <axis = -3> (g, h)"
        "  n = BatchNormalization (j, s, t, m, v)  k = Relu (n)  y = Conv (k, c, cb)",
        values,
    )
    assert found.sizes() == {
        "a": (2, 4, 3, 3), "b": (3, 4, 1, 1), "c": (3, 5, 1, 1), "s": (5,), "t": (5,), "m": (5,),
        "v": (5,),
    }  # fmt: skip
    assert np.array_equal(found.dead.removal.kept["s"][0], [0, 2, 3, 4, 6])


def test_a_batchnorm_that_scales_by_zero_makes_a_constant() -> None:
    values = tensors(
        a=(3, 4, 3, 3), s=(3,), t=(3,), m=(3,), v=(3,), c=(3, 3, 1, 1), cb=(3,)
    )  # fmt: skip
    values["s"][1] = 0
    text = (
        f"h = Conv {PAD} (x, a)  n = BatchNormalization (h, s, t, m, v)  k = Relu (n)"
        "  y = Conv (k, c, cb)"
    )
    found = net(text, values)
    assert found.sizes()["a"] == (2, 4, 3, 3)
    assert np.allclose(found.dead.added["cb"], values["c"][:, 1, 0, 0] * values["t"][1])


def test_a_depthwise_channel_goes_with_its_group() -> None:
    values = tensors(
        a=(4, 4, 1, 1), ab=(4,), d=(4, 1, 3, 3), db=(4,), c=(3, 4, 1, 1), cb=(3,)
    )  # fmt: skip
    values["c"][:, 2] = 0
    text = (
        "h = Conv (x, a, ab)  r = Relu (h)"
        "  e = Conv <group = 4, pads = [1, 1, 1, 1]> (r, d, db)  f = Relu (e)"
        "  y = Conv (f, c, cb)"
    )
    found = net(text, values)
    assert found.sizes() == {
        "a": (3, 4, 1, 1), "ab": (3,), "d": (3, 1, 3, 3), "db": (3,), "c": (3, 3, 1, 1),
    }  # fmt: skip
    (node,) = (n for n in found.small.graph.nodes if "d" in n.input)
    assert attributes(node)["group"] == 3
    # A filter without weights makes its bias, whatever comes in.
    values["d"][0] = 0
    assert net(text, values).sizes()["d"] == (2, 1, 3, 3)
    values["c"][:, 1] = 0
    alone = net(text, values)
    assert alone.sizes()["d"] == (1, 1, 3, 3)
    (node,) = (n for n in alone.small.graph.nodes if "d" in n.input)
    assert "group" not in attributes(node)


def test_of_a_grouped_convolution_only_whole_groups_go() -> None:
    values = tensors(
        a=(6, 4, 1, 1), ab=(6,), d=(9, 2, 3, 3), db=(9,), c=(3, 9, 1, 1), cb=(3,)
    )  # fmt: skip
    values["c"][:, [3, 4]] = 0
    text = (
        "h = Conv (x, a, ab)  r = Relu (h)  e = Conv <group = 3, pads = [1, 1, 1, 1]> (r, d, db)"
        "  f = Relu (e)  y = Conv (f, c, cb)"
    )
    part = net(text, values)
    assert not part.dead.removal
    assert not part.dead.masks["d"][3:5].any()
    values["c"][:, 5] = 0
    found = net(text, values)
    assert found.sizes() == {
        "a": (4, 4, 1, 1), "ab": (4,), "d": (6, 2, 3, 3), "db": (6,), "c": (3, 6, 1, 1),
    }  # fmt: skip


EXCITE = (
    "h = Conv (x, a, ab)  hs = Sigmoid (h)  r = Mul (h, hs)"
    "  e = Conv <group = 6, pads = [1, 1, 1, 1]> (r, d, db)  es = Sigmoid (e)  f = Mul (e, es)"
    "  q = GlobalAveragePool (f)  q1 = Conv (q, p, pb)  q2 = Relu (q1)  q3 = Conv (q2, g, gb)"
    "  gate = Sigmoid (q3)  z = Mul (gate, f)  y = Conv (z, c, cb)"
)


def excite() -> Tensors:
    return tensors(
        a=(6, 4, 1, 1), ab=(6,), d=(6, 1, 3, 3), db=(6,), p=(2, 6, 1, 1), pb=(2,),
        g=(6, 2, 1, 1), gb=(6,), c=(3, 6, 1, 1), cb=(3,),
    )  # fmt: skip


def test_squeeze_and_excite_loses_what_its_block_loses() -> None:
    values = excite()
    values["c"][:, 4] = 0
    assert not net(EXCITE, values).dead.removal  # the squeeze reads it
    values["p"][:, 4] = 0
    found = net(EXCITE, values)
    assert {name: shape[0] for name, shape in found.sizes().items() if name in "adg"} == {
        "a": 5, "d": 5, "g": 5,
    }  # fmt: skip
    assert found.sizes()["p"] == (2, 5, 1, 1)


def test_a_gated_constant_is_none_but_the_squeeze_can_take_it() -> None:
    values = excite()
    values["d"][4] = 0
    assert not net(EXCITE, values).dead.removal  # the gate varies
    values["c"][:, 4] = 0
    found = net(EXCITE, values)
    assert found.sizes()["d"] == (5, 1, 3, 3)
    assert found.dead.added["pb"].all()


def test_a_shared_layer_is_cut_as_all_its_uses_allow() -> None:
    values = tensors(a=(4, 4, 1, 1), ab=(4,), c=(3, 4, 1, 1))
    values["a"][1], values["ab"][1] = 0, -1
    text = "h = Conv (x, a, ab)  r = Relu (h)  i = Conv (r, a, ab)  s = Relu (i)  y = Conv (s, c)"
    assert not net(text, values).dead.removal  # x is an input: all its channels stay
    text = text.replace("Conv (x, a, ab)", "Conv (x, b)")
    values |= tensors(b=(4, 4, 1, 1))
    values["b"][1] = 0
    found = net(text, values)
    assert found.sizes() == {
        "a": (3, 3, 1, 1), "ab": (3,), "b": (3, 4, 1, 1), "c": (3, 3, 1, 1),
    }  # fmt: skip


# -- what moves channels --------------------------------------------------------------------------

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
    graph = replace(found.graph, nodes=(*found.graph.nodes, branch))
    dead = find_dead(graph, found.masks, {*values})
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


# -- anything -------------------------------------------------------------------------------------


def random_net(seed: int) -> tuple[str, Tensors]:
    """Return a random network of convolutions, gates, sums and concatenations, most of it zero."""
    generator = np.random.default_rng(seed)
    made: Tensors = {}
    text: list[str] = []
    values = {"x": 4}

    def tensor(*shape: int) -> str:
        name = f"t{len(made)}"
        array = generator.standard_normal(shape).astype(np.float32)
        keep = generator.random(shape) < 0.2 if len(shape) > 1 else True
        made[name] = np.where(keep, array, np.float32(0))
        return name

    def layer(source: str, rows: int) -> str:
        name, columns = f"v{len(text)}", values[source]
        size = int(generator.choice([1, 3]))
        given = "<pads = [1, 1, 1, 1]>" if size == 3 else ""
        bias = f", {tensor(rows)}" if generator.random() < 0.7 else ""
        weight = tensor(rows, columns, size, size)
        text.append(f"{name} = Conv {given} ({source}, {weight}{bias})")
        values[name] = rows
        return after(name)

    def after(source: str) -> str:
        name, kind = f"v{len(text)}", generator.integers(5)
        columns = values[source]
        if kind == 0:
            return source
        if kind == 1:
            four = [tensor(columns) for _ in range(4)]
            made[four[3]] = np.abs(made[four[3]]) + np.float32(0.5)
            text.append(f"{name} = BatchNormalization ({source}, {', '.join(four)})")
        elif kind == 2:
            weight, bias = tensor(columns, 1, 3, 3), tensor(columns)
            text.append(
                f"{name} = Conv <group = {columns}, pads = [1, 1, 1, 1]>"
                f" ({source}, {weight}, {bias})"
            )
        else:
            text.append(f"{name} = {'Relu' if kind == 3 else 'HardSwish'} ({source})")
        values[name] = columns
        return name

    last = layer("x", 6)
    for _ in range(6):
        other = str(generator.choice([name for name in values if name != "x"]))
        joined, kind = f"v{len(text)}", generator.integers(3)
        if kind == 0:
            last = layer(other, int(generator.integers(3, 8)))
            continue
        if kind == 1 and values[other] == values[last]:
            text.append(f"{joined} = {generator.choice(['Add', 'Mul'])} ({last}, {other})")
            values[joined] = values[last]
        else:
            text.append(f"{joined} = Concat <axis = 1> ({last}, {other})")
            values[joined] = values[last] + values[other]
        last = layer(after(joined), int(generator.integers(3, 8)))
    text.append(f"y = Conv ({last}, {tensor(3, values[last], 1, 1)}, {tensor(3)})")
    return "  ".join(text), made


def test_random_networks_compute_the_same() -> None:
    removed = added = 0
    for seed in range(40):
        found = net(*random_net(seed))
        removed += bool(found.dead.removal)
        added += bool(found.dead.added)
    assert removed > 20
    assert added > 5


def test_arrays_go_there_and_back() -> None:
    kept: Mapping[str, Mapping[int, NDArray[np.int64]]] = {
        "w": {0: np.array([0, 2]), 2: np.array([1])}
    }
    whole = np.arange(24).reshape(3, 2, 4)
    small = cut("w", whole, kept)
    assert small.shape == (2, 2, 1)
    back = spread("w", small, kept, np.full_like(whole, -1))
    assert np.array_equal(back[[0, 2]][:, :, 1], whole[[0, 2]][:, :, 1])
    assert np.count_nonzero(back == -1) == 20
    assert cut("other", whole, kept) is whole
