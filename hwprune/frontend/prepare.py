"""A module as the other rooms expect it: every tensor its own memory, every weight a plain one.

What a module holds may be a view of something longer, expanded, computed anew at each call
(parametrisations such as weight_norm) or not there before the first call (lazy modules). Each of
these runs, and none of them can be pruned, written or loaded into as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune
from torch.overrides import TorchFunctionMode

from hwprune.errors import ModelError
from hwprune.frontend.inputs import describe
from hwprune.frontend.probe import call_once, fresh_copy, named_tensors, probe
from hwprune.frontend.user_code import FAILURES, running
from hwprune.ir import TensorSpec

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_FUNCTIONS = ("conv1d", "conv2d", "conv3d", "linear")
# A layer whose weight was computed and is plain now has a buffer of one of these names: what
# computes it anew does not load such weights without a word.
_PLAIN, _PLAIN_SAME = "weight_is_plain", "weight_is_plain_padded_same"


class SameConv2d(nn.Conv2d):
    """A convolution that pads its input with zeros as TensorFlow's SAME does: by its size."""

    def forward(self, input: Tensor) -> Tensor:
        """Pad so that there are as many outputs as strides begin in the input."""
        pads: list[Any] = []
        for axis in (1, 0):
            size, step = input.shape[2 + axis], self.stride[axis]
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            lacking = (-(-size // step) - 1) * step + reach - size
            missing = torch.sym_max(lacking, 0)  # type: ignore[no-untyped-call]  # in torch
            pads += [missing // 2, missing - missing // 2]
        return super().forward(functional.pad(input, pads))


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
    if folded := (*fold(module), *fold_layers(module, inputs)):
        notes = (
            f"weights that were computed at every call are now plain ones: {', '.join(folded[:4])}"
            + (f" and {len(folded) - 4} more" if len(folded) > 4 else ""),
        )
    return notes + probe(module, inputs)


def _call_once(module: nn.Module, inputs: tuple[TensorSpec, ...], seed: int) -> None:
    """Call lazy modules, so that they get their shapes, and weights where none are there."""
    refused = f"the network does not take {describe(inputs)}"
    with (
        running(refused, ModelError, "give the shapes that its lazy modules are to have"),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
    ):
        torch.default_generator.manual_seed(seed)
        call_once(module, inputs)


def own_memory(module: nn.Module) -> None:
    """Give every tensor that is a view or expanded memory of its own, in place; ties stay.

    What is read in two shapes, as the transposed weight of an encoder is by its decoder, is no tie.
    """
    seen: dict[int, tuple[Any, ...]] = {}
    for _, tensor in named_tensors(module):
        if is_lazy(tensor) or tensor.is_meta or tensor.layout != torch.strided:
            continue
        layout = (tensor.shape, tensor.stride())
        apart = seen.setdefault(tensor.untyped_storage().data_ptr(), layout) != layout
        if apart or tensor.numel() * tensor.element_size() != tensor.untyped_storage().nbytes():
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


class _Weights(TorchFunctionMode):
    """Notes the weights that convolutions and linear layers are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if getattr(func, "__name__", "") in _FUNCTIONS:
            self.found.append(given["weight"] if "weight" in given else args[1])
        return func(*args, **given)


def fold_layers(module: nn.Module, inputs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    """Make plain layers of those that compute their weight from another at each call, in place.

    Weight standardisation (arXiv 1903.10520) is a convolution of a class of its own. One whose
    output is that of torch's layer with the weight that it called the operator with becomes that
    layer; one whose weight depends on its input, or that does more, stays.

    Args:
        module: in eval mode.
        inputs: what it reads.

    Returns:
        The folded weights by name.
    """
    tried = fresh_copy(module)
    parts = {
        name: part
        for name, part in tried.named_modules()
        if (kind := _kind(part)) is not None and type(part).forward is not kind.forward
    }
    if not parts or tried is module:  # what cannot be copied stays as it is
        return ()
    read: dict[nn.Module, Any] = {}
    for part in parts.values():
        part.register_forward_pre_hook(read.__setitem__)
    folded = []
    tensors = [id(tensor) for _, tensor in named_tensors(module)]
    with torch.no_grad():
        try:
            call_once(tried, inputs)
        except FAILURES:  # probe says so
            return ()
        for name, part in parts.items():
            alone = tensors.count(id(part.weight)) == 1 and len(read.get(part, ())) == 1
            found = _computed(part, *read[part]) if alone else None
            if found is not None:
                layer: Any = module.get_submodule(name)
                layer.weight.data = found[0].clone()
                _make_plain(layer, same=found[1])
                folded.append(f"{name}.weight")
    return tuple(folded)


def _kind(part: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in _LAYERS if isinstance(part, kind)), None)


def _make_plain(part: nn.Module, *, same: bool) -> None:
    kind = SameConv2d if same else _kind(part)
    assert kind is not None
    part.__class__ = kind
    part.register_buffer(_PLAIN_SAME if same else _PLAIN, torch.ones(()))


def _computed(part: Any, value: Tensor) -> tuple[Tensor, bool] | None:
    """Return the weight that a layer computes, and whether it pads its input as SAME does.

    None where it does anything else. ``part`` is changed.
    """
    with _Weights() as noted:
        expected = part(value)
        part(-value)
    if len(noted.found) != 2 or not torch.equal(*noted.found):
        return None
    weight = noted.found[0].detach()
    if weight.shape != part.weight.shape or torch.equal(weight, part.weight):
        return None
    # How a layer pads shows at another size.
    other = value[..., 1:, 1:] if isinstance(part, nn.Conv2d) else value
    try:
        further = part(other)
    except FAILURES:
        other, further = value, expected
    part.weight = nn.Parameter(weight)
    for same in (False, True) if isinstance(part, nn.Conv2d) else (False,):
        _make_plain(part, same=same)
        if all(
            (found := part(given)).shape == wanted.shape
            and torch.allclose(found, wanted, 1e-5, 1e-6)
            for given, wanted in ((value, expected), (other, further))
        ):
            return weight, same
    return None


def make_plain(module: nn.Module, names: Iterable[str]) -> bool:
    """Make those layers plain that were so when tensors of these names were saved, in place.

    Returns:
        Whether there was one.
    """
    parts = dict(module.named_modules())
    found = False
    for name in names:
        owner, _, last = name.rpartition(".")
        part = parts.get(owner) if last in (_PLAIN, _PLAIN_SAME) else None
        if part is not None and _kind(part) is not None:
            _make_plain(part, same=last == _PLAIN_SAME)
            found = True
    return found


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
