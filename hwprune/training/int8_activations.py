"""Activations as a microcontroller will hold them, in the last part of a run: int8.

What convolutions and linear layers read is rounded to 256 values between the least and the largest
that were seen, a moving average; gradients pass straight through (arXiv 1308.3432), and stop at the
ends. As for stored weights (``masters.py``), the network gets used to what it loses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hwprune.training.hooks import Hook, Stage

_STEPS = 255  # from one end of a range to the other
_MOMENTUM = 0.05  # of the moving average of both ends
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


class Int8Activations(Hook):
    """Rounds the inputs of layers from some progress on.

    Args:
        stage: the run.
        progress: from which on.
    """

    eager = True

    def __init__(self, stage: Stage, progress: float) -> None:
        """Find the layers."""
        self._start = self.settled_from = stage.due(progress)
        self._layers = {
            name: layer for name, layer in stage.module.named_modules() if isinstance(layer, LAYERS)
        }
        self._ranges: dict[str, tuple[float, float]] = {}
        self._handles: list[Any] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what was done."""
        if not self._ranges:
            return ()
        return (f"activations were int8 in training from step {self._start} on",)

    def before_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Begin when it is time."""
        if step >= self._start and not self._handles:
            self._handles = [
                layer.register_forward_pre_hook(self._rounding(name))
                for name, layer in self._layers.items()
            ]

    def close(self) -> None:
        """Leave the layers as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> Mapping[str, Any]:
        """Return the ranges: (layers, 2), in the layers' order, NaN for one that saw nothing."""
        none = (float("nan"), float("nan"))
        ends = [self._ranges.get(name, none) for name in self._layers]
        return {"ranges": torch.tensor(ends, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the ranges back."""
        for name, (low, high) in zip(self._layers, state["ranges"].tolist(), strict=True):
            if low <= high:
                self._ranges[name] = low, high

    def _rounding(self, name: str) -> Any:
        def round_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            x = inputs[0]
            if layer.training:
                self._watch(name, x.detach())
            if name not in self._ranges:
                return inputs
            low, high = self._ranges[name]
            return (rounded(x, low, high), *inputs[1:])

        return round_input

    def _watch(self, name: str, x: torch.Tensor) -> None:
        low, high = (float(end) for end in torch.aminmax(x))
        low, high = min(low, 0.0), max(high, 0.0)  # zero is a value of every tensor: padding
        if name in self._ranges:
            old = self._ranges[name]
            low, high = (
                (1 - _MOMENTUM) * was + _MOMENTUM * now
                for was, now in zip(old, (low, high), strict=True)
            )
        self._ranges[name] = low, high


def rounded(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return values as int8 holds them; the gradient is that of clamping."""
    step = (high - low) / _STEPS
    if step <= 0:
        return x
    least = round(low / step) * step  # so that zero is one of the 256
    inside = x.clamp(least, least + _STEPS * step)
    return inside + ((inside / step).round() * step - inside).detach()
