"""Which arithmetic: bf16 where the processor multiplies it, asked of its flags, not of a clock."""

from __future__ import annotations

from typing import Literal

import torch

from hwprune.training.recipe import Precision

# What torch says of the CPU. Without either bf16 is emulated, some fifteen times slower than fp32.
_BF16_FLAGS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


def choose(asked: Precision, device: str) -> Literal["fp32", "bf16"]:
    """Return the precision to train in: what was asked for, or for ``auto`` what the device has.

    Args:
        asked: what the recipe asks for.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` (where ``auto`` stays with fp32).
    """
    if asked != "auto":
        return asked
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if kind == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bf16 natively; not where torch cannot tell."""
    return any(getattr(torch.cpu, flag, bool)() for flag in _BF16_FLAGS)
