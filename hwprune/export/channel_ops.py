"""What a node does to channels: what it knows of them, needs of them, and is without some of them.

One class per way of reading channels; ``channel_rules.py`` says which operator reads how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from hwprune.export.channels import ChannelAxis, ChannelInput, Flags, Units
from hwprune.export.graph import input_names, message_of
from hwprune.export.removal import NodeChange
from hwprune.ir import Masks, along_axis

# (channels,) what a channel holds everywhere and for every input; NaN where that varies.
Values: TypeAlias = NDArray[np.float32]
Tensors: TypeAlias = Mapping[str, NDArray[Any]]
# Affine in what varies: where two very different numbers make no difference, none does.
_AFFINE = ("Mul", "BatchNormalization")
_FAR = 1e6


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a network, and what is kept of those that are pruned."""

    tensors: Tensors
    masks: Masks

    def kept(self, name: str) -> Flags:
        """Return which elements of a tensor are not zero."""
        return self.masks[name] if name in self.masks.by_name else self.tensors[name] != 0

    def kept_by_channels(self, name: str) -> Flags:
        """Return, by a weight's first two axes, whether anything is kept."""
        kept = self.kept(name)
        return np.asarray(kept.any(axis=tuple(range(2, kept.ndim)))) if kept.ndim > 2 else kept

    def summed(self, name: str, where: Any) -> NDArray[np.float64]:
        """Return a part of a weight, zero where it is pruned, summed over all but two axes."""
        part = self.tensors[name][where]
        if name in self.masks.by_name:
            part = np.where(self.masks[name][where], part, 0)
        return np.asarray(part.sum(axis=tuple(range(2, part.ndim)), dtype=np.float64))


@dataclass(frozen=True, slots=True)
class ChannelOp:
    """A node that treats channels in a way that is understood.

    Attributes:
        node: the node.
        inputs: the activations whose channels it reads.
    """

    node: ir.Node
    inputs: tuple[ChannelInput, ...]

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return what is known of the output's channels, given what is known of the inputs'."""
        raise NotImplementedError

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return per input the channels that a needed channel of the output depends on."""
        raise NotImplementedError

    def change(self, keeps: Callable[[Units], Flags]) -> NodeChange | None:
        """Return what the node says over the channels that are left; None where tensors say all."""
        return None


@dataclass(frozen=True, slots=True)
class Layer(ChannelOp):
    """A layer whose every output channel may read every input channel.

    Attributes:
        weight: the name of its weight; the first two axes count channels.
        rows: the axis of these that counts output channels; the other one counts input channels.
        bias: what it adds to each output channel, empty without.
        padded: a constant input does not make a constant output: it may have zeros around it.
    """

    weight: str
    rows: int
    bias: str
    padded: bool

    def reads(self, weights: Weights) -> Flags:
        """Return (rows, columns) whether an output channel reads an input channel."""
        either = weights.kept_by_channels(self.weight)
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
        summed = weights.summed(self.weight, where)
        found: NDArray[np.float64] = (summed if self.rows == 0 else summed.T) @ known[columns]
        return found

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return the channels that a needed row reads."""
        return [_any(self.reads(weights), axis=0, where=needed[:, None])]

    def useful(self, needed: Flags, telling: Flags) -> Flags:
        """Return, by the weight's first two axes, which connections may change anything.

        Args:
            needed: (rows,) which output channels anything depends on.
            telling: (columns,) which input channels hold anything but zero.
        """
        both: Flags = needed[:, None] & telling[None, :]
        return both if self.rows == 0 else both.T


@dataclass(frozen=True, slots=True)
class Grouped(ChannelOp):
    """A convolution in groups, of each of which all channels stay or none.

    Attributes:
        weight: the name of its weight, (out, in / groups, ...).
        bias: what it adds to each output channel, empty without.
        padded: as in ``Layer``.
        groups: how many there are.
    """

    weight: str
    bias: str
    padded: bool
    groups: int

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return the bias and what constant inputs add to it, where a row reads nothing else."""
        source = known[0].reshape(self.groups, 1, -1)
        varies = np.isnan(source) | ((source != 0) & self.padded)
        reads = self._reads(weights)
        summed = weights.summed(self.weight, ...).reshape(reads.shape)
        value = (summed * np.where(varies, 0, source)).sum(axis=2).reshape(-1)
        value += weights.tensors[self.bias] if self.bias else 0
        value[(reads & varies).any(axis=2).reshape(-1)] = np.nan
        return np.asarray(value, np.float32)

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return the channels that a needed row reads."""
        wanted = needed.reshape(self.groups, -1, 1)
        return [(self._reads(weights) & wanted).any(axis=1).reshape(-1)]

    def useful(self, needed: Flags, telling: Flags) -> Flags:
        """Return, by the weight's first two axes, which connections may change anything."""
        both: Flags = needed.reshape(self.groups, -1, 1) & telling.reshape(self.groups, 1, -1)
        return both.reshape(len(needed), -1)

    def change(self, keeps: Callable[[Units], Flags]) -> NodeChange:
        """Return the number of groups that are left."""
        return NodeChange(
            groups=int(keeps(self.inputs[0].units).reshape(self.groups, -1)[:, 0].sum())
        )

    def _reads(self, weights: Weights) -> Flags:
        """Return (groups, rows, columns) whether a channel reads another of its group."""
        either = weights.kept_by_channels(self.weight)
        return either.reshape(self.groups, -1, either.shape[1])


@dataclass(frozen=True, slots=True)
class Each(ChannelOp):
    """A node that treats each channel by itself: elementwise, normalising, pooling, moving.

    The channels of its inputs and of its output are one.

    Attributes:
        axes: where the channels of each input lie.
        carries: a constant channel passes as it is; else it is computed.
        only: of constant channels, only those of this value pass (padding); None for all.
        adds: a constant added to an input is added to the output, and nothing else happens.
    """

    axes: tuple[ChannelAxis, ...]
    carries: bool = False
    only: float | None = None
    adds: bool = False

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return what becomes of constant channels."""
        if not self.carries:
            return self._computed(weights.tensors, known)
        kept = known[0] if self.only is None else np.where(known[0] == self.only, known[0], np.nan)
        return np.asarray(kept, np.float32)

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return the output's channels."""
        return [needed] * len(self.inputs)

    def _computed(self, tensors: Tensors, known: list[Values]) -> Values:
        """Return what running the node makes of channels that hold one number each."""
        varies = np.logical_or.reduce([np.isnan(values) for values in known])
        if varies.all() and self.node.op_type not in _AFFINE:
            return np.full(varies.shape, np.nan, np.float32)
        message = message_of(self.node)

        def run(filler: float) -> Values:
            """Run the node on activations that have channels and no other size."""
            feeds = {name: tensors[name] for name in input_names(self.node) if name in tensors}
            for source, axis, values in zip(self.inputs, self.axes, known, strict=True):
                filled = np.nan_to_num(values, nan=filler)
                feeds[source.name] = along_axis(filled, axis.at, axis.rank)
            with np.errstate(all="ignore"):
                (found,) = ReferenceEvaluator(message).run(None, feeds)
            found = np.moveaxis(np.asarray(found, np.float32), self.axes[0].at, 0)
            each = found.reshape(varies.size, -1)
            # A tensor with sizes beside the channels gives a channel several numbers.
            return np.where((each == each[:, :1]).all(axis=1), each[:, 0], np.float32(np.nan))

        first = run(0.0)
        if self.node.op_type in _AFFINE:
            varies = varies & (first != run(_FAR))
        return np.where(varies, np.float32(np.nan), first)


@dataclass(frozen=True, slots=True)
class Joined(ChannelOp):
    """A concatenation of channels."""

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return the inputs' one after the other."""
        return np.concatenate(known)

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return each input's part."""
        return np.split(needed, self.starts[1:])

    @property
    def starts(self) -> list[int]:
        """Return where each input's channels begin."""
        sizes = [source.units.size for source in self.inputs[:-1]]
        return [0, *(int(end) for end in np.cumsum(sizes))]


@dataclass(frozen=True, slots=True)
class Flattened(ChannelOp):
    """A Flatten or Reshape after which each channel is a run of features.

    Attributes:
        run: features per channel.
        target: the shape that a Reshape is given, None for Flatten; its second number may have to
            change.
    """

    run: int
    target: tuple[int, ...] | None = None

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return each input's once per feature."""
        return np.repeat(known[0], self.run)

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return the channels of which a feature is needed."""
        return [np.asarray(needed.reshape(-1, self.run).any(axis=1))]

    def change(self, keeps: Callable[[Units], Flags]) -> NodeChange | None:
        """Return the number of features that are left."""
        if self.target is None or self.target[1] == -1:
            return None
        left = int(keeps(self.inputs[0].units).sum()) * self.run
        return NodeChange(numbers=(self.target[0], left, *self.target[2:]))


@dataclass(frozen=True, slots=True)
class Padded(ChannelOp):
    """A Pad that puts constant channels before and after the others.

    Attributes:
        before: the units of the channels that it puts first.
        after: of those that it puts last.
        value: what they hold.
        spatial: whether other axes are padded too.
        pads: all its numbers.
        at: the axis of channels.
    """

    before: Units
    after: Units
    value: float
    spatial: bool
    pads: tuple[int, ...]
    at: int

    def constant(self, weights: Weights, known: list[Values]) -> Values:
        """Return the inputs' between those of the padding."""
        kept = np.where(known[0] == self.value, known[0], np.nan) if self.spatial else known[0]
        around = [np.full(units.size, self.value) for units in (self.before, self.after)]
        return np.concatenate([around[0], kept, around[1]]).astype(np.float32)

    def needs(self, weights: Weights, needed: Flags) -> list[Flags]:
        """Return those between."""
        return [needed[self.before.size : needed.size - self.after.size]]

    def change(self, keeps: Callable[[Units], Flags]) -> NodeChange:
        """Return the padding that is left."""
        pads = list(self.pads)
        pads[self.at] = int(keeps(self.before).sum())
        pads[self.at + len(pads) // 2] = int(keeps(self.after).sum())
        return NodeChange(numbers=tuple(pads))


def _any(flags: Flags, *, axis: int, where: Flags) -> Flags:
    """Return ``flags.any(axis)`` over the places in ``where``, without a copy of the flags."""
    found: Flags = np.logical_or.reduce(flags, axis=axis, where=where)
    return found
