"""Does a state dict fit an architecture, and which one is it where nobody said?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hwprune.errors import ModelError
from hwprune.frontend.arch import Arch, find_arch
from hwprune.frontend.probe import named_tensors
from hwprune.frontend.zoo import ARCHITECTURES, Architecture
from hwprune.units import format_count

Shapes = Mapping[str, tuple[int, ...] | None]

_SHOWN = 5
# Below this share of equal keys a network is called unlike, not near.
_ALIKE = 0.2
# BN counts its batches only for an average that nobody uses; old checkpoints lack the count.
_OPTIONAL = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How a state dict differs from an architecture.

    Attributes:
        missing: keys that the architecture has and the state dict lacks.
        unexpected: keys that the architecture does not know.
        wrong: (key, shape in the state dict, shape in the architecture).
        equal: how many keys agree.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    equal: int

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.wrong)

    @property
    def likeness(self) -> float:
        """Return the share of all keys that agree, 0 to 1."""
        differ = len(self.missing) + len(self.unexpected) + len(self.wrong)
        return self.equal / max(1, self.equal + differ)


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Return the shape of every tensor that counts; None where only a call decides it."""
    return {
        name: None if is_lazy(tensor) else tuple(tensor.shape)
        for name, tensor in state.items()
        if not name.endswith(_OPTIONAL)
    }


def compare(found: Shapes, expected: Shapes) -> Mismatch:
    """Compare a state dict's shapes with an architecture's."""
    shared = [name for name in expected if name in found]
    wrong = tuple(
        (name, have, want)
        for name in shared
        if (have := found[name]) is not None
        and (want := expected[name]) is not None
        and have != want
    )
    return Mismatch(
        missing=tuple(name for name in expected if name not in found),
        unexpected=tuple(name for name in found if name not in expected),
        wrong=wrong,
        equal=len(shared) - len(wrong),
    )


def other_num_classes(mismatch: Mismatch) -> int | None:
    """Return the number of classes that would mend the mismatch, where that is all of it."""
    if mismatch.missing or mismatch.unexpected or not mismatch.wrong:
        return None
    sizes = {(found[:1], expected[:1]) for _, found, expected in mismatch.wrong}
    if len(sizes) == 1 and all(found[1:] == other[1:] for _, found, other in mismatch.wrong):
        ((size, _),) = sizes
        return size[0] if size else None
    return None


def mismatch_error(
    path: str, spec: str, mismatch: Mismatch, state: Mapping[str, Tensor]
) -> ModelError:
    """Return the error that names the first keys that do not fit, and what would fit instead."""
    groups = {
        "of another shape": [
            f"{name}: the file has {_shape(found)}, the architecture {_shape(expected)}"
            for name, found, expected in mismatch.wrong
        ],
        **{
            what: [f"{name}: {what}" for name in names]
            for what, names in (
                ("missing from the file", mismatch.missing),
                ("not in the architecture", mismatch.unexpected),
            )
        },
    }
    lines = [f"{path} does not fit --arch {spec}:"]
    for what, entries in groups.items():
        lines += [f"  {entry}" for entry in entries[:_SHOWN]]
        if len(entries) > _SHOWN:
            lines.append(f"  and {len(entries) - _SHOWN} more {what}")
    try:
        hint = f"it fits --arch '{recognise(state, path).spec}'"
    except ModelError:
        hint = (
            "give the --arch that the file was saved from, with its keyword arguments, "
            "as NAME(num_classes=10)"
        )
    return ModelError("\n".join(lines), hint=hint)


def recognise(state: Mapping[str, Tensor], path: str) -> Arch:
    """Find the one built-in architecture whose keys and shapes are those of ``state``.

    Raises:
        ModelError: none matches (the nearest are named), or several do.
    """
    found = shapes_of(state)
    matches = _matches(found)
    if not matches:  # the network may be a part of what was saved: Lightning's `model.`
        parts = Counter(name.partition(".")[0] + "." for name in found if "." in name)
        for prefix, _ in parts.most_common(3):
            matches = matches or _matches(
                {n.removeprefix(prefix): s for n, s in found.items() if n.startswith(prefix)}
            )
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ModelError(
            f"{path} fits {' and '.join(arch.spec for arch in matches)} equally well",
            hint=f"say which: --arch '{matches[0].spec}'",
        )
    every = [pair for entry in ARCHITECTURES.values() for pair in _candidates(entry, found)]
    every.sort(key=lambda pair: -pair[1].likeness)
    near = [
        f"{arch.spec} ({100 * mismatch.likeness:.0f} % of the keys agree)"
        for arch, mismatch in every[:3]
        if mismatch.likeness > _ALIKE
    ]
    raise ModelError(
        f"{path} is a state dict of {format_count(len(state), 'tensor')} "
        "that fits no built-in architecture" + (f"; nearest: {', '.join(near)}" if near else ""),
        hint="say what it was saved from: --arch NAME, torchvision:NAME, timm:NAME "
        "or path/to/file.py:callable",
    )


def _matches(found: Shapes) -> list[Arch]:
    # Only one that has the same head can match; the others need not be built.
    return [
        arch
        for entry in ARCHITECTURES.values()
        if len(found.get(entry.head) or ()) == 2
        for arch, mismatch in _candidates(entry, found)
        if not mismatch
    ]


def aligned(
    state: Mapping[str, Tensor], module: nn.Module, path: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Name the tensors as a network does, as far as their own names show how.

    A prefix that all of the network's names have in the file is removed, and what is not below it
    left out; one that the file lacks is added. A tied weight that was stored once is filled in.
    Weight norm is stored in three ways.

    Args:
        state: the file's tensors.
        module: the network, whatever its weights.
        path: for the error.

    Raises:
        ModelError: the network is in the file several times.
    """
    groups: dict[int, list[str]] = {}
    for name, tensor in named_tensors(module):
        groups.setdefault(id(tensor), []).append(name)
    needed = [names for names in groups.values() if not names[0].endswith(_OPTIONAL)]
    every = {name for names in needed for name in names}
    state, notes = _norms_as_in(dict(state), every)

    def whole(prefix: str) -> bool:
        return all(any(prefix + name in state for name in names) for names in needed)

    if needed and not whole(""):
        ends = tuple(f".{name}" for name in needed[0])
        prefixes = {key.removesuffix(end[1:]) for key in state for end in ends if key.endswith(end)}
        fitting = sorted(filter(whole, prefixes))
        first = {name.partition(".")[0] for name in every}
        outer = first.pop() + "." if len(first) == 1 else ""
        if len(fitting) > 1:
            raise ModelError(
                f"{path} holds the network {len(fitting)} times: below {' and '.join(fitting)}",
                hint=f"say which, as --entry {fitting[0].rstrip('.')}",
            )
        if fitting:
            inside = {
                k.removeprefix(fitting[0]): v for k, v in state.items() if k.startswith(fitting[0])
            }
            notes.append(f"the prefix {fitting[0]!r} was removed from the keys of the state dict")
            if left := [key for key in state if not key.startswith(fitting[0])]:
                notes.append(f"what is not below it was left out: {', '.join(left[:_SHOWN])}")
            state = inside
        elif outer and all(
            any(name.removeprefix(outer) in state for name in names) for names in needed
        ):
            state = {outer + key: value for key, value in state.items()}
            notes.append(f"the prefix {outer!r}, which the architecture has, was added to the keys")
    for names in needed:
        stored = next((name for name in names if name in state), None)
        lacking = [name for name in names if name not in state]
        if stored and lacking:
            state |= dict.fromkeys(lacking, state[stored])
            notes.append(f"{', '.join(lacking)}: stored once, as {stored}, with which it is tied")
    return state, tuple(notes)


def _norms_as_in(
    state: dict[str, Tensor], names: Container[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Store weight norm as the network does: weight_g and weight_v, parametrised, or folded."""
    notes: list[str] = []
    for key in list(state):
        new = key.endswith(".original0") and ".parametrizations." in key
        if not new and not key.endswith("_g"):
            continue
        other = key[:-1] + ("1" if new else "v")
        owner, _, leaf = key.removesuffix(".original0" if new else "_g").rpartition(".")
        owner = owner.removesuffix("parametrizations") if new else owner + "." * bool(owner)
        pairs = (
            (f"{owner}{leaf}_g", f"{owner}{leaf}_v"),
            (
                f"{owner}parametrizations.{leaf}.original0",
                f"{owner}parametrizations.{leaf}.original1",
            ),
        )
        if other not in state or key in names:
            continue
        size, direction = state[key], state[other]
        pair = next((pair for pair in pairs if pair[0] in names), None)
        if pair is not None:
            state[pair[0]], state[pair[1]] = size, direction
        elif owner + leaf in names:
            over = [axis for axis, count in enumerate(size.shape) if count == 1]
            length = direction.square().sum(dim=over, keepdim=True).sqrt()
            state[owner + leaf] = direction * (size / length)
            notes.append(f"the weight norm of {owner}{leaf} was folded into it")
        else:
            continue
        del state[key], state[other]
    return state, notes


_EXPECTED: dict[str, Shapes] = {}


def expected_shapes(arch: Arch) -> Shapes:
    """Return the shapes of a built-in architecture's state dict; nothing is allocated."""
    if arch.spec not in _EXPECTED:  # building a deep one takes a second, even without memory
        _EXPECTED[arch.spec] = _build_shapes(arch)
    return _EXPECTED[arch.spec]


def _build_shapes(arch: Arch) -> Shapes:
    with torch.device("meta"):
        return shapes_of(arch.build().state_dict())


def _candidates(entry: Architecture, found: Shapes) -> list[tuple[Arch, Mismatch]]:
    """Compare with each form of one architecture, at the number of classes that the head shows."""
    pairs = []
    head = found.get(entry.head) or ()
    for variant in entry.variants:
        arch = find_arch(entry.name).with_kwargs(**variant)
        expected = expected_shapes(arch)
        if len(head) == 2 and head[0] > 0 and head[:1] != (expected[entry.head] or ())[:1]:
            arch = arch.with_kwargs(num_classes=head[0])
            expected = expected_shapes(arch)
        pairs.append((arch, compare(found, expected)))
    return pairs


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
