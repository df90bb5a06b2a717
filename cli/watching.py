"""What people see while a compilation runs: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hwprune.cli.options import console

if TYPE_CHECKING:
    from rich.console import Console

    from hwprune.job import Say, Status

# Seconds between two plain lines of the same stage: a log file needs no more.
_LINE_INTERVAL = 10.0


@contextmanager
def watching() -> Iterator[Say]:
    """Yield a function that shows each status on stderr, which leaves stdout to results.

    Warnings of libraries are not shown: nobody who compiles a network can act on them.
    """
    out = console(stderr=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _shown(out) as say:
            yield say


@contextmanager
def _shown(out: Console) -> Iterator[Say]:
    if not out.is_terminal:
        lines = _Lines()
        yield lines.say
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[stage]:>8}", style="bold cyan"),
        BarColumn(bar_width=24),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task("", total=None, stage="")
        shown = ""

        def say(status: Status) -> None:
            nonlocal shown
            if status.stage != shown:
                progress.reset(task, total=status.of or None)
                shown = status.stage
            progress.update(
                task,
                description=status.message,
                completed=status.done,
                total=status.of or None,
                stage=status.stage,
            )

        yield say


class _Lines:
    """Plain lines: every new stage, every epoch, and else one in a while."""

    def __init__(self) -> None:
        self._out = console(stderr=True)
        self._stage, self._last = "", 0.0

    def say(self, status: Status) -> None:
        """Print a status unless the last line of this stage was just printed."""
        now = time.monotonic()
        measured = "validation" in status.message
        due = status.stage != "train" or measured or now - self._last >= _LINE_INTERVAL
        if status.stage == self._stage and not due:
            return
        self._stage, self._last = status.stage, now
        at = f" {100 * status.done // status.of:3d} %" if status.of else ""
        self._out.print(f"{status.stage:>8}{at}  {status.message}", soft_wrap=True)
