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
    lines = [*head(record), *_layers(record), *metric_and_notes(record)]
    return "\n".join([*lines, "## Command", "", *_code(record.command)]) + "\n"


def comparison_markdown(runs: Sequence[Compared], title: str, notes: Sequence[str] = ()) -> str:
    """Return several runs as a table."""
    lines = [f"# {text(title)}", "", *_table(comparison.COLUMNS, comparison.rows(runs))]
    return "\n".join([*lines, *map(text, notes)]).rstrip() + "\n"


def head(record: Record) -> Iterator[str]:
    """Yield the verdict, the facts and the limits."""
    mark = "✅" if summary.passed(record) else "❌"
    yield f"# {text(record.model)} for {text(record.target)}"
    yield ""
    yield f"{mark} **{text(summary.headline(record))}**"
    yield ""
    if rows := summary.size_rows(record):
        yield from _table(summary.size_columns(record), rows)
    yield from _table(("", ""), summary.facts(record))
    if record.verdict.limits:
        yield from ("## Limits", "")
        yield from _table(summary.LIMIT_COLUMNS, summary.limit_rows(record))


def _layers(record: Record) -> Iterator[str]:
    yield from ("## Bytes per layer", "")
    yield from _table(summary.LAYER_COLUMNS, summary.layer_rows(record))


def metric_and_notes(record: Record) -> Iterator[str]:
    """Yield what was measured, and the notes."""
    yield from (f"## {text(summary.metric_title(record))}", "")
    yield from _table(("state", "value"), summary.metric_rows(record))
    rows = [(name, *summary.latency_cells(run)) for name, run in summary.latency_rows(record)]
    if rows:
        yield from (f"## {text(summary.latency_title(record))}", "")
        yield from _table(summary.LATENCY_COLUMNS, rows)
        lines = (f"{summary.latency_how(record)}.", *summary.latency_reasons(record))
        yield from (f"{text(line)}\n" for line in lines)
    if record.notes:
        yield from ("## Notes", "")
        yield from (f"- {text(note)}" for note in summary.notes(record))
        yield ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(text(cell) for cell in row) + " |"
    yield ""


def _code(text: str) -> tuple[str, ...]:
    """Return an indented code block: unlike a fence, nothing in the text can end it."""
    return tuple(f"    {line}" for line in printable(text).splitlines())


def text(given: str) -> str:
    """Return text that Markdown, and the HTML in it, reads as itself."""
    return printable(given).translate(_SPECIAL)
