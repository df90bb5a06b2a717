"""Where a network uses its weights: found by watching what runs, not by the classes of modules.

Every convolution, linear layer and matrix product reaches one of a few operators of torch, however
it was written: as a module, a function, inside an exported program, or with a weight that two
layers share. ``survey`` lists the uses of each parameter; ``watch`` runs a network and hands over
what goes into each use and what comes out.

What comes out is taken where it matters: the output is followed through batch normalisation (in
eval mode) and sums up to the first step that is anything else, such as the activation after a
residual connection. On this way only a scale per channel is applied and tensors are added, so what
is missing there, divided by that scale, is what the weight should have added; and what a change of
the weight adds can be added there, without running the network again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
class ParameterUses:
    """What a network does with its parameters.

    Attributes:
        operators: per parameter, each use as weight, in the order of the forward pass.
        others: per parameter, an operator that reads it in another way.
        reads: how often each parameter is read, by the address of its data.
        ends: the parameters that are used as weights, as the last of their uses ends.
        live: per such parameter, the bytes that the network holds then for one sample.
    """

    operators: dict[str, list[LinearOperator]] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    reads: dict[int, int] = field(default_factory=dict)
    ends: list[str] = field(default_factory=list)
    live: dict[str, int] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Return how many uses each parameter has that can be solved for, by its first use."""
        return {
            name: len(uses) for name, uses in self.operators.items() if self.obstacle(name) is None
        }

    def obstacle(self, name: str) -> str | None:
        """Return why a parameter cannot be solved for, in words, or None."""
        if name in self.others:
            return f"is also read by {self.others[name]}"
        if name not in self.operators:
            return "is not the weight of a convolution or of a matrix product"
        if len({use.layout for use in self.operators[name]}) > 1:
            return "is used in two layouts"
        return None


@dataclass(slots=True, eq=False)
class ParameterUse:
    """One use during one forward pass, followed as far as its output is only scaled and added to.

    Attributes:
        name: the parameter.
        operator: how it is applied.
        x: the input that it is applied to.
        output: the sum that the use's output ends in, before anything that is not linear.
        scale: (channels,) what the use's own output was multiplied with on the way, None for 1.
        offset: a parameter that is added per channel on that way: a bias, or BN's; or None.
        offset_scale: (channels,) the scale where the offset is added, None for 1.
        way: (output, scale, whether the offset is in it) at each step, the last one's included;
            outputs that nothing holds any more are None.
    """

    name: str
    operator: LinearOperator
    x: torch.Tensor
    output: torch.Tensor
    offset: torch.Tensor | None
    scale: torch.Tensor | None = None
    offset_scale: torch.Tensor | None = None
    way: list[tuple[Callable[[], torch.Tensor | None], torch.Tensor | None, bool]] = field(
        default_factory=list
    )

    def __post_init__(self) -> None:
        """Begin the way."""
        self._step(self.output)

    def _step(self, output: torch.Tensor) -> None:
        self.output = output
        self.way.append((weakref.ref(output), self.scale, self.offset is not None))

    def read(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return those that are outputs on the way."""
        way = [step() for step, _, _ in self.way]
        return [tensor for tensor in tensors if any(tensor is step for step in way)]

    def divided(self, residual: torch.Tensor) -> torch.Tensor:
        """Return what the use's own output lacks, where the sum at its end lacks ``residual``.

        A channel whose scale is (nearly) zero cannot mend anything: it lacks nothing.
        """
        if self.scale is None:
            return residual
        size = self.scale.abs()
        weak = size <= 1e-6 * size.max()
        factor = torch.where(weak, 0.0, 1.0 / torch.where(weak, 1.0, self.scale))
        return residual * _by_channel(factor, residual)

    def correct(self, delta: torch.Tensor, shift: torch.Tensor | None) -> None:
        """Add to every output on the way what a change of the weight makes of it, in place.

        Args:
            delta: added to the weight, in its shape.
            shift: (channels,) added to the use's own output by a change of the offset, or None.
        """
        change = self.operator.apply(self.x, delta, self.output)
        done = set()
        for step, scale, with_offset in self.way:
            output = step()
            # Views of one output, and steps in place, are one memory.
            if output is None or output.data_ptr() in done:
                continue
            done.add(output.data_ptr())
            part = change
            if shift is not None and with_offset:
                part = part + self.operator.by_channel(shift)
            if scale is not None:
                part = part * _by_channel(scale, part)
            output.add_(part.reshape(output.shape))

    def follows(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Return whether a call keeps the output a sum of itself, scaled by channel, and others."""
        now, operator = self.output, self.operator
        if func.is_view or func in _VIEWS:
            # Vectors stay vectors where the last axis is kept; places of a convolution do not.
            if isinstance(operator, Convolution) or operator.left:
                return False
            shape = args[1]
            return isinstance(shape, (list, tuple)) and shape[-1:] == [now.shape[-1]]
        if func in _SUMS:
            other = args[1] if args[0] is now else args[0]
            shape = other.shape if isinstance(other, torch.Tensor) else ()
            both = torch.broadcast_shapes(shape, now.shape)  # type: ignore[no-untyped-call]
            return bool(both == now.shape and kwargs.get("alpha", 1) == 1)
        if func in _NORMS:
            training, _ = _NORMS[func]
            plain = isinstance(operator, Convolution) or (now.ndim == 2 and not operator.left)
            return args[0] is now and plain and (training is None or not args[training])
        return False

    def follow(self, func: Any, args: Any, result: Any) -> None:
        """Go one step along the way."""
        if func in _NORMS:
            weight, bias, _, variance = args[1:5]
            factor = torch.rsqrt(variance + args[_NORMS[func][1]])
            factor = (factor if weight is None else factor * weight).detach()
            self.scale = factor if self.scale is None else self.scale * factor
            if self.offset is None and bias is not None:
                self.offset, self.offset_scale = bias, self.scale
            result = result[0]
        self._step(result)


class Stop(BaseException):
    """Raised by who was handed a use: the rest of the forward pass is of no interest."""


def survey(
    module: nn.Module, names: Collection[str], inputs: tuple[torch.Tensor, ...]
) -> ParameterUses:
    """Return every use of the named parameters in one forward pass."""
    look = _Survey(module, names, len(inputs[0]))
    with torch.no_grad(), plain_attention(), look:
        module(*inputs)
    look.finish()
    return look.uses


def watch(
    module: nn.Module,
    counts: Mapping[str, int],
    inputs: tuple[torch.Tensor, ...],
    ended: Callable[[list[ParameterUse]], None],
) -> None:
    """Run a network and hand over the uses of each parameter as soon as the last has ended.

    Args:
        module: in eval mode.
        counts: the parameters, and how many uses of each there are.
        inputs: one batch.
        ended: called with all uses of one parameter; ``Stop`` ends the forward pass.
    """
    look = _Watch(module, counts, ended)
    with torch.no_grad(), plain_attention():
        try:
            with look:
                module(*inputs)
            look.finish()
        except Stop:
            pass


@contextmanager
def plain_attention() -> Iterator[None]:
    """Let attention run as products that can be seen, not as one fused operator."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _matches(tensor: Any, weight: torch.Tensor) -> str | None:
    """Return whether a tensor is a weight itself (``direct``) or its transpose (``turned``)."""
    if not isinstance(tensor, torch.Tensor) or tensor.data_ptr() != weight.data_ptr():
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


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the uses of parameters while a network runs."""

    def __init__(
        self,
        module: nn.Module,
        counts: Mapping[str, int],
        ended: Callable[[list[ParameterUse]], None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self._weights = {parameters[name].data_ptr(): (name, parameters[name]) for name in counts}
        self._left, self._ended = dict(counts), ended
        self._open: list[ParameterUse] = []
        self._closed: dict[str, list[ParameterUse]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors(args))
        going: list[ParameterUse] = []
        ending: list[ParameterUse] = []
        for use in self._open:
            if read := use.read(tensors):
                # What reads an earlier output too depends on the weight in another way.
                alone = len(read) == 1 and read[0] is use.output
                follows = alone and use.follows(func, args, kwargs)
                (going if follows else ending).append(use)
        self._close(ending)
        if func._schema.is_mutable:
            for use in self._open:
                if use.x.data_ptr() == tensors[0].data_ptr():
                    use.x = use.x.clone()
        result = func(*args, **kwargs)
        for use in going:
            use.follow(func, args, result)
        for tensor in tensors:
            name, weight = self._weights.get(tensor.data_ptr(), ("", None))
            if weight is not None and (found := _as_use(func, args, kwargs, weight)) is not None:
                operator, x, bias = found
                self._open.append(ParameterUse(name, operator, x, result, bias))
                break
        return result

    def finish(self) -> None:
        """Close what the outputs of the network are."""
        self._close(self._open)

    def _close(self, uses: Sequence[ParameterUse]) -> None:
        self._open = [use for use in self._open if use not in uses]
        for use in uses:
            closed = self._closed.setdefault(use.name, [])
            closed.append(use)
            if len(closed) == self._left.get(use.name):
                del self._left[use.name]
                self._ended(self._closed.pop(use.name))
        if not self._left:
            raise Stop


class _Survey(_Watch):  # type: ignore[no-untyped-call]
    """Lists uses while a network runs, and what it holds where they end."""

    def __init__(self, module: nn.Module, names: Collection[str], samples: int) -> None:
        super().__init__(module, dict.fromkeys(names, 0), lambda found: None)
        self._all = {parameter.data_ptr() for parameter in module.parameters()}
        self._samples, self.uses = samples, ParameterUses()
        self._made: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (func.is_view or func in _VIEWS):
            for address in (tensor.data_ptr() for tensor in _tensors(args)):
                if address in self._all:
                    self.uses.reads[address] = self.uses.reads.get(address, 0) + 1
                if address in self._weights:
                    self._look(func, args, kwargs or {}, *self._weights[address])
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self._made += [weakref.ref(tensor) for tensor in _tensors((result,))]
        return result

    def _look(self, func: Any, args: Any, kwargs: Any, name: str, weight: torch.Tensor) -> None:
        use = _as_use(func, args, kwargs, weight)
        if use is None:
            self.uses.others[name] = str(func)
        else:
            self.uses.operators.setdefault(name, []).append(use[0])

    def _close(self, uses: Sequence[ParameterUse]) -> None:
        self._open = [use for use in self._open if use not in uses]
        held = [tensor.untyped_storage() for made in self._made if (tensor := made()) is not None]
        total = sum({each.data_ptr(): each.nbytes() for each in held}.values())
        for use in uses:
            self.uses.ends = [name for name in self.uses.ends if name != use.name] + [use.name]
            self.uses.live[use.name] = total // self._samples


def _by_channel(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 2))


def _tensors(args: Any) -> Iterator[torch.Tensor]:
    for arg in args:
        if isinstance(arg, torch.Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from _tensors(arg)
