"""Where a network uses its weights: found by watching what runs, not by the classes of modules.

Every convolution, linear layer and matrix product reaches one of four operators of torch, however
it was written: as a module, a function, inside an exported program, or with a weight that two
layers share. ``survey`` lists the uses of each parameter; ``capture`` runs a network up to one of
them and returns what goes in and what comes out.

What comes out is taken where it matters: the output is followed through batch normalisation (in
eval mode) and sums up to the first step that is anything else, such as the activation after a
residual connection. On this way only a scale per channel is applied and tensors are added, so what
is missing there, divided by that scale, is what the weight should have added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hwprune.least_squares.im2col import Convolution, LinearOperator, Product

_aten = torch.ops.aten
_VIEWS = (_aten._unsafe_view.default,)
_SUMS = (_aten.add.Tensor, _aten.add_.Tensor)
# Where each kind of BN keeps (training, eps); the first five arguments are alike.
_NORMS: dict[Any, tuple[int | None, int]] = {
    _aten.native_batch_norm.default: (5, 7),
    _aten.cudnn_batch_norm.default: (5, 7),
    _aten.miopen_batch_norm.default: (5, 7),
    _aten._native_batch_norm_legit_no_training.default: (None, 6),
}


@dataclass(slots=True)
class Uses:
    """What a network does with its parameters.

    Attributes:
        operators: per parameter, each use as weight, in the order of the forward pass.
        others: per parameter, an operator that reads it in another way.
        reads: how often each parameter is read, by the address of its data.
    """

    operators: dict[str, list[LinearOperator]] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    reads: dict[int, int] = field(default_factory=dict)

    def order(self) -> tuple[str, ...]:
        """Return the parameters that are used as weights, by their first use."""
        return tuple(self.operators)

    def obstacle(self, name: str) -> str | None:
        """Return why a parameter cannot be solved for, in words, or None."""
        if name in self.others:
            return f"is also read by {self.others[name]}"
        if name not in self.operators:
            return "is not the weight of a convolution or of a matrix product"
        if len({use.layout for use in self.operators[name]}) > 1:
            return "is used in two layouts"
        return None


@dataclass(frozen=True, slots=True)
class Captured:
    """One use during one forward pass.

    Attributes:
        x: the input that the weight is applied to.
        output: the sum that the use's output ends in, before anything that is not linear.
        scale: (channels,) what the use's own output was multiplied with on the way, None for 1.
        offset: a parameter that is added per channel on that way: a bias, or BN's; or None.
        offset_scale: (channels,) the scale where the offset is added, None for 1.
    """

    x: torch.Tensor
    output: torch.Tensor
    scale: torch.Tensor | None
    offset: torch.Tensor | None
    offset_scale: torch.Tensor | None

    def divided(self, residual: torch.Tensor) -> torch.Tensor:
        """Return what the use's own output lacks, where the sum at its end lacks ``residual``.

        A channel whose scale is (nearly) zero cannot mend anything: it lacks nothing.
        """
        if self.scale is None:
            return residual
        size = self.scale.abs()
        weak = size <= 1e-6 * size.max()
        factor = torch.where(weak, 0.0, 1.0 / torch.where(weak, 1.0, self.scale))
        return residual * factor.reshape(-1, *[1] * (residual.ndim - 2))


class _Done(Exception):
    """All uses were captured: the rest of the forward pass is of no interest."""


def survey(module: nn.Module, names: Sequence[str], inputs: tuple[torch.Tensor, ...]) -> Uses:
    """Return every use of the named parameters in one forward pass."""
    watch = _Survey(module, names)
    with torch.no_grad(), _plain_attention(), watch:
        module(*inputs)
    return watch.uses


def capture(
    module: nn.Module, name: str, uses: int, inputs: tuple[torch.Tensor, ...]
) -> list[Captured]:
    """Run a network until all uses of one parameter are done and return them.

    Args:
        module: in eval mode.
        name: the parameter.
        uses: how many uses the survey found.
        inputs: one batch.
    """
    watch = _Capture(module, name, uses)
    with torch.no_grad(), _plain_attention():
        try:
            with watch:
                module(*inputs)
        except _Done:
            pass
    return watch.finished()


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Let attention run as products that can be seen, not as one fused operator."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _address(tensor: torch.Tensor) -> int:
    return tensor.data_ptr()


def _matches(tensor: Any, weight: torch.Tensor) -> str | None:
    """Return whether a tensor is a weight itself (``direct``) or its transpose (``turned``)."""
    if not isinstance(tensor, torch.Tensor) or _address(tensor) != _address(weight):
        return None
    if tensor.ndim == 3 and weight.ndim == 2 and (tensor.shape[0] == 1 or tensor.stride(0) == 0):
        tensor = tensor[0]  # the same matrix for every member of a batch
    if tensor.shape == weight.shape and tensor.stride() == weight.stride():
        return "direct"
    if weight.ndim == 2 and tensor.shape == weight.shape[::-1]:
        return "turned" if tensor.stride() == weight.stride()[::-1] else None
    return None


def _as_use(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], weight: torch.Tensor
) -> tuple[LinearOperator, torch.Tensor, torch.Tensor | None] | None:
    """Return (operator, input, bias) where a call applies this very weight, else None."""
    if func is _aten.convolution.default and _matches(args[1], weight) == "direct":
        stride, padding, dilation, transposed, extra, groups = args[3:9]
        operator = Convolution(
            tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(extra), groups
        )
        return operator, args[0], args[2]
    if func is _aten.linear.default and _matches(args[1], weight) == "direct":
        return Product(False, False), args[0], args[2] if len(args) > 2 else None
    if func is _aten.addmm.default and not kwargs:
        bias, (left, right) = args[0], args[1:3]
    elif func in (_aten.mm.default, _aten.bmm.default):
        bias, (left, right) = None, args[:2]
    else:
        return None
    if bias is not None and bias.ndim != 1:
        bias = None
    found = _matches(right, weight), _matches(left, weight)
    if found[0] is not None and found[1] is None:
        return Product(found[0] == "direct", False), left, bias
    if found[1] is not None and found[0] is None:
        return Product(found[1] == "turned", True), right, None
    return None


class _Survey(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lists uses while a network runs."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self._wanted = {_address(parameters[name]): (name, parameters[name]) for name in names}
        self._all = {_address(parameter) for parameter in parameters.values()}
        self.uses = Uses()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not (func.is_view or func in _VIEWS):
            for tensor in _tensors(args):
                self._look(func, args, kwargs, _address(tensor))
        return func(*args, **kwargs)

    def _look(self, func: Any, args: Any, kwargs: Any, address: int) -> None:
        if address not in self._all:
            return
        self.uses.reads[address] = self.uses.reads.get(address, 0) + 1
        if address not in self._wanted:
            return
        name, weight = self._wanted[address]
        use = _as_use(func, args, kwargs, weight)
        if use is None:
            self.uses.others[name] = str(func)
        else:
            self.uses.operators.setdefault(name, []).append(use[0])


@dataclass(slots=True)
class _Following:
    """The output of one use on its way to the end of what is linear."""

    x: torch.Tensor
    output: torch.Tensor
    vectors: int | None
    offset: torch.Tensor | None
    offset_scale: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    ended: bool = False


class _Capture(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps inputs and outputs of the uses of one parameter."""

    def __init__(self, module: nn.Module, name: str, uses: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weight = dict(module.named_parameters(remove_duplicate=False))[name]
        self._uses = uses
        self._found: list[_Following] = []

    def finished(self) -> list[Captured]:
        """Return what was captured."""
        return [Captured(f.x, f.output, f.scale, f.offset, f.offset_scale) for f in self._found]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for following in self._found:
            if not following.ended and any(t is following.output for t in _tensors(args)):
                _end_unless_linear(following, func, args, kwargs)
        if len(self._found) == self._uses and all(f.ended for f in self._found):
            raise _Done
        use = _as_use(func, args, kwargs, self._weight)
        result = func(*args, **kwargs)
        for following in self._found:
            if not following.ended and any(t is following.output for t in _tensors(args)):
                _advance(following, func, args, result)
        if use is not None:
            operator, x, bias = use
            vectors = None
            if isinstance(operator, Product):
                vectors = -1 if operator.left else int(result.shape[-1])
            # Copies: later steps may work in place.
            self._found.append(_Following(x.clone(), result, vectors, bias))
        return result


def _end_unless_linear(following: _Following, func: Any, args: Any, kwargs: Any) -> None:
    if _is_linear_step(following, func, args, kwargs):
        return
    following.ended = True
    if func._schema.is_mutable:
        following.output = following.output.clone()


def _is_linear_step(following: _Following, func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether a call keeps the output a sum of itself, scaled by channel, and others."""
    now = following.output
    if func.is_view or func in _VIEWS:
        # Vectors stay vectors where the last axis is kept; places of a convolution do not.
        if following.vectors in (None, -1) or not isinstance(args[1], (list, tuple)):
            return False
        return bool(args[1]) and args[1][-1] == following.vectors
    if func in _SUMS:
        first, second = args[:2]
        if (first is now and second is now) or kwargs.get("alpha", 1) != 1:
            return False
        other = second if first is now else first
        shape = other.shape if isinstance(other, torch.Tensor) else ()
        wide = torch.broadcast_shapes(shape, now.shape)  # type: ignore[no-untyped-call]
        return bool(wide == now.shape)
    if func in _NORMS:
        training, _ = _NORMS[func]
        plain = following.vectors is None or (following.vectors > 0 and now.ndim == 2)
        return args[0] is now and plain and (training is None or not args[training])
    return False


def _advance(following: _Following, func: Any, args: Any, result: Any) -> None:
    """Follow the output through a linear step."""
    if func in _NORMS:
        weight, bias, _, variance = args[1:5]
        factor = torch.rsqrt(variance + args[_NORMS[func][1]])
        factor = factor if weight is None else factor * weight
        before = following.scale
        following.scale = factor.detach() if before is None else before * factor.detach()
        if following.offset is None and bias is not None:
            following.offset, following.offset_scale = bias, following.scale
        result = result[0]
    following.output = result


def _tensors(args: Any) -> Iterator[torch.Tensor]:
    for arg in args:
        if isinstance(arg, torch.Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from _tensors(arg)
