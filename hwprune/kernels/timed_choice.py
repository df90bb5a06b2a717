"""Whether a file runs faster with its kernels on this machine: timed once, and kept.

The limits of ``dense_path`` were timed on x86-64. Elsewhere they are counted or guessed, so the
first session of a file there runs it both ways, and what was faster is kept in the user's cache
folder: for this file, processor, instruction set, onnxruntime, library, number of threads and
shapes of inputs. Only speed follows from it, and with it the last bits of results, since kernels
add in another order than onnxruntime.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hwprune.files import read_ordinary, replacing
from hwprune.kernels import library

# Machines whose limits were timed (benchmarks/dense_or_sparse.py), as Python names them.
_TIMED = ("x86_64", "AMD64")
# Of each way: long enough for a processor to leave its resting clock.
SECONDS, LEAST_RUNS = 0.3, 3
_ENTRY_BYTES = 4096
# What tells processors apart in /proc/cpuinfo, on x86 and on Arm.
_PROCESSOR = re.compile(r"^(?:model name|CPU implementer|CPU part|Hardware)\s*:.*$", re.MULTILINE)
Shapes = Mapping[str, Sequence[int]]


class Times(NamedTuple):
    """Milliseconds of one run, the fastest of several."""

    kernels_ms: float
    stock_ms: float

    @property
    def kernels_win(self) -> bool:
        """Return whether kernels were at least as fast."""
        return self.kernels_ms <= self.stock_ms


def needed() -> bool:
    """Return whether the limits for this kind of machine were never timed."""
    return platform.machine() not in _TIMED


def times(
    content: bytes,
    threads: int,
    shapes: Shapes,
    kernels: Callable[[], Any],
    stock: Callable[[], Any],
) -> Times | None:
    """Return what both ways take here: as kept, or timed now and kept.

    Args:
        content: of the file.
        threads: of a run.
        shapes: of inputs, where they are not those of the file with 1 for what it leaves open.
        kernels: makes a session with kernels.
        stock: makes one without.

    Returns:
        None where the file does not run on inputs of random numbers.
    """
    place = _cache_folder() / f"{_key(content, threads, shapes)}.json"
    try:
        kept = json.loads(read_ordinary(place, most=_ENTRY_BYTES))
        return Times(float(kept["kernels_ms"]), float(kept["stock_ms"]))
    except (OSError, ValueError, LookupError, TypeError):
        pass  # not there, or not readable: timed anew
    try:
        # One after the other, so that memory is that of one session.
        found = Times(_fastest_ms(kernels, shapes), _fastest_ms(stock, shapes))
    # onnxruntime's exceptions have no common base that is public.
    except Exception:
        return None
    # A folder that cannot be written is no reason not to run.
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as stream:
            stream.write(json.dumps(found._asdict()).encode())
    return found


def _cache_folder() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    # By the XDG base directory specification a relative path is ignored.
    base = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~")) / ".cache"
    return base / "hwprune" / "speeds"


def _key(content: bytes, threads: int, shapes: Shapes) -> str:
    import onnxruntime

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        lines = ""
    file = library.path()
    about = [
        hashlib.sha256(content).hexdigest(),
        hashlib.sha256(file.read_bytes()).hexdigest() if file else "",
        onnxruntime.__version__,
        library.instruction_set(),
        [platform.machine(), *sorted(set(_PROCESSOR.findall(lines)))],
        [threads, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0],
        {name: list(shape) for name, shape in shapes.items()},
    ]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def _fastest_ms(make: Callable[[], Any], shapes: Shapes) -> float:
    session = make()
    generator = np.random.default_rng(0)
    feed = {
        value.name: _numbers(value.type, shapes.get(value.name, value.shape), generator)
        for value in session.get_inputs()
    }
    session.run(None, feed)
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < LEAST_RUNS or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        session.run(None, feed)
        taken.append(1000 * (time.perf_counter() - start))
    return min(taken)


def _numbers(kind: str, shape: Sequence[Any], generator: np.random.Generator) -> Any:
    sizes = [size if isinstance(size, int) else 1 for size in shape]
    name = kind.removeprefix("tensor(").removesuffix(")")
    name = {"float": "float32", "double": "float64"}.get(name, name)
    # Whole numbers may index a table: 0 is in each.
    if not name.startswith("float"):
        return np.zeros(sizes, name)
    return generator.standard_normal(sizes).astype(name)
