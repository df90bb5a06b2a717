"""removable_channels: channels that only go together, or not at all."""

from __future__ import annotations

import numpy as np
from dead_nets import PAD, Tensors, net, tensors

from hwprune.export.graph import attributes, input_names

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
    (node,) = (n for n in found.small.graph.nodes if "d" in input_names(n))
    assert attributes(node)["group"] == 3
    # A filter without weights makes its bias, whatever comes in.
    values["d"][0] = 0
    assert net(text, values).sizes()["d"] == (2, 1, 3, 3)
    values["c"][:, 1] = 0
    alone = net(text, values)
    assert alone.sizes()["d"] == (1, 1, 3, 3)
    (node,) = (n for n in alone.small.graph.nodes if "d" in input_names(n))
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
