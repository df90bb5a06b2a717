"""The state of a module that training borrows and gives back: values, modes, BN, generators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hwprune.errors import ModelError, UsageError
from hwprune.ir import Split
from hwprune.training.batches import Batches


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name, those that are shared once."""
    return dict([*module.named_parameters(), *module.named_buffers()])


def floating_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return those of them that are floating-point."""
    return {n: t for n, t in state_of(module).items() if t.is_floating_point()}


def copy_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of these."""
    return {name: tensor.detach().clone() for name, tensor in floating_state(module).items()}


def put(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy a state into a module."""
    with torch.no_grad():
        for name, tensor in state_of(module).items():
            if name in state:
                tensor.copy_(state[name])


def place(module: nn.Module, device: str | torch.device, *, channels_last: bool) -> None:
    """Move a module to a device, its 4-D tensors in NHWC or in ordinary memory order."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    module.to(device)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:  # the module's own way refuses the weights of 3-D convolutions
            tensor.data = tensor.data.contiguous(memory_format=order)


@contextmanager
def placed(
    device: str | torch.device, *modules: nn.Module, channels_last: bool = False
) -> Iterator[None]:
    """Have modules on a device and in eval mode inside; they go back to where they came from."""
    homes = [next(module.parameters()).device for module in modules]
    try:
        for module in modules:
            place(module, device, channels_last=channels_last)
            set_mode(module, training=False)
        yield
    finally:
        for module, home in zip(modules, homes, strict=True):
            place(module, home, channels_last=False)


def share_parameters(first: nn.Module, second: nn.Module) -> bool:
    """Return whether training one module would change the other."""
    owned = {parameter.data_ptr() for parameter in second.parameters()}
    return first is second or any(p.data_ptr() in owned for p in first.parameters())


def batchnorms(module: nn.Module) -> list[_BatchNorm]:
    """Return the BN layers that keep running statistics."""
    return [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    ]


def set_mode(module: nn.Module, *, training: bool, train_batchnorm: bool = True) -> None:
    """Put a module into training or eval mode, BN apart if it is frozen.

    The module of an exported program cannot change its mode and stays in the exported one.
    """
    try:
        module.train(training)
    except NotImplementedError:
        return
    if training and not train_batchnorm:
        for layer in module.modules():
            if isinstance(layer, _BatchNorm):
                layer.eval()


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Let BN normalise by the batch, as in training, without moving its running statistics."""
    layers = batchnorms(module)
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


@contextmanager
def borrowed(module: nn.Module) -> Iterator[None]:
    """Give every parameter its ``requires_grad`` back, drop gradients, and end in eval mode."""
    wanted = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
            parameter.grad = None
        set_mode(module, training=False)


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch's global generators (dropout draws from them) and put them back afterwards."""
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


def global_generators(device: str) -> dict[str, torch.Tensor]:
    """Return the states of torch's global generators that a run on this device draws from."""
    states = {"cpu": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_global_generators(states: Mapping[str, torch.Tensor], device: str) -> None:
    """Put torch's global generators into a state; one that was saved elsewhere is left out."""
    torch.set_rng_state(states["cpu"])
    if torch.device(device).type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def logits_of(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return a module's (b, classes) output in float32; of several outputs the first one.

    Raises:
        ModelError: the output is not one row of class scores per sample.
    """
    output = module(*inputs)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ModelError(
            f"the network's output is {shape}, expected (batch, classes)",
            hint="fine-tuning handles classifiers: wrap the network so that it returns logits",
        )
    return output.float()


def recalibrate_batchnorm(
    module: nn.Module,
    split: Split,
    *,
    samples: int = 2000,
    batch: int = 128,
    device: str = "cpu",
    seed: int = 0,
) -> int:
    """Replace BN's running statistics by those of the network as it is now. Needs no labels.

    The average over all batches counts every batch alike (cumulative, not exponential). Everything
    but BN stays in eval mode.

    Args:
        module: changed in place.
        split: where to draw samples from.
        samples: how many to use; all where there are fewer.
        batch: samples in one forward pass.
        device: where the module is.
        seed: of the draw.

    Returns:
        The number of BN layers that were recalibrated; 0 where the module has none.
    """
    if not batchnorms(module):
        return 0
    source = Batches(split, device=device, resident_bytes=0, channels_last=False)
    order = torch.randperm(source.size, generator=torch.Generator().manual_seed(seed))
    parts = tuple(
        part for part in torch.split(order[:samples], batch) if len(part) > 1 or samples == 1
    )
    return average_statistics(module, (piece.inputs for piece in source.take(parts)))


def average_statistics(module: nn.Module, batches: Iterable[tuple[torch.Tensor, ...]]) -> int:
    """Replace BN's running statistics by the averages over batches; ends in eval mode.

    Raises:
        UsageError: there is no batch.
    """
    layers, count = batchnorms(module), 0
    momenta = [layer.momentum for layer in layers]
    set_mode(module, training=False)
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        with torch.no_grad():
            for inputs in batches:
                module(*inputs)
                count += 1
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
    if not count and layers:
        raise UsageError(
            "there is no batch to take BN's statistics of",
            hint="give a loader that can be iterated over once more",
        )
    return len(layers)
