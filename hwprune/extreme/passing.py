"""A forward pass that only asks which outputs something reaches: positive weights, no biases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.fx import GraphModule
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from hwprune.training.module_state import set_mode

_NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})


class CannotPassError(Exception):
    """The network cannot be run, or be derived, on numbers like these; says why."""


def passed(
    module: nn.Module,
    weights: Mapping[str, torch.Tensor],
    inputs: Sequence[torch.Tensor],
    size: float,
    *,
    binary: bool = False,
) -> torch.Tensor:
    """Run a network on positive weights and inputs of one size.

    Args:
        module: the network; it is not changed.
        weights: its prunable parameters, of one floating-point type, on the CPU.
        inputs: a batch, for the shapes and for inputs that are whole numbers.
        size: of every number that goes in.
        binary: make 1 of every positive number and 0 of all others after each step, so that nothing
            gets too large or too small however deep the network is.

    Returns:
        (outputs,) of the first of its results.

    Raises:
        CannotPassError: its own code fails on these numbers.
    """
    kind = next(iter(weights.values())).dtype
    state: dict[str, torch.Tensor] = {}
    for name, buffer in module.named_buffers():
        state[name] = buffer.cpu().to(kind) if buffer.is_floating_point() else buffer.cpu()
    for name, parameter in module.named_parameters():
        if name in weights:
            continue
        # A bias adds nothing; a scale and a matrix that cannot be pruned pass things on.
        bias = name.rpartition(".")[2].endswith("bias")
        each = 0.0 if bias else 1.0 / max(1, math.prod(parameter.shape[1:]))
        state[name] = torch.full(parameter.shape, each, dtype=kind)
    given = tuple(
        torch.full((1, *part.shape[1:]), size, dtype=kind)
        if part.is_floating_point()
        else part[:1].cpu()
        for part in inputs
    )
    with _in_eval(module), _Passing(binary=binary), _told():
        output = functional_call(module, {**state, **weights}, given)
    output = output[0] if isinstance(output, (tuple, list)) else output
    flat: torch.Tensor = output.reshape(-1)
    return flat


def through(total: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what each weight has in a total: the weight times its derivative.

    Raises:
        CannotPassError: the total has no derivative.
    """
    with _told():
        found = torch.autograd.grad(
            total, list(weights.values()), allow_unused=True, retain_graph=True
        )
    return {
        name: torch.zeros_like(weight) if grad is None else (weight * grad).detach()
        for (name, weight), grad in zip(weights.items(), found, strict=True)
    }


def has_grouped_transposed(module: nn.Module) -> bool:
    """Return whether a transposed convolution may have groups: its columns are not its outputs."""
    for part in module.modules():
        if isinstance(part, _ConvNd) and part.transposed and part.groups > 1:
            return True
        if isinstance(part, GraphModule) and any(
            "conv_transpose" in str(node.target) for node in part.graph.nodes
        ):
            return True
    return False


class _Passing(TorchFunctionMode):
    """Lets normalisations return what they get: they may not take a path away, nor make one."""

    def __init__(self, *, binary: bool) -> None:
        super().__init__()
        self._binary = binary

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "").partition(".")[0] in _NORMS:
            return args[0] if args else kwargs["input"]
        result = func(*args, **kwargs)
        if self._binary and isinstance(result, torch.Tensor) and result.is_floating_point():
            return (result > 0).to(result.dtype)
        return result


@contextmanager
def _told() -> Iterator[None]:
    """Turn what a network's own code raises into a reason; memory that is short is none."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise
        said = str(error).strip().splitlines()
        raise CannotPassError(said[0] if said else type(error).__name__) from error


@contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    set_mode(module, training=False)
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
