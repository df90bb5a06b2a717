"""Which speed a session has, what is refused, and that sessions do not disturb each other."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from kernel_cases import Layer, make_layer, model_bytes, model_of
from onnx import TensorProto, helper, numpy_helper

import hwprune
from hwprune import kernels
from hwprune.errors import ArtifactError, KernelsError
from hwprune.export.operators import Operator
from hwprune.kernels import library
from hwprune.kernels.session import CPU, operator_names

ROOT = Path(__file__).resolve().parents[2]
needs_kernels = pytest.mark.skipif(library.path() is None, reason="the kernels are not built here")
NAME = "CsrConvGap8I8Bias"
X = np.random.default_rng(0).standard_normal((2, 8, 6, 5)).astype(np.float32)


def layer_of(codec: Any = "gap8", value_type: Any = "int8", bias: bool = True) -> Layer:
    operator = Operator("Conv", codec, value_type, bias)
    return make_layer(operator, (12, 8, 3, 3), density=0.2, seed=1, pads=[1, 1, 1, 1])


def data_of(**options: Any) -> bytes:
    return model_bytes(layer_of(**options), 4, 4)


def run(session: Any, x: Any = X) -> Any:
    return session.run(None, {"x": x})[0]


# -- the two speeds ------------------------------------------------------------------------------


@needs_kernels
def test_a_file_runs_at_both_speeds(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data_of())
    fast, stock = hwprune.session(path), hwprune.session(str(path), kernels=False)
    assert fast.hwprune == kernels.Speed((NAME,), None)
    assert stock.hwprune == kernels.Speed((), "kernels=False")
    # The sum runs in another order, so equal bits would mean that one speed is not what it says.
    difference = np.abs(run(fast) - run(stock)).max()
    assert 0 < difference < 1e-5 * np.abs(run(stock)).max()


@needs_kernels
def test_kernels_are_for_the_cpu() -> None:
    other = next((p for p in onnxruntime.get_available_providers() if p != CPU), None)
    if other is None:
        pytest.skip("this onnxruntime has no other provider")
    for first in (other, (other, {})):
        session = hwprune.session(data_of(), providers=[first, CPU])
        assert session.hwprune.registered == ()
        assert other in session.hwprune.reason
        assert run(session).shape == (2, 12, 6, 5)
    assert hwprune.session(data_of(), providers=[CPU, other]).hwprune.registered == (NAME,)
    assert hwprune.session(data_of(), providers=[(CPU, {})]).hwprune.registered == (NAME,)


def test_without_the_library_files_run_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "FILE_NAME", "libabsent.so")
    session = hwprune.session(data_of())
    assert session.hwprune.registered == ()
    assert "has no libabsent.so" in session.hwprune.reason
    assert run(session).shape == (2, 12, 6, 5)
    assert kernels.path() is None
    assert kernels.status().startswith("no kernels: ")
    assert kernels.resident_bytes() == 0
    with pytest.raises(KernelsError, match=r"libabsent\.so") as raised:
        hwprune.register_kernels(onnxruntime.SessionOptions())
    assert "make kernels" in str(raised.value.hint)


def test_a_library_that_cannot_be_loaded_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(library, "path", lambda: broken)
    assert "cannot be loaded" in kernels.status()
    assert "cannot be loaded" in hwprune.session(data_of()).hwprune.reason


@needs_kernels
def test_nothing_is_loaded_from_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / library.FILE_NAME).write_bytes(b"not a library")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert library.path() == ROOT / "hwprune" / "kernels" / library.FILE_NAME
    assert kernels.status() == f"kernels: {kernels.status().split()[-1]}"


@needs_kernels
def test_options_are_registered_once() -> None:
    options = onnxruntime.SessionOptions()
    one, other = data_of(), data_of(codec="rice", value_type="fp16")
    for _ in range(2):
        assert hwprune.session(one, session_options=options).hwprune.registered == (NAME,)
    with pytest.raises(KernelsError, match="another file") as raised:
        hwprune.session(other, session_options=options)
    assert raised.value.hint is not None
    # What is not registered runs the file's functions.
    assert run(onnxruntime.InferenceSession(other, options)).shape == (2, 12, 6, 5)
    everything = onnxruntime.SessionOptions()
    hwprune.register_kernels(everything)
    sessions = []
    gc.collect()
    for data in (one, other):
        before = kernels.resident_bytes()
        sessions.append(onnxruntime.InferenceSession(data, everything))
        assert kernels.resident_bytes() > before
        assert run(sessions[-1]).shape == (2, 12, 6, 5)


@needs_kernels
def test_weights_are_counted_while_they_live() -> None:
    gc.collect()
    before = kernels.resident_bytes()
    session = hwprune.session(data_of())
    nonzeros = layer_of().packed.nonzeros
    assert kernels.resident_bytes() - before >= 6 * nonzeros
    del session
    gc.collect()
    assert kernels.resident_bytes() == before


@needs_kernels
def test_sessions_run_in_threads() -> None:
    shared = hwprune.session(data_of(), threads=2)
    stock = hwprune.session(data_of(), kernels=False, threads=1)

    def one(number: int) -> bool:
        own = hwprune.session(data_of(), threads=1)
        x = np.random.default_rng(number).standard_normal((number % 4, 8, 6 + number % 3, 9))
        x = x.astype(np.float32)
        right = run(stock, x)
        return all(
            np.allclose(run(session, x), right, rtol=0, atol=1e-4) for session in (own, shared)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(40)))


@needs_kernels
@pytest.mark.parametrize("simd", ["scalar", "avx2"])
def test_each_instruction_set_gives_the_same(simd: str, tmp_path: Path) -> None:
    path, x, y = tmp_path / "model.onnx", tmp_path / "x.npy", tmp_path / "y.npy"
    path.write_bytes(data_of())
    np.save(x, X)
    code = (
        "import sys, numpy as np, hwprune; from hwprune import kernels\n"
        f's = hwprune.session({str(path)!r}, kernels="all"); x = np.load({str(x)!r})\n'
        f"np.save({str(y)!r}, s.run(None, {{'x': x}})[0]); print(kernels.status())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "HWPRUNE_SIMD": simd},
    )  # fmt: skip
    right = run(hwprune.session(path, kernels=False))
    assert np.abs(np.load(y) - right).max() < 1e-5 * np.abs(right).max()
    if simd == "scalar" and os.uname().machine == "x86_64":
        assert done.stdout.strip() == "kernels: scalar"


# -- what is refused -----------------------------------------------------------------------------

WEIGHT = layer_of().packed.arrays


def beyond_the_end() -> Any:
    index = WEIGHT["index"].copy()
    index[:8] = 255
    return index


@needs_kernels
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": beyond_the_end()}, "in a tensor of 864 weights"),
        ({"index": WEIGHT["index"][:-1]}, "is not that of the values"),
        ({"index": np.append(WEIGHT["index"], np.uint8(0))}, "ends in a skip"),
        ({"index": WEIGHT["index"].astype(np.uint16)}, "expected one axis of uint8"),
        ({"index": WEIGHT["index"][None]}, "expected one axis of uint8"),
        ({"values": WEIGHT["values"][1:]}, "is not that of the values"),
        ({"values": WEIGHT["values"].astype(np.float32)}, "type"),
        ({"scale": WEIGHT["scale"][:5]}, "does not fit"),
        ({"scale": WEIGHT["scale"].astype(np.int8)}, "expected float32 or float16"),
        ({"bias": np.zeros(13, np.float32)}, "bias of shape"),
        ({"shape": [12, 8, 3]}, "pads|positions|weights"),
        ({"shape": [2**40, 2**40, 3, 3]}, "not that of a weight"),
        ({"shape": [2**30, 1, 1, 1]}, "rows"),
        ({"group": 5}, "in 5 groups"),
        ({"pads": [1, 1, -1, 1]}, "out of range"),
        ({"strides": [0, 1]}, "out of range"),
        ({"dilations": [1, 2**62]}, "out of range"),
        ({"count": 3}, "count"),
        ({"strides": [1.5, 1.5]}, "strides is empty or of another type"),
        ({"strides": 2}, "strides is empty or of another type"),
        ({"strides": "22"}, "strides is empty or of another type"),
        ({"group": [2]}, "group is of another type"),
    ],
)
def test_malformed_files_are_refused_when_they_are_loaded(
    changes: dict[str, Any], message: str
) -> None:
    data = model_bytes(layer_of(), 4, 4, **changes)
    with pytest.raises(Exception, match=rf"hwprune\.{NAME} 'layer': .*({message})"):
        hwprune.session(data)


@needs_kernels
@pytest.mark.parametrize("role", ["values", "index", "scale", "bias"])
def test_weights_that_are_no_constants_are_refused(role: str) -> None:
    model = model_of(layer_of(), 4, 4)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == role)
    # An initializer that is an input besides can be given at each run.
    model.graph.input.append(
        helper.make_tensor_value_info(role, tensor.data_type, list(tensor.dims))
    )
    data = model.SerializeToString()
    assert run(hwprune.session(data, kernels=False)).shape == (2, 12, 6, 5)
    with pytest.raises(Exception, match=rf"\({role}\) is not a constant initializer"):
        hwprune.session(data)


@needs_kernels
@pytest.mark.parametrize("shape", [(2, 7, 6, 5), (0, 9, 6, 5)])
def test_inputs_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(Exception, match="expected 8 channels and 2 spatial axes"):
        run(hwprune.session(data_of()), np.zeros(shape, np.float32))


@needs_kernels
def test_constants_that_nodes_make_are_constants() -> None:
    model = model_of(layer_of(), 4, 4)
    bias = model.graph.initializer.pop()
    assert bias.name == "bias"
    node = helper.make_node("Constant", [], ["bias"], value=numpy_helper.from_array(
        numpy_helper.to_array(bias)
    ))  # fmt: skip
    model.graph.node.insert(0, node)
    session = hwprune.session(model.SerializeToString())
    right = run(hwprune.session(data_of(), kernels=False))
    assert np.abs(run(session) - right).max() < 1e-4


def test_a_file_that_is_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        operator_names(tmp_path / "absent.onnx")


def test_names_are_those_of_nodes(tmp_path: Path) -> None:
    model, other = model_of(layer_of(), 4, 4), model_of(layer_of("rice", "fp32", bias=False), 4, 4)
    model.graph.node.extend([other.graph.node[0], model.graph.node[0]])
    model.graph.node.add(op_type="CsrConvGap8F32", domain="of others")
    model.graph.node.add(op_type="DenseConvF32", domain="hwprune")
    names = ("CsrConvGap8I8Bias", "CsrConvRiceF32")
    data = model.SerializeToString()
    assert operator_names(data) == names
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    assert operator_names(path) == names
    assert operator_names(data[:-1]) == operator_names(b"\x07") == ()
    path.write_bytes(b"")
    assert operator_names(path) == ()


# -- a runtime that refuses the version ----------------------------------------------------------

REFUSED = """
import ctypes, sys
from hwprune.kernels import library

status = ctypes.create_string_buffer(b"a status")
asked, messages = [], []
CREATE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
GET = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
TEXT = ctypes.CFUNCTYPE(ctypes.c_char_p)

def create(code, message):
    messages.append((code, message.decode()))
    return ctypes.addressof(status)

create = CREATE(create)
first = (ctypes.c_void_p * 300)(ctypes.cast(create, ctypes.c_void_p))
has_first = sys.argv[1] == "first"

def get(version):
    asked.append(version)
    return ctypes.addressof(first) if version == 1 and has_first else None

class Base(ctypes.Structure):
    _fields_ = [("get", GET), ("text", TEXT)]

base = Base(GET(get), TEXT(lambda: b"1.14.1"))
register = library.loaded().RegisterCustomOps
register.restype = ctypes.c_void_p
register.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
returned = register(None, ctypes.addressof(base) if sys.argv[1] != "null" else None)
assert returned == ctypes.addressof(status), returned
assert asked == [17, 1], asked
print(messages)
"""


def register_with(kind: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", REFUSED, kind], capture_output=True, text=True, check=False, cwd=ROOT
    )


@needs_kernels
def test_a_refused_version_is_an_error_that_names_it() -> None:
    done = register_with("first")
    assert done.returncode == 0, done.stderr
    for part in ("onnxruntime 1.14.1", "refuses C API version 17", "1.17"):
        assert part in done.stdout


@needs_kernels
@pytest.mark.parametrize("kind", ["none", "null"])
def test_where_no_error_can_be_returned_the_process_ends(kind: str) -> None:
    done = register_with(kind)
    assert done.returncode == -6
    assert "hwprune: " in done.stderr
    assert "refusing to go on" in done.stderr


@needs_kernels
def test_a_refusal_reaches_the_caller_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    class Options:
        intra_op_num_threads = 0

        def register_custom_ops_library(self, path: str) -> None:
            assert path == str(library.path())
            raise RuntimeError("no version 17 here")

    with pytest.raises(KernelsError, match="no version 17 here") as raised:
        hwprune.register_kernels(Options(), data_of())
    assert "kernels=False" in str(raised.value.hint)


@needs_kernels
def test_the_library_shows_only_its_own_functions() -> None:
    shown = ctypes.CDLL(str(library.path()))
    assert shown.RegisterCustomOps
    assert shown.hwprune_abi_version() == library.API_VERSION
    assert TensorProto.FLOAT16 == 10  # the numbers in ort_abi.h
    assert [TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16] == [
        1, 2, 3, 4,
    ]  # fmt: skip
