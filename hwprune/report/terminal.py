"""A report in the terminal: the verdict first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwprune.report import summary
from hwprune.report.record import Record
from hwprune.units import format_count

_MOST_LAYERS = 60
_RIGHT = frozenset({"nonzeros", "sparsity", "bytes", "p50", "p90", "load", "resident", "value"})


def terminal(record: Record, console: Console) -> None:
    """Print a report. Names from the file are printed as they are, never read as markup."""
    good = summary.passed(record)
    console.print(
        Text(
            f"{'✓' if good else '✗'} {summary.headline(record)}",
            style="bold green" if good else "bold red",
        ),
        soft_wrap=True,
    )
    console.print(_pairs(summary.facts(record)))
    if record.verdict.limits:
        _table(console, "Limits", summary.LIMIT_COLUMNS, summary.limit_rows(record))
    rows = summary.layer_rows(record)
    _table(console, "Bytes per layer", summary.LAYER_COLUMNS, rows[:_MOST_LAYERS])
    if len(rows) > _MOST_LAYERS:
        console.print(
            f"and {format_count(len(rows) - _MOST_LAYERS, 'layer')} more; -o FILE.html shows all"
        )
    _table(
        console, summary.accuracy_title(record), ("state", "value"), summary.accuracy_rows(record)
    )
    latency = [(name, *summary.latency_cells(run)) for name, run in summary.latency_rows(record)]
    if latency:
        _table(console, summary.latency_title(record), summary.LATENCY_COLUMNS, latency)
    if record.notes:
        console.print(Text("\nNotes", style="bold"))
        for note in record.notes:
            console.print(Text(f"- {note}"), soft_wrap=True)


def _pairs(pairs: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in pairs:
        table.add_row(Text(label), Text(text))
    return table


def _table(
    console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in _RIGHT else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
    console.print(table)
