"""Resident memory of a process that has loaded a file: a number of this host, not of a device."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

from hwprune.errors import VerificationError

_TIMEOUT_S = 300
# A fresh process: what this one has allocated before would hide the file's own share.
_SCRIPT = """
import json, sys
import numpy, onnxruntime, psutil
me = psutil.Process()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 4
before = me.memory_info().rss
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
after = me.memory_info().rss
print(json.dumps({"before": before, "after": after}))
"""


@dataclass(frozen=True, slots=True)
class MemoryResult:
    """Resident set sizes of a fresh process on this host.

    Attributes:
        resident_bytes: Python, onnxruntime and the loaded file together.
        added_bytes: what loading the file added (never below 0; pages that the allocator already
            held are not seen, and what the parser released may still be counted).
    """

    resident_bytes: int
    added_bytes: int


def resident(path: str) -> MemoryResult:
    """Load a file in a fresh process and return that process's resident memory.

    Raises:
        VerificationError: the process fails, so the file does not load.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, path],
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
    return MemoryResult(found["after"], max(0, found["after"] - found["before"]))
