"""Several runs side by side: which of them nothing beats, and where the curve of those bends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hwprune.report.record import Record
from hwprune.report.summary import NOT_MEASURED, in_percent, show_metric
from hwprune.units import format_percent

COLUMNS = (
    "run",
    "target",
    "strategy",
    "seed",
    "size",
    "sparsity",
    "accuracy",
    "drop",
    "verdict",
    "",
)
# By exit code; a file that missed a limit is kept as rejected.onnx.
_VERDICTS = {0: "good", 3: "rejected"}
WIDTH, HEIGHT = 760, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 740.0, 20.0, 290.0


@dataclass(frozen=True, slots=True)
class Compared:
    """One run.

    Attributes:
        label: what it is called: its folder.
        record: its report.
        on_frontier: whether no other run is both smaller and better (or one of them and alike).
        is_knee: whether the frontier bends most here.
    """

    label: str
    record: Record
    on_frontier: bool = False
    is_knee: bool = False

    @property
    def size_bytes(self) -> int:
        """Return the file's size."""
        return self.record.artifact.bytes

    @property
    def value(self) -> float | None:
        """Return what was measured of the file, None where nothing was."""
        return self.record.metric.final

    @property
    def merit(self) -> float:
        """Return the value with a sign by which more is better; minus infinity without one."""
        if self.value is None:
            return -math.inf
        return -self.value if self.record.metric.higher_is_better is False else self.value

    @property
    def rivals(self) -> tuple[str, str | None]:
        """Return what two runs must have in common to be compared: model and metric."""
        return self.record.model, self.record.metric.name

    @property
    def mark(self) -> str:
        """Return what stands beside the run in a table."""
        return "knee" if self.is_knee else "frontier" if self.on_frontier else ""


def compare(runs: Sequence[tuple[str, Record]]) -> list[Compared]:
    """Return the runs by size, with the frontier and its knee marked.

    Each model and metric has a frontier; on it are runs that fit and were verified.
    """
    given = [Compared(label, record) for label, record in runs]
    found: list[Compared] = []
    for rivals in dict.fromkeys(run.rivals for run in given):
        of_model = [run for run in given if run.rivals == rivals]
        of_model.sort(key=lambda run: (run.size_bytes, -run.merit, run.label))
        best = -math.inf
        frontier: list[int] = []
        for place, run in enumerate(of_model):
            good = run.record.verdict.fits and run.record.verdict.verified
            if good and run.merit > best:
                best = run.merit
                frontier.append(place)
        knee = _knee([of_model[place] for place in frontier])
        found += [
            Compared(run.label, run.record, place in frontier, run.label == knee)
            for place, run in enumerate(of_model)
        ]
    return found


def _knee(frontier: Sequence[Compared]) -> str | None:
    """Return the point farthest above the line between the ends, sizes on a log scale.

    After Satopää et al., "Finding a Kneedle in a Haystack" (2011). None with fewer than three
    points: then there is no curve.
    """
    if len(frontier) < 3:
        return None
    sizes = [math.log(run.size_bytes) for run in frontier]
    values = [run.merit for run in frontier]
    wide, high = sizes[-1] - sizes[0], values[-1] - values[0]
    above = [
        (value - values[0]) / high - (size - sizes[0]) / wide
        for size, value in zip(sizes, values, strict=True)
    ]
    return frontier[above.index(max(above))].label


def rows(runs: Sequence[Compared]) -> list[tuple[str, ...]]:
    """Return the cells of a table with ``COLUMNS``."""
    return [
        (
            run.label,
            run.record.target,
            run.record.strategy,
            str(run.record.seed),
            f"{run.size_bytes:,} B",
            format_percent(run.record.result.sparsity),
            NOT_MEASURED if run.value is None else show_metric(run.record, run.value),
            _drop(run.record),
            _VERDICTS.get(run.record.verdict.exit_code, "failed"),
            run.mark,
        )
        for run in runs
    ]


def _drop(record: Record) -> str:
    """Return by how much the file is worse than the dense network: positive is worse."""
    dense, final = record.metric.dense, record.metric.final
    if dense is None or final is None:
        return ""
    drop = final - dense if record.metric.higher_is_better is False else dense - final
    return f"{100 * drop:+.2f} points" if in_percent(record) else f"{drop:+.3g}"


@dataclass(frozen=True, slots=True)
class Dot:
    """A run in the plot: its place in pixels, how it is drawn, and what it is."""

    x: float
    y: float
    mark: str
    tip: str


@dataclass(frozen=True, slots=True)
class Scatter:
    """The metric against bytes (a log scale): a dot a run, a line along each frontier."""

    dots: tuple[Dot, ...]
    lines: tuple[str, ...]
    sizes: tuple[tuple[float, str], ...]
    values: tuple[tuple[float, str], ...]


def scatter(runs: Sequence[Compared]) -> Scatter | None:
    """Return the plot; None where fewer than two runs were measured, or by different metrics."""
    known = [run for run in runs if run.value is not None and run.size_bytes > 0]
    if len(known) < 2 or len({run.rivals[1] for run in known}) > 1:
        return None
    sizes = [math.log2(run.size_bytes) for run in known]
    values = [run.value or 0.0 for run in known]
    left, right = _around(sizes, 0.25)
    low, high = _around(values, 0.01)

    def place(run: Compared) -> tuple[float, float]:
        across = (math.log2(run.size_bytes) - left) / (right - left)
        up = ((run.value or 0.0) - low) / (high - low)
        return (
            round(_LEFT + across * (_RIGHT - _LEFT), 1),
            round(_BOTTOM - up * (_BOTTOM - _TOP), 1),
        )

    of = known[0].record
    return Scatter(
        dots=tuple(
            Dot(*place(run), run.mark, f"{run.label}: {', '.join(rows([run])[0][4:7])}")
            for run in known
        ),
        lines=tuple(
            " ".join(
                "{},{}".format(*place(run))
                for run in known
                if run.on_frontier and run.rivals == rivals
            )
            for rivals in dict.fromkeys(run.rivals for run in known)
        ),
        sizes=tuple(
            (
                round(_LEFT + (power - left) / (right - left) * (_RIGHT - _LEFT), 1),
                f"{2 ** (power - 10):g} KiB",
            )
            for power in range(math.ceil(left), math.floor(right) + 1)
        ),
        values=tuple(
            (
                round(_BOTTOM - share * (_BOTTOM - _TOP), 1),
                show_metric(of, low + share * (high - low)),
            )
            for share in (0.0, 0.25, 0.5, 0.75, 1.0)
        ),
    )


def _around(values: Sequence[float], least: float) -> tuple[float, float]:
    """Return the ends of an axis around values, with some room."""
    room = max(least, 0.08 * (max(values) - min(values)))
    return min(values) - room, max(values) + room
