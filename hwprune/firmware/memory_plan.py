"""Where each tensor lies in RAM, and in which order layers make rows.

In memory a tensor is [row][channel][x], with a gap of the zero point between the pixels of one
channel and the next: the margins that convolutions reach into. Rows above and below are not stored.

A plan is a schedule of steps, each of which makes some rows of one layer. Where a layer makes few
rows at a time and its readers follow closely, its output needs a window of few rows only. That is
how additions are done in the place of what they add to, and how the first layers of a network are
streamed: all of them take turns, row by row, until what comes behind can go on layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import ExportError, InfeasibleError
from hwprune.firmware.formats import DECODING, TAP_BYTES
from hwprune.firmware.network import (
    Add,
    AveragePool,
    Concat,
    Conv2d,
    GlobalAveragePool,
    IntegerLayer,
    IntegerNetwork,
    Linear,
    MaxPool,
    QuantizedTensor,
    Reshape,
)
from hwprune.units import format_bytes

# A tap holds an offset from a window's corner in 16 bits.
MAX_OFFSET = 65_535
# The descriptors hold gaps, pads, strides and kernels in one byte each, numbers of things too.
MAX_BYTE = 255
# The word behind a list of taps at which a loop ends, and a tap where there would be none.
END_TAPS = 2
# What the state of a schedule takes: a row number a window and a layer, and where input comes from.
ROW_BYTES = 2
SOURCE_BYTES = 8
# Of a channel's sum over rows, where that takes several passes.
SUM_BYTES = 4
# The most pixels that are summed at once, and how far words reach beyond the last of them.
PIXELS = 16
WORD_SLACK = 8
# Rows a pass that are tried, the last one for all.
PASSES = (1, 2, 3, 4, 6, 8, 16, 65_535)
# Of how many beginnings a plan is refined: the best one does not always end as the best.
REFINED = 3
# Instructions of a Cortex-M4, fitted to what QEMU counted of MLPerf Tiny's networks: of decoding a
# filter and each of its nonzeros; of a convolution's multiply-accumulates, its output pixels and
# the rows of one filter; of moving a byte; of an element of any other layer.
FILTER_COST, DECODE_COST, _ = DECODING["rice"]
MAC_COST, PIXEL_COST, ROW_COST, MOVE_COST, ELEMENT_COST = 2.2, 3.0, 120.0, 1.0, 19.0
# Pixels that a pass makes at least, where a row has more than one.
PASS_PIXELS = 8


@dataclass(frozen=True, slots=True, eq=False)
class PlannedLayer:
    """A layer as the runtime runs it.

    Attributes:
        layer: of the network; None where rows of the input are taken in.
        inputs: the tensors that it reads, reshapings that move nothing left out.
        output: the tensor that it makes.
        window: how its rows lie over the input's; None where it reads all of its inputs.
        height: rows of the output; of the input, where it sums them up to one.
        rows: made, or taken, at a time.
    """

    layer: IntegerLayer | None
    inputs: tuple[str, ...]
    output: str
    window: RowWindow | None
    height: int
    rows: int

    @property
    def sums_rows(self) -> bool:
        """Return whether it goes over the rows of its input to make a single one."""
        return isinstance(self.layer, GlobalAveragePool) and self.height > 1

    def needs(self, first: int, end: int, height: int) -> tuple[int, int]:
        """Return which rows of inputs of this height its rows ``first`` to ``end`` are made of."""
        if self.window is None:
            return 0, height
        low = first * self.window.stride - self.window.pad
        high = (end - 1) * self.window.stride - self.window.pad + self.window.reach
        return min(max(0, low), height), max(0, min(height, high))


@dataclass(frozen=True, slots=True)
class RowWindow:
    """The input rows of an output row: ``reach`` of them from ``row * stride - pad`` on."""

    stride: int
    pad: int
    reach: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a tensor lies.

    Attributes:
        tensor: its name.
        chw: channels, rows and columns.
        gap: bytes between two channels' pixels.
        rows: that its window holds.
        window: which window it is; tensors that take one another's place share one.
        offset: of the first pixel in the arena.
    """

    tensor: str
    chw: tuple[int, int, int]
    gap: int
    rows: int
    window: int
    offset: int

    @property
    def pitch(self) -> int:
        """Return the bytes from one channel's pixels to the next one's."""
        return self.chw[2] + self.gap

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one row of all channels."""
        return self.chw[0] * self.pitch

    @property
    def size(self) -> int:
        """Return the bytes of the window, the gap before its first pixel included."""
        return self.gap + self.rows * self.row_bytes


@dataclass(frozen=True, eq=False)
class MemoryPlan:
    """RAM and order of a network.

    Attributes:
        network: what is planned.
        layers: in the order of their numbers; the first one takes the input in.
        schedule: the number of the layer that makes its next rows, step by step.
        placements: of each tensor that is in memory.
        renamed: tensors that are others under another name: reshapings that move nothing.
        arena_size: elements of all windows and what kernels may read behind the last one.
        taps: room for the fullest filter and an end mark, in words.
        peak: the layer at whose steps the most is in use.
        instructions: projected, of a Cortex-M4.
        limit: what ``ram_bytes`` had to be within; None for no limit.
    """

    network: IntegerNetwork
    layers: tuple[PlannedLayer, ...]
    schedule: tuple[int, ...]
    placements: Mapping[str, Placement]
    renamed: Mapping[str, str]
    arena_size: int
    taps: int
    peak: str
    instructions: float
    limit: int | None = None

    @property
    def windows(self) -> int:
        """Return the number of windows."""
        return 1 + max(place.window for place in self.placements.values())

    @property
    def ram_bytes(self) -> int:
        """Return the RAM of the network: the arena, the taps and the schedule's state."""
        state = ROW_BYTES * (self.windows + len(self.layers)) + SOURCE_BYTES
        sums = sum(self.placements[planned.output].chw[0] for planned in self.summing)
        arena = _aligned(self.arena_size * self.network.element_bytes)
        return arena + TAP_BYTES * self.taps + _aligned(state) + SUM_BYTES * sums

    @property
    def summing(self) -> list[PlannedLayer]:
        """Return the layers that keep sums of each channel between passes."""
        return [
            planned
            for planned in self.layers
            if planned.sums_rows and planned.rows < planned.height
        ]

    @cached_property
    def streamed(self) -> tuple[str, ...]:
        """Return the tensors of which only a part is in memory at a time."""
        places = self.placements.values()
        return tuple(place.tensor for place in places if place.rows < place.chw[1])


def plan(network: IntegerNetwork, ram_bytes: int | None = None) -> MemoryPlan:
    """Return the plan of the fewest instructions that fits.

    Args:
        network: a valid one.
        ram_bytes: what the network may take, its stack left out; None for no limit.

    Raises:
        ExportError: a layer is beyond what the runtime's descriptors hold.
        InfeasibleError: no plan fits; names the layer that peaks, and the bytes of the best plan.
    """
    layers, renamed = _lowered(network)
    gaps = _gaps(network, layers)
    planner = _Planner(network, renamed, gaps, ram_bytes)
    least: MemoryPlan | None = None
    begun: list[MemoryPlan] = []
    for count, candidates in enumerate(_candidates(layers)):
        made = [plan for candidate in candidates for plan in planner.plans(candidate)]
        begun += sorted(filter(planner.fits, made), key=_rank)[:1]
        if begun and not count:  # layer by layer: nothing is decoded twice
            break
        least = min([*made, *([least] if least else [])], key=lambda plan: plan.ram_bytes)
    if begun and ram_bytes is None:
        return begun[0]
    if begun:
        best = sorted(begun, key=_rank)[:REFINED]
        return min(map(planner.refined, best), key=_rank)
    assert least is not None
    raise InfeasibleError(
        f"the network needs {format_bytes(least.ram_bytes)} of RAM at {least.peak!r}, where "
        f"{format_bytes(ram_bytes or 0)} are left for it",
        hint="take a target with more RAM, or a smaller input: rows and channels count alike",
    )


def _rank(plan: MemoryPlan) -> tuple[float, int]:
    return plan.instructions, plan.ram_bytes


@dataclass(frozen=True, slots=True)
class _Planner:
    """Makes the plans of a network whose layers have their rows a pass."""

    network: IntegerNetwork
    renamed: Mapping[str, str]
    gaps: Mapping[str, int]
    limit: int | None

    def plans(self, layers: tuple[PlannedLayer, ...]) -> list[MemoryPlan]:
        """Return a plan for each preference of where sums go."""
        return [
            replace(
                _planned(self.network, layers, self.renamed, self.gaps, whole_first),
                limit=self.limit,
            )
            for whole_first in (True, False)
        ]

    def fits(self, plan: MemoryPlan) -> bool:
        """Return whether a plan's RAM is within the limit."""
        return self.limit is None or plan.ram_bytes <= self.limit

    def refined(self, best: MemoryPlan) -> MemoryPlan:
        """Give layers more rows a pass where they fit.

        One alone, a sum with what makes an operand, all from one on to the last that is streamed.
        """
        readers = _readers(best.layers)
        groups = [{number} for number in range(len(best.layers))]
        for number, planned in enumerate(best.layers):
            groups += [
                {number, reader}
                for reader in readers[planned.output]
                if isinstance(best.layers[reader].layer, Add)
            ]
        streamed = [n for n, planned in enumerate(best.layers) if planned.rows < planned.height]
        groups += [set(streamed[begin:]) for begin in range(len(streamed) - 1)]
        for group in groups:
            for rows in reversed(PASSES):
                layers = tuple(
                    replace(planned, rows=max(planned.rows, min(rows, planned.height)))
                    if number in group
                    else planned
                    for number, planned in enumerate(best.layers)
                )
                if layers != best.layers:
                    best = min([best, *filter(self.fits, self.plans(layers))], key=_rank)
        return best


def _candidates(layers: tuple[PlannedLayer, ...]) -> Iterable[list[tuple[PlannedLayer, ...]]]:
    """Give layers their rows a pass: layer by layer first, then more and more of them streamed."""
    readers = _readers(layers)
    # A sum takes turns with what makes one of its operands.
    paired = {
        number
        for number, planned in enumerate(layers)
        if isinstance(planned.layer, Add)
        or [type(layers[reader].layer) for reader in readers[planned.output]] == [Add]
    }
    seen: set[tuple[int, ...]] = set()
    for count in range(len(layers) + 1):
        passes = [
            tuple(
                min(rows, planned.height) if number < count or number in paired else planned.height
                for number, planned in enumerate(layers)
            )
            for rows in PASSES
        ]
        fresh = [rows for rows in dict.fromkeys(passes) if rows not in seen]
        seen.update(fresh)
        if fresh:
            yield [
                tuple(replace(planned, rows=row) for planned, row in zip(layers, rows, strict=True))
                for rows in fresh
            ]


def _lowered(network: IntegerNetwork) -> tuple[tuple[PlannedLayer, ...], dict[str, str]]:
    """Return the layers without reshapings that move nothing, and what these rename."""
    renamed: dict[str, str] = {}
    kept: list[PlannedLayer] = []
    shape = network.tensors[network.input].chw
    kept.append(PlannedLayer(None, (), network.input, None, shape[1], shape[1]))
    for layer in network.layers:
        inputs = tuple(renamed.get(name, name) for name in layer.inputs)
        if isinstance(layer, Reshape) and network.moves_nothing(layer, inputs[0]):
            renamed[layer.output] = inputs[0]
            continue
        summed = isinstance(layer, GlobalAveragePool)
        height = network.tensors[inputs[0] if summed else layer.output].chw[1]
        window = _row_window(layer)
        kept.append(PlannedLayer(layer, inputs, layer.output, window, height, height))
    if len(kept) > MAX_BYTE:
        raise ExportError(f"the network has {len(kept)} layers, where firmware holds {MAX_BYTE}")
    return tuple(kept), renamed


def _row_window(layer: IntegerLayer) -> RowWindow | None:
    if isinstance(layer, Conv2d):
        reach = (layer.weight.shape[2] - 1) * layer.dilations[0] + 1
        return RowWindow(layer.strides[0], layer.pads[0], reach)
    if isinstance(layer, (MaxPool, AveragePool)):
        return RowWindow(layer.strides[0], layer.pads[0], layer.kernel[0])
    by_row = isinstance(layer, (Add, Concat, GlobalAveragePool))
    return RowWindow(1, 0, 1) if by_row else None


def convolution_of(layer: Conv2d | Linear, source: QuantizedTensor) -> Conv2d:
    """Return a weighted layer as a convolution of the tensor that is in memory.

    A linear layer is one whose window is all of its input: (C, H, W) before it was flattened.
    """
    if isinstance(layer, Conv2d):
        return layer
    weight = layer.weight.reshape(len(layer.weight), *source.chw)
    return Conv2d(
        layer.name, layer.inputs, layer.output, weight, layer.weight_scale, layer.bias,
        clamp=layer.clamp,
    )  # fmt: skip


def _gaps(network: IntegerNetwork, layers: tuple[PlannedLayer, ...]) -> dict[str, int]:
    """Return the gap of each tensor: as wide as the widest margin that a reader needs.

    Operands of a sum take the gap of the sum and of one another, so that they can share a place.
    """
    gaps = {planned.output: 0 for planned in layers}
    for planned in layers:
        if not isinstance(planned.layer, (Conv2d, Linear)):
            continue
        source = network.tensors[planned.inputs[0]]
        conv = convolution_of(planned.layer, source)
        extent = (conv.weight.shape[3] - 1) * conv.dilations[1] + 1
        margin = max(conv.pads[1], conv.pads[3], extent - source.chw[2])
        gaps[source.name] = max(gaps[source.name], margin)
        _check_descriptor(conv, margin)
    changed = True
    while changed:
        changed = False
        for planned in layers:
            if isinstance(planned.layer, Add):
                names = (planned.output, *planned.inputs)
                widest = max(gaps[name] for name in names)
                changed = changed or any(gaps[name] != widest for name in names)
                gaps.update(dict.fromkeys(names, widest))
    for planned in layers:
        if isinstance(planned.layer, (Conv2d, Linear)):
            source = network.tensors[planned.inputs[0]]
            conv = convolution_of(planned.layer, source)
            most = int(column_offsets(conv, source.chw[0], source.chw[2] + gaps[source.name]).max())
            if most > MAX_OFFSET:
                raise ExportError(
                    f"a window of {conv.name!r} spans {most + 1:,} bytes of its input, and "
                    f"firmware addresses {MAX_OFFSET + 1:,}",
                    hint="a smaller kernel, fewer channels, or pooling before a linear layer",
                )
    return gaps


def _check_descriptor(conv: Conv2d, margin: int) -> None:
    numbers = (*conv.strides, *conv.pads, *conv.dilations, conv.weight.shape[3], margin)
    if max(numbers) > MAX_BYTE:
        raise ExportError(
            f"{conv.name!r} has a kernel of {conv.weight.shape[2:]}, strides {conv.strides}, pads "
            f"{conv.pads} and dilations {conv.dilations}, where firmware holds {MAX_BYTE} of each"
        )


def column_offsets(conv: Conv2d, channels: int, pitch: int) -> NDArray[np.int64]:
    """Return the offset in memory of each column of a filter, from its window's corner."""
    _, per_group, rows, columns = conv.weight.shape
    row = np.arange(rows)[:, None, None] * conv.dilations[0] * channels * pitch
    channel = np.arange(per_group)[None, :, None] * pitch
    offsets: NDArray[np.int64] = row + channel + np.arange(columns) * conv.dilations[1]
    return offsets.ravel()


def _readers(layers: tuple[PlannedLayer, ...]) -> dict[str, list[int]]:
    readers: dict[str, list[int]] = {planned.output: [] for planned in layers}
    for number, planned in enumerate(layers):
        for name in dict.fromkeys(planned.inputs):
            readers[name].append(number)
    return readers


@dataclass(slots=True)
class _Life:
    """Of one tensor, while a schedule is made: rows are numbered from its first one."""

    made: int = 0
    held: int = 0  # the most rows at once
    born: int = -1
    died: int = -1


class _Scheduler:
    """Makes rows when a reader needs them, and watches how many each tensor has to hold."""

    def __init__(self, layers: tuple[PlannedLayer, ...], outputs: set[str]) -> None:
        self.layers = layers
        self.maker = {planned.output: number for number, planned in enumerate(layers)}
        self.readers = _readers(layers)
        self.lives = {planned.output: _Life() for planned in layers}
        self.steps: list[int] = []
        self.kept = outputs

    def make(self, number: int, rows: int) -> None:
        """Make rows of a layer until it has made so many."""
        planned, life = self.layers[number], self.lives[self.layers[number].output]
        while life.made < rows:
            first, end = life.made, min(life.made + planned.rows, planned.height)
            for name in planned.inputs:
                maker = self.maker[name]
                height = self.layers[maker].height
                whole = self.layers[maker].sums_rows
                self.make(maker, height if whole else planned.needs(first, end, height)[1])
            step = len(self.steps)
            self.steps.append(number)
            held = 1 if planned.sums_rows else end - self.unneeded(planned.output)
            life.held = max(life.held, held)
            life.made = end
            life.born = step if life.born < 0 else life.born
            life.died = step
            for name in planned.inputs:
                self.lives[name].died = step

    def unneeded(self, name: str) -> int:
        """Return how many of a tensor's first rows nobody reads any more."""
        height = self.layers[self.maker[name]].height
        if name in self.kept:
            return 0
        rows = height
        for reader in self.readers[name]:
            planned = self.layers[reader]
            made = self.lives[planned.output].made
            if made < planned.height:
                rows = min(rows, planned.needs(made, made + 1, height)[0])
        return rows


def _planned(
    network: IntegerNetwork,
    layers: tuple[PlannedLayer, ...],
    renamed: Mapping[str, str],
    gaps: Mapping[str, int],
    whole_first: bool,
) -> MemoryPlan:
    outputs = {renamed.get(name, name) for name in network.outputs}
    scheduler = _Scheduler(layers, outputs)
    for number, planned in enumerate(layers):  # those that nothing reads too
        if planned.output in outputs or not scheduler.readers[planned.output]:
            scheduler.make(number, planned.height)
    lives, steps = scheduler.lives, scheduler.steps
    for name in outputs:
        lives[name].died = len(steps)
    shared = _shared(scheduler, whole_first)
    windows: dict[str, list[str]] = {}
    for name in lives:
        windows.setdefault(shared.get(name, name), []).append(name)
    wanted: list[Wanted] = []
    for owner, names in windows.items():
        chw = network.tensors[owner].chw
        rows = max(lives[name].held for name in names)
        span = min(lives[name].born for name in names), max(lives[name].died for name in names)
        wanted.append((Placement(owner, chw, gaps[owner], rows, 0, 0), span))
    begins = min((_packed(wanted, order) for order in _ORDERS), key=lambda ends: ends[1])[0]
    placements: dict[str, Placement] = {}
    taken: list[tuple[int, int, tuple[int, int]]] = []  # begin, end, span of steps
    for window, (place, span) in enumerate(wanted):
        begin = begins[place.tensor]
        taken.append((begin, begin + place.size, span))
        for name in windows[place.tensor]:
            placements[name] = replace(place, tensor=name, window=window, offset=begin + place.gap)
    in_use = np.zeros(len(steps) + 1)
    for begin, end, (born, died) in taken:
        in_use[born : died + 1] += end - begin
    convs = [planned.layer for planned in layers if isinstance(planned.layer, (Conv2d, Linear))]
    counts = [np.count_nonzero(conv.weight.reshape(len(conv.weight), -1), 1) for conv in convs]
    strides = [conv.strides[1] for conv in convs if isinstance(conv, Conv2d)]
    slack = PIXELS * max(strides, default=1) + WORD_SLACK
    ordered = {planned.output: placements[planned.output] for planned in layers}
    return MemoryPlan(
        network,
        layers,
        tuple(steps),
        ordered,
        dict(renamed),
        max(end for _, end, _ in taken) + slack,
        END_TAPS + max((int(count.max()) for count in counts), default=0),
        layers[steps[min(int(np.argmax(in_use)), len(steps) - 1)]].output,
        _cost(network, layers, ordered, steps),
    )


Wanted = tuple[Placement, tuple[int, int]]
"""A window and the steps from which to which it is needed."""
# In which order windows are placed, each as low as it fits: the best of some is near the best.
_ORDERS: tuple[Callable[[Wanted], tuple[int, ...]], ...] = (
    lambda wanted: (-wanted[0].size,),
    lambda wanted: (wanted[1][0] - wanted[1][1], -wanted[0].size),
    lambda wanted: (wanted[1][0], -wanted[0].size),
    lambda wanted: (-wanted[1][1], -wanted[0].size),
)


def _packed(
    wanted: Sequence[Wanted], order: Callable[[Wanted], tuple[int, ...]]
) -> tuple[dict[str, int], int]:
    """Return where each window begins, and the bytes of all."""
    begins: dict[str, int] = {}
    taken: list[tuple[int, int, int, int]] = []
    for place, (born, died) in sorted(wanted, key=lambda pair: (*order(pair), pair[0].tensor)):
        begin = 0
        for other, end, other_born, other_died in sorted(taken):
            if born <= other_died and other_born <= died and begin + place.size > other:
                begin = max(begin, _aligned(end))
        taken.append((begin, begin + place.size, born, died))
        begins[place.tensor] = begin
    return begins, max(end for _, end, _, _ in taken)


def _shared(scheduler: _Scheduler, whole_first: bool) -> dict[str, str]:
    """Return the sums that take the place of an operand, by name, and with whom they share it.

    Either the operand is all there and read by nobody else any more, or its rows are made for the
    sum alone, each time right before it. Where both can be had, ``whole_first`` decides.
    """
    shared: dict[str, str] = {}
    lives, layers = scheduler.lives, scheduler.layers
    last = {number: step for step, number in enumerate(scheduler.steps)}
    for number, planned in enumerate(layers):
        if not isinstance(planned.layer, Add):
            continue
        places: dict[bool, str] = {}
        for operand in dict.fromkeys(planned.inputs):
            maker = layers[scheduler.maker[operand]]
            others = [reader for reader in scheduler.readers[operand] if reader != number]
            unread = all(last[other] < lives[planned.output].born for other in others)
            whole = lives[operand].held == maker.height and unread
            private = not others and maker.rows == planned.rows and operand not in shared
            if operand not in scheduler.kept and (whole or private):
                places.setdefault(whole, shared.get(operand, operand))
        if places:
            shared[planned.output] = places.get(whole_first) or next(iter(places.values()))
    return shared


def _cost(
    network: IntegerNetwork,
    layers: tuple[PlannedLayer, ...],
    placements: Mapping[str, Placement],
    steps: list[int],
) -> float:
    """Return instructions, roughly: what is decoded, multiplied, made and moved."""
    total = 0.0
    for number, planned in enumerate(layers):
        place, passes = placements[planned.output], steps.count(number)
        total += MOVE_COST * (place.rows - planned.rows) * place.row_bytes * max(0, passes - 1)
        if isinstance(planned.layer, (Conv2d, Linear)):
            nonzeros = int(np.count_nonzero(planned.layer.weight))
            filters, height, width = network.tensors[planned.output].chw
            passed = -(-width // PASS_PIXELS) * PASS_PIXELS if width > 1 else 1
            total += (DECODE_COST * nonzeros + FILTER_COST * filters) * passes
            total += MAC_COST * nonzeros * height * passed
            total += filters * height * (PIXEL_COST * width + ROW_COST)
        elif planned.layer is not None:
            total += ELEMENT_COST * network.tensors[planned.output].size
    return total


def _aligned(size: int) -> int:
    return -(-size // TAP_BYTES) * TAP_BYTES
