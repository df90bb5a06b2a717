"""Where to train: CUDA before Apple's GPUs before the CPU, unless the user says."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hwprune.errors import UsageError

# glibc's names for its limits (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def resolve(asked: str = "auto", *, local_rank: int = 0, local_size: int = 1) -> str:
    """Return the device of a run: ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.

    Args:
        asked: one of these, or ``auto``. Several processes that ask for ``auto`` or ``cuda`` get a
            GPU each.
        local_rank: the number of this process on its machine.
        local_size: how many processes train together on this machine.

    Raises:
        UsageError: not a device, one that is not here, or not one for every process. It is the same
            in all of them.
    """
    there = available()
    kind, colon, number = asked.partition(":")
    if kind == "auto" and not colon:
        kind = there[0]
    known = kind in ("cpu", "cuda", "mps")
    if not known or (colon and (kind != "cuda" or not number.isdecimal())):
        raise UsageError(f"there is no device {asked!r}", hint="use auto, cpu, cuda, cuda:N or mps")
    if kind not in there:
        raise UsageError(f"device {asked}: {_why_not(kind)}", hint=f"here is {', '.join(there)}")
    if local_size > 1 and (colon or kind == "mps"):
        raise UsageError(
            f"{local_size} processes cannot share the device {asked}",
            hint="use --device cuda (a GPU for each) or cpu, or start one process",
        )
    if kind != "cuda":
        return kind
    count = torch.cuda.device_count()
    if colon and int(number) >= count:
        raise UsageError(
            f"device {asked} is not here: {count} GPUs are, counted from 0",
            hint=f"use cuda:0 to cuda:{count - 1}" if count > 1 else "use cuda",
        )
    if local_size > count:
        raise UsageError(
            f"{local_size} processes need a GPU each, and there are {count}",
            hint=f"start {count} with --nproc-per-node, or use --device cpu",
        )
    return asked if colon else "cuda" if local_size == 1 else f"cuda:{local_rank}"


def available() -> tuple[str, ...]:
    """Return the kinds of device that are here, the fastest first."""
    kinds = []
    if torch.cuda.is_available() and torch.cuda.device_count():
        kinds.append("cuda")
    if torch.backends.mps.is_available():
        kinds.append("mps")
    return (*kinds, "cpu")


@contextmanager
def kept_memory(device: str) -> Iterator[None]:
    """Let glibc keep what a step on the CPU frees for the next one, up to 2 GiB.

    Otherwise it gives activations back to the system and gets them anew, page by page, which is a
    tenth of a step. Afterwards its limits are those at which its own adjustment ends.
    """
    mallopt = None
    if device == "cpu" and sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none

    def set_limits(trim: int, mmap: int) -> None:
        if mallopt is not None:
            mallopt(_TRIM_THRESHOLD, trim)
            mallopt(_MMAP_THRESHOLD, mmap)

    set_limits(2**31 - 1, 2**30)
    try:
        yield
    finally:
        set_limits(64 * 2**20, 32 * 2**20)


def _why_not(kind: str) -> str:
    if kind == "cuda":
        if torch.version.cuda is None and torch.version.hip is None:
            return "this torch was built without CUDA"
        return "torch finds no GPU (no driver, or none that it may use)"
    if not torch.backends.mps.is_built():
        return "this torch was built without MPS, which is for Apple's GPUs"
    return "torch finds no Apple GPU"
