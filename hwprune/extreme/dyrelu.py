"""DyReLU phasing: activations that adapt to their input stand in for every ReLU of a run's start.

Which activations a network has is seen by watching one forward pass: every call of torch's relu
counts, be it a module, a function, a method, in place or inside an exported program; the n-th call
of a forward pass gets the n-th stand-in. ReLU6, clamp and the like are other functions and stay.

While it lasts the stand-ins are a child of the network, so that whatever trains, averages, clips,
sums over processes or saves its parameters takes theirs along, and every forward pass of it runs
through them, evaluation and BN's recalibration included. Afterwards nothing of them is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hwprune.errors import UsageError
from hwprune.training.hooks import Hook, Stage
from hwprune.training.module_state import set_mode

# The stand-ins' name among the network's children while they are there.
_CHILD = "_hwprune_dyrelu"
_RELU, _IN_PLACE = "relu", "relu_"

Activation = Callable[[torch.Tensor], torch.Tensor]


class DyReLU(nn.Module):
    """DyReLU-B: for each sample and channel the largest of k lines (arXiv 2003.10027, section 3).

    The lines' slopes and offsets come from the means of the channels, through two linear layers and
    a sigmoid: slope 1 + d for the first line and d for the others, offset d / 2, d in (-1, 1). The
    second layer starts at zero, so that a new one is ReLU: a network that was trained keeps what it
    does.

    Args:
        channels: the size of axis 1.
        lines: k.
        reduction: what the first layer divides the channels by.
    """

    def __init__(self, channels: int, *, lines: int = 2, reduction: int = 4) -> None:
        """Draw the first layer from torch's global generator."""
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // reduction))
        self.excite = nn.Linear(self.squeeze.out_features, 2 * lines * channels)
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, channels, ...) to the same shape, type and memory order."""
        means = x.mean(tuple(range(2, x.ndim))) if x.ndim > 2 else x
        told = self.excite(functional.relu(self.squeeze(means.to(self.squeeze.weight.dtype))))
        moved = torch.tanh(told.float() / 2)  # 2 sigmoid(t) - 1
        shape = (x.shape[0], 2, -1, x.shape[1], *(1,) * (x.ndim - 2))
        slopes, offsets = moved.reshape(shape).to(x.dtype).unbind(1)
        best = x * (1 + slopes[:, 0]) + 0.5 * offsets[:, 0]
        for line in range(1, slopes.shape[1]):
            best = torch.maximum(best, x * slopes[:, line] + 0.5 * offsets[:, line])
        return best


class Phased(Hook):
    """Phases a network's ReLUs in, from DyReLU. Does nothing where there is no plan.

    Args:
        stage: the run; its strategy's ``phasing`` says when.

    Attributes:
        count: how many activations there are.
        active: whether the stand-ins are there.
        beta: their share in the outputs.

    Raises:
        UsageError: a ReLU of something that has no channels.
    """

    def __init__(self, stage: Stage) -> None:
        """Put the stand-ins into the network, at a share of zero until the first step."""
        self._module, self.count, self.beta, self.active = stage.module, 0, 0.0, False
        self._said: tuple[str, ...] = ()
        plan = stage.strategy.phasing
        if plan is None:
            return
        # The last step is taken without them, however few there are.
        self._gone = min(stage.due(plan.gone), stage.steps - 1)
        if self._gone <= 0:
            return
        self.settled_from = self._gone
        self._hold, batch = stage.due(plan.hold), stage.inputs()
        channels = _relus(stage.module, batch)
        if not channels:
            self._said = ("no DyReLU: the network calls no ReLU (ReLU6 is another function)",)
            return
        self._said = (
            f"DyReLU stood in for {len(channels)} ReLUs, alone until {plan.hold:.0%} of training"
            f" and less and less until {plan.gone:.0%}",
        )
        device = batch[0].device
        # Not torch.manual_seed: it seeds CUDA's generators as well, which nobody puts back.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stage.seed)
            self._standins = nn.ModuleList(DyReLU(size) for size in channels).to(device)
        self.count, self.active = len(channels), True
        stage.module.add_module(_CHILD, self._standins)
        # An attribute of this very object: it goes before its class's method.
        vars(stage.module)["forward"] = partial(self._forward, stage.module.forward)

    @property
    def eager(self) -> bool:  # type: ignore[override]  # a plain attribute in the protocol
        """Return whether the stand-ins are there: their share changes at every step."""
        return self.active

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what was phased in."""
        return self._said

    def before_step(self, step: int, optimizer: torch.optim.Optimizer | None) -> None:
        """Let the share fall; when it is zero the stand-ins leave network and optimiser."""
        if not self.active:
            return
        if step >= self._gone:
            if optimizer is not None:
                _forget(optimizer, {id(p) for p in self._standins.parameters()})
            self.close()
        elif step < self._hold:
            self.beta = 1.0
        else:
            self.beta = (self._gone - step) / (self._gone - self._hold)

    def close(self) -> None:
        """Take the stand-ins out for good."""
        if self.active:
            del self._module._modules[_CHILD]
            vars(self._module).pop("forward", None)
            self.beta, self.active = 0.0, False

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Let every ReLU be itself inside."""
        beta, self.beta = self.beta, 0.0
        try:
            yield
        finally:
            self.beta = beta

    def _forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the network's own forward method on the stand-ins."""
        called = 0

        def stand_in(x: torch.Tensor) -> Activation | None:
            nonlocal called
            number, called = called, called + 1
            if self.beta == 0 or number >= self.count:
                return None
            return partial(self._mixed, self._standins[number])

        # Not while it runs: nn.Sequential and its like run through their children.
        del self._module._modules[_CHILD]
        try:
            with _ReluCalls(stand_in):
                output = forward(*args, **kwargs)
        finally:
            self._module._modules[_CHILD] = self._standins
        if called != self.count:
            raise UsageError(
                f"the network called ReLU {called} times, and {self.count} times at first",
                hint="DyReLU needs a network that always does the same; without it, in a recipe"
                ' file: [strategy] name = "east", dyrelu = false',
            )
        return output

    def _mixed(self, dynamic: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return beta DyReLU(x) + (1 - beta) ReLU(x)."""
        adapted: torch.Tensor = dynamic(x)
        return adapted if self.beta == 1 else torch.lerp(functional.relu(x), adapted, self.beta)


class _ReluCalls(TorchFunctionMode):
    """Asks at every call of relu what to apply instead: a function, or None for relu itself."""

    def __init__(self, asked: Callable[[torch.Tensor], Activation | None]) -> None:
        super().__init__()
        self._asked = asked

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # torch.nn.functional's, torch's own, a tensor's method, and what exported programs call.
        name = getattr(func, "__name__", "").partition(".")[0]
        if name not in (_RELU, _IN_PLACE):
            return func(*args, **kwargs)
        x = args[0] if args else kwargs.get("input", kwargs.get("self"))
        activation = self._asked(x)
        if activation is None:
            return func(*args, **kwargs)
        if name == _IN_PLACE or kwargs.get("inplace", args[1:2] == (True,)):
            # Whoever holds the tensor sees the activation, as with the function itself; gradients
            # need the tensor as it was.
            return x.copy_(activation(x.clone()))
        return activation(x)


def _relus(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[int]:
    """Return the channels of each ReLU of a forward pass, in its order."""
    found: list[int] = []

    def asked(x: torch.Tensor) -> None:
        if x.ndim < 2:
            raise UsageError(
                f"a ReLU of the network works on a tensor of shape {tuple(x.shape)}",
                hint="DyReLU needs (samples, channels, ...); without it, in a recipe file:"
                ' [strategy] name = "east", dyrelu = false',
            )
        found.append(x.shape[1])

    set_mode(module, training=False)
    with torch.no_grad(), _ReluCalls(asked):
        module(*inputs)
    return found


def _forget(optimizer: torch.optim.Optimizer, gone: set[int]) -> None:
    """Take parameters out of an optimiser, with their state."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in gone:
                optimizer.state.pop(parameter, None)
        group["params"] = [p for p in group["params"] if id(p) not in gone]
