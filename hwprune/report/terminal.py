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
_RIGHT = frozenset(
    {"nonzeros", "kept", "sparsity", "bytes", "p50", "p90", "load", "resident", "value"}
)
_COMPARED = frozenset({"size", "accuracy", "drop", "seed"})


def terminal(record: Record, console: Console) -> None:
    """Print a report. Names from the file are printed as they are, never read as markup."""
    console.print(
        Text(
            f"{summary.mark(record)} {summary.headline(record)}",
            style=_STYLES[summary.mark(record)],
        ),
        soft_wrap=True,
    )
    if sizes := summary.size_rows(record):
        columns = summary.size_columns(record)
        console.print(table(columns, sizes, right=frozenset(columns[1:])), "")
    console.print(pairs(summary.facts(record)))
    if record.verdict.limits:
        _titled(console, "Limits", summary.LIMIT_COLUMNS, summary.limit_rows(record))
    rows = summary.layer_rows(record)
    _titled(
        console, "Bytes per layer", summary.LAYER_COLUMNS, rows[:_MOST_LAYERS],
        spare=("shape", "values", "nonzeros"),
    )  # fmt: skip
    if len(rows) > _MOST_LAYERS:
        console.print(
            f"and {format_count(len(rows) - _MOST_LAYERS, 'layer')} more; -o FILE.html shows all"
        )
    _titled(console, summary.metric_title(record), ("state", "value"), summary.metric_rows(record))
    latency = [(name, *summary.latency_cells(run)) for name, run in summary.latency_rows(record)]
    if latency:
        _titled(
            console, summary.latency_title(record), summary.LATENCY_COLUMNS, latency,
            spare=("weights", "resident", "by load", "load"),
        )  # fmt: skip
        for line in (f"{summary.latency_how(record)}.", *summary.latency_reasons(record)):
            console.print(Text(line))
    if record.notes:
        console.print(Text("\nNotes", style="bold"))
        for note in summary.notes(record):
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
    columns, narrow = _narrowed(
        console,
        [comparison.COLUMNS[place] for place in told],
        [[row[place] for place in told] for row in cells],
        ("seed", "sparsity", "strategy", "drop", "verdict"),
    )
    console.print(table(columns, narrow, right=_RIGHT | _COMPARED))
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
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    spare: Sequence[str] = (),
) -> None:
    console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
    columns, rows = _narrowed(console, columns, rows, spare)
    console.print(table(columns, rows, right=_RIGHT))


def _narrowed(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    spare: Sequence[str],
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Return the columns that fit side by side: those that can be spared go one by one."""
    for gone in spare:
        widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
        if sum(widths) + 2 * (len(widths) - 1) <= console.width:
            break
        if gone in columns:
            place = columns.index(gone)
            columns = [*columns[:place], *columns[place + 1 :]]
            rows = [[*row[:place], *row[place + 1 :]] for row in rows]
    return columns, rows
