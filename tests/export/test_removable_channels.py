"""removable_channels: what goes, what stays, and that the network computes the same without it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from dead_nets import PAD, TWO, Tensors, net, tensors, two
from numpy.typing import NDArray

from hwprune.export.removal import gather_channels, scatter_channels


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
    small = gather_channels("w", whole, kept)
    assert small.shape == (2, 2, 1)
    back = scatter_channels("w", small, kept, np.full_like(whole, -1))
    assert np.array_equal(back[[0, 2]][:, :, 1], whole[[0, 2]][:, :, 1])
    assert np.count_nonzero(back == -1) == 20
    assert gather_channels("other", whole, kept) is whole
