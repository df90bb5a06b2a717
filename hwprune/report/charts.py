"""The numbers of a report as geometry for inline SVG: positions and labels, no markup.

The template draws them; text becomes SVG text there, escaped like all other text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hwprune.report.record import LatencyRun, Record, TrajectoryPoint

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
    """

    name: str
    unit: str
    points: str
    dots: tuple[tuple[float, float, str], ...]
    ticks: tuple[Tick, ...]


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
    kept = sorted(range(len(layers)), key=lambda number: -layers[number].bytes)[:_MOST_BARS]
    most = max((layer.bytes for layer in layers), default=0) or 1
    bars = [
        Bar(
            label=layers[number].name,
            text=f"{layers[number].bytes:,} B",
            share=layers[number].bytes / most,
            tip=(
                f"{layers[number].nonzeros:,} nonzeros, {layers[number].codec}, "
                f"{layers[number].value_type}"
            ),
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


def trajectory(points: Sequence[TrajectoryPoint]) -> Plot | None:
    """Return the trajectory plot; None where there are fewer than two points."""
    if len(points) < 2:
        return None
    # An action inside an epoch comes before the epoch's end in the record: keep that order.
    last = max(point.epoch for point in points) or 1.0
    left, right, top, height, gap = 70.0, WIDTH - 20.0, 28.0, 130.0, 52.0
    curves: list[Curve] = []
    series = (
        ("accuracy (validation)", "accuracy", [(p.epoch, p.accuracy) for p in points]),
        ("nonzeros", "nonzeros", [(p.epoch, float(p.nonzeros)) for p in points]),
    )
    for name, unit, given in series:
        known = [(epoch, value) for epoch, value in given if value is not None]
        if not known:
            continue
        low, high, ticks = _scale([value for _, value in known], whole=unit == "nonzeros")
        place = top + len(curves) * (height + gap)
        dots = tuple(
            (
                round(left + (right - left) * epoch / last, 1),
                round(place + height * (1 - (value - low) / (high - low)), 1),
                f"epoch {epoch:g}: {_label(value, unit)}",
            )
            for epoch, value in known
        )
        curves.append(
            Curve(
                name=name,
                unit=unit,
                points=" ".join(f"{x},{y}" for x, y, _ in dots),
                dots=dots,
                ticks=tuple(
                    Tick(
                        round(place + height * (1 - (tick - low) / (high - low)), 1),
                        _label(tick, unit),
                    )
                    for tick in ticks
                ),
            )
        )
    bottom = top + len(curves) * (height + gap) - gap
    step = _step(last / 8, whole=True)
    epochs = tuple(
        Tick(round(left + (right - left) * epoch / last, 1), f"{epoch:g}")
        for epoch in _multiples(0.0, last, step)
    )
    return Plot(tuple(curves), epochs, left, right, top, bottom)


def _label(value: float, unit: str) -> str:
    return f"{100 * value:.4g} %" if unit == "accuracy" else f"{round(value):,}"


def _scale(values: Sequence[float], *, whole: bool) -> tuple[float, float, list[float]]:
    """Return the ends of an axis and its ticks: round numbers around the values."""
    low, high = min(values), max(values)
    if whole:
        low = 0.0
    if high <= low:
        high = low + (abs(low) * 0.1 or 1.0)
    step = _step((high - low) / 4, whole=whole)
    start, end = math.floor(low / step) * step, math.ceil(high / step) * step
    return start, end, _multiples(start, end, step)


def _step(rough: float, *, whole: bool) -> float:
    """Return the next of 1, 2, 5, 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return max(1.0, step) if whole else step


def _multiples(start: float, end: float, step: float) -> list[float]:
    return [start + step * number for number in range(math.floor((end - start) / step + 1e-6) + 1)]
