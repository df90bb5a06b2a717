"""One forward pass before anything else is done, so that a wrong input shape is found at once."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hwprune.errors import ModelError
from hwprune.frontend.inputs import describe
from hwprune.frontend.user_code import first_line
from hwprune.ir import TensorSpec

# One sample would pass where a forward method bakes a batch of one in; two find it.
_BATCH = 2
# From this many weights on, a forward pass may take longer than all that plan does besides.
_LARGE = 20_000_000


def forward_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the forward method's positional parameters, where Python knows them."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind in positional)


def example_inputs(inputs: tuple[TensorSpec, ...], *, batch: int) -> tuple[Tensor, ...]:
    """Return one tensor per input: seeded noise for floats, zeros (valid indices) for the rest."""
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for spec in inputs:
        dtype = getattr(torch, spec.dtype)
        shape = spec.with_batch(batch)
        if dtype.is_floating_point:
            tensors.append(torch.randn(shape, generator=generator, dtype=dtype))
        else:
            tensors.append(torch.zeros(shape, dtype=dtype))
    return tuple(tensors)


def probe(module: nn.Module, inputs: tuple[TensorSpec, ...]) -> None:
    """Run the network once on made-up inputs; a large one on shapes alone, where that is as strict.

    Raises:
        ModelError: the network does not take these inputs, or gives no tensor back.
    """
    if _takes_shapes(module, inputs):
        return
    try:
        with torch.no_grad():
            output = module(*example_inputs(inputs, batch=_BATCH))
    except Exception as error:  # whatever a stranger's forward method raises
        raise ModelError(
            f"the network does not take {describe(inputs)}: {first_line(error)}",
            hint="give the shapes and types that its forward method takes, "
            "one --input for each, in order",
        ) from error
    if not any(True for _ in _tensors(output)):
        raise ModelError(
            f"the network returns {type(output).__name__}, expected a tensor or several",
            hint="wrap it in a module whose forward method returns tensors",
        )


def _takes_shapes(module: nn.Module, inputs: tuple[TensorSpec, ...]) -> bool:
    """Return whether a large network runs on tensors without memory; False also means unknown.

    Such a run is a second faster than a real one. It finds every wrong shape but one of a
    transposed convolution, and not every wrong type, so these are left to the real one. What it
    refuses may still run: a forward method may make tensors of its own.
    """
    named = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    if (
        sum(tensor.numel() for _, tensor in named) < _LARGE
        or any(spec.dtype != "float32" for spec in inputs)
        or any("ConvTranspose" in type(part).__name__ for part in module.modules())
    ):
        return False
    try:
        # A copy, since a forward method may keep what it computed.
        memo: dict[int, Any] = {}
        for _, tensor in named:
            empty = torch.empty_like(tensor, device="meta")
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(empty, False) if is_parameter else empty
        shapes = copy.deepcopy(module, memo)
        arguments = [torch.empty(spec.with_batch(_BATCH), device="meta") for spec in inputs]
        with torch.no_grad():
            output = shapes(*arguments)
    except Exception:  # whatever a stranger's forward method raises
        return False
    return any(True for _ in _tensors(output))


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _tensors(item)
    elif isinstance(output, dict):
        for item in output.values():
            yield from _tensors(item)
