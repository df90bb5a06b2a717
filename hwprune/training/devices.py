"""Where to train: CUDA before Apple's GPUs before the CPU, unless the user says."""

from __future__ import annotations

import torch

from hwprune.errors import UsageError


def resolve(wish: str = "auto", *, local_rank: int = 0) -> str:
    """Return the device of a run: ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.

    Args:
        wish: one of these, or ``auto``.
        local_rank: the number of this process on its machine: several processes that ask for
            ``auto`` or ``cuda`` get a GPU each.

    Raises:
        UsageError: not a device, or one that is not here.
    """
    there = available()
    kind, _, number = wish.partition(":")
    if kind == "auto" and not number:
        kind = there[0]
    known = kind in ("cpu", "cuda", "mps")
    if not known or (number and (kind != "cuda" or not number.isdecimal())):
        raise UsageError(f"there is no device {wish!r}", hint="use auto, cpu, cuda, cuda:N or mps")
    if kind not in there:
        raise UsageError(f"device {wish}: {_why_not(kind)}", hint=f"here is {', '.join(there)}")
    if kind != "cuda":
        return kind
    count = torch.cuda.device_count()
    chosen = int(number) if number else local_rank
    if chosen >= count:
        what = f"device {wish}" if number else f"process {local_rank} of this machine"
        raise UsageError(
            f"{what} needs GPU number {chosen}, and there are {count}, counted from 0",
            hint="name another one, or start as many processes as there are GPUs",
        )
    return f"cuda:{chosen}" if number or local_rank else "cuda"


def available() -> tuple[str, ...]:
    """Return the kinds of device that are here, the fastest first."""
    kinds = []
    if torch.cuda.is_available() and torch.cuda.device_count():
        kinds.append("cuda")
    if torch.backends.mps.is_available():
        kinds.append("mps")
    return (*kinds, "cpu")


def _why_not(kind: str) -> str:
    if kind == "cuda":
        if torch.version.cuda is None and torch.version.hip is None:
            return "this torch was built without CUDA"
        return "torch finds no GPU (no driver, or none that it may use)"
    if not torch.backends.mps.is_built():
        return "this torch was built without MPS, which is for Apple's GPUs"
    return "torch finds no Apple GPU"
