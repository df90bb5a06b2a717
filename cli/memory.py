"""What to say where memory runs out: how much a process may take, and how much it had taken."""

from __future__ import annotations

import errno
import re
import traceback
from pathlib import Path

from hwprune.errors import HwpruneError, UsageError
from hwprune.units import format_bytes

# Address space that what each command loads takes with the smallest network, on x86-64. With less,
# some of it does not fail but waits for ever.
LEAST = {"compile": 1024**3, "plan": 1024**3, "check": 320 * 1024**2, "bench": 320 * 1024**2}
# What Python, the loader, torch, onnxruntime and C++ say; none has a type of its own for it.
_SIGNS = re.compile(
    r"can(no|')t allocate memory|failed to allocate memory|failed to map segment|bad_alloc"
    r"|out of memory|unable to allocate|without (exception set|setting an exception)",
    re.IGNORECASE,
)
# Given back where memory runs out, for the sentence that says so.
_reserve: bytearray | None = None
_HINT = "allow it more, or let it take less: a smaller batch_size in a --recipe, fewer samples"


def address_space_limit() -> int | None:
    """Return the bytes of address space that this process may take (``ulimit -v``), if limited."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def require_room(command: str) -> None:
    """Refuse, before anything is loaded, what the libraries alone do not fit into.

    Raises:
        UsageError: says how much is needed.
    """
    global _reserve
    limit, least = address_space_limit(), LEAST.get(command, 0)
    if limit is not None and limit < least:
        raise UsageError(
            f"this process may take {format_bytes(limit)} of address space (ulimit -v), and the "
            f"libraries of {command} alone take {format_bytes(least)}",
            hint=f"ulimit -v {2 * least // 1024} is enough for small networks",
        )
    if limit is not None:
        _reserve = bytearray(4 * 1024**2)


def shortage(error: BaseException) -> tuple[str, str] | None:
    """Return message and hint of an error that came of too little memory; None of another.

    What was raised because of it counts, too, such as ``torch cannot export ...``; so does any
    error that is a defect, where the process had come within a tenth of its limit.
    """
    global _reserve
    cause: BaseException | None = error
    while cause is not None and not _is_of_memory(cause):
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    limit = address_space_limit()
    if cause is None:
        is_defect = isinstance(error, Exception) and not isinstance(error, HwpruneError)
        if limit is None or not is_defect or _taken() < 0.9 * limit:
            return None
        cause = error
    _reserve = None
    traceback.clear_frames(error.__traceback__)
    said = next(iter(str(cause).strip().splitlines()), "")[:300]
    room = "" if limit is None else f" of the {format_bytes(limit)} it may (ulimit -v)"
    message = f"memory ran out: this process had taken {format_bytes(_taken())}{room}"
    return f"{message}: {said}" if said else message, _HINT


def _is_of_memory(cause: BaseException) -> bool:
    if isinstance(cause, MemoryError):
        return True
    if isinstance(cause, OSError):
        return cause.errno == errno.ENOMEM
    return not isinstance(cause, HwpruneError) and _SIGNS.search(str(cause)) is not None


def _taken() -> int:
    """Return the most address space that was taken, or resident memory where that is not told."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().partition("VmPeak:")[2].split()[0])
    import psutil

    return int(psutil.Process().memory_info().rss)
