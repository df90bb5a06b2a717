"""Which channels of a network go together: the structure that removing one of them has to follow.

A channel is an index along one axis of an activation. A layer makes channels, the operators after
it carry them on, and the next layer reads them. What must go together (both addends of a residual
sum, a gate and what it gates, all channels of a group) has one number, its *unit*. Units lie along
axes of activations and of tensors, so a set of units says what is left of either.

Whatever is not understood keeps all its channels: it is *read whole*.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hwprune.export.graph import Graph, Shape, activation_shapes, input_names

Units = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ChannelAxis:
    """Where the channels of an activation lie.

    Attributes:
        at: the axis.
        units: (channels,) the unit of each; several may share one.
        rank: the number of axes.
    """

    at: int
    units: Units
    rank: int


@dataclass(frozen=True, slots=True)
class ChannelInput:
    """An activation that a node reads by its channels.

    Attributes:
        name: the activation.
        units: (channels,) of them, as the node reads them.
        known: whether the activation's own channels are these; units that nobody knows are pinned.
    """

    name: str
    units: Units
    known: bool


@dataclass(slots=True)
class Channels:
    """The channels of a network while its nodes are gone through.

    Attributes:
        graph: the network.
        shapes: of its activations, where they are known.
        axes: per activation, where its channels lie; absent where nobody can say.
        tensor_units: per tensor and axis of it, the units along it, once for every node that reads
            it so.
        transposed: activations that are a transposed tensor, and which.
        whole: activations and tensors that a node reads whole.
    """

    graph: Graph
    shapes: Mapping[str, Shape]
    axes: dict[str, ChannelAxis] = field(default_factory=dict)
    tensor_units: dict[str, dict[int, list[Units]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    transposed: dict[str, str] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    _parents: list[int] = field(default_factory=list)
    _pinned: list[Units] = field(default_factory=list)

    @classmethod
    def of(cls, graph: Graph) -> Channels:
        """Return the channels of a network before its first node."""
        return cls(graph, activation_shapes(graph), whole=graph.output_names())

    def tensor(self, name: str) -> NDArray[Any] | None:
        """Return a tensor of the network, None where the name is something else."""
        return self.graph.tensors.get(name)

    def axis_of(self, node: ir.Node) -> ChannelAxis | None:
        """Return where the channels of a node's first input lie, None where nobody can say."""
        return self.axes.get(input_names(node)[0])

    def source(self, node: ir.Node) -> ChannelInput:
        """Return a node's first input, whose channels are known."""
        name = input_names(node)[0]
        return ChannelInput(name, self.axes[name].units, True)

    def numbers(self, name: str) -> list[int] | None:
        """Return the whole numbers that a tensor holds, None where it is no tensor of such."""
        found = self.tensor(name)
        if found is None or found.dtype.kind != "i":
            return None
        return [int(number) for number in found.reshape(-1)]

    def fresh(self, count: int) -> Units:
        """Return new units."""
        start = len(self._parents)
        self._parents += range(start, start + count)
        return np.arange(start, start + count, dtype=np.int64)

    def join(self, one: Units, other: Units) -> None:
        """Make pairs of units one each."""
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            first, second = self._root(a), self._root(b)
            self._parents[max(first, second)] = min(first, second)

    def read_whole(self, node: ir.Node) -> None:
        """Keep everything that a node reads: nobody knows what it does with it."""
        self.whole |= {self.transposed.get(name, name) for name in input_names(node)}

    def read(self, name: str, at: int, count: int) -> ChannelInput:
        """Return an activation as it is read along an axis of ``count`` channels."""
        found = self.axes.get(name)
        if found is not None and found.at == at and found.units.size == count:
            return ChannelInput(name, found.units, True)
        self.whole.add(name)
        units = self.fresh(count)
        self._pinned.append(units)
        return ChannelInput(name, units, False)

    def lies_along(self, tensor: str, at: int, units: Units) -> None:
        """Note that a node reads a tensor with these units along an axis."""
        self.tensor_units[tensor][at].append(units)

    def settle(self) -> tuple[Units, Flags]:
        """Join what shared tensors tie together, when every node was gone through.

        Returns:
            (units,) the number that stands for each, and (units,) whether it has to stay.
        """
        for axes in self.tensor_units.values():
            for first, *others in axes.values():
                for other in others:
                    self.join(first, other)
        for name in self.whole:
            self._pinned += [self.axes[name].units] if name in self.axes else []
            self._pinned += [uses[0] for uses in self.tensor_units.get(name, {}).values()]
        roots = np.array([self._root(unit) for unit in range(len(self._parents))], np.int64)
        pinned = np.zeros(len(roots), np.bool_)
        for units in self._pinned:
            pinned[roots[units]] = True
        return roots, pinned[roots]

    def _root(self, unit: int) -> int:
        parents = self._parents
        while parents[unit] != unit:
            parents[unit] = parents[parents[unit]]
            unit = parents[unit]
        return unit
