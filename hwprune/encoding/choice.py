"""Which codec each tensor takes, so that tensors and function bodies together are smallest.

A function body is paid once however many tensors use it, so the choice is not separate per tensor.
Sets of codecs are bit masks here, and every set is looked at, by a few array operations for all
of them at once: the work grows with the number of kinds of node, not with their combinations. What
does not depend on sizes is worked out once, since a solver asks for the best choice many times.
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
_FEW = 1024


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
class _Group:
    """Kinds that share functions, and the ways to store them.

    A group of several kinds comes from a tensor that several layers share. Its kinds choose from
    one set, or, where they are few, from one codec each: all pairs of sets would be too many.

    Attributes:
        kinds: its kinds.
        bodies: (sets,) the bytes of the functions that all kinds need for a set of codecs.
        picks: (p, kinds) one codec for each kind; none where there are too many.
        pick_bodies: (p,) the bytes of the functions that these need.
        pick_sets: (p,) the codecs of a pick as a set.
    """

    kinds: tuple[_Kind, ...]
    bodies: NDArray[np.int64]
    picks: NDArray[np.int64]
    pick_bodies: NDArray[np.int64]
    pick_sets: NDArray[np.int64]

    def keys(self, best: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the key of each set that the kinds share, and of each pick."""
        together = best[:, [number for kind in self.kinds for number in kind.tensors]]
        shared = _keys(together.sum(axis=1), self.bodies)
        shared[0] = _NEVER_KEY
        graph = np.zeros(len(self.picks), np.int64)
        for place, kind in enumerate(self.kinds):
            if len(self.picks):
                graph += best[:, kind.tensors].sum(axis=1)[1 << self.picks[:, place]]
        return shared, _keys(graph, self.pick_bodies)


def _keys(graph: NDArray[np.int64], bodies: NDArray[np.int64]) -> NDArray[np.int64]:
    keys = (graph + bodies << _TIE_BITS) - bodies
    return np.where(graph < _NEVER, keys, _NEVER_KEY)


class Chooser:
    """Chooses the codecs of one file's tensors, for any sizes that masks give them."""

    def __init__(self, needs: Sequence[Needs], functions: Mapping[str, int]) -> None:
        """Work out which tensors share which functions.

        Args:
            needs: the functions by codec, per tensor.
            functions: the size of each function.
        """
        self._codecs = sorted({codec for need in needs for codec in need})
        groups, common = _groups(needs, self._codecs)
        shared = _summed([sum(functions[name] for name in common[c]) for c in self._codecs])
        self._shared = (shared << _TIE_BITS) - shared
        self._groups = [_prepared(group, self._codecs, functions) for group in groups]

    def choose(self, costs: Sequence[Mapping[CodecName, int]]) -> list[CodecName]:
        """Return the codec of each tensor that makes tensors and functions together smallest.

        Functions that every kind of tensor needs for a codec (its decoder) tie the kinds together:
        for every set of codecs whose decoders are paid for, each group of kinds takes its own best
        subset. What is chosen from does not depend on the sizes, so the smallest file grows where
        each of them grows.

        Args:
            costs: bytes by codec, per tensor.
        """
        codecs = self._codecs
        sizes = np.array([[cost.get(c, _NEVER) for c in codecs] for cost in costs], np.int64)
        best = _cheapest(sizes)  # (sets, tensors)
        tables = [group.keys(best) for group in self._groups]
        total = self._shared
        for group, (shared, single) in zip(self._groups, tables, strict=True):
            keys = shared.copy()
            np.minimum.at(keys, group.pick_sets, single)
            total = np.minimum(total + _subset_minimum(keys), _NEVER_KEY)
        paid = 1 + int(np.argmin(total[1:]))
        inside = np.arange(len(total)) & ~paid == 0
        chosen = np.zeros(len(costs), np.int64)
        for group, (shared, single) in zip(self._groups, tables, strict=True):
            shared = np.where(inside, shared, _NEVER_KEY)
            single = np.where(inside[group.pick_sets], single, _NEVER_KEY)
            for place, kind in enumerate(group.kinds):
                members = int(np.argmin(shared))
                if single.size and single.min() < shared.min():
                    members = 1 << int(group.picks[int(np.argmin(single)), place])
                allowed = [n for n in range(len(codecs)) if members >> n & 1]
                cheapest = np.argmin(sizes[np.ix_(kind.tensors, allowed)], axis=1)
                chosen[kind.tensors] = np.take(allowed, cheapest)
        return [codecs[number] for number in chosen]


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


def _prepared(
    group: Sequence[_Kind], codecs: Sequence[CodecName], functions: Mapping[str, int]
) -> _Group:
    picks: list[tuple[int, ...]] = []
    if len(group) > 1 and len(codecs) ** len(group) <= _FEW:
        picks = list(product(range(len(codecs)), repeat=len(group)))
    bodies, sets = [], []
    for pick in picks:
        needed = (kind.functions[codecs[n]] for kind, n in zip(group, pick, strict=True))
        bodies.append(sum(functions[name] for name in frozenset[str]().union(*needed)))
        sets.append(sum({1 << n for n in pick}))
    return _Group(
        tuple(group),
        _union_bytes(group, codecs, functions),
        np.array(picks, np.int64).reshape(-1, len(group)),
        np.array(bodies, np.int64),
        np.array(sets, np.int64),
    )


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
