"""Weight sharing within residual stages (EAST, arXiv 2411.13545): few tensors, used by many blocks.

In each stage blocks 0 and 1 own their weights; blocks 2 and later use those of block 1, each
convolution with a scalar of its own that is learnt, and with its own BN. So the tensors that are
left may be denser at the same number of connections, and an artifact stores each of them once.

A stage is found by its structure: children of one module, one after the other, whose convolutions
are alike. For any other network the parameters that share are named.

A convolution that reuses a weight keeps its class and its place: its ``weight`` becomes ``scale *
shared`` by ``torch.nn.utils.parametrize``, so everything that reads the attribute sees the product,
and the shared tensor is one parameter, whose gradient is the sum over its uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from hwprune.errors import UsageError

# A block has at least so many convolutions; a stage of layers with one each is not residual.
_LEAST_CONVOLUTIONS = 2


@dataclass(frozen=True, slots=True)
class Shared:
    """One tensor that several layers use.

    Attributes:
        weight: the parameter that is left, by its name.
        users: the parameters that it replaced, by the names they had.
        scalars: the learnable scalar of each of them, by its name now.
        elements: of the tensor.
    """

    weight: str
    users: tuple[str, ...]
    scalars: tuple[str, ...]
    elements: int


@dataclass(frozen=True, slots=True)
class Sharing:
    """What a network shares.

    Attributes:
        tensors: in the network's order.
    """

    tensors: tuple[Shared, ...]

    def __bool__(self) -> bool:
        """Return whether anything is shared."""
        return bool(self.tensors)

    @property
    def saved(self) -> int:
        """Return how many weights the network has less than before."""
        return sum(shared.elements * len(shared.users) for shared in self.tensors)


class Scaled(nn.Module):
    """A learnable scalar times a tensor that is somebody else's as well."""

    def __init__(self, start: torch.Tensor) -> None:
        """Start from a scalar."""
        super().__init__()
        self.scale = nn.Parameter(start)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the scaled tensor."""
        return weight * self.scale


def share(
    module: nn.Module,
    *,
    groups: Sequence[Sequence[str]] | None = None,
    pretrained: bool = True,
) -> Sharing:
    """Let layers of a network share their weights. Works in place.

    Of each group the first parameter in the network's order is kept with its values, and the others
    become a scalar times it. Values are not averaged: channels of separately trained layers do not
    correspond. Where the network was trained the scalar starts as the ratio of the norms, so that
    the BN behind finds outputs of about the size that it remembers; its statistics are to be taken
    anew, and the network to be trained.

    Args:
        module: the network. Its parameters that share are parametrised afterwards: a state dict of
            it fits a module that was shared alike.
        groups: parameters that become one tensor, by their names; the residual stages without
            (``stages``).
        pretrained: whether the present values mean anything; else the scalars start at 1.

    Returns:
        what is shared; nothing where no groups are given and no stage has three blocks alike.

    Raises:
        UsageError: a name that is no parameter of the network, a group of fewer than two, shapes
            or types that differ, a parameter that is in two groups or tied already.
    """
    if groups is None:
        groups = stages(module)
    chosen = _checked(module, groups)
    return Sharing(tuple(_share(module, names, pretrained=pretrained) for names in chosen))


def stages(module: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return the groups of parameters that residual stages share, found by their structure.

    A block is a child with two convolutions or more; blocks are alike when their convolutions have
    the same names, shapes and options, keep the size of the picture, and return as many channels as
    they take, so that a residual sum is possible. Of blocks alike, one after the other, the first
    that owns weights for the others is block 1 of its stage: the first one, where the block before
    it is another (block 0, which changes size or width), else the second one.
    """
    found: list[tuple[str, ...]] = []
    # The innermost first: a stage of a stage is not a block.
    for prefix, parent in reversed(list(module.named_modules())):
        taken = {name for group in found for name in group}
        blocks = [
            (f"{prefix}.{name}" if prefix else name, child)
            for name, child in parent.named_children()
        ]
        for run in _runs([_signature(child) for _, child in blocks]):
            names = [[f"{blocks[i][0]}.{n}" for n, *_ in _signature(blocks[i][1])] for i in run]
            if not taken.intersection(*names[:1]):
                found += zip(*names, strict=True)
    order = {name: place for place, (name, _) in enumerate(module.named_parameters())}
    return tuple(sorted(found, key=lambda group: order.get(group[0], 0)))


_Convolution = tuple[str, tuple[int, ...], tuple[object, ...]]


def _signature(block: nn.Module) -> tuple[_Convolution, ...]:
    """Return the convolutions of a block: the name of the weight, its shape, the options."""
    return tuple(
        (
            f"{name}.weight" if name else "weight",
            tuple(part.weight.shape),
            (part.stride, part.padding, part.dilation, part.groups, part.transposed),
        )
        for name, part in block.named_modules()
        if isinstance(part, _ConvNd) and "weight" in part._parameters
    )


def _runs(signatures: Sequence[tuple[_Convolution, ...]]) -> Iterator[range]:
    """Yield the places of blocks that share: the owner first."""
    start = 0
    for place in range(1, len(signatures) + 1):
        if place < len(signatures) and signatures[place] == signatures[start]:
            continue
        after_another = start > 0 and len(signatures[start - 1]) >= _LEAST_CONVOLUTIONS
        first = start if after_another else start + 1
        if _may_repeat(signatures[start]) and place - first >= 2:
            yield range(first, place)
        start = place


def _may_repeat(signature: tuple[_Convolution, ...]) -> bool:
    """Return whether a block could be the inside of a residual sum."""
    if len(signature) < _LEAST_CONVOLUTIONS:
        return False
    (_, first, options), (_, last, _) = signature[0], signature[-1]
    still = all(set(given[0]) == {1} for _, _, given in signature)  # type: ignore[call-overload]
    return still and first[1] * int(options[3]) == last[0]  # type: ignore[call-overload]


def _checked(
    module: nn.Module, groups: Sequence[Sequence[str]]
) -> list[tuple[tuple[str, nn.Parameter], ...]]:
    """Return the groups' parameters in the network's order."""
    known = dict(module.named_parameters(remove_duplicate=False))
    order = {name: place for place, name in enumerate(known)}
    names_of: dict[int, list[str]] = {}
    for name, parameter in known.items():
        names_of.setdefault(id(parameter), []).append(name)
    checked = []
    taken: set[str] = set()
    for group in groups:
        if isinstance(group, str) or len(set(group)) < 2 or len(set(group)) < len(group):
            raise UsageError(
                f"{group!r} is not a group of parameters that could share a weight",
                hint="name two parameters or more, each once",
            )
        for name in group:
            _check_name(name, known, names_of)
            if name in taken:
                raise UsageError(
                    f"{name} is in two groups", hint="make these groups one, or leave it out of one"
                )
            taken.add(name)
        first = known[group[0]]
        for name in group[1:]:
            other = known[name]
            if (other.shape, other.dtype) != (first.shape, first.dtype):
                raise UsageError(
                    f"{group[0]} is {_described(first)} and {name} is {_described(other)}: they "
                    "cannot share a weight",
                    hint="only parameters of one shape and type can",
                )
        checked.append(tuple((name, known[name]) for name in sorted(group, key=order.__getitem__)))
    return checked


def _check_name(name: str, known: dict[str, nn.Parameter], names_of: dict[int, list[str]]) -> None:
    if name not in known:
        close = [each for each in known if each.rpartition(".")[2] == str(name).rpartition(".")[2]]
        raise UsageError(
            f"{name!r} is not a parameter of the network",
            hint=f"use names such as {', '.join(close[:3] or list(known)[:3])}",
        )
    tied = [each for each in names_of[id(known[name])] if each != name]
    if tied or ".parametrizations." in f".{name}":
        raise UsageError(
            f"{name} is shared already" + (f", with {tied[0]}" if tied else ""),
            hint="leave it out of the groups",
        )
    if not known[name].is_floating_point():
        raise UsageError(f"{name} is {_described(known[name])}", hint="only weights can be shared")


def _described(parameter: torch.Tensor) -> str:
    shape = "x".join(map(str, parameter.shape)) or "scalar"
    return f"{shape} {str(parameter.dtype).removeprefix('torch.')}"


def _share(
    module: nn.Module, group: tuple[tuple[str, nn.Parameter], ...], *, pretrained: bool
) -> Shared:
    (owner, weight), *others = group
    scalars = []
    for name, parameter in others:
        start = torch.ones((), dtype=weight.dtype, device=weight.device)
        if pretrained:
            with torch.no_grad():
                norms = parameter.norm(), weight.norm()
                ratio = norms[0] / norms[1]
                start = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, start)
        prefix, _, leaf = name.rpartition(".")
        part = module.get_submodule(prefix)
        setattr(part, leaf, weight)
        parametrize.register_parametrization(part, leaf, Scaled(start))
        path = f"parametrizations.{leaf}.0.scale"
        scalars.append(f"{prefix}.{path}" if prefix else path)
    users = tuple(name for name, _ in others)
    return Shared(owner, users, tuple(scalars), weight.numel())
