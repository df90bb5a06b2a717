"""Does a state dict fit an architecture, and which one is it where nobody said?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hwprune.errors import ModelError
from hwprune.frontend.arch import Arch, find_arch
from hwprune.frontend.zoo import ARCHITECTURES, Architecture
from hwprune.units import format_count

Shapes = Mapping[str, tuple[int, ...]]

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
    """Return the shape of every tensor that counts."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if name.rpartition(".")[2] != _OPTIONAL
    }


def compare(found: Shapes, expected: Shapes) -> Mismatch:
    """Compare a state dict's shapes with an architecture's."""
    shared = [name for name in expected if name in found]
    wrong = tuple((n, found[n], expected[n]) for n in shared if found[n] != expected[n])
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
    sizes = {found[:1] for _, found, expected in mismatch.wrong if found[1:] == expected[1:]}
    whole = all(found[1:] == expected[1:] for _, found, expected in mismatch.wrong)
    was = {expected[:1] for _, _, expected in mismatch.wrong}
    if whole and len(sizes) == 1 and len(was) == 1 and (size := sizes.pop()):
        return size[0]
    return None


def mismatch_error(
    path: str, spec: str, mismatch: Mismatch, state: Mapping[str, Tensor]
) -> ModelError:
    """Return the error that names the first keys that do not fit, and what would fit instead."""
    lines = [f"{path} does not fit --arch {spec}:"]
    lines += [
        f"  {name}: the file has {_shape(found)}, the architecture {_shape(expected)}"
        for name, found, expected in mismatch.wrong[:_SHOWN]
    ]
    lines += _rest(len(mismatch.wrong), "of another shape")
    lines += [f"  {name}: missing from the file" for name in mismatch.missing[:_SHOWN]]
    lines += _rest(len(mismatch.missing), "missing from the file")
    lines += [f"  {name}: not in the architecture" for name in mismatch.unexpected[:_SHOWN]]
    lines += _rest(len(mismatch.unexpected), "not in the architecture")
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
    matches = []
    for entry in ARCHITECTURES.values():
        # Only one that has the same head can match; the others need not be built.
        if len(found.get(entry.head, ())) == 2:
            matches += [arch for arch, mismatch in _candidates(entry, found) if not mismatch]
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
    head = found.get(entry.head, ())
    for variant in entry.variants:
        arch = find_arch(entry.name).with_kwargs(**variant)
        expected = expected_shapes(arch)
        if len(head) == 2 and head[0] > 0 and head[0] != expected[entry.head][0]:
            arch = arch.with_kwargs(num_classes=head[0])
            expected = expected_shapes(arch)
        pairs.append((arch, compare(found, expected)))
    return pairs


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _rest(count: int, what: str) -> list[str]:
    return [f"  and {count - _SHOWN} more {what}"] if count > _SHOWN else []
