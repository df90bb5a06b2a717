"""Which codec each tensor takes, so that tensors and function bodies together are smallest.

A function body is paid once however many tensors use it, so the choice is not separate per tensor.
Sets of codecs are bit masks here, and every set is looked at, by a few array operations for all
of them at once: the work grows with the number of kinds of node, not with their combinations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from hwprune.ir import CodecName

Needs = Mapping[CodecName, frozenset[str]]
# Above every size, so that it marks what cannot be; sums of a few thousand still fit 63 bits.
_NEVER = 1 << 40
# Function bodies weigh less than this together: equal totals go to the smaller graph, whose length
# may take a byte less.
_TIE_BITS = 20
_NEVER_KEY = _NEVER << _TIE_BITS
_FEW = 256


@dataclass(frozen=True, slots=True)
class _Kind:
    """The tensors whose nodes need the same functions, whatever the codec.

    Attributes:
        tensors: their numbers.
        functions: the functions by codec that not every kind needs.
    """

    tensors: list[int]
    functions: Needs


@dataclass(frozen=True, slots=True)
class _Option:
    """One way to store a group: for each of its kinds the set of codecs to choose from."""

    key: int
    sets: tuple[int, ...]


def choose(
    costs: Sequence[Mapping[CodecName, int]],
    needs: Sequence[Needs],
    functions: Mapping[str, int],
) -> list[CodecName]:
    """Return the codec of each tensor that makes tensors and functions together smallest.

    Functions that every kind of tensor needs for a codec (its decoder) tie the kinds together: for
    every set of codecs whose decoders are paid for, each group of kinds takes its own best subset.
    What is chosen from does not depend on the sizes, so the smallest file grows where each of them
    grows.

    Args:
        costs: bytes by codec, per tensor.
        needs: the functions by codec, per tensor.
        functions: the size of each function.
    """
    codecs = sorted({codec for cost in costs for codec in cost})
    sizes = np.array([[cost.get(c, _NEVER) for c in codecs] for cost in costs], np.int64)
    best = _cheapest(sizes)  # (sets, tensors)
    groups, common = _groups(needs, codecs)
    total = _summed([sum(functions[name] for name in common[c]) for c in codecs])
    total = (total << _TIE_BITS) - total
    tables = [_table(group, codecs, best, functions) for group in groups]
    for keys, _ in tables:
        total = np.minimum(total + _subset_minimum(keys), _NEVER_KEY)
    paid = 1 + int(np.argmin(total[1:]))
    chosen: dict[int, CodecName] = {}
    for group, (_, options) in zip(groups, tables, strict=True):
        possible = [option for used, option in options.items() if used & ~paid == 0]
        picked = min(possible, key=lambda option: option.key)
        for kind, members in zip(group, picked.sets, strict=True):
            allowed = [n for n in range(len(codecs)) if members >> n & 1]
            for number in kind.tensors:
                chosen[number] = codecs[min(allowed, key=lambda n: int(sizes[number, n]))]
    return [chosen[number] for number in range(len(costs))]


def _cheapest(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (sets of codecs, tensors) what a tensor takes in the cheapest codec of a set."""
    tensors, codecs = sizes.shape
    best = np.full((1 << codecs, tensors), _NEVER, np.int64)
    for n in range(codecs):
        best[1 << n : 2 << n] = np.minimum(best[: 1 << n], sizes[:, n])
    return best


def _summed(sizes: Sequence[int]) -> NDArray[np.int64]:
    """Return for every set the sum over its members."""
    total = np.zeros(1 << len(sizes), np.int64)
    for n, size in enumerate(sizes):
        total[1 << n : 2 << n] = total[: 1 << n] + size
    return total


def _subset_minimum(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for every set the smallest key of its subsets."""
    least: NDArray[np.int64] = keys.copy()
    step = 1
    while step < len(keys):
        pairs = least.reshape(-1, 2, step)
        pairs[:, 1] = np.minimum(pairs[:, 1], pairs[:, 0])
        step *= 2
    return least


def _table(
    group: Sequence[_Kind],
    codecs: Sequence[CodecName],
    best: NDArray[np.int64],
    functions: Mapping[str, int],
) -> tuple[NDArray[np.int64], dict[int, _Option]]:
    """Return the smallest key of a group by the set of codecs that it uses, and how it comes about.

    A group of several kinds comes from a tensor that several layers share. Its kinds choose from
    one set, or, where they are few, from one codec each: all pairs of sets would be too many.
    """
    together = best[:, [number for kind in group for number in kind.tensors]]
    bodies = _union_bytes(group, codecs, functions)
    possible = (together < _NEVER).all(axis=1)
    sums = np.where(possible, together.sum(axis=1), _NEVER)
    keys = np.where(possible, (sums + bodies << _TIE_BITS) - bodies, _NEVER_KEY)
    keys[0] = _NEVER_KEY
    options = {
        members: _Option(int(keys[members]), (members,) * len(group))
        for members in map(int, np.flatnonzero(keys < _NEVER_KEY))
    }
    if len(group) > 1 and len(codecs) ** len(group) <= _FEW:
        parts = [best[:, kind.tensors].sum(axis=1) for kind in group]
        for picks in product(range(len(codecs)), repeat=len(group)):
            graph = sum(int(part[1 << n]) for part, n in zip(parts, picks, strict=True))
            if graph >= _NEVER:
                continue
            names = frozenset[str]().union(
                *(kind.functions[codecs[n]] for kind, n in zip(group, picks, strict=True))
            )
            size = sum(functions[name] for name in names)
            used = sum({1 << n for n in picks})
            key = ((graph + size) << _TIE_BITS) - size
            if used not in options or key < options[used].key:
                options[used] = _Option(key, tuple(1 << n for n in picks))
                keys[used] = key
    return keys, options


def _union_bytes(
    group: Sequence[_Kind], codecs: Sequence[CodecName], functions: Mapping[str, int]
) -> NDArray[np.int64]:
    """Return for every set of codecs the bytes of the functions that the group needs for it."""
    users: dict[str, int] = {}
    for n, codec in enumerate(codecs):
        for name in frozenset[str]().union(*(kind.functions[codec] for kind in group)):
            users[name] = users.get(name, 0) | 1 << n
    sets = np.arange(1 << len(codecs))
    total = np.zeros(len(sets), np.int64)
    for name, members in users.items():
        total += np.where(sets & members, functions[name], 0)
    return total


def _groups(
    needs: Sequence[Needs], codecs: Sequence[CodecName]
) -> tuple[list[list[_Kind]], dict[CodecName, frozenset[str]]]:
    """Split the tensors into groups that share no function but those that all of them need.

    Returns:
        the groups, and by codec the functions that every kind needs.
    """
    common = {c: frozenset.intersection(*(n[c] for n in needs if c in n)) for c in codecs}
    kinds: dict[frozenset[tuple[CodecName, frozenset[str]]], _Kind] = {}
    for number, need in enumerate(needs):
        own = {c: need[c] - common[c] for c in need}
        nothing: dict[CodecName, frozenset[str]] = dict.fromkeys(codecs, frozenset())
        kind = kinds.setdefault(frozenset(own.items()), _Kind([], nothing | own))
        kind.tensors.append(number)
    groups: list[tuple[set[str], list[_Kind]]] = []
    for kind in kinds.values():
        names = set[str]().union(*kind.functions.values())
        met = [group for group in groups if group[0] & names]
        groups = [group for group in groups if not group[0] & names]
        merged = [member for group in met for member in group[1]]
        groups.append((names.union(*(group[0] for group in met)), [*merged, kind]))
    return [group for _, group in groups], common
