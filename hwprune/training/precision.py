"""Which arithmetic: bf16 where it is faster, measured rather than guessed."""

from __future__ import annotations

import time
from typing import Literal

import torch
from torch import nn

from hwprune.training.modes import logits_of, set_mode
from hwprune.training.recipe import Precision

# bf16 has to be clearly faster: it rounds, and a coin toss would make runs irreproducible.
_CLEARLY = 0.8
_PROBE_SAMPLES = 32
_PROBE_STEPS = 3


def choose(
    wish: Precision, module: nn.Module, inputs: tuple[torch.Tensor, ...], device: str
) -> tuple[Literal["fp32", "bf16"], str | None]:
    """Return the precision to train in, and a note where it was measured.

    The probe leaves no trace: it runs in eval mode, draws no random number, and drops gradients.

    Args:
        wish: what the recipe asks for.
        module: the network, on the device.
        inputs: one batch.
        device: ``cpu``, ``cuda`` or ``mps`` (where ``auto`` stays with fp32).
    """
    if wish != "auto":
        return wish, None
    if torch.device(device).type == "cuda":
        return ("bf16" if torch.cuda.is_bf16_supported() else "fp32"), None
    if torch.device(device).type != "cpu" or not _cpu_has_bf16():
        return "fp32", None
    probe = tuple(part[:_PROBE_SAMPLES] for part in inputs)
    set_mode(module, training=False)
    fp32, bf16 = (_fastest_step(module, probe, enabled) for enabled in (False, True))
    module.zero_grad(set_to_none=True)
    chosen: Literal["fp32", "bf16"] = "bf16" if bf16 < _CLEARLY * fp32 else "fp32"
    return chosen, f"bf16 takes {bf16 / fp32:.2f} of the time of fp32 on this CPU: using {chosen}"


def _cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bf16 natively (asked before a probe that may take long)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    for name in checks:
        check = getattr(torch.cpu, name, None)
        if check is None or check():
            return True  # cannot tell, or yes: the probe decides
    return False


def _fastest_step(module: nn.Module, inputs: tuple[torch.Tensor, ...], enabled: bool) -> float:
    """Return the seconds of the fastest of a few forward and backward passes."""
    best = float("inf")
    for _ in range(_PROBE_STEPS):
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = logits_of(module, inputs)
        output.square().mean().backward()  # type: ignore[no-untyped-call]
        best = min(best, time.perf_counter() - start)
    return best
