"""The C library on this machine: what tests and benchmarks run in place of a board."""

from __future__ import annotations

import atexit
import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import KernelsError
from hwprune.firmware.emit import BOARD, runtime_files
from hwprune.firmware.link import WARNINGS
from hwprune.firmware.memory_plan import MemoryPlan

OPTIONS = ("-std=c11", "-O2")
TIMEOUT_S = 120
MAX_TENSORS = 255


class HostModel:
    """A firmware folder, compiled for this machine.

    Args:
        folder: that ``emit.write`` made.
        plan: of its network.
        options: of the compiler: ``-DHWP_UNSIGNED=1`` and the like stand for other cores.

    Raises:
        KernelsError: there is no C compiler, or it fails.
    """

    def __init__(self, folder: Path, plan: MemoryPlan, options: Sequence[str] = ()) -> None:
        self.plan = plan
        self.network = plan.network
        library = folder / "host.so"
        self.kind = np.int8 if self.network.activations == "int8" else np.float32
        if self.kind is np.float32:
            options = (*options, "-DHWP_FLOAT=1")
        runtime = _runtime_objects(tuple(options))
        model = str(folder / "src" / "model.c")
        _compile([*options, "-shared", model, *runtime, "-o", str(library)])
        self.library = ctypes.CDLL(str(library))
        self.sums = (ctypes.c_uint32 * MAX_TENSORS).in_dll(self.library, "trace_sums")

    def run(self, x: NDArray[Any]) -> tuple[list[NDArray[Any]], list[dict[str, int]]]:
        """Compute the outputs and each tensor's checksum of a batch: (n, *shape of the input)."""
        tensors = [self.network.tensors[name] for name in self.network.outputs]
        outputs = [np.zeros((len(x), *tensor.shape), self.kind) for tensor in tensors]
        all_sums = []
        for i, sample in enumerate(np.ascontiguousarray(x, self.kind)):
            ctypes.memset(self.sums, 0, ctypes.sizeof(self.sums))
            status = self.library.model_run(
                sample.ctypes.data_as(ctypes.c_void_p),
                *(output[i : i + 1].ctypes.data_as(ctypes.c_void_p) for output in outputs),
            )
            if status:
                raise KernelsError(f"the network's own weights were refused: status {status}")
            all_sums.append(dict(zip(self.plan.placements, self.sums, strict=False)))
        return outputs, all_sums


@cache
def _runtime_objects(options: tuple[str, ...]) -> list[str]:
    """Compile the runtime, which all networks share; for as long as this process lives."""
    room = Path(tempfile.mkdtemp(prefix="hwprune-"))
    atexit.register(shutil.rmtree, room, ignore_errors=True)
    sources = [path for path in runtime_files() if path.suffix == ".c"] + [BOARD / "trace.c"]
    for source in sources:
        _compile([*options, "-c", str(source), "-o", str(room / f"{source.stem}.o")])
    return [str(room / f"{source.stem}.o") for source in sources]


def _compile(arguments: list[str]) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        raise KernelsError("there is no C compiler (cc) here", hint="apt-get install gcc")
    command = [compiler, *OPTIONS, *WARNINGS, "-fPIC", "-DHWP_TRACE", f"-I{BOARD.parent}"]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    if done.returncode:
        raise KernelsError(f"the C compiler fails:\n{done.stderr.strip()}")


def checksum(values: NDArray[Any]) -> int:
    """Return the sum by which a run's tensor is compared: that of ``runtime/board/trace.c``."""
    words = np.arange(values.size, dtype=np.uint32)
    if values.dtype == np.float32:
        words = _mixed(words) + np.ascontiguousarray(values).ravel().view(np.uint32)
    else:
        words = words << np.uint32(8) | values.ravel().view(np.uint8)
    return int(_mixed(words).sum(dtype=np.uint64)) & 0xFFFFFFFF


def _mixed(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = (words ^ words >> np.uint32(shift)) * np.uint32(factor)
    mixed: NDArray[np.uint32] = words ^ words >> np.uint32(16)
    return mixed
