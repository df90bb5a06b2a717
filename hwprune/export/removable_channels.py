"""Channels that can be removed since nothing depends on them, found on the graph with BN folded.

Two passes. Forwards, what a channel holds: a layer's row without a kept weight makes its bias, an
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
import onnx_ir as ir
from numpy.typing import NDArray

from hwprune.export.channel_ops import (
    ChannelOp,
    Each,
    Layer,
    Moved,
    Values,
    Weights,
    channel_ops_of,
)
from hwprune.export.channels import ChannelInput, Flags, Units
from hwprune.export.graph import Graph, input_names, name_of, output_name
from hwprune.export.removal import Removal
from hwprune.ir import Masks


@dataclass(frozen=True, slots=True)
class Removable:
    """What a network can do without.

    Attributes:
        masks: the connections that matter, of those that are kept.
        matter: per prunable tensor, broadcast over it: where a connection may matter at all.
        added: what has to be added to tensors, once the other connections are zero, for the
            network to compute the same.
        removal: the channels that can go then.
    """

    masks: Masks
    matter: Mapping[str, Flags]
    added: Mapping[str, NDArray[np.float32]]
    removal: Removal


def find_removable(graph: Graph, masks: Masks, settable: Collection[str]) -> Removable:
    """Return what a network can do without, given which of its connections are kept.

    Args:
        graph: the network, BN folded, its tensors over the present weights.
        masks: what is kept of the prunable tensors; the rest of them counts as zero.
        settable: the biases and means that may be given other values.
    """
    found = _Search(graph, masks, settable)
    matter = found.matter()
    return Removable(found.masks(matter), matter, found.added(), found.removal())


# Where a constant that is no longer read may be added instead: the tensor, from which of its
# elements on, and with which sign.
_Place = tuple[str, int, int]


class _Search:
    """The passes, and what they found."""

    def __init__(self, graph: Graph, masks: Masks, settable: Collection[str]) -> None:
        self._graph, self._masks, self._settable = graph, masks, settable
        self._weights = Weights(graph.tensors, masks)
        self._channels, self._ops = channel_ops_of(graph)
        self._roots, self._pinned = self._channels.settle()
        self._known = self._forwards()
        self._places = {layer.node: self._absorbs(layer) for layer in self._layers()}
        self._needed: dict[str, Flags] = {}
        self._removed: Flags = np.zeros(0, np.bool_)
        blocked = np.zeros(len(self._roots), np.bool_)
        while True:
            read = self._backwards(blocked)
            # A constant that somebody else needs stays, and then its readers may as well read it.
            stays = read & ~self._removed & ~blocked
            if not stays.any():
                break
            blocked |= stays

    # -- the passes -------------------------------------------------------------------------------

    def _layers(self) -> list[Layer]:
        return [op for op in self._ops.values() if isinstance(op, Layer) and op.groups == 1]

    def _forwards(self) -> dict[str, Values]:
        """Return what each activation's channels hold, NaN where that varies."""
        known: dict[str, Values] = {}
        for node, op in self._ops.items():
            value = op.constant(self._weights, [_of(known, s) for s in op.inputs])
            known[output_name(node)] = np.where(np.isfinite(value), value, np.float32(np.nan))
        return known

    def _backwards(self, blocked: Flags) -> Flags:
        """Find what is needed, and so what is not; return which units constants were added for."""
        axes = self._channels.axes
        needed = {name: np.zeros(axis.units.size, np.bool_) for name, axis in axes.items()}
        for name in self._channels.whole & axes.keys():
            needed[name][:] = True
        absorbed = np.zeros(len(self._roots), np.bool_)
        for node, op in reversed(self._ops.items()):
            reads = op.needs(self._weights, needed[output_name(node)])
            for source, read in zip(op.inputs, reads, strict=True):
                if not source.known:
                    continue
                value, real = _of(self._known, source), read
                if self._drops(op):
                    real = read & (value != 0)
                if isinstance(op, Layer) and self._places.get(node) is not None:
                    spare = real & _held(op, value) & ~blocked[self._roots[source.units]]
                    absorbed[self._roots[source.units[spare]]] = True
                    real &= ~spare
                needed[source.name] |= real
        stays = self._pinned.copy()
        for name, axis in axes.items():
            stays[self._roots[axis.units[needed[name]]]] = True
        self._needed, self._removed = needed, ~stays[self._roots]
        return absorbed[self._roots]

    def _drops(self, op: ChannelOp) -> bool:
        """Return whether connections of a layer that read zeros are dropped, so that nobody reads.

        Whoever else reads a zero needs it to be one.
        """
        if not isinstance(op, Layer) or op.weight not in self._masks.by_name:
            return False
        uses = self._channels.tensor_units[op.weight][0]
        return len(uses) == 1 and op.weight not in self._channels.whole

    # -- constants that are added elsewhere -------------------------------------------------------

    def _absorbs(self, layer: Layer) -> list[_Place] | None:
        """Return where constants can be added that a layer no longer reads, None for nowhere."""
        if layer.weight not in self._masks.by_name:  # its connections could not be dropped
            return None
        if layer.bias:
            return [(layer.bias, 0, 1)] if self._free(layer.bias) else None
        return self._behind(layer.node.outputs[0], 0)

    def _free(self, name: str) -> bool:
        """Return whether a tensor may change: nothing else reads it."""
        value = self._graph.structure.initializers.get(name)
        return name in self._settable and value is not None and len(value.uses()) == 1

    def _behind(self, value: ir.Value, start: int) -> list[_Place] | None:
        """Return where something can be added that an activation has too little of."""
        if name_of(value) in self._channels.whole:
            return None
        places: list[_Place] = []
        for node, _ in value.uses():
            found = self._at(node, value, start)
            if found is None:
                return None
            places += found
        return places

    def _at(self, node: ir.Node, value: ir.Value, start: int) -> list[_Place] | None:
        """Return where it can be added at one of the activation's readers or behind it."""
        op, output = self._ops.get(node), node.outputs[0]
        if isinstance(op, Moved) and op.adds:
            begins = [
                int(np.flatnonzero(op.origins == at)[0])
                for at, source in zip(op.starts, op.inputs, strict=True)
                if source.name == value.name
            ]
            found = [self._behind(output, start + at) for at in begins]
            return [p for part in found for p in part or ()] if None not in found else None
        if not isinstance(op, Each):
            return None
        if node.op_type == "BatchNormalization":
            mean = input_names(node)[3]
            return [(mean, start, -1)] if self._free(mean) else None
        if not op.adds:
            return None
        other = next((n for n in input_names(node) if n in self._graph.tensors), None)
        if node.op_type == "Add" and other is not None:
            size = op.axes[0].units.size
            whole = self._graph.tensors[other].size == size and size > 1
            if whole and self._free(other):
                return [(other, start, 1)]
        return self._behind(output, start)

    # -- results ----------------------------------------------------------------------------------

    def added(self) -> dict[str, NDArray[np.float32]]:
        """Return what has to be added to tensors for constants that nobody reads any more."""
        added: dict[str, NDArray[np.float64]] = {}
        for layer in self._layers():
            (source,) = layer.inputs
            value = _of(self._known, source)
            columns = _held(layer, value) & self._removed[source.units]
            places = self._places[layer.node]
            if not columns.any() or not places:
                continue
            carried = layer.carried(self._weights, value, columns)
            carried[~self._needed[output_name(layer.node)]] = 0
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
        for node, op in self._ops.items():
            if not isinstance(op, Layer) or op.weight not in self._masks.by_name:
                continue
            (source,) = op.inputs
            output = output_name(node)
            needed = self._needed[output] & ~self._removed[self._channels.axes[output].units]
            telling = (_of(self._known, source) != 0) & ~self._removed[source.units]
            two = op.useful(needed, telling)
            either = np.expand_dims(two, tuple(range(2, self._masks[op.weight].ndim)))
            found[op.weight] = found.get(op.weight, np.zeros(1, np.bool_)) | either
        # A tensor that something else reads too is left as it is.
        return {name: flags for name, flags in found.items() if name not in self._channels.whole}

    def masks(self, matter: Mapping[str, Flags]) -> Masks:
        """Return the connections that matter."""
        kept = self._masks
        return Masks({n: kept[n] & matter[n] if n in matter else kept[n] for n in kept})

    def removal(self) -> Removal:
        """Return the channels that can go; of a tensor that could lose all, the first one stays."""
        removed = self._removed.copy()
        along = self._channels.tensor_units
        for units in [uses[0] for axes in along.values() for uses in axes.values()]:
            if removed[units].all():
                removed[self._roots == self._roots[units[0]]] = False

        def keeps(units: Units) -> Flags:
            return np.asarray(~removed[units])

        tensors: dict[str, dict[int, NDArray[np.int64]]] = {}
        for name, axes in along.items():
            shape = self._graph.tensors[name].shape
            kept = {at: np.flatnonzero(keeps(uses[0])) for at, uses in axes.items()}
            less = {at: index for at, index in kept.items() if index.size < shape[at]}
            if less:
                tensors[name] = less
        changes = {}
        for node, op in self._ops.items():
            output = output_name(node)
            change = op.change(keeps)
            if change is not None and removed[self._channels.axes[output].units].any():
                changes[output] = change
        return Removal(tensors, changes)


def _of(known: Mapping[str, Values], source: ChannelInput) -> Values:
    """Return what is known of channels as a node reads them."""
    if source.known:
        return known[source.name]
    return np.full(source.units.size, np.nan, np.float32)


def _held(layer: Layer, value: Values) -> Flags:
    """Return which of a layer's input channels add the same number, not 0, wherever it looks."""
    held: Flags = ~np.isnan(value) & (value != 0) & (not layer.padded)
    return held
