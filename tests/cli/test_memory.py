"""Where memory runs out: a sentence that says how much there may be, and what to do."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

import pytest

from hwprune.cli import memory
from hwprune.errors import DataError, ExportError, UsageError

MIB = 1024**2


def limited(mib: int) -> Callable[[], None]:
    """Return what takes the address space of a process that is being started."""
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (mib * MIB, mib * MIB))


@pytest.mark.parametrize(("command", "mib"), [("compile", 1000), ("plan", 600), ("check", 250)])
def test_what_the_libraries_do_not_fit_into_is_refused_at_once(command: str, mib: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "hwprune", command, "x.onnx"],
        preexec_fn=limited(mib), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert f"may take {mib * MIB:,} B" in ran.stderr
    assert f"libraries of {command} alone take {memory.LEAST[command]:,} B" in ran.stderr
    assert "ulimit -v" in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr


def test_enough_or_no_limit_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (None, memory.LEAST["compile"]):
        monkeypatch.setattr(memory, "address_space_limit", lambda limit=limit: limit)
        memory.require_room("compile")
    monkeypatch.setattr(memory, "address_space_limit", lambda: 1)
    memory.require_room("targets")
    with pytest.raises(UsageError):
        memory.require_room("compile")


def caused(error: Exception, cause: Exception | None) -> Exception:
    """Return an error as it is raised because of another."""
    try:
        raise error from cause
    except Exception as raised:
        return raised


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        caused(ExportError("torch cannot export it"), MemoryError()),
    ],
)
def test_what_came_of_too_little_memory_is_said_so(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(memory, "address_space_limit", lambda: 900 * MIB)
    said = memory.shortage(error)
    assert said is not None
    assert said[0].startswith("memory ran out: this process had taken ")
    assert f"of the {900 * MIB:,} B" in said[0]
    assert "batch_size" in said[1]


def test_a_defect_next_to_the_limit_is_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_taken", lambda: 95)
    for limit, found in ((100, True), (200, False), (None, False)):
        monkeypatch.setattr(memory, "address_space_limit", lambda limit=limit: limit)
        said = memory.shortage(RuntimeError("could not create a primitive"))
        assert (said is not None) == found
        assert memory.shortage(DataError("no such file")) is None


def test_other_errors_are_not() -> None:
    for error in (
        ValueError("what"),
        DataError("bad_alloc.npz: no such file"),
        caused(DataError("its arrays do not fit into memory"), None),
    ):
        assert memory.shortage(error) is None
