"""Resident memory of a process that has loaded a file: a number of this host, not of a device."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hwprune.errors import VerificationError

_TIMEOUT_S = 300
# Where this very package is found, whatever the folder that the process starts in.
_PACKAGES = str(Path(__file__).resolve().parents[2])
# A fresh process: what this one has allocated before would hide the file's own share.
_SCRIPT = """
import ctypes, gc, json, sys
import numpy, onnxruntime, psutil

def resident():
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):  # glibc: what was freed is given back
        ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss

weights, source = None, sys.argv[1]
try:
    source.encode()
except UnicodeEncodeError:  # a path that onnxruntime does not take
    source = open(source, "rb").read()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 4
if sys.argv[2]:
    sys.path.insert(0, sys.argv[2])
    from hwprune import kernels
    kernels.status()  # loads the library, which is not the file's
    before = resident()
    session = kernels.session(source, session_options=options, time_both=False)
    weights = kernels.resident_bytes() + session.hwprune.dense_bytes
else:
    before = resident()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
print(json.dumps({"before": before, "after": resident(), "weights": weights}))
"""


@dataclass(frozen=True, slots=True)
class MemoryResult:
    """Resident set sizes of a fresh process on this host.

    Attributes:
        resident_bytes: Python, onnxruntime and the loaded file together.
        added_bytes: what loading the file added (never below 0; pages that the allocator already
            held are not seen).
        weight_bytes: what the native kernels hold for their weights, as they count it, and the
            weights of layers that are dense enough to be left to onnxruntime; None where
            they did not run, since onnxruntime does not count its own.
    """

    resident_bytes: int
    added_bytes: int
    weight_bytes: int | None = None


def resident(path: str, *, kernels: bool = False) -> MemoryResult:
    """Load a file in a fresh process and return that process's resident memory.

    Args:
        path: the file.
        kernels: load it with native kernels, which must be installed.

    Raises:
        VerificationError: the process fails, so the file does not load.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, path, _PACKAGES if kernels else ""],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise VerificationError(f"{path} did not load within {_TIMEOUT_S} s") from None
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise VerificationError(f"{path} does not load in a fresh process: {last[0][:400]}")
    found = json.loads(done.stdout.splitlines()[-1])
    added = max(0, found["after"] - found["before"])
    return MemoryResult(found["after"], added, found["weights"])
