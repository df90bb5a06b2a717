"""Measuring over a real sshd on this machine."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hwprune import calibrate as calibration
from hwprune.calibrate import calibrate, profile
from hwprune.cli.main import main
from hwprune.errors import HwpruneError, UsageError, VerificationError
from hwprune.kernels import library
from hwprune.remote import THIS_MACHINE, Destination, measure_there, parse_destination, ssh
from hwprune.targets import load_file

sys.path.insert(0, str(Path(__file__).parent))  # for sshd

from sshd import SSHD, Server, running

WriteArtifact = Callable[..., Path]


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("ssh://pi@raspberrypi.local", "pi", "raspberrypi.local", None),
        ("ssh://10.0.0.7:2222", None, "10.0.0.7", 2222),
        ("ssh://me@[fe80::1]:22/", "me", "fe80::1", 22),
    ],
)
def test_destinations(text: str, user: str | None, host: str, port: int | None) -> None:
    assert parse_destination(text) == Destination(user, host, port)


@pytest.mark.parametrize(
    "text",
    [
        "pi@host", "ssh://", "ssh://-oProxyCommand=touch", "ssh://-l@host", "ssh://a b@host",
        "ssh://pi@host;reboot", "ssh://pi@ho$(st)", "ssh://pi@host:0", "ssh://pi@host:65536",
        "ssh://pi@host/path", "http://host", "ssh://pi@host\n",
    ],
)  # fmt: skip
def test_what_is_no_destination(text: str) -> None:
    with pytest.raises(UsageError):
        parse_destination(text)


@pytest.mark.parametrize("python", ["python3; reboot", "-c", "$(x)", "a b", "`x`", ""])
def test_what_is_no_python(python: str) -> None:
    with pytest.raises(UsageError, match="is not the path of a Python"):
        parse_destination("ssh://host", python)


def test_the_machine_of_a_library(tmp_path: Path) -> None:
    head = bytearray(b"\x7fELF" + bytes(16))
    head[18] = 183
    (tmp_path / "arm.so").write_bytes(head)
    assert ssh.machines_of(tmp_path / "arm.so") == ("aarch64", "arm64")
    (tmp_path / "text.so").write_bytes(b"hello")
    with pytest.raises(UsageError, match="is not a shared library"):
        ssh.machines_of(tmp_path / "text.so")


# -- a real server --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start one, with keys of its own."""
    if SSHD is None:
        pytest.skip("there is no OpenSSH server and client here")
    with running(tmp_path_factory.mktemp("sshd")) as started:
        yield started


def inputs_of(path: Path) -> bytes:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    shapes = {
        entry.name: [size if isinstance(size, int) else 1 for size in entry.shape]
        for entry in session.get_inputs()
    }
    archive = io.BytesIO()
    np.savez(archive, **{name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    return archive.getvalue()


def measured(server: Server, path: Path, **more: Any) -> dict[str, Any]:
    asked = {"runs": 5, "threads": 1, "kernels": True, "options": server.options(), **more}
    where = asked.pop("where", server.where())
    return measure_there(where, path.read_bytes(), inputs_of(path), **asked)


def left() -> list[Path]:
    return sorted(Path(tempfile.gettempdir()).glob("hwprune-bench-*"))


def test_a_file_is_measured_and_nothing_stays(
    server: Server, write_artifact: WriteArtifact
) -> None:
    before = left()
    found = measured(server, write_artifact())
    assert found["device"]["machine"] == os.uname().machine
    assert found["results"]["stock"]["p50_ms"] > 0
    assert found["results"]["stock"]["runs"] == 5
    assert set(found["before"]) == {"celsius", "governor", "clock_mhz"}
    if library.path() is not None:
        assert found["no_kernels"] is None
        assert found["results"]["kernels"]["p90_ms"] >= found["results"]["kernels"]["p50_ms"] > 0
        assert found["results"]["difference"] < 1e-5
        assert found["results"]["kernels_status"].startswith("kernels: ")
    assert left() == before


def test_kernels_for_another_processor_are_not_sent(
    server: Server, write_artifact: WriteArtifact, tmp_path: Path
) -> None:
    head = bytearray(b"\x7fELF" + bytes(16))
    head[18] = 183 if os.uname().machine == "x86_64" else 62
    other = tmp_path / "other.so"
    other.write_bytes(head)
    found = measured(server, write_artifact(), library_path=other)
    assert "kernels" not in found["results"]
    assert found["no_kernels"].endswith(f"the device is {os.uname().machine}")


def test_kernels_are_not_sent_to_an_onnxruntime_that_cannot_load_them() -> None:
    machine = os.uname().machine
    for version, sent in (("1.16.3", False), ("1.17.0", True), ("1.20.1", True)):
        device = {"machine": machine, "onnxruntime": version}
        files, reason = ssh._files(b"", b"", device, True, None)
        if library.path() is None:
            assert reason == "this installation has no native kernels"
        else:
            assert (reason is None, f"hwprune/kernels/{library.FILE_NAME}" in files) == (sent, sent)
            assert sent or reason == "onnxruntime 1.16.3 there is older than 1.17"


def failure(server: Server, path: Path, **more: Any) -> HwpruneError:
    with pytest.raises(HwpruneError) as caught:
        measured(server, path, **more)
    return caught.value


def test_host_keys(server: Server, write_artifact: WriteArtifact, tmp_path: Path) -> None:
    path = write_artifact()
    unknown, changed = tmp_path / "unknown", tmp_path / "changed"
    unknown.write_text("")
    changed.write_text(f"[127.0.0.1]:{server.port} {(server.folder / 'key.pub').read_text()}")
    for file, says in ((unknown, "is not known here"), (changed, "has changed")):
        options = [*server.options()]
        options[3] = f"UserKnownHostsFile={file}"
        error = failure(server, path, options=options)
        assert isinstance(error, UsageError)
        assert says in error.message
    assert unknown.read_text() == ""  # nothing was trusted on the way


def test_what_the_device_lacks(
    server: Server, write_artifact: WriteArtifact, tmp_path: Path
) -> None:
    path = write_artifact()
    error = failure(server, path, where=server.where("/gone/python3"))
    assert "there is no /gone/python3" in error.message
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    error = failure(server, path, where=server.where(str(bare)))
    assert "cannot import numpy" in error.message
    assert "-m pip install numpy onnxruntime" in (error.hint or "")
    chatty = tmp_path / "chatty"
    chatty.write_text(f'#!/bin/sh\necho Welcome\nexec {sys.executable} "$@"\n')
    chatty.chmod(0o755)
    error = failure(server, path, where=server.where(str(chatty)))
    assert "answered b'Welcome" in error.message


def test_no_space_there(server: Server, write_artifact: WriteArtifact, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_text(f'#!/bin/sh\nulimit -f 1\nexec {sys.executable} "$@"\n')
    small.chmod(0o755)
    before = left()
    error = failure(server, write_artifact(), where=server.where(str(small)))
    assert isinstance(error, VerificationError)
    assert left() == before


def test_a_file_that_does_not_run_there(server: Server, write_artifact: WriteArtifact) -> None:
    path = write_artifact()
    archive = inputs_of(path)
    with pytest.raises(VerificationError, match="it does not run on 127"):
        measure_there(
            server.where(), path.read_bytes()[:-40], archive, runs=5, threads=1, kernels=False,
            options=server.options(),
        )  # fmt: skip


def test_no_server(server: Server, write_artifact: WriteArtifact) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        where = Destination(None, "127.0.0.1", closed.getsockname()[1])
        error = failure(server, write_artifact(), where=where)
    assert isinstance(error, UsageError)
    assert "Connection refused" in error.message


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(10))
def test_a_connection_that_is_cut(
    server: Server, write_artifact: WriteArtifact, moment: int, tmp_path: Path
) -> None:
    """At ten moments: each time an error, and no folder stays on the device."""
    before = left()
    slow = tmp_path / "slow"
    # ssh's own process is killed after a while, as when the line goes dead.
    slow.write_text(f'#!/bin/sh\nexec timeout -s KILL {0.05 + 0.15 * moment} ssh "$@"\n')
    slow.chmod(0o755)
    plain = Destination.command

    def command(self: Destination, options: Any = ()) -> list[str]:
        return [str(slow), *plain(self, options)[1:]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Destination, "command", command)
        error = failure(server, write_artifact(), runs=1_000_000)
    assert "connection" in error.message
    for _ in range(100):
        if left() == before:
            return
        time.sleep(0.1)
    assert left() == before


def test_the_command(
    server: Server,
    write_artifact: WriteArtifact,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Destination.command
    monkeypatch.setattr(
        Destination, "command", lambda self, options=(): plain(self, server.options())
    )
    record = tmp_path / "record.json"
    arguments = [
        "bench", str(write_artifact()), "--on", f"ssh://127.0.0.1:{server.port}",
        "--remote-python", sys.executable, "--runs", "5", "--record", str(record),
    ]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Measured on 127.0.0.1: ")
    assert "stock onnxruntime" in shown
    written = json.loads(record.read_text())
    assert written["results"]["stock"]["runs"] == 5
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["on"] == "127.0.0.1"
    assert main([*arguments, "--target", "raspberry-pi-5"]) == 2
    assert "--target is not for --on" in capsys.readouterr().err


# -- a profile from the device --------------------------------------------------------------------


@pytest.mark.parametrize(("packed_ms", "folds"), [(None, False), (1.4, True), (1.6, False)])
def test_what_decodes_in_each_run_does_not_fold(packed_ms: float | None, folds: bool) -> None:
    found = calibration.Calibration({}, 18, 8, dense_ms=1.0, packed_ms=packed_ms)
    assert found.folds == folds


@pytest.fixture
def whatever_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any file with functions that runs is one that is folded: no stopwatch decides a test."""
    monkeypatch.setattr(calibration, "_FOLDED", 1e9)


@pytest.mark.usefixtures("whatever_it_takes")
def test_a_profile_is_measured_over_ssh(server: Server, tmp_path: Path) -> None:
    found = calibrate(server.where(), options=tuple(server.options()))
    assert (found.opset, found.ir_version, found.folds) == (18, 8, True)
    path = tmp_path / "ours.toml"
    path.write_text(profile(found, extends="raspberry-pi-5", description='a "board"\n'))
    target = load_file(path)
    facts = {fact.field: fact for fact in target.facts()}
    assert target.cores == os.cpu_count()
    assert target.core == "Cortex-A76"  # what was not measured comes from the other profile
    assert facts["memory.ram_bytes"].source.startswith("measured on the device")
    assert not target.runtime.inline_functions
    assert left() == []


@pytest.mark.usefixtures("whatever_it_takes")
def test_calibrate_writes_a_profile_of_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "here.toml"
    extends = ("--extends", "raspberry-pi-5")  # a virtual machine does not say all
    assert main(["calibrate", "-o", str(path), *extends, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["folds_functions"]) == ("here", True)
    assert main(["targets", "check", str(path)]) == 0
    assert main(["calibrate", "-o", str(tmp_path / "here.txt")]) == 2
    assert main(["calibrate", "-o", str(path), "--extends", "no-such-board"]) == 2
    taken = tmp_path / "raspberry-pi-5.toml"
    taken.write_text("of somebody")
    assert main(["calibrate", "-o", str(taken), *extends]) == 2
    assert taken.read_text() == "of somebody"


def test_an_old_runtime_gets_the_form_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def old(where: Destination, model: bytes, *_: object, **options: object) -> dict[str, Any]:
        read = onnx.load_from_string(model)
        opset = read.opset_import[0].version
        seen.append((opset, bool(read.functions)))
        if opset > 15:
            raise VerificationError("it does not run there")
        p50 = 9.0 if read.functions else 1.0
        device = {"machine": "aarch64", "onnxruntime": "1.15.1", "cpu": "Old board"}
        return {"device": device, "results": {"stock": {"p50_ms": p50}}}

    monkeypatch.setattr(calibration, "measure_there", old)
    found = calibrate(THIS_MACHINE)
    assert seen == [(18, False), (17, False), (15, False), (15, True)]
    assert (found.opset, found.folds) == (15, False)
    assert "inline_functions = { value = true" in profile(
        found, extends="jetson-nano", description="old"
    )
    with pytest.raises(UsageError, match="does not say cores, clock_hz"):
        profile(found, extends=None, description="old")
