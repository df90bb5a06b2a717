"""A loaded torch.export program as a module: frozen BN, and the inputs that it was exported for."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn

from hwprune.errors import ModelError
from hwprune.frontend.archive import SAVE_AGAIN
from hwprune.ir import TensorSpec

_ATEN: Any = torch.ops.aten

# Operators that behave differently in training, with the argument (position, name) that says so.
_TRAINING_ARGUMENT: dict[Any, tuple[int, str]] = {
    _ATEN.batch_norm.default: (5, "training"),
    _ATEN.dropout.default: (2, "train"),
    _ATEN.dropout_.default: (2, "train"),
    _ATEN.feature_dropout.default: (2, "train"),
    _ATEN.alpha_dropout.default: (2, "train"),
    _ATEN.rrelu.default: (3, "training"),
}
# The same after decomposition, and drawing random numbers: here the choice can no longer be undone.
_TRAINING_ONLY = (
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    "native_dropout",
    "bernoulli",
    "bernoulli_",
    "rand",
    "rand_like",
    "uniform_",
)


def as_module(
    program: torch.export.ExportedProgram, path: str
) -> tuple[nn.Module, tuple[TensorSpec, ...], tuple[str, ...]]:
    """Turn a program into a module in eval mode, its inputs, and notes.

    Raises:
        ModelError: inputs by keyword or not tensors, or a training form that is decomposed.
    """
    inputs, notes = _inputs(program, path)
    module: Any = program.module(check_guards=False)
    switched = _evaluate(module, path)
    if switched:
        notes += (
            f"the program was exported in training mode: {switched} operators were switched to "
            "evaluation",
        )
    # torch refuses train() and eval() on such a module. Its graph is in evaluation for good, so
    # both may be called and change nothing but the flag that people read.
    for owner in module.modules():
        owner.train = MethodType(_set_training, owner)
        owner.eval = MethodType(lambda self: _set_training(self, False), owner)
        owner.training = False
    return module, inputs, (*notes, "the program's BN is frozen while it is trained")


def _set_training(self: nn.Module, mode: bool = True) -> nn.Module:
    for owner in self.modules():
        owner.training = mode
    return self


def _inputs(
    program: torch.export.ExportedProgram, path: str
) -> tuple[tuple[TensorSpec, ...], tuple[str, ...]]:
    example = program.example_inputs
    if example is not None and len(example) == 2 and example[1]:
        raise ModelError(
            f"{path} was exported with inputs by keyword ({', '.join(example[1])})",
            hint="export it again with all inputs in args",
        )
    specs, notes = [], []
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    for name in program.graph_signature.user_inputs:
        value = values.get(str(name))
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"{path} has the input {name}, which is not a tensor",
                hint="export it again with tensors as its only inputs",
            )
        shape: list[int | None] = []
        sizes: tuple[Any, ...] = tuple(value.shape)  # int, or SymInt where it is dynamic
        for axis, size in enumerate(sizes):
            if isinstance(size, int):
                shape.append(size)
            elif axis == 0:
                shape.append(None)
            else:
                shape.append(int(size.node.hint))
                notes.append(f"dimension {axis} of {name} is dynamic; {shape[-1]} was taken")
        if shape and shape[0] is not None:
            notes.append(f"the program fixes the batch of {name} at {shape[0]}")
        specs.append(TensorSpec(str(name), tuple(shape), str(value.dtype).removeprefix("torch.")))
    return tuple(specs), tuple(notes)


def _evaluate(module: Any, path: str) -> int:
    """Switch the graph's operators to evaluation; return how many were in training."""
    switched = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _TRAINING_ARGUMENT:
            position, name = _TRAINING_ARGUMENT[node.target]
            if len(node.args) > position and node.args[position]:
                node.update_arg(position, False)
                switched += 1
            elif node.kwargs.get(name):
                node.update_kwarg(name, False)
                switched += 1
        elif str(node.target).split(".")[1:2] in ([name] for name in _TRAINING_ONLY):
            raise ModelError(
                f"{path} was exported in training mode, which cannot be undone ({node.target})",
                hint=f"call model.eval() before torch.export.export; or {SAVE_AGAIN}",
            )
        elif _counts_batches(node):
            module.graph.erase_node(node)
    for number, node in enumerate(list(module.graph.nodes)):
        if node.target == _ATEN.batch_norm.default and node.args[1] is None:
            _give_weights(module, node, f"batch_norm_{number}")
    module.graph.lint()
    module.recompile()
    return switched


def _give_weights(module: Any, node: Any, name: str) -> None:
    """Give BN without weight and bias those that do nothing: it is folded by them."""
    mean = node.args[3]
    if mean is None or mean.op != "get_attr":
        return
    like = module.get_buffer(mean.target)
    for position, (kind, value) in enumerate((("weight", 1.0), ("bias", 0.0)), start=1):
        parameter = nn.Parameter(torch.full_like(like, value), requires_grad=False)
        module.register_parameter(f"{name}_{kind}", parameter)
        with module.graph.inserting_before(node):
            node.update_arg(position, module.graph.get_attr(f"{name}_{kind}"))


def _counts_batches(node: Any) -> bool:
    """Return whether this only counts BN's batches: it would change a buffer at every run."""
    first = node.args[0] if node.args else None
    return (
        node.target == _ATEN.add_.Tensor
        and not node.users
        and str(getattr(first, "target", "")).endswith("num_batches_tracked")
    )
