"""The reference is what onnxruntime computes, in every tensor; wrong roundings are noticed."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from random_networks import KINDS, network, random_input

from hwprune.errors import ArtifactError
from hwprune.firmware import reference
from hwprune.firmware.network import Add, AveragePool, Conv2d, IntegerNetwork, QuantizedTensor
from hwprune.firmware.qlinear import from_onnx, to_onnx


def run_onnx(model: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    feeds = {session.get_inputs()[0].name: x}
    return dict(zip(names, session.run(names, feeds), strict=True))


def differing(made: IntegerNetwork, x: np.ndarray) -> dict[str, int]:
    """Return how many values of each tensor are not onnxruntime's."""
    expected = run_onnx(to_onnx(made, real=False), x)
    found = reference.run(made, x)
    assert set(expected) == set(found) - {made.input}
    return {name: int((found[name] != value).sum()) for name, value in expected.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_what_onnxruntime_computes(kind: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(25):
        made = KINDS[kind](rng)
        assert set(differing(made, random_input(rng, made)).values()) == {0}


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_sound_and_takes_real_values(kind: str) -> None:
    rng = np.random.default_rng(4)
    made = KINDS[kind](rng)
    model = to_onnx(made)
    onnx.checker.check_model(model)
    x = random_input(rng, made)
    inside = reference.run(made, x)
    found = run_onnx(model, reference.dequantize(x, made.tensors[made.input]))
    name = made.outputs[0]
    expected = reference.dequantize(inside[name], made.tensors[name])
    np.testing.assert_array_equal(found["output0"], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_read_back_as_it_was(kind: str) -> None:
    rng = np.random.default_rng(10)
    for _ in range(5):
        made = KINDS[kind](rng)
        model = to_onnx(made)
        again = from_onnx(model)
        assert to_onnx(again).SerializeToString() == model.SerializeToString()
        x = random_input(rng, made)
        expected, found = reference.run(made, x), reference.run(again, x)
        assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_another_file_is_refused() -> None:
    model = to_onnx(KINDS["conv"](np.random.default_rng(11)))
    del model.graph.initializer[-1]
    for broken in (model, onnx.ModelProto()):
        with pytest.raises(ArtifactError, match="no integer network"):
            from_onnx(broken)


# -- roundings: each wrong one has to be seen -----------------------------------------------------


def near_ties(rng: np.random.Generator) -> tuple[IntegerNetwork, np.ndarray]:
    """A convolution whose biases bring its values as near to k + 1/2 as int32 allows.

    Half of the scales are powers of two, so that ties are exact; some accumulators need more than
    24 bits.
    """
    count = 4096
    x = QuantizedTensor("x", (1, 1, 1), np.float32(0.5), 3)
    y = QuantizedTensor("y", (count, 1, 1), np.float32(0.5), -5)
    scale = (10.0 ** rng.uniform(-6.5, -2, count)).astype(np.float32)
    scale[::2] = 2.0 ** -rng.integers(1, 12, count // 2)
    bias = np.rint((rng.integers(-120, 120, count) + 0.5) / scale.astype(np.float64))
    layer = Conv2d(
        "y", ("x",), "y", np.ones((count, 1, 1, 1), np.int8), scale, bias.astype(np.int32)
    )
    return network([layer], [x, y], settle=False), np.full((1, 1, 1, 1), 3, np.int8)


def half_up(values: np.ndarray) -> np.ndarray:
    return np.floor(values + 0.5)


def half_away(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.floor(np.abs(values) + 0.5)


def fixed_point(acc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The usual integer form: a 31-bit multiplier, a shift, rounding half up."""
    return np.array(
        [
            [
                int((Fraction(float(s)) * int(a) * 2 + 1) // 2)
                for a, s in zip(row, scale, strict=True)
            ]
            for row in acc.reshape(len(acc), -1)
        ]
    ).reshape(acc.shape)


def in_double(acc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.rint(acc * scale.astype(np.float64))


WRONG: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "half up": lambda acc, s: half_up(acc.astype(np.float32) * s),
    "half away": lambda acc, s: half_away(acc.astype(np.float32) * s),
    "fixed point": fixed_point,
    "without rounding the product": in_double,
}


def test_values_near_ties_are_those_of_onnxruntime() -> None:
    made, x = near_ties(np.random.default_rng(5))
    assert differing(made, x) == {"y": 0}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_rounding_of_a_product_is_seen(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def requantize(acc: np.ndarray, scale: Any, zero: int, clamp: Any = (-128, 127)) -> np.ndarray:
        steps = WRONG[wrong](acc.reshape(acc.shape[:2]), np.ravel(scale)).reshape(acc.shape)
        return np.clip(steps + zero, *clamp).astype(np.int8)

    monkeypatch.setattr(reference, "requantize", requantize)
    made, x = near_ties(np.random.default_rng(5))
    assert differing(made, x)["y"] > 0


def test_another_order_of_the_scales_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def multipliers(self: IntegerNetwork, layer: Any) -> np.ndarray:
        x, y = self.tensors[layer.inputs[0]], self.tensors[layer.output]
        return np.asarray(layer.weight_scale * np.float32(x.scale / y.scale), np.float32)

    made, x = near_ties(np.random.default_rng(6))
    scales = {"x": np.float32(0.0371), "y": np.float32(0.0593)}
    tensors = {
        name: QuantizedTensor(name, old.shape, scales[name], old.zero_point)
        for name, old in made.tensors.items()
    }
    (layer,) = made.layers
    assert isinstance(layer, Conv2d)
    scale = made.multipliers(layer) * scales["x"] / scales["y"]
    ties = (np.random.default_rng(7).integers(-120, 120, len(scale)) + 0.5) / scale.astype(float)
    moved = Conv2d(
        "y", ("x",), "y", layer.weight, layer.weight_scale, np.rint(ties).astype(np.int32)
    )
    made = IntegerNetwork("n", tensors, "x", ("y",), (moved,))
    assert differing(made, x) == {"y": 0}
    monkeypatch.setattr(IntegerNetwork, "multipliers", multipliers)
    assert differing(made, x)["y"] > 0


def halves_of_sums() -> tuple[IntegerNetwork, np.ndarray]:
    """Twice a quarter of every int8, to a zero point that is odd."""
    x = QuantizedTensor("x", (4, 16, 16), np.float32(1 / 64), -3)
    y = QuantizedTensor("y", (4, 16, 16), np.float32(1 / 16), 5)
    made = network([Add("y", ("x", "x"), "y", (16, 16))], [x, y])
    return made, np.arange(-128, 128, dtype=np.int8).repeat(4).reshape(1, 4, 16, 16)


@pytest.mark.parametrize("wrong", [half_up, half_away])
def test_another_rounding_of_a_sum_is_seen(
    wrong: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, values = halves_of_sums()
    assert differing(made, values) == {"y": 0}
    monkeypatch.setattr(np, "rint", wrong)
    assert differing(made, values)["y"] > 0


def test_rounding_before_the_zero_point_is_added_is_seen_in_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, values = halves_of_sums()
    rounded = np.rint
    monkeypatch.setattr(np, "rint", lambda steps: rounded(steps - 5) + 5)
    assert differing(made, values)["y"] > 0


def test_rounding_before_the_zero_point_is_added_is_seen_in_averages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tie goes to the even value of the sum with the zero point, where that is odd."""
    rng = np.random.default_rng(9)
    x = QuantizedTensor("x", (8, 8, 8), np.float32(0.25), 0)
    y = QuantizedTensor("y", (8, 4, 4), np.float32(0.25), 1)
    layer = AveragePool("y", ("x",), "y", (2, 2), (2, 2))
    made = network([layer], [x, y], settle=False)
    values = rng.integers(-128, 128, (2, 8, 8, 8)).astype(np.int8)
    assert differing(made, values) == {"y": 0}

    def average(layer: Any, image: Any, x: Any, y: Any) -> np.ndarray:
        total = image.reshape(len(image), 8, 4, 2, 4, 2).sum((3, 5))
        return np.clip(np.rint(total / 4) + y.zero_point, -128, 127).astype(np.int8)

    monkeypatch.setattr(reference, "_average", average)
    assert differing(made, values)["y"] > 0
