"""An integer network that is not sound is refused by name; a sound one computes what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_networks import KINDS, conv, network, random_input, tensor

from hwprune.errors import HwpruneError
from hwprune.firmware import reference
from hwprune.firmware.network import Conv2d, IntegerNetwork, Linear, QuantizedTensor


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_computed_in_its_shape(kind: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        made = KINDS[kind](rng)
        values = reference.run(made, random_input(rng, made))
        assert set(values) == set(made.tensors)
        for name, value in values.items():
            assert value.dtype == np.int8
            assert value.shape == (3, *made.tensors[name].shape)


def pointwise(**changes: object) -> IntegerNetwork:
    rng = np.random.default_rng(1)
    x = tensor(rng, "x", (2, 3, 3))
    layer, y = conv(rng, x, "y", 4, kernel=(1, 1))
    layer = replace(layer, **changes)  # type: ignore[arg-type]
    return IntegerNetwork("n", {"x": x, "y": y}, "x", ("y",), (layer,))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"inputs": ("z",)}, "nothing has made"),
        ({"output": "x"}, "a second time"),
        ({"weight": np.zeros((4, 3, 1, 1), np.int8)}, "groups"),
        ({"weight": np.zeros((4, 2, 1, 1), np.float32)}, "types"),
        ({"bias": np.full(4, 2**31 - 100, np.int32)}, "beyond int32"),
        ({"bias": np.zeros(3, np.int32)}, "scales and biases"),
        ({"weight_scale": np.zeros(4, np.float32)}, "not a positive number"),
        ({"strides": (2, 2)}, "was promised"),
        ({"clamp": (5, 5)}, "clamps"),
    ],
)
def test_a_network_that_is_not_sound_is_refused_by_layer(
    changes: dict[str, object], what: str
) -> None:
    with pytest.raises(HwpruneError, match=what) as caught:
        pointwise(**changes).validate()
    assert "Conv2d 'y'" in caught.value.message


@pytest.mark.parametrize("more", [0, 1])
def test_no_sum_of_weights_passes_int32(more: int) -> None:
    """A bound that holds for whatever input, by the weights alone."""
    count = ((1 << 31) - 1) // (127 * 510) + more
    rng = np.random.default_rng(1)
    x, y = tensor(rng, "x", (count,)), tensor(rng, "y", (1,))
    one = np.ones(1, np.float32)
    weight = np.full((1, count), -127, np.int8)
    layer = Linear("wide", ("x",), "y", weight, one, np.zeros(1, np.int32))
    made = IntegerNetwork("n", {"x": x, "y": y}, "x", ("y",), (layer,))
    if not more:
        made.validate()
        return
    with pytest.raises(HwpruneError, match=r"'wide' may sum up to 2,147,5.*, beyond int32"):
        made.validate()


def test_an_addition_of_inexact_ratios_is_refused() -> None:
    rng = np.random.default_rng(2)
    made = KINDS["add"](rng)
    y = made.tensors["y"]
    for scale in (np.float32(y.scale * 1.001), np.float32(y.scale * 2)):
        tensors = {**made.tensors, "y": replace(y, scale=scale)}
        with pytest.raises(HwpruneError, match="which is not its scale"):
            replace(made, tensors=tensors).validate()


def test_a_convolution_is_the_sum_over_its_window() -> None:
    x = QuantizedTensor("x", (1, 3, 3), np.float32(1), 3)
    y = QuantizedTensor("y", (1, 2, 2), np.float32(2), -7)
    weight = np.array([[[[1, 2], [0, -3]]]], np.int8)
    layer = Conv2d(
        "y", ("x",), "y", weight, np.ones(1, np.float32), np.array([5], np.int32),
        strides=(2, 2), pads=(0, 0, 1, 1),
    )  # fmt: skip
    values = np.arange(9, dtype=np.int8).reshape(1, 1, 3, 3)
    padded = np.pad(values[0, 0].astype(int) - 3, ((0, 1), (0, 1)))
    expected = []
    for row in (0, 2):
        for column in (0, 2):
            window = padded[row : row + 2, column : column + 2]
            expected.append(round((int((window * weight[0, 0]).sum()) + 5) / 2) - 7)
    found = reference.run(network([layer], [x, y]), values)["y"]
    assert found.ravel().tolist() == expected


def test_real_values_survive_a_round_trip_within_half_a_step() -> None:
    there = QuantizedTensor("x", (5,), np.float32(0.1), -28)
    real = np.array([-10, -0.26, 0, 3.14, 99], np.float32)
    q = reference.quantize(real, there)
    assert q.tolist() == [-128, -31, -28, 3, 127]
    back = reference.dequantize(q, there)
    assert np.abs(back[1:4] - real[1:4]).max() <= 0.05 + 1e-6
