"""Images made from a network itself: noise, changed until BN sees what it saw while it was trained.

A BN layer remembers mean and variance of everything that passed it. Inputs whose batch has these
statistics at every BN at once stand in for the training data where there are none (DeepInversion,
arXiv 1912.08795; ZeroQ, arXiv 2001.00281). No labels are used: what the images show does not
matter to least squares, only what layers see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from hwprune.training.devices import kept_memory
from hwprune.training.module_state import borrowed, placed, set_mode

# So many images of so many pixels. A larger one shows each layer more places: then fewer do.
SAMPLES, _PIXELS = 256, 32 * 32
STEPS = 64
_BATCH = 64
_LEAST_STEPS = 24
# So large a step that 64 bring the statistics as near as 120 of a third of it do.
_RATE = 0.3
# Multiply-adds that making inputs should take, a minute of one core, and twice as many for the
# fewest inputs and steps. One change of one sample takes two passes, forward and backward.
MOST_MACS = 1.4e12
_PASSES = 2
# How much smoothness and size count beside the statistics, which are near 1 at the start.
_VARIATION = 1e-2
_SIZE = 1e-3
# As exported programs call it: (input, weight, bias, mean, variance, ...).
_EXPORTED = (
    torch.ops.aten.batch_norm.default,
    torch.ops.aten.native_batch_norm.default,
    torch.ops.aten._native_batch_norm_legit_no_training.default,
)


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A split without labels.

    Attributes:
        arrays: one array per input of the network.
        before, after: how far the statistics were off, and are: the mean over BN layers of the
            squared differences of mean and standard deviation, in standard deviations.
    """

    arrays: tuple[NDArray[np.float32], ...]
    before: float
    after: float

    @property
    def labels(self) -> None:
        """Return None: nobody knows what the images show."""
        return None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.arrays[0])

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return the inputs of these samples."""
        return tuple(array[indices] for array in self.arrays)


def affordable(
    module: nn.Module, shapes: Sequence[tuple[int, ...]], *, most_macs: float | None = None
) -> tuple[int, int] | None:
    """Return how many inputs to make in how many steps within a bound on work; None for too few.

    The bound is on multiply-adds, not on seconds: the result must not depend on the machine. Where
    SAMPLES and STEPS would exceed it, both shrink, the steps less. Of large images fewer are made.

    Args:
        module: the network, on the CPU.
        shapes: of each input, without the batch.
        most_macs: the bound; None for MOST_MACS.
    """
    set_mode(module, training=False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*(torch.zeros(1, *shape) for shape in shapes))
    macs = max(1.0, _PASSES * counter.get_total_flops() / 2)
    most = MOST_MACS if most_macs is None else most_macs
    pixels = max((shape[1] * shape[2] for shape in shapes if len(shape) == 3), default=1)
    wanted = min(SAMPLES, max(_BATCH, SAMPLES * _PIXELS // pixels))
    shrink = min(1.0, most / (macs * wanted * STEPS))
    steps = max(_LEAST_STEPS, int(STEPS * shrink**0.25))
    samples = min(wanted, max(_BATCH, int(most / (macs * steps))))
    return (samples, steps) if macs * samples * steps <= 2 * most else None


def synthesise(
    module: nn.Module,
    shapes: Sequence[tuple[int, ...]],
    *,
    samples: int = SAMPLES,
    steps: int = STEPS,
    device: str = "cpu",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Synthetic | None:
    """Return inputs that give every BN the statistics it remembers; None where there is no BN.

    Takes ``steps`` forward and backward passes of every sample, whatever comes of it: the time is
    known beforehand, and the result depends on the seed alone.

    Args:
        module: a dense network; its parameters stay as they are, and it ends in eval mode.
        shapes: of each input, without the batch. All inputs are taken to be normalised floats.
        samples: how many inputs to make.
        steps: how often each is changed.
        device: where to compute.
        seed: of the noise that it starts from.
        progress: called after each step with its number from 1, and their count.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [_BATCH] * (samples // _BATCH)
    parts += [samples - sum(parts)] * (samples % _BATCH > 0)
    made: list[tuple[torch.Tensor, ...]] = []
    first, last = 0.0, 0.0
    # NHWC is what convolutions on a CPU are fastest in.
    with placed(device, module, channels_last=True), borrowed(module), kept_memory(device):
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        for number, size in enumerate(parts):
            inputs = tuple(
                torch.randn(size, *shape, generator=generator)
                .to(device, memory_format=_order(len(shape)))
                .requires_grad_()
                for shape in shapes
            )
            optimizer = torch.optim.Adam(inputs, lr=_RATE, fused=True)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            off = torch.zeros(())
            for step in range(steps + 1):
                found = _mismatch(module, inputs)
                if found is None:
                    return None
                off = found.detach()
                first += float(off) * (step == 0) / len(parts)
                if step == steps:
                    break
                optimizer.zero_grad(set_to_none=True)
                if found.requires_grad:  # else no input reaches what remembers
                    found.backward()  # type: ignore[no-untyped-call]
                _add_prior(inputs)
                optimizer.step()
                schedule.step()
                if progress is not None:
                    progress(number * steps + step + 1, steps * len(parts))
            last += float(off) / len(parts)
            made.append(tuple(part.detach().cpu().contiguous() for part in inputs))
    arrays = (torch.cat(each).numpy() for each in zip(*made, strict=True))
    return Synthetic(tuple(arrays), first, last)


def _order(axes: int) -> torch.memory_format:
    return torch.channels_last if axes == 3 else torch.contiguous_format


class _Norms(TorchFunctionMode):
    """Sees every batch normalisation with running statistics, as a module or as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.off: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (seen := _statistics(func, args, kwargs)) is not None:
            x, mean, variance = seen
            deviation = variance.add(1e-5).sqrt()
            here, spread = _Moments.apply(x)  # type: ignore[no-untyped-call]
            shift = (here - mean) / deviation
            wider = spread.add(1e-5).sqrt() / deviation - 1
            self.off.append(shift.square().mean() + wider.square().mean())
        return func(*args, **kwargs)


class _Moments(torch.autograd.Function):
    """Mean and variance of each channel, (n, c, ...) -> (c,), in one pass each way."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both."""
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, by_mean: torch.Tensor, by_variance: torch.Tensor) -> torch.Tensor:
        """Return the derivative by x."""
        x, mean = ctx.saved_tensors
        shape = (1, -1, *[1] * (x.ndim - 2))
        count = x.numel() // x.shape[1]
        slope = by_variance * (2 / count)
        level = by_mean / count - slope * mean
        return torch.addcmul(level.reshape(shape), x, slope.reshape(shape))


def _statistics(
    func: Any, args: Sequence[Any], kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Return (input, mean, variance) where a call normalises by running statistics."""
    if func is nn.functional.batch_norm:
        named = ("input", "running_mean", "running_var")
        values = [args[at] if at < len(args) else kwargs.get(n) for at, n in enumerate(named)]
    elif func in _EXPORTED:
        values = [args[0], args[3], args[4]]
    else:
        return None
    if any(not isinstance(value, torch.Tensor) for value in values):
        return None
    return values[0], values[1], values[2]


def _mismatch(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
    """Return how far off the statistics of a batch are, None where nothing remembers any."""
    with torch.enable_grad(), _Norms() as norms:
        module(*inputs)
    return torch.stack(norms.off).mean() if norms.off else None


def _add_prior(inputs: tuple[torch.Tensor, ...]) -> None:
    """Add the slope of what speaks against inputs as such to their gradients.

    That is _SIZE times the mean square, and _VARIATION times that of the difference of neighbours
    in each direction of an image: in place, since inputs are what is largest here.
    """
    for part in inputs:
        if part.grad is None:
            part.grad = torch.zeros_like(part)
        values, slope = part.detach(), part.grad
        slope.add_(values, alpha=2 * _SIZE / part.numel())
        for axis in (2, 3) if part.ndim == 4 else ():
            steps = values.diff(dim=axis)
            if count := steps.numel():
                share, size = 2 * _VARIATION / count, part.shape[axis] - 1
                slope.narrow(axis, 1, size).add_(steps, alpha=share)
                slope.narrow(axis, 0, size).sub_(steps, alpha=share)
