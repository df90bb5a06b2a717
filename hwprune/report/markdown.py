"""A report as Markdown, for a pull request or a page of documentation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from hwprune.report import comparison, summary
from hwprune.report.comparison import Compared
from hwprune.report.record import Record
from hwprune.units import printable

# What Markdown (or the HTML that it lets through) would read as something else than text.
_SPECIAL = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]<>#|~"} | {"\n": " "})


def markdown(record: Record) -> str:
    """Return a report as GitHub-flavoured Markdown; all text of the record is escaped."""
    return "\n".join(_lines(record)) + "\n"


def comparison_markdown(runs: Sequence[Compared], title: str, notes: Sequence[str] = ()) -> str:
    """Return several runs as a table."""
    lines = [f"# {_text(title)}", "", *_table(comparison.COLUMNS, comparison.rows(runs))]
    return "\n".join([*lines, *map(_text, notes)]).rstrip() + "\n"


def _lines(record: Record) -> Iterator[str]:
    mark = "✅" if summary.passed(record) else "❌"
    yield f"# {_text(record.model)} for {_text(record.target)}"
    yield ""
    yield f"{mark} **{_text(summary.headline(record))}**"
    yield ""
    yield from _table(("", ""), summary.facts(record))
    if record.verdict.limits:
        yield from ("## Limits", "")
        yield from _table(summary.LIMIT_COLUMNS, summary.limit_rows(record))
    yield from ("## Bytes per layer", "")
    yield from _table(summary.LAYER_COLUMNS, summary.layer_rows(record))
    yield from (f"## {_text(summary.metric_title(record))}", "")
    yield from _table(("state", "value"), summary.metric_rows(record))
    rows = [(name, *summary.latency_cells(run)) for name, run in summary.latency_rows(record)]
    if rows:
        yield from (f"## {_text(summary.latency_title(record))}", "")
        yield from _table(summary.LATENCY_COLUMNS, rows)
    if record.notes:
        yield from ("## Notes", "")
        yield from (f"- {_text(note)}" for note in record.notes)
        yield ""
    yield from ("## Command", "", *_code(record.command))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(_text(cell) for cell in row) + " |"
    yield ""


def _code(text: str) -> tuple[str, ...]:
    """Return an indented code block: unlike a fence, nothing in the text can end it."""
    return tuple(f"    {line}" for line in printable(text).splitlines())


def _text(text: str) -> str:
    return printable(text).translate(_SPECIAL)
