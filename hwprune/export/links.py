"""What a node does to channels: what it knows of them, needs of them, and is without some of them.

One class per way of reading channels; ``linking.py`` says which operator reads how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from hwprune.export.channels import Axis, Flags, Source, Units
from hwprune.export.constants import computed
from hwprune.export.graph import clone
from hwprune.ir import Masks

# (channels,) what a channel holds everywhere and for every input; NaN where that varies.
Values: TypeAlias = NDArray[np.float32]
Tensors: TypeAlias = Mapping[str, NDArray[Any]]
# A node, and the tensors of its own that it reads.
Cut: TypeAlias = tuple[onnx.NodeProto, Tensors]


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a network, and what lives of those that are pruned."""

    tensors: Tensors
    masks: Masks

    def alive(self, name: str) -> Flags:
        """Return which elements of a tensor are not zero."""
        return self.masks[name] if name in self.masks.by_name else self.tensors[name] != 0

    def part(self, name: str, where: Any) -> NDArray[np.float64]:
        """Return a part of a tensor, zero where it is pruned."""
        part = self.tensors[name][where]
        if name in self.masks.by_name:
            part = np.where(self.masks[name][where], part, 0)
        return np.asarray(part, np.float64)


class Link(Protocol):
    """A node that treats channels in a way that is understood."""

    @property
    def node(self) -> onnx.NodeProto:
        """Return the node."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """Return the activations whose channels it reads."""

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return what is known of the output's channels, given what is known of the sources'."""

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return per source the channels that a needed channel of the output depends on."""

    def cut(self, keeps: Callable[[Units], Flags]) -> Cut:
        """Return the node over the channels that are left."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer whose every output channel may read every input channel.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        sources: the one activation that it reads.
        weight: the name of its weight; the first two axes count channels.
        rows: the axis of these that counts output channels; the other one counts input channels.
        bias: what it adds to each output channel, empty without.
        padded: a constant input does not make a constant output: it may have zeros around it.
    """

    node: onnx.NodeProto
    sources: tuple[Source, ...]
    weight: str
    rows: int
    bias: str
    padded: bool

    def reads(self, weights: Weights) -> Flags:
        """Return (rows, columns) whether an output channel reads an input channel."""
        either = _by_channels(weights.alive(self.weight))
        return either if self.rows == 0 else either.T

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return the bias and what constant inputs add to it, where a row reads nothing else."""
        varies = np.isnan(known[0]) | ((known[0] != 0) & self.padded)
        value = self.carried(weights, known[0], ~varies & (known[0] != 0))
        value += weights.tensors[self.bias].reshape(-1) if self.bias else 0
        value[_any(self.reads(weights), axis=1, where=varies[None, :])] = np.nan
        return value.astype(np.float32)

    def carried(self, weights: Weights, known: Values, columns: Flags) -> NDArray[np.float64]:
        """Return (rows,) what these constant input channels add to each output channel."""
        where = (slice(None), columns) if self.rows == 0 else (columns, slice(None))
        part = weights.part(self.weight, where)
        summed = part.sum(axis=tuple(range(2, part.ndim)))
        found: NDArray[np.float64] = (summed if self.rows == 0 else summed.T) @ known[columns]
        return found

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return the channels that a needed row reads."""
        return [_any(self.reads(weights), axis=0, where=needed[:, None])]

    def matter(self, needed: Flags, told: Flags) -> Flags:
        """Return, by the weight's first two axes, which connections may change anything.

        Args:
            needed: (rows,) which output channels anything depends on.
            told: (columns,) which input channels say something.
        """
        both: Flags = needed[:, None] & told[None, :]
        return both if self.rows == 0 else both.T

    def cut(self, keeps: Callable[[Units], Flags]) -> Cut:
        """Return the node as it is: its tensors say all."""
        return self.node, {}


@dataclass(frozen=True, slots=True)
class Grouped:
    """A convolution in groups, of each of which all channels stay or none.

    Attributes:
        node: Conv.
        sources: the one activation that it reads, the groups one after the other.
        weight: the name of its weight, (out, in / groups, ...).
        bias: what it adds to each output channel, empty without.
        padded: as in ``Layer``.
        groups: how many there are.
    """

    node: onnx.NodeProto
    sources: tuple[Source, ...]
    weight: str
    bias: str
    padded: bool
    groups: int

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return the bias and what constant inputs add to it, where a row reads nothing else."""
        source = known[0].reshape(self.groups, 1, -1)
        varies = np.isnan(source) | ((source != 0) & self.padded)
        reads, part = self._reads(weights), weights.part(self.weight, ...)
        summed = part.sum(axis=tuple(range(2, part.ndim))).reshape(reads.shape)
        value = (summed * np.where(varies, 0, source)).sum(axis=2).reshape(-1)
        value += weights.tensors[self.bias] if self.bias else 0
        value[(reads & varies).any(axis=2).reshape(-1)] = np.nan
        return np.asarray(value, np.float32)

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return the channels that a needed row reads."""
        wanted = needed.reshape(self.groups, -1, 1)
        return [(self._reads(weights) & wanted).any(axis=1).reshape(-1)]

    def matter(self, needed: Flags, told: Flags) -> Flags:
        """Return, by the weight's first two axes, which connections may change anything."""
        both: Flags = needed.reshape(self.groups, -1, 1) & told.reshape(self.groups, 1, -1)
        return both.reshape(len(needed), -1)

    def cut(self, keeps: Callable[[Units], Flags]) -> Cut:
        """Return the node with the groups that are left."""
        left = int(keeps(self.sources[0].units).reshape(self.groups, -1)[:, 0].sum())
        copy = clone(self.node)
        (entry,) = (entry for entry in copy.attribute if entry.name == "group")
        if left == 1:  # the default, which is not written
            copy.attribute.remove(entry)
        else:
            entry.i = left
        return copy, {}

    def _reads(self, weights: Weights) -> Flags:
        """Return (groups, rows, columns) whether a channel reads another of its group."""
        either = _by_channels(weights.alive(self.weight))
        return either.reshape(self.groups, -1, either.shape[1])


@dataclass(frozen=True, slots=True)
class Each:
    """A node that treats each channel by itself: elementwise, normalising, pooling, moving.

    Attributes:
        node: the node.
        sources: the activations that it reads; their channels and the output's are one.
        axes: where the channels of each lie.
        carries: a constant channel passes as it is; else it is computed.
        only: of constant channels, only those of this value pass (padding); None for all.
        adds: a constant added to a source is added to the output, and nothing else happens.
    """

    node: onnx.NodeProto
    sources: tuple[Source, ...]
    axes: tuple[Axis, ...]
    carries: bool = False
    only: float | None = None
    adds: bool = False

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return what becomes of constant channels."""
        if not self.carries:
            return computed(self.node, self.sources, self.axes, weights.tensors, known)
        kept = known[0] if self.only is None else np.where(known[0] == self.only, known[0], np.nan)
        return np.asarray(kept, np.float32)

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return the output's channels."""
        return [needed] * len(self.sources)

    def cut(self, keeps: Callable[[Units], Flags]) -> Cut:
        """Return the node as it is: its tensors say all."""
        return self.node, {}


@dataclass(frozen=True, slots=True)
class Joined:
    """A concatenation of channels."""

    node: onnx.NodeProto
    sources: tuple[Source, ...]

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return the sources' one after the other."""
        return np.concatenate(known)

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return each source's part."""
        return np.split(needed, self.starts[1:])

    @property
    def starts(self) -> list[int]:
        """Return where each source's channels begin."""
        sizes = [source.units.size for source in self.sources[:-1]]
        return [0, *(int(end) for end in np.cumsum(sizes))]

    def cut(self, keeps: Callable[[Units], Flags]) -> Cut:
        """Return the node as it is."""
        return self.node, {}


@dataclass(frozen=True, slots=True)
class Flattened:
    """A Flatten or Reshape after which each channel is a run of features.

    Attributes:
        node: the node.
        sources: the one activation that it reads.
        run: features per channel.
        target: the shape that a Reshape is given, None for Flatten; its second number may have to
            change.
    """

    node: onnx.NodeProto
    sources: tuple[Source, ...]
    run: int
    target: tuple[int, ...] | None = None

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return each source's once per feature."""
        return np.repeat(known[0], self.run)

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return the channels of which a feature is needed."""
        return [np.asarray(needed.reshape(-1, self.run).any(axis=1))]

    def cut(self, keeps: Callable[[Units], Flags]) -> Cut:
        """Return the node with the number of features that are left."""
        if self.target is None or self.target[1] == -1:
            return self.node, {}
        left = int(keeps(self.sources[0].units).sum()) * self.run
        return _with_numbers(self.node, (self.target[0], left, *self.target[2:]))


@dataclass(frozen=True, slots=True)
class Padded:
    """A Pad that puts constant channels before and after the others.

    Attributes:
        node: the node.
        sources: the one activation that it reads.
        before: the units of the channels that it puts first.
        after: of those that it puts last.
        value: what they hold.
        spatial: whether other axes are padded too.
        pads: all its numbers.
        at: the axis of channels.
    """

    node: onnx.NodeProto
    sources: tuple[Source, ...]
    before: Units
    after: Units
    value: float
    spatial: bool
    pads: tuple[int, ...]
    at: int

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return the sources' between those of the padding."""
        kept = np.where(known[0] == self.value, known[0], np.nan) if self.spatial else known[0]
        around = [np.full(units.size, self.value) for units in (self.before, self.after)]
        return np.concatenate([around[0], kept, around[1]]).astype(np.float32)

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return those between."""
        return [needed[self.before.size : needed.size - self.after.size]]

    def cut(self, keeps: Callable[[Units], Flags]) -> Cut:
        """Return the node with the padding that is left."""
        pads = list(self.pads)
        pads[self.at] = int(keeps(self.before).sum())
        pads[self.at + len(pads) // 2] = int(keeps(self.after).sum())
        return _with_numbers(self.node, tuple(pads))


def _with_numbers(node: onnx.NodeProto, numbers: tuple[int, ...]) -> Cut:
    """Return a node whose second input is a new tensor of these numbers."""
    copy = clone(node)
    copy.input[1] = f"{node.output[0]}//{node.input[1]}"
    return copy, {copy.input[1]: np.array(numbers, np.int64)}


def _by_channels(alive: Flags) -> Flags:
    """Return, by a weight's first two axes, whether anything lives."""
    if alive.ndim == 2:
        return alive
    return np.asarray(alive.any(axis=tuple(range(2, alive.ndim))))


def _any(flags: Flags, *, axis: int, where: Flags) -> Flags:
    """Return ``flags.any(axis)`` over the places in ``where``, without a copy of the flags."""
    found: Flags = np.logical_or.reduce(flags, axis=axis, where=where)
    return found
