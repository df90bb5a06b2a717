"""A report in the terminal: the verdict first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwprune.report import comparison, summary
from hwprune.report.comparison import Compared
from hwprune.report.record import Record
from hwprune.units import format_count

_MOST_LAYERS = 60
_STYLES = {"✓": "bold green", "○": "bold yellow", "✗": "bold red"}
_RIGHT = frozenset({"nonzeros", "sparsity", "bytes", "p50", "p90", "load", "resident", "value"})
_COMPARED = frozenset({"size", "metric", "drop", "seed"})


def terminal(record: Record, console: Console) -> None:
    """Print a report. Names from the file are printed as they are, never read as markup."""
    console.print(
        Text(
            f"{summary.mark(record)} {summary.headline(record)}",
            style=_STYLES[summary.mark(record)],
        ),
        soft_wrap=True,
    )
    console.print(pairs(summary.facts(record)))
    if record.verdict.limits:
        _titled(console, "Limits", summary.LIMIT_COLUMNS, summary.limit_rows(record))
    rows = summary.layer_rows(record)
    _titled(console, "Bytes per layer", summary.LAYER_COLUMNS, rows[:_MOST_LAYERS])
    if len(rows) > _MOST_LAYERS:
        console.print(
            f"and {format_count(len(rows) - _MOST_LAYERS, 'layer')} more; -o FILE.html shows all"
        )
    _titled(console, summary.metric_title(record), ("state", "value"), summary.metric_rows(record))
    latency = [(name, *summary.latency_cells(run)) for name, run in summary.latency_rows(record)]
    if latency:
        _titled(console, summary.latency_title(record), summary.LATENCY_COLUMNS, latency)
    if record.notes:
        console.print(Text("\nNotes", style="bold"))
        for note in record.notes:
            console.print(Text(f"- {note}"), soft_wrap=True)


def comparison_terminal(
    runs: Sequence[Compared], console: Console, notes: Sequence[str] = ()
) -> None:
    """Print several runs as a table, without the columns that say the same of all."""
    cells = comparison.rows(runs)
    told = [
        place
        for place, column in enumerate(comparison.COLUMNS)
        if column not in ("target", "strategy", "seed") or len({row[place] for row in cells}) > 1
    ]
    columns = [comparison.COLUMNS[place] for place in told]
    console.print(
        table(columns, ([row[place] for place in told] for row in cells), right=_RIGHT | _COMPARED)
    )
    for note in notes:
        console.print(Text(note), soft_wrap=True)


def pairs(rows: Iterable[tuple[str, str]]) -> Table:
    """Return labels and texts beside each other; text is never read as markup."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in rows:
        grid.add_row(Text(label), Text(text))
    return grid


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = ()
) -> Table:
    """Return rows under column heads, some of them set flush right; text is never markup."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def _titled(
    console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
    console.print(table(columns, rows, right=_RIGHT))
