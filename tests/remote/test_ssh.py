"""Measuring over a real sshd on this machine."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import sys
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

from sshd import SSHD, Server, cutting, running

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


def test_a_file_is_measured_and_nothing_stays(
    server: Server, write_artifact: WriteArtifact
) -> None:
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
    assert server.left() == []


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


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_no_space_there(server: Server, write_artifact: WriteArtifact, tmp_path: Path) -> None:
    small = script(tmp_path / "small", f'ulimit -f 1\nexec {sys.executable} "$@"')
    error = failure(server, write_artifact(), where=server.where(small))
    assert isinstance(error, VerificationError)
    assert "the files cannot be written there: OSError: [Errno 27]" in error.message
    assert " in its folder for temporary files" in (error.hint or "")
    assert server.left() == []


def test_a_python_that_is_too_old(
    server: Server, write_artifact: WriteArtifact, tmp_path: Path
) -> None:
    old = "import sys; sys.version_info = (3, 5, 3); exec(sys.argv[2])"
    there = script(tmp_path / "python3", f"exec {sys.executable} -c '{old}' \"$@\"")
    error = failure(server, write_artifact(), where=server.where(there))
    assert isinstance(error, UsageError)
    assert error.message == f"127.0.0.1: {there}: Python 3.5 is too old"
    assert "3.8 or newer" in (error.hint or "")


@pytest.fixture
def runtime_there(server: Server, tmp_path: Path) -> Callable[[str], Destination]:
    """Return a function: a device whose onnxruntime does this when it opens a file."""

    def there(does: str) -> Destination:
        (tmp_path / "onnxruntime.py").write_text(
            "import os\n__version__ = '1.4.0'\nclass SessionOptions: pass\n"
            f"def InferenceSession(*_, **__): {does}\n"
        )
        python = f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"'
        return server.where(script(tmp_path / "python3", python))

    return there


def test_an_onnxruntime_that_is_too_old(
    server: Server, write_artifact: WriteArtifact, runtime_there: Callable[[str], Destination]
) -> None:
    says = "Unsupported model IR version: 8, max supported IR version: 7"
    error = failure(server, write_artifact(), where=runtime_there(f"raise RuntimeError('{says}')"))
    assert isinstance(error, VerificationError)
    assert f"in onnxruntime 1.4.0 on 127.0.0.1: RuntimeError: {says}" in error.message
    assert "--target of that device" in (error.hint or "")
    assert server.left() == []


def test_a_program_that_is_killed_there(
    server: Server, write_artifact: WriteArtifact, runtime_there: Callable[[str], Destination]
) -> None:
    """As Linux does with one that takes too much memory."""
    error = failure(server, write_artifact(), where=runtime_there("os.kill(os.getpid(), 9)"))
    assert isinstance(error, VerificationError)
    assert "ended without a word" in error.message
    assert "remove /tmp/hwprune-bench-*" in (error.hint or "")  # nothing else can
    (stayed,) = server.left()
    shutil.rmtree(stayed)


def test_a_file_that_does_not_run_there(server: Server, write_artifact: WriteArtifact) -> None:
    path = write_artifact()
    archive = inputs_of(path)
    with pytest.raises(VerificationError, match=r"it does not run in onnxruntime .* on 127"):
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


# In bytes that passed: in the greeting, the keys' exchange, the log-in, while the program, the file
# and the kernels are sent; "silence" is while it measures, "dead" a line on which nothing passes.
MOMENTS = [0, 30, 1_000, 3_000, 5_000, 8_000, 20_000, 200_000, "silence", "dead"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_connection_that_is_cut(
    server: Server, write_artifact: WriteArtifact, moment: int | str
) -> None:
    """At ten moments: each time what happened and what to do, and no folder on the device."""
    with cutting(server.port, moment) as port:
        where = Destination(None, "127.0.0.1", port, sys.executable)
        options = [*server.options(), "-o", f"HostKeyAlias=[127.0.0.1]:{server.port}"]
        options += ["-o", "ServerAliveInterval=2"]  # and not after 45 s
        error = failure(server, write_artifact(), where=where, options=options, runs=1_000_000)
    assert isinstance(error, VerificationError)
    assert error.message.startswith("127.0.0.1: the connection was lost: ")
    assert "run it again" in (error.hint or "")
    for _ in range(100):
        if not server.left():
            break
        time.sleep(0.1)
    assert server.left() == []


def test_each_failure_of_ssh_has_its_own_advice() -> None:
    where = Destination("pi", "board", 2222)
    for said, kind, hint in (
        ("pi@board: Permission denied (publickey).", UsageError, "ssh-copy-id"),
        ("ssh: connect to host board port 22: Connection timed out", UsageError, "is it on"),
        ("ssh: Could not resolve hostname board: Name or service", UsageError, "is it on"),
        ("kex_exchange_identification: read: Connection reset by peer", VerificationError, "again"),
        ("Connection closed by 10.0.0.7 port 22", VerificationError, "run it again"),
        ("client_loop: send disconnect: Broken pipe", VerificationError, "run it again"),
        ("Timeout, server board not responding.", VerificationError, "run it again"),
        ("@ REMOTE HOST IDENTIFICATION HAS CHANGED! @", UsageError, "-R '[board]:2222'"),
    ):
        error = ssh._lost(said, 255, where)
        assert isinstance(error, kind), said
        assert hint in (error.hint or ""), said
    assert (
        "bash: x: Permission denied" in ssh._lost("bash: x: Permission denied", 126, where).message
    )


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
    assert server.left() == []


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
