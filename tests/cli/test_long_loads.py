"""Files that onnxruntime loads for minutes: a deadline, and signals, end the process at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from hwprune.cli import main as edge
from hwprune.errors import ArtifactError, VerificationError
from hwprune.export.artifact import read_artifact
from hwprune.verify.deadline import limited, loads_within


def functions(calls: int, depth: int, *, back: bool = False) -> onnx.ModelProto:
    """A graph of one node, whose function calls the next so many times, and so on."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    made = []
    for number in range(depth):
        following = f"F{number + 1}" if number + 1 < depth else "F0" if back else "Relu"
        names = ["x", *(f"t{each}" for each in range(calls - 1)), "y"]
        domain = "" if following == "Relu" else "d"
        nodes = [helper.make_node(following, [names[each]], [names[each + 1]], domain=domain)
                 for each in range(calls)]  # fmt: skip
        made.append(helper.make_function("d", f"F{number}", ["x"], ["y"], nodes, opsets))
    first = helper.make_node("F0", ["x"], ["y"], domain="d")
    graph = helper.make_graph([first], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=opsets, functions=made, ir_version=8)


def saved(folder: Path, model: onnx.ModelProto) -> str:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


@pytest.mark.parametrize(
    ("calls", "depth", "back", "says"),
    [
        (2, 30, False, "more than 1,000,000 nodes once its functions are inlined"),
        (2, 5_000, False, "more than 1,000,000 nodes"),
        (1, 3, True, "calls itself"),
    ],
)
def test_functions_that_double_are_refused(
    tmp_path: Path, calls: int, depth: int, back: bool, says: str
) -> None:
    with pytest.raises(ArtifactError, match=says):
        read_artifact(saved(tmp_path, functions(calls, depth, back=back)))


@pytest.mark.parametrize(("calls", "depth"), [(2, 12), (1, 3_000)])
def test_functions_that_call_others_are_read(tmp_path: Path, calls: int, depth: int) -> None:
    assert read_artifact(saved(tmp_path, functions(calls, depth))).layers == ()


def test_a_load_that_takes_longer_is_given_up() -> None:
    seen: list[VerificationError] = []
    with loads_within(0.01, seen.append):
        with limited("quick.onnx"):
            pass
        with limited("slow.onnx"):
            time.sleep(0.3)
    with limited("free.onnx"):
        time.sleep(0.05)
    assert [error.message for error in seen] == ["slow.onnx does not load within 0.01 s"]


def test_the_end_comes_where_nobody_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(BaseException):
        pass

    def ended(code: int) -> None:
        raise Ended(code)

    def gone(*_: object, **__: object) -> None:
        raise OSError("the terminal is gone")

    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(edge, "_show", gone)
    with pytest.raises(Ended, match="143"):
        edge.end_now(edge.Terminated())


def measuring(path: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hwprune.cli", "bench", path, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_deadline_ends_a_command(tmp_path: Path) -> None:
    path = saved(tmp_path, functions(2, 18))
    process = measuring(path, "--load-seconds", "0.5", "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 5, err
    assert f"{path} does not load within 0.5 s" in err
    assert '"VerificationError"' in out


LOOP = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}, int64 m = {ROUNDS}, bool c = {1}> {
  h = MatMul(x, w)
  y = Loop <body = b (int64 i, bool go, float[N,2] s) => (bool on, float[N,2] t) {
    on = Identity(go)
    t = Neg(s)
  }> (m, c, h)
}"""


@pytest.mark.slow
def test_the_deadline_ends_a_run_that_loops(tmp_path: Path) -> None:
    path = saved(tmp_path, onnx.parser.parse_model(LOOP.replace("ROUNDS", str(2**62))))
    process = measuring(path, "--load-seconds", "1")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 5, err
    assert "the file does not run within 1 s" in err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_load(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = measuring(saved(tmp_path, functions(2, 18)))
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "onnxruntime" not in maps.read_text():
        time.sleep(0.1)
    time.sleep(2)  # in which it comes to its load, which takes minutes
    assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
