"""Dead structure: channels that nothing depends on, found on the graph with BN folded.

Two passes. Forwards, what a channel holds: a layer's row without a living weight makes its bias, an
activation makes of that another number, and so on; a channel that holds 0 says nothing. Backwards,
from the outputs, which channels anything depends on. A channel goes when nothing depends on any
channel of its unit, so everything that is tied to it goes with it.

A channel that always holds the same number, not 0, may go where that number can be added to what
comes after: to the bias of the layer that reads it (without zero padding, whose border would see
something else), or, where the layer has none, to the means of the BNs behind it. Then the file
computes the same function with fewer channels; else the channel stays.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from hwprune.export.channels import Flags, Source, Units
from hwprune.export.graph import Graph
from hwprune.export.linking import link_nodes
from hwprune.export.links import Each, Grouped, Joined, Layer, Link, Values, Weights
from hwprune.export.shrink import Removal
from hwprune.ir import Masks


@dataclass(frozen=True, slots=True)
class Dead:
    """What a network can do without.

    Attributes:
        masks: the connections that matter, of those that live.
        matter: per prunable tensor, broadcast over it: where a connection may matter at all.
        added: what has to be added to tensors, once the other connections are zero, for the
            network to compute the same.
        removal: the channels that can go then.
    """

    masks: Masks
    matter: Mapping[str, Flags]
    added: Mapping[str, NDArray[np.float32]]
    removal: Removal


def find_dead(graph: Graph, masks: Masks, settable: Collection[str]) -> Dead:
    """Return what a network can do without, given which of its connections live.

    Args:
        graph: the network, BN folded, its tensors over the present weights.
        masks: what lives of the prunable tensors; the rest of them counts as zero.
        settable: the biases and means that may be given other values.
    """
    found = _Search(graph, masks, settable)
    matter = found.matter()
    return Dead(found.masks(matter), matter, found.added(), found.removal())


# Where a constant that is no longer read may be added instead: the tensor, from which of its
# elements on, and with which sign.
_Place = tuple[str, int, int]


class _Search:
    """The passes, and what they found."""

    def __init__(self, graph: Graph, masks: Masks, settable: Collection[str]) -> None:
        self._graph, self._masks, self._settable = graph, masks, settable
        self._weights = Weights(graph.tensors, masks)
        self._channels, self._links = link_nodes(graph)
        self._readers = graph.readers()
        self._by_node = {id(link.node): link for link in self._links if link is not None}
        self._roots, self._pinned = self._channels.settle()
        self._known = self._forwards()
        self._places = {id(link): self._absorbs(link) for link in self._layers()}
        self._needed: dict[str, Flags] = {}
        self._dead: Flags = np.zeros(0, np.bool_)
        blocked = np.zeros(len(self._roots), np.bool_)
        while True:
            read = self._backwards(blocked)
            # A constant that somebody else needs stays, and then its readers may as well read it.
            stays = read & ~self._dead & ~blocked
            if not stays.any():
                break
            blocked |= stays

    # -- the passes -------------------------------------------------------------------------------

    def _layers(self) -> list[Layer]:
        return [link for link in self._links if isinstance(link, Layer)]

    def _forwards(self) -> dict[str, Values]:
        """Return what each activation's channels hold, NaN where that varies."""
        known: dict[str, Values] = {}
        for link in self._links:
            if link is not None:
                value = link.constant(self._weights, [_of(known, s) for s in link.sources])
                known[link.node.output[0]] = np.where(np.isfinite(value), value, np.float32(np.nan))
        return known

    def _backwards(self, blocked: Flags) -> Flags:
        """Find what is needed, and so the dead; return which units constants were added for."""
        axes = self._channels.axes
        needed = {name: np.zeros(axis.units.size, np.bool_) for name, axis in axes.items()}
        for name in self._channels.whole & axes.keys():
            needed[name][:] = True
        absorbed = np.zeros(len(self._roots), np.bool_)
        for link in reversed(self._links):
            if link is None:
                continue
            wants = link.needs(self._weights, needed[link.node.output[0]])
            for source, want in zip(link.sources, wants, strict=True):
                if not source.known:
                    continue
                value, real = _of(self._known, source), want
                if self._drops(link):
                    real = want & (value != 0)
                if isinstance(link, Layer) and self._places[id(link)] is not None:
                    spare = real & _held(link, value) & ~blocked[self._roots[source.units]]
                    absorbed[self._roots[source.units[spare]]] = True
                    real &= ~spare
                needed[source.name] |= real
        alive = self._pinned.copy()
        for name, axis in axes.items():
            alive[self._roots[axis.units[needed[name]]]] = True
        self._needed, self._dead = needed, ~alive[self._roots]
        return absorbed[self._roots]

    def _drops(self, link: Link) -> bool:
        """Return whether connections of a layer that read zeros are dropped, so that nobody reads.

        Whoever else reads a zero needs it to be one.
        """
        if not isinstance(link, (Layer, Grouped)) or link.weight not in self._masks.by_name:
            return False
        uses = self._channels.cuts[link.weight][0]
        return len(uses) == 1 and link.weight not in self._channels.whole

    # -- constants that are added elsewhere -------------------------------------------------------

    def _absorbs(self, layer: Layer) -> list[_Place] | None:
        """Return where constants can be added that a layer no longer reads, None for nowhere."""
        if layer.weight not in self._masks.by_name:  # its connections could not be dropped
            return None
        if layer.bias:
            return [(layer.bias, 0, 1)] if self._free(layer.bias) else None
        return self._behind(layer.node.output[0], 0)

    def _free(self, name: str) -> bool:
        """Return whether a tensor may change: nothing else reads it."""
        return name in self._settable and len(self._readers[name]) == 1

    def _behind(self, value: str, start: int) -> list[_Place] | None:
        """Return where something can be added that an activation has too little of."""
        if value in self._channels.whole:
            return None
        places: list[_Place] = []
        for node, _ in self._readers[value]:
            found = self._at(self._by_node.get(id(node)), node, value, start)
            if found is None:
                return None
            places += found
        return places

    def _at(
        self, link: Link | None, node: onnx.NodeProto, value: str, start: int
    ) -> list[_Place] | None:
        """Return where it can be added at one of the activation's readers or behind it."""
        if node.op_type == "BatchNormalization" and isinstance(link, Each):
            return [(node.input[3], start, -1)] if self._free(node.input[3]) else None
        if isinstance(link, Joined):
            begins = [
                at for at, s in zip(link.starts, link.sources, strict=True) if s.name == value
            ]
            found = [self._behind(node.output[0], start + at) for at in begins]
            return [p for part in found for p in part or ()] if None not in found else None
        if not isinstance(link, Each) or not link.adds:
            return None
        other = next((name for name in node.input if name in self._graph.tensors), None)
        if node.op_type == "Add" and other is not None:
            size = link.axes[0].units.size
            whole = self._graph.tensors[other].size == size and size > 1
            if whole and self._free(other):
                return [(other, start, 1)]
        return self._behind(node.output[0], start)

    # -- results ----------------------------------------------------------------------------------

    def added(self) -> dict[str, NDArray[np.float32]]:
        """Return what has to be added to tensors for constants that nobody reads any more."""
        added: dict[str, NDArray[np.float64]] = {}
        for layer in self._layers():
            (source,) = layer.sources
            value = _of(self._known, source)
            columns = _held(layer, value) & self._dead[source.units]
            places = self._places[id(layer)]
            if not columns.any() or not places:
                continue
            carried = layer.carried(self._weights, value, columns)
            carried[~self._needed[layer.node.output[0]]] = 0
            for name, start, sign in places:
                size = self._graph.tensors[name].size
                total = added.setdefault(name, np.zeros(size))
                total[start : start + carried.size] += sign * carried
        return {
            name: total.reshape(self._graph.tensors[name].shape).astype(np.float32)
            for name, total in added.items()
            if total.any()
        }

    def matter(self) -> dict[str, Flags]:
        """Return where connections may matter: not where they make or read what says nothing."""
        found: dict[str, Flags] = {}
        for link in self._links:
            if not isinstance(link, (Layer, Grouped)) or link.weight not in self._masks.by_name:
                continue
            (source,) = link.sources
            output = link.node.output[0]
            wanted = self._needed[output] & ~self._dead[self._channels.axes[output].units]
            told = (_of(self._known, source) != 0) & ~self._dead[source.units]
            two = link.matter(wanted, told)
            either = two.reshape(two.shape + (1,) * (self._masks[link.weight].ndim - 2))
            found[link.weight] = found.get(link.weight, np.zeros(1, np.bool_)) | either
        # A tensor that something else reads too is left as it is.
        return {name: flags for name, flags in found.items() if name not in self._channels.whole}

    def masks(self, matter: Mapping[str, Flags]) -> Masks:
        """Return the connections that matter."""
        alive = self._masks
        return Masks({n: alive[n] & matter[n] if n in matter else alive[n] for n in alive})

    def removal(self) -> Removal:
        """Return the channels that can go; of a tensor that could lose all, the first one stays."""
        dead = self._dead.copy()
        axes = [uses[0] for cut in self._channels.cuts.values() for uses in cut.values()]
        for units in axes:
            if dead[units].all():
                dead[self._roots == self._roots[units[0]]] = False

        def keeps(units: Units) -> Flags:
            return np.asarray(~dead[units])

        tensors: dict[str, dict[int, NDArray[np.int64]]] = {}
        for name, cut in self._channels.cuts.items():
            kept = {at: np.flatnonzero(keeps(uses[0])) for at, uses in cut.items()}
            shape = self._graph.tensors[name].shape
            less = {at: index for at, index in kept.items() if index.size < shape[at]}
            if less:
                tensors[name] = less
        nodes = {}
        for place, link in enumerate(self._links):
            if link is None or not dead[self._channels.axes[link.node.output[0]].units].any():
                continue
            node, own = link.cut(keeps)
            if node is not link.node:
                nodes[place] = (node, own)
        return Removal(tensors, nodes)


def _of(known: Mapping[str, Values], source: Source) -> Values:
    """Return what is known of channels as a node reads them."""
    if source.known:
        return known[source.name]
    return np.full(source.units.size, np.nan, np.float32)


def _held(layer: Layer, value: Values) -> Flags:
    """Return which of a layer's input channels add the same number, not 0, wherever it looks."""
    held: Flags = ~np.isnan(value) & (value != 0) & (not layer.padded)
    return held
