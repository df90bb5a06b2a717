"""What this machine is, in words that may be published: no host names, no paths."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import psutil

# torch is asked for its version without being imported: boards and CI runners do not have it.
_PACKAGES = ("hwprune", "numpy", "scipy", "onnx", "onnxruntime", "torch")
# The keys under which Linux names the processor, x86 first, then the spellings of Arm kernels.
_CPU_KEYS = ("model name", "Model", "Hardware", "cpu model", "uarch")


@functools.cache
def cpu_name() -> str:
    """Return the processor's name, or the architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    given = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    names = (given[key] for key in _CPU_KEYS if given.get(key))
    return next(names, platform.processor() or platform.machine() or "unknown")


def cpu_count() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def host_label() -> str:
    """Return the label of numbers that were measured here: ``this host: NAME, 4 cores, x86_64``."""
    cores = cpu_count()
    plural = "" if cores == 1 else "s"
    return f"this host: {cpu_name()}, {cores} core{plural}, {platform.machine()}"


def environment() -> dict[str, Any]:
    """Return what a result depends on: versions (None where not installed), processor, memory.

    ``memory_bytes`` is the machine's RAM; ``cpu_cores`` what this process may use of it.
    """
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu_cores": cpu_count(),
        "memory_bytes": int(psutil.virtual_memory().total),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
