"""A measurement on a device that ssh reaches: one connection, and nothing that stays there.

The remote command line is constant: the runner and the files go through stdin. Host keys are
checked; one that is unknown or has changed is refused.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hwprune.errors import UsageError, VerificationError
from hwprune.kernels import library
from hwprune.units import format_bytes

_FORM = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]*)|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?/?"
)
_PYTHON = re.compile(r"[A-Za-z0-9_./+-]+")
_HINT = "write ssh://user@host or ssh://user@host:port"
# Reads a length, then that much program: no text of ours is part of a shell line.
# An older Python says so itself: it could not even read the program.
_BOOT = (
    "import sys; v = sys.version_info; v < (3, 8) and sys.exit('Python %d.%d is too old' % v[:2]); "
    "s = sys.stdin.buffer; exec(compile(s.read(int(s.readline())), 'bench', 'exec'))"
)
# How ssh says that there was a connection, or nearly.
_CUT = "closed by|[Rr]eset by|Broken pipe|not responding|Connection aborted"
_OLDEST = (1, 17)  # of onnxruntime, that reads a file's functions and takes the kernels
# What of this package the kernels need there, beside NumPy and onnxruntime.
_PACKAGE = ("errors.py", "files.py", "kernels/*.py")
_ELF_MACHINES = {62: ("x86_64", "amd64"), 183: ("aarch64", "arm64")}


@dataclass(frozen=True, slots=True)
class Destination:
    """A device that ssh reaches.

    Attributes:
        user: None for what ssh is configured with.
        host: its name or address.
        port: None for what ssh is configured with.
        python: the Python there.
    """

    user: str | None
    host: str
    port: int | None
    python: str = "python3"

    def __str__(self) -> str:
        """Return it as ssh's messages call it."""
        return f"{self.user}@{self.host}" if self.user else self.host

    def command(self, options: Sequence[str] = ()) -> list[str]:
        """Return the command line of ssh; ``options`` come before ours."""
        line = ["ssh", *options, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]
        line += ["-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15", "-T"]
        line += ["-p", str(self.port)] if self.port else []
        return [*line, "--", str(self), f'{self.python} -c "{_BOOT}"']


class _ThisMachine(Destination):
    """The machine that this process runs on, asked as any other."""

    def __str__(self) -> str:
        """Return what messages call it."""
        return "this machine"

    def command(self, options: Sequence[str] = ()) -> list[str]:
        """Return the command line of the same Python."""
        return [sys.executable, "-c", _BOOT]


THIS_MACHINE = _ThisMachine(None, "localhost", None, sys.executable)


def parse_destination(text: str, python: str = "python3") -> Destination:
    """Read ``ssh://user@host:port``.

    Raises:
        UsageError: it is something else, or the path of Python is no plain one.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a device that ssh reaches", hint=_HINT)
    if not _PYTHON.fullmatch(python) or python.startswith("-"):
        raise UsageError(
            f"{python!r} is not the path of a Python", hint="letters, digits and _ . / + - only"
        )
    port = None if match["port"] is None else int(match["port"])
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"{text!r}: {port} is not a port", hint=_HINT)
    return Destination(match["user"], match["host"].strip("[]"), port, python)


def measure_there(
    where: Destination,
    model: bytes,
    inputs: bytes,
    *,
    runs: int,
    threads: int,
    kernels: bool,
    library_path: Path | None = None,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a file on a device; nothing of it stays there.

    Args:
        where: the device.
        model: the file.
        inputs: an .npz archive, an array for each input by its name.
        runs: timed runs at each speed.
        threads: of each run.
        kernels: whether the file has layers that native kernels run.
        library_path: the kernels for its processor; without, those of this installation, where
            they are for such a one.
        options: further ones of ssh, such as ``-F FILE``.

    Returns:
        ``device`` (machine, cpu, versions), ``results`` by speed (``stock``, ``kernels``): times in
        ms and bytes; ``before`` and ``after``: temperature, governor, clock; ``no_kernels``: why
        they did not run, None where they did.

    Raises:
        UsageError: ssh cannot connect, the host key is unknown or changed, or the device lacks
            what it needs.
        VerificationError: the file does not run there, or the connection was lost.
    """
    runner = Path(__file__).with_name("device_runner.py").read_bytes()
    try:
        process = subprocess.Popen(
            where.command(options), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        raise UsageError("there is no ssh here", hint="install an OpenSSH client") from None
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        _send(process.stdin, b"%d\n" % len(runner), runner)
        device = _answer(process, where)
        _able(device, where)
        files, no_kernels = _files(model, inputs, device, kernels, library_path)
        asked = {
            "files": [(name, len(data)) for name, data in files.items()],
            "labels": ["stock"] if no_kernels else ["stock", "kernels"],
            "runs": runs,
            "threads": threads,
        }
        _send(process.stdin, json.dumps(asked).encode() + b"\n", *files.values())
        answer = _answer(process, where)
    finally:
        process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        process.wait()
    if "error" in answer:
        raise _failed(answer, device, where, sum(map(len, files.values())))
    return {"device": device, "no_kernels": no_kernels, **answer}


def _failed(
    answer: Mapping[str, Any], device: Mapping[str, Any], where: Destination, needed: int
) -> Exception:
    said = answer["error"][:500]
    if answer["at"] == "write":
        return VerificationError(
            f"{where}: the files cannot be written there: {said}",
            hint=f"it takes {format_bytes(needed)} in its folder for temporary files, for a while",
        )
    return VerificationError(
        f"it does not run in onnxruntime {device['onnxruntime']} on {where}: {said}",
        hint="compile with the --target of that device; `hwprune targets` lists them",
    )


def _send(stream: IO[bytes], *parts: bytes) -> None:
    with suppress(BrokenPipeError):  # why it broke, _answer finds
        for part in parts:
            stream.write(part)
        stream.flush()


def _answer(process: subprocess.Popen[bytes], where: Destination) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line.endswith(b"\n"):
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
        raise UsageError(
            f"{where} answered {line[:80]!r}, not our own program",
            hint="a login script there must print nothing where there is no terminal",
        )
    try:
        code = process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    assert process.stderr is not None
    said = process.stderr.read(4000).decode(errors="replace").strip()
    raise _lost(said, code, where)


def _lost(said: str, code: int, where: Destination) -> Exception:
    last = said.splitlines()[-1] if said else "the connection ended"
    if "Host key verification failed" in said or "REMOTE HOST IDENTIFICATION" in said:
        by_hand = "connect once by hand with ssh, and compare the key with the device's own"
        if "IDENTIFICATION HAS CHANGED" not in said:
            return UsageError(f"{where}: its host key is not known here", hint=by_hand)
        name = where.host if where.port in (None, 22) else f"[{where.host}]:{where.port}"
        return UsageError(
            f"{where}: its host key has changed: it was set up anew, or it is another machine",
            hint=f"only if you know why: ssh-keygen -R '{name}', then {by_hand}",
        )
    if code in (126, 127) or "not found" in last:
        return UsageError(
            f"{where}: there is no {where.python} that runs: {last}",
            hint="--remote-python PATH names one",
        )
    if last.endswith("is too old"):
        return UsageError(
            f"{where}: {where.python}: {last}", hint="3.8 or newer; --remote-python PATH names one"
        )
    if code == 255 and said and not re.search(_CUT, last):
        denied = "Permission denied" in last
        return UsageError(
            f"{where}: {last}",
            hint="keys, not passwords: `ssh-copy-id` puts yours there"
            if denied
            else "is it on, and does sshd listen there? try it by hand with ssh",
        )
    if said and (code == 255 or code < 0):
        return VerificationError(
            f"{where}: the connection was lost: {last}",
            hint="nothing stays there; run it again, and if it is lost again look at sshd's log",
        )
    # Linux ends what takes too much memory, and ssh has no word for that.
    how = f"with exit code {code}: {last}" if said else "without a word"
    return VerificationError(
        f"{where}: the connection or the program there ended {how}",
        hint="run it again; if that needs more memory than there is, remove /tmp/hwprune-bench-* "
        "there",
    )


def _able(device: Mapping[str, Any], where: Destination) -> None:
    for name in ("numpy", "onnxruntime"):
        if device.get(name) is None:
            raise UsageError(
                f"{where}: {where.python} cannot import {name}: {device.get(name + '_error')}",
                hint=f"install it there: {where.python} -m pip install numpy onnxruntime; "
                "--remote-python PATH names another Python",
            )


def _files(
    model: bytes, inputs: bytes, device: Mapping[str, Any], kernels: bool, library_path: Path | None
) -> tuple[dict[str, bytes], str | None]:
    """Return what is sent, by name, and why no kernels are."""
    files = {"model.onnx": model, "inputs.npz": inputs}
    reason = None if kernels else "no layer of the file is one that a kernel is for"
    found = library_path or library.path()
    version = tuple(int(part) for part in re.findall(r"\d+", str(device["onnxruntime"]))[:2])
    if reason is None and found is None:
        reason = "this installation has no native kernels"
    elif reason is None and version < _OLDEST:
        reason = f"onnxruntime {device['onnxruntime']} there is older than 1.17"
    elif reason is None and found is not None:
        made_for = machines_of(found)
        if str(device["machine"]).lower() not in made_for:
            made = made_for[0] if made_for else "no processor that is known"
            reason = f"the kernels are for {made}, the device is {device['machine']}"
    if reason is not None or found is None:
        return files, reason
    package = Path(__file__).resolve().parents[1]
    files["hwprune/__init__.py"] = b""
    for pattern in _PACKAGE:
        for file in package.glob(pattern):
            files[f"hwprune/{file.relative_to(package)}"] = file.read_bytes()
    files[f"hwprune/kernels/{library.FILE_NAME}"] = found.read_bytes()
    return files, None


def machines_of(path: Path) -> tuple[str, ...]:
    """Return what ``uname -m`` says on machines that a shared library is for."""
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if head[:4] != b"\x7fELF" or len(head) < 20:
        raise UsageError(f"{path} is not a shared library of Linux")
    return _ELF_MACHINES.get(struct.unpack_from("<H", head, 18)[0], ())
