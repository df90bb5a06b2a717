"""A report as one HTML file that needs nothing else: no script, no request, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2

from hwprune.report import charts, comparison, summary
from hwprune.report.comparison import Compared
from hwprune.report.record import Record
from hwprune.units import printable

_TEMPLATES = Path(__file__).parent / "templates"


def html(record: Record) -> str:
    """Return a report as a self-contained page; every text of the record is escaped."""
    bars, left_out = charts.layer_bars(record)
    latency = summary.latency_rows(record)
    return _template("report.html.j2").render(
        record=record,
        summary=summary,
        good=summary.passed(record),
        facts=list(summary.facts(record)),
        used=min(1.0, record.budget.used_bytes / record.budget.bytes) if record.budget.bytes else 0,
        sizes=summary.size_rows(record),
        layer_bars=bars,
        left_out=left_out,
        layers=summary.layer_rows(record),
        latency=[(name, *summary.latency_cells(run)) for name, run in latency],
        latency_bars=charts.latency_bars(latency),
        plot=charts.trajectory(record.metric.trajectory, record.metric.name),
        moments=summary.moments(record),
        width=charts.WIDTH,
    )


def comparison_html(runs: Sequence[Compared], title: str, notes: Sequence[str] = ()) -> str:
    """Return several runs as a self-contained page, with their sizes against their accuracies."""
    return _template("comparison.html.j2").render(
        title=title,
        scatter=comparison.scatter(runs),
        columns=comparison.COLUMNS,
        rows=comparison.rows(runs),
        notes=notes,
        width=comparison.WIDTH,
        height=comparison.HEIGHT,
    )


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    return environment.get_template(name)
