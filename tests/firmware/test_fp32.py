"""Activations of fp32: the C equals its reference, which is within a bound of onnxruntime."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from float_networks import NETWORKS, samples_of
from test_boards import BOARDS, need_compiler, need_machine
from test_runtime import SANITIZE, replayed

from hwprune.firmware import code_size, emit, emulate, link, memory_plan, reference
from hwprune.firmware.host import HostModel, checksum
from hwprune.firmware.lower import in_fp32, read_layers
from hwprune.firmware.network import IntegerNetwork
from hwprune.firmware.qlinear import from_onnx, to_onnx
from hwprune.verify import runner
from hwprune.verify.firmware import FLOAT_BOUND, FLOAT_STACK_BYTES


def made_of(name: str) -> tuple[IntegerNetwork, np.ndarray]:
    model = NETWORKS[name]()
    return in_fp32(read_layers(model, "n")), samples_of(model)[:2]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_is_within_the_bound_of_onnxruntime(name: str, tmp_path: Path) -> None:
    network, x = made_of(name)
    path = tmp_path / "every.onnx"
    path.write_bytes(to_onnx(network, real=False).SerializeToString())
    names = [layer.output for layer in network.layers]
    stock = runner.open_session(str(path)).run(names, {network.input: x})
    expected = reference.run(network, x)
    for tensor, values in zip(names, stock, strict=True):
        assert np.abs(expected[tensor] - values).max() <= FLOAT_BOUND * np.abs(values).max()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_c_equals_the_reference_also_streamed(name: str, tmp_path: Path) -> None:
    network, x = made_of(name)
    expected = reference.run(network, x)
    roomy = memory_plan.plan(network)
    plans = [roomy]
    if name in ("plain", "residual"):  # larger than one pixel or row
        plans.append(memory_plan.plan(network, roomy.ram_bytes * 9 // 10))
    for plan in plans:
        place = tmp_path / str(plan.ram_bytes)
        emit.write(network, place, plan)
        outputs, sums = HostModel(place, plan).run(x)
        for output, values in zip(network.outputs, outputs, strict=True):
            assert np.array_equal(values, expected[output])
        for i, of_run in enumerate(sums):
            wrong = [name for name in of_run if checksum(expected[name][i]) != of_run[name]]
            assert wrong == []


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("name", ["plain", "residual", "one_dimension", "cut_average"])
def test_sanitizers_find_nothing(name: str, tmp_path: Path) -> None:
    network, x = made_of(name)
    emit.write(network, tmp_path, memory_plan.plan(network))
    expected = reference.run(network, x)[network.outputs[0]]
    assert replayed(tmp_path, x, SANITIZE) == expected.tobytes()


@pytest.mark.parametrize("board", ["mps2-an386", "mps2-an500", "mps2-an385", "virt"])
def test_boards_with_and_without_an_fpu_equal_the_reference(board: str, tmp_path: Path) -> None:
    need_machine(BOARDS[board])
    network, x = made_of("plain")
    expected, plan = reference.run(network, x), memory_plan.plan(network)
    emit.write(network, tmp_path, plan)
    done = emulate.run(tmp_path, plan, BOARDS[board], x)
    for i, of_run in enumerate(done.sums):
        assert {n: checksum(expected[n][i]) for n in plan.placements} == of_run
    assert done.stack_bytes <= FLOAT_STACK_BYTES


@pytest.mark.parametrize("core", ["Cortex-M0", "Cortex-M3", "Cortex-M4F", "RV32IMC"])
def test_constants_and_code_were_predicted(core: str, tmp_path: Path) -> None:
    need_compiler(core)
    network, _ = made_of("residual")
    plan = memory_plan.plan(network)
    emitted = emit.write(network, tmp_path, plan)
    image = link.link(tmp_path, replace(BOARDS["mps2-an386"].chip, core=core))
    code = image.flash_bytes - emitted.constant_bytes
    predicted = code_size.code_bytes(core, plan, emitted.formats.values())
    assert code <= predicted <= code * 1.06, "python benchmarks/mcu.py --code-bytes"
    assert image.ram_bytes >= plan.ram_bytes + image.stack_bytes


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_is_read_back_as_it_was(name: str) -> None:
    network, x = made_of(name)
    again = from_onnx(to_onnx(network))
    assert again.activations == "fp32"
    assert again.tensors == network.tensors
    expected, found = reference.run(network, x), reference.run(again, x)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
