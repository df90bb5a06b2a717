"""The numbers of a report as geometry for inline SVG: positions and labels, no markup.

The template draws them; text becomes SVG text there, escaped like all other text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hwprune.report.record import LatencyRun, MetricPoint, Record
from hwprune.report.summary import density, packed_bytes

WIDTH = 760
_MOST_BARS = 40


@dataclass(frozen=True, slots=True)
class Bar:
    """One horizontal bar: label, value as text, and its length as a share of the longest."""

    label: str
    text: str
    share: float
    tip: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis, in pixels, and its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One quantity against epochs.

    Attributes:
        name: what it is.
        unit: class name in the style sheet.
        points: ``x,y`` pairs as an SVG polyline takes them.
        dots: (x, y, tip) of each measured point.
        ticks: of its own vertical axis.
        extreme: (x, y) of the state with the fewest connections, where some came back after it.
    """

    name: str
    unit: str
    points: str
    dots: tuple[tuple[float, float, str], ...]
    ticks: tuple[Tick, ...]
    extreme: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Plot:
    """The trajectory: curves above each other over one axis of epochs."""

    curves: tuple[Curve, ...]
    epochs: tuple[Tick, ...]
    left: float
    right: float
    top: float
    bottom: float


def layer_bars(record: Record) -> tuple[list[Bar], int]:
    """Return the largest layers in the network's order, and how many are left out."""
    layers = record.result.layers
    sizes = [packed_bytes(layer) for layer in layers]
    kept = sorted(range(len(layers)), key=lambda number: -sizes[number])[:_MOST_BARS]
    most = max(sizes, default=0) or 1
    bars = [
        Bar(
            label=layers[number].name,
            text=f"{packed_bytes(layers[number]):,} B, {density(layers[number])} kept, "
            f"{layers[number].codec}",
            share=packed_bytes(layers[number]) / most,
            tip=f"{layers[number].nonzeros:,} nonzeros, {layers[number].value_type}",
        )
        for number in sorted(kept)
    ]
    return bars, len(layers) - len(bars)


def latency_bars(rows: Sequence[tuple[str, LatencyRun]]) -> list[Bar]:
    """Return a bar per runtime: the median, with the 90th percentile in the tip."""
    most = max((run.p50_ms for _, run in rows), default=0.0) or 1.0
    return [
        Bar(label, f"{run.p50_ms:.3f} ms", run.p50_ms / most, f"p90 {run.p90_ms:.3f} ms")
        for label, run in rows
    ]


def trajectory(points: Sequence[MetricPoint], name: str | None = None) -> Plot | None:
    """Return the trajectory plot; None where nothing was trained."""
    name = name or "accuracy"
    times = _times(points) if points else []
    if len(set(times)) < 2:
        return None
    last = max(times) or 1.0
    left, right, top, height, gap = 70.0, WIDTH - 20.0, 28.0, 130.0, 52.0
    curves: list[Curve] = []
    for title, unit, given in (
        (f"{name} (validation)", "accuracy" if name == "accuracy" else "metric",
         [p.value for p in points]),
        ("nonzeros", "nonzeros", [float(p.nonzeros) for p in points]),
    ):  # fmt: skip
        known = [(at, value) for at, value in zip(times, given, strict=True) if value is not None]
        if not known:
            continue
        axis = _axis(
            [value for _, value in known], counts=unit == "nonzeros", shares=unit == "accuracy"
        )
        place = top + len(curves) * (height + gap)
        dots = tuple(
            (
                round(left + (right - left) * epoch / last, 1),
                round(place + height * (1 - axis.share(value)), 1),
                f"epoch {epoch:g}: {_label(value, unit)}",
            )
            for epoch, value in known
        )
        curves.append(
            Curve(
                name=f"{title}, log scale" if axis.logarithmic else title,
                unit=unit,
                points=" ".join(f"{x},{y}" for x, y, _ in dots),
                dots=dots,
                ticks=tuple(
                    Tick(round(place + height * (1 - axis.share(tick)), 1), _label(tick, unit))
                    for tick in axis.ticks
                ),
                extreme=_extreme(points, dots) if unit == "nonzeros" else None,
            )
        )
    bottom = top + len(curves) * (height + gap) - gap
    epochs = tuple(
        Tick(round(left + (right - left) * epoch / last, 1), f"{epoch:g}")
        for epoch in _multiples(0.0, last, max(1.0, _round_up(last / 8)))
    )
    return Plot(tuple(curves), epochs, left, right, top, bottom)


def _extreme(
    points: Sequence[MetricPoint], dots: Sequence[tuple[float, float, str]]
) -> tuple[float, float] | None:
    """Return the place of the state with the fewest connections, if something was regrown."""
    if not any(point.action == "regrow" for point in points):
        return None
    fewest = min(range(len(points)), key=lambda place: points[place].nonzeros)
    return dots[fewest][:2]


def _times(points: Sequence[MetricPoint]) -> list[float]:
    """Return when each point was, in epochs: by its step, where all have one, else as given."""
    steps = [point.step for point in points if point.step is not None]
    last = max(point.epoch for point in points)
    if len(steps) < len(points) or not max(steps):
        return [point.epoch for point in points]
    return [last * step / max(steps) for step in steps]


@dataclass(frozen=True, slots=True)
class _Axis:
    """A vertical axis: its ends, its ticks, and whether it is logarithmic."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool

    def share(self, value: float) -> float:
        """Return how far up the axis a value lies, 0 to 1."""
        if not self.logarithmic:
            return (value - self.low) / (self.high - self.low)
        return math.log(value / self.low) / math.log(self.high / self.low)


def _axis(values: Sequence[float], *, counts: bool, shares: bool = False) -> _Axis:
    """Return an axis with round ends around the values.

    Regrowth is a few per cent of what pruning took away: only a logarithmic axis shows both.
    """
    low, high = min(values), max(values)
    if counts and low >= 1 and high > 3 * low:
        bottom, top = _round_up(low), _round_up(high)
        while bottom > low:
            bottom = _round_up(bottom / 2.6)
        ticks = [bottom]
        while ticks[-1] < top:
            ticks.append(_round_up(ticks[-1] * 1.5))
        decades = [tick for tick in ticks if math.log10(tick).is_integer()]
        return _Axis(bottom, ticks[-1], tuple(ticks if len(ticks) < 8 else decades), True)
    if high <= low:
        high = low + (abs(low) * 0.1 or 1.0)
        if shares and low >= 1:
            low = 0.9
    step = _round_up((high - low) / 4)
    if counts:
        step = max(1.0, step)
    bottom, top = math.floor(low / step) * step, math.ceil(high / step) * step
    if shares:  # none is above 1
        top = min(top, 1.0)
    return _Axis(bottom, top, tuple(_multiples(bottom, top, step)), False)


def _label(value: float, unit: str) -> str:
    if unit == "metric":
        return f"{value:.4g}"
    return f"{100 * value:.4g} %" if unit == "accuracy" else f"{round(value):,}"


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 5, 10 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= value * 0.999)


def _multiples(start: float, end: float, step: float) -> list[float]:
    return [start + step * number for number in range(math.floor((end - start) / step + 1e-6) + 1)]
