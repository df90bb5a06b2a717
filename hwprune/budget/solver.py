"""Bytes -> nonzeros: how many connections of a ranking fit a byte budget, exactly.

A file never shrinks when a connection joins: in every codec a further nonzero costs at least its
value (two of four bits share a byte), its index never gets shorter, and the cheapest of codecs that
never shrink never does. So the largest prefix of a ranking that fits is found by
bisection on exact sizes; the interval is first narrowed by secants, because sizes are nearly linear
in the count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwprune.budget.kernel_time import TimeLimit
from hwprune.encoding import CODECS, VALUE_BITS, Encoding, FileCost
from hwprune.errors import InfeasibleError
from hwprune.ir import LayerPlan, Masks, Plan, Ranking, ValueType
from hwprune.units import format_bytes


@dataclass(frozen=True, slots=True)
class Fit:
    """The longest prefix of a ranking that fits a budget.

    Attributes:
        count: its length.
        masks: its connections; a tensor that is cheapest dense is kept in full, since that costs
            nothing.
        encoding: how the file stores it.
    """

    count: int
    masks: Masks
    encoding: Encoding

    @property
    def file_bytes(self) -> int:
        """Return the exact size of the file."""
        return self.encoding.file_bytes


class Prefixes:
    """A ranking prepared for many prefixes: per tensor, sorted positions and where they rank."""

    def __init__(self, ranking: Ranking) -> None:
        """Sort the ranking by tensor and position, once: every prefix is then a selection."""
        self._shapes = ranking.shapes
        self.length = len(ranking)
        sizes = [math.prod(shape) for shape in ranking.shapes.values()]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
        # Each connection is ranked once: a table of all sorts them faster than a comparison does.
        place = np.full(starts[-1], -1, np.int64)
        place[starts[ranking.tensor] + ranking.position] = np.arange(self.length)
        number = np.flatnonzero(place >= 0)
        order = place[number]
        bounds = np.searchsorted(number, starts)
        self._places: dict[str, NDArray[np.int64]] = {}
        self._positions: dict[str, NDArray[np.int64]] = {}
        for at, name in enumerate(ranking.shapes):
            part = slice(bounds[at], bounds[at + 1])
            self._places[name] = order[part]
            self._positions[name] = number[part] - starts[at]

    def positions(self, count: int) -> dict[str, NDArray[np.int64]]:
        """Return the sorted positions of the best ``count`` connections, per tensor."""
        return {
            name: self._positions[name][places < count] for name, places in self._places.items()
        }

    def counts(self, count: int, dense: frozenset[str]) -> dict[str, int]:
        """Return how many of the best ``count`` lie in each tensor; all of those in ``dense``."""
        return {
            name: math.prod(self._shapes[name])
            if name in dense
            else int(np.count_nonzero(places < count))
            for name, places in self._places.items()
        }

    def cycles(self, count: int, time: TimeLimit) -> float:
        """Return the time that the best ``count`` are predicted to take."""
        return time.network.cycles(self.counts(count, frozenset()))

    def in_time(self, time: TimeLimit | None) -> int:
        """Return how many of the best are fast enough: all of them without a limit."""
        if time is None or self.cycles(self.length, time) <= time.most:
            return self.length
        low, high = 0, self.length
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.cycles(middle, time) <= time.most else (low, middle)
        return low

    def masks(self, count: int, dense: frozenset[str]) -> Masks:
        """Return the best ``count`` connections as masks, and all of the tensors in ``dense``."""
        masks: dict[str, NDArray[np.bool_]] = {}
        for name, positions in self.positions(count).items():
            shape = self._shapes[name]
            flat = np.full(math.prod(shape), name in dense, dtype=np.bool_)
            flat[positions] = True
            masks[name] = flat.reshape(shape)
        return Masks(masks)


def ranking_limit(cost: FileCost, budget_bytes: int, value_type: ValueType) -> int:
    """Return how many connections a ranking needs at most: no file of this budget holds more.

    A sparse nonzero costs its value and what the thriftiest codec spends on its position; in a
    tensor that is stored dense, which the file has room for or not as a whole, it costs its value.
    """
    value_bits, budget_bits = VALUE_BITS[value_type], 8 * budget_bytes
    codecs = {codec for tensor in cost.tensors for codec in tensor.codecs(value_type)}
    index_bits = min((CODECS[codec].least_bits for codec in codecs - {"dense"}), default=0)
    total = sum(tensor.weights for tensor in cost.tensors)
    whole = sum(
        tensor.weights
        for tensor in cost.tensors
        if "dense" in tensor.codecs(value_type) and tensor.weights * value_bits <= budget_bits
    )
    dense = min(whole, budget_bits // value_bits)
    sparse = (budget_bits - dense * value_bits) // (value_bits + index_bits)
    return max(1, min(total, dense + sparse + 1))


def fit(
    cost: FileCost,
    ranking: Ranking,
    budget_bytes: int,
    value_type: ValueType,
    time: TimeLimit | None = None,
) -> Fit:
    """Return the longest prefix of ``ranking`` whose file takes at most ``budget_bytes``.

    And that is predicted to be fast enough, where there is a limit of time.

    Raises:
        InfeasibleError: not even the empty prefix fits.
    """
    prefixes = Prefixes(ranking)
    count, encoding = _longest(cost, prefixes, budget_bytes, value_type, time)
    return Fit(count, prefixes.masks(count, _dense(encoding)), encoding)


def _longest(
    cost: FileCost,
    prefixes: Prefixes,
    budget_bytes: int,
    value_type: ValueType,
    time: TimeLimit | None = None,
) -> tuple[int, Encoding]:
    """Return the length of the longest prefix that fits, and how the file stores it."""

    def encoding(count: int) -> Encoding:
        return cost.encoding(prefixes.positions(count), value_type)

    low, best = 0, encoding(0)
    if best.file_bytes > budget_bytes:
        raise infeasible(cost, budget_bytes, value_type)
    high = prefixes.in_time(time)
    whole = encoding(high)
    if whole.file_bytes <= budget_bytes:
        return high, whole
    high_bytes = whole.file_bytes
    width = VALUE_BITS[value_type] / 8
    secants = 0
    while high - low > 1:
        guess = (low + high) // 2
        if secants < 12:
            slope = max((high_bytes - best.file_bytes) / (high - low), width)
            guess = low + int((budget_bytes - best.file_bytes) / slope)
            # Sizes bend at both ends: aim a little to one side in turn, so that both ends close in.
            guess += (-1) ** secants * max(1, (high - low) >> 7)
            guess = min(max(guess, low + 1), high - 1)
            secants += 1
        found = encoding(guess)
        if found.file_bytes <= budget_bytes:
            low, best = guess, found
        else:
            high, high_bytes = guess, found.file_bytes
    return low, best


def _dense(encoding: Encoding) -> frozenset[str]:
    return frozenset(name for name, codec in encoding.codecs.items() if codec == "dense")


def plan(
    cost: FileCost,
    prefixes: Prefixes,
    budget_bytes: int,
    value_type: ValueType,
    *,
    dense_bytes: int,
    time: TimeLimit | None = None,
) -> Plan:
    """Return what fits the budget for the prefixes of a ranking and a value type.

    Raises:
        InfeasibleError: the floor is above the budget.
    """
    count, encoding = _longest(cost, prefixes, budget_bytes, value_type, time)
    floor, parts = floor_of(cost, value_type)
    counts = prefixes.counts(count, _dense(encoding))
    layers = tuple(
        LayerPlan(
            tensor.name,
            tensor.shape,
            tensor.weights,
            counts[tensor.name],
            encoding.codecs[tensor.name],
            value_type,
            encoding.tensor_bytes[tensor.name],
        )
        for tensor in cost.tensors
    )
    nonzeros = sum(counts.values())
    fast = prefixes.length + 1 if time is None else prefixes.in_time(time)
    weights = sum(tensor.weights for tensor in cost.tensors)
    return Plan(
        budget_bytes=budget_bytes,
        floor_bytes=floor,
        floor_parts=parts,
        value_type=value_type,
        max_nonzeros=nonzeros,
        used_bytes=encoding.file_bytes,
        layers=layers,
        dense_bytes=dense_bytes,
        limited_by="weights" if nonzeros == weights else "budget" if count < fast else "time",
    )


def floor_of(cost: FileCost, value_type: ValueType) -> tuple[int, tuple[tuple[str, int], ...]]:
    """Return the bytes that no pruning can remove and what makes them up, largest first."""
    empty: Mapping[str, NDArray[np.int64]] = {
        tensor.name: np.zeros(0, dtype=np.int64) for tensor in cost.tensors
    }
    encoding = cost.encoding(empty, value_type)
    fixed = sum(encoding.tensor_bytes.values())
    parts = [
        *cost.parts,
        (f"node, bias and scale of {len(cost.tensors)} pruned tensors", fixed),
        ("function bodies", encoding.function_bytes),
    ]
    counted = sum(size for _, size in parts)
    parts.append(("length of the graph", encoding.file_bytes - counted))
    ordered = sorted(parts, key=lambda part: -part[1])
    return encoding.file_bytes, tuple((what, size) for what, size in ordered if size)


def infeasible(cost: FileCost, budget_bytes: int, value_type: ValueType) -> InfeasibleError:
    """Return the error for a budget below the floor: the floor, and what makes it up."""
    floor, parts = floor_of(cost, value_type)
    listed = "".join(f"\n  {size:>12,} B  {what}" for what, size in parts)
    return InfeasibleError(
        f"the budget is {format_bytes(budget_bytes)}, but the file takes {format_bytes(floor)} "
        f"with every prunable weight gone ({value_type} values):{listed}",
        hint=f"give at least --budget {floor}, or use a network with fewer layers and channels",
    )
