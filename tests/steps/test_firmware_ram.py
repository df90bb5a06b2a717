"""What is said of a network that takes more RAM than a device has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from steps_tools import At

from hwprune.errors import InfeasibleError
from hwprune.job import resolve
from hwprune.steps.firmware import check_ram
from hwprune.targets import Target, load


def network(size: int, *, flat: bool, stride: int = 1) -> onnx.ModelProto:
    """Two convolutions over a square image; behind them an average, or a matrix of its size."""
    draw = np.random.default_rng(0).standard_normal
    side = size // stride
    held = {
        "a.weight": draw((8, 3, 3, 3)), "b.weight": draw((8, 8, 3, 3)),
        "c.weight": draw((4, 8 * side * side if flat else 8)),
        "axes": np.asarray([2, 3], np.int64),
    }  # fmt: skip
    pads = {"pads": [1, 1, 1, 1]}
    even = {"pads": [0, 0, 1, 1], "strides": [stride, stride]} if stride > 1 else pads
    last = ("Flatten", ["y"], {}) if flat else ("ReduceMean", ["y", "axes"], {"keepdims": 0})
    nodes = [
        helper.make_node("Conv", ["x", "a.weight"], ["h"], **pads),
        helper.make_node("Conv", ["h", "b.weight"], ["y"], **even),
        helper.make_node(last[0], last[1], ["f"], **last[2]),
        helper.make_node("Gemm", ["f", "c.weight"], ["z"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4])],
        [
            numpy_helper.from_array(
                value if value.dtype == np.int64 else value.astype(np.float32), name
            )
            for name, value in held.items()
        ],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture
def chip(tmp_path: Path) -> Target:
    place = tmp_path / "small.toml"
    place.write_text(
        'extends = "nrf52840"\n[memory]\nram_bytes = { value = 3_000, source = "a test" }\n'
    )
    return load(str(place))


@pytest.mark.parametrize("stride", [1, 2])
def test_the_largest_input_that_fits_is_named(chip: Target, stride: int) -> None:
    with pytest.raises(InfeasibleError, match="of RAM at '") as caught:
        check_ram(network(64, flat=False, stride=stride), "n", chip)
    said = (caught.value.hint or "").removeprefix("take a target with more RAM, or a smaller input")
    channels, side, other = map(int, said.removeprefix(": ").removesuffix(" fits").split("x"))
    assert (channels, side) == (3, other)
    assert 0 < side < 64
    check_ram(network(side, flat=False, stride=stride), "n", chip)
    with pytest.raises(InfeasibleError):
        check_ram(network(side + stride, flat=False, stride=stride), "n", chip)


def test_an_input_whose_size_is_fixed_is_not_shrunk(chip: Target) -> None:
    with pytest.raises(InfeasibleError, match="of RAM at '") as caught:
        check_ram(network(64, flat=True), "n", chip)
    assert "fits" not in (caught.value.hint or "")


def test_a_limit_on_ram_is_what_firmware_is_laid_out_for(prepared: At) -> None:
    model = prepared("nrf52840").model
    chip = load("nrf52840")

    def asked(*limits: str, firmware: bool | None = True) -> Target:
        return resolve(model, chip, None, Path("o"), limits=limits, firmware=firmware).target

    assert asked().ram_limit_bytes is None
    assert asked("ram<=36KiB", "ram<20000B", "flash<=1MB").ram_limit_bytes == 19_999
    # Nothing calibrates int8 activations here; the RAM of a file alone is that of int8.
    assert asked().activations == "fp32"
    assert asked(firmware=None).activations == "int8"
