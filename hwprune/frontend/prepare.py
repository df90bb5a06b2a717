"""A module as the other rooms expect it: every tensor its own memory, every weight a plain one.

What a module holds may be a view of something longer, expanded, computed anew at each call
(parametrisations such as weight_norm) or not there before the first call (lazy modules). Each of
these runs, and none of them can be pruned, written or loaded into as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune

from hwprune.errors import ModelError
from hwprune.frontend.inputs import describe
from hwprune.frontend.probe import example_inputs, named_tensors, probe
from hwprune.frontend.user_code import FAILURES, first_line
from hwprune.ir import TensorSpec


def prepare(module: nn.Module, inputs: tuple[TensorSpec, ...], *, seed: int = 0) -> tuple[str, ...]:
    """Make a module ready for the other rooms, in place, and try it on inputs of these shapes.

    Args:
        module: in eval mode, in float32, hwprune's own.
        inputs: what it reads.
        seed: of the weights that a lazy module draws.

    Returns:
        Notes for the report.

    Raises:
        ModelError: it does not run, or gives what cannot be used; see `probe`.
    """
    if is_waiting(module):
        _call_once(module, inputs, seed)
    own_memory(module)
    notes: tuple[str, ...] = ()
    give_norms_weights(module)
    if folded := fold(module):
        notes = (
            f"weights that were computed at every call are now plain ones: {', '.join(folded[:4])}"
            + (f" and {len(folded) - 4} more" if len(folded) > 4 else ""),
        )
    return notes + probe(module, inputs)


def _call_once(module: nn.Module, inputs: tuple[TensorSpec, ...], seed: int) -> None:
    """Call lazy modules, so that they get their shapes, and weights where none are there."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            module(*example_inputs(inputs, batch=2))
    except FAILURES as error:
        raise ModelError(
            f"the network does not take {describe(inputs)}: {first_line(error)}",
            hint="give the shapes that its lazy modules are to have",
        ) from error


def own_memory(module: nn.Module) -> None:
    """Give every tensor that is a view or expanded memory of its own, in place; ties stay."""
    for _, tensor in named_tensors(module):
        if is_lazy(tensor) or tensor.is_meta or tensor.layout != torch.strided:
            continue
        if tensor.numel() * tensor.element_size() != tensor.untyped_storage().nbytes():
            tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)


def give_norms_weights(module: nn.Module) -> bool:
    """Give BN without weight and bias those that do nothing, in place: it is folded by them.

    Returns:
        Whether there was one.
    """
    bare = [
        part
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.weight is None
    ]
    part: Any
    for part in bare:
        part.affine = True
        part.weight = nn.Parameter(torch.ones(part.num_features), requires_grad=False)
        part.bias = nn.Parameter(torch.zeros(part.num_features), requires_grad=False)
    return bool(bare)


def fold(module: nn.Module) -> tuple[str, ...]:
    """Replace weights that are computed from others at each call by their values, in place.

    These are torch's parametrisations (weight_norm, spectral_norm and a user's own), their older
    forms, and torch.nn.utils.prune's masks. In eval mode such a weight does not depend on the
    input, so the outputs stay what they were.

    Args:
        module: in eval mode.

    Returns:
        The folded weights by name.

    Raises:
        ModelError: a parametrisation that cannot be computed.
    """
    folded = []
    for prefix, owner in module.named_modules():
        try:
            names = _fold_one(owner)
        except Exception as error:  # whatever a stranger's parametrisation raises
            raise ModelError(
                f"a parametrisation of {prefix or 'the network'} cannot be computed: {error}",
                hint="remove it before the model is saved (remove_parametrizations)",
            ) from error
        folded += [f"{prefix}.{name}" if prefix else name for name in names]
    return tuple(folded)


def _fold_one(owner: nn.Module) -> list[str]:
    names: list[str] = []
    if parametrize.is_parametrized(owner):
        names += list(owner.parametrizations)  # type: ignore[arg-type]  # a ModuleDict
        for name in names:
            parametrize.remove_parametrizations(owner, name, leave_parametrized=True)
    hook: Any
    for key, hook in list(owner._forward_pre_hooks.items()):
        kind = type(hook).__name__
        if isinstance(hook, prune.BasePruningMethod):
            hook.remove(owner)
            name = hook._tensor_name
        elif kind in ("WeightNorm", "SpectralNorm") and hasattr(hook, "name"):
            name = hook.name
            if kind == "WeightNorm":
                hook.remove(owner)
            else:  # its own remove() iterates once more, which eval mode does not
                weight = hook.compute_weight(owner, do_power_iteration=False).detach()
                _forget(owner, name, f"{name}_orig", f"{name}_u", f"{name}_v")
                owner.register_parameter(name, nn.Parameter(weight))
                for hooks in (owner._state_dict_hooks, owner._load_state_dict_pre_hooks):
                    for number, other in list(hooks.items()):
                        if "SpectralNorm" in type(getattr(other, "hook", other)).__name__:
                            del hooks[number]
        else:
            continue
        del owner._forward_pre_hooks[key]
        names.append(name)
    return names


def _forget(owner: nn.Module, *names: str) -> None:
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)


def is_waiting(module: nn.Module) -> bool:
    """Return whether a lazy module has yet to see an input, be its tensors there or not."""
    return any(
        isinstance(part, nn.modules.lazy.LazyModuleMixin) and hasattr(part, "_initialize_hook")
        for part in module.modules()
    )
