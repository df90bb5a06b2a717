"""What people see while a compilation runs: a bar in a terminal, plain lines everywhere.

Every stage and every epoch is a line that stays; below them a terminal has a bar that moves.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hwprune.cli.main import Terminated
from hwprune.cli.options import console
from hwprune.units import format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from hwprune.ir import Say, Status

# Seconds between two lines inside an epoch, where there is no bar: a log file needs no more.
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
def resumable(output: Path) -> Iterator[None]:
    """Let whoever stops a run know how it goes on."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stopped:
        if (output / ".resume").is_dir():
            stopped.hint = (  # type: ignore[union-attr]  # what the command line prints
                f"its last epoch is kept in {output}: repeat the command with --resume to go on"
            )
        raise


@contextmanager
def _shown(out: Console) -> Iterator[Say]:
    lines = _Lines(out)
    if not out.is_terminal or out.is_dumb_terminal:
        yield lines.say
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.fields[stage]:>9}", style="bold cyan"),
        BarColumn(bar_width=24),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task("", total=None, stage="")

        def say(status: Status) -> None:
            if lines.stays(status):
                lines.show(status)
            if status.stage != progress.tasks[0].fields["stage"]:
                progress.reset(task, total=status.of or None)
            left = lines.left(status)
            progress.update(
                task,
                description=f"{status.message}{left}",
                completed=status.done,
                total=status.of or None,
                stage=status.stage,
            )

        yield say


class _Lines:
    """Plain lines: every new stage, every epoch, and else one in a while."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._stage, self._last = "", 0.0
        self._began = (0.0, 0)

    def stays(self, status: Status) -> bool:
        """Return whether a line is worth keeping, and start the clock of a new stage."""
        if status.stage != self._stage:
            self._stage, self._began = status.stage, (time.monotonic(), status.done)
            return True
        return status.stage != "train" or bool(status.values)

    def left(self, status: Status) -> str:
        """Return how long a stage still takes if it goes on as since it began, in words."""
        began, before = self._began
        passed, done = time.monotonic() - began, status.done - before
        if done <= 0 or status.of <= status.done or passed < 1:
            return ""
        return f", {format_seconds(passed / done * (status.of - status.done))} left"

    def say(self, status: Status) -> None:
        """Show a status unless a line of this stage was just shown."""
        if self.stays(status) or time.monotonic() - self._last >= _LINE_INTERVAL:
            self.show(status)

    def show(self, status: Status) -> None:
        """Print a status."""
        self._last = time.monotonic()
        at = f" {100 * status.done // status.of:3d} %" if status.of else ""
        self._out.print(
            f"{status.stage:>9}{at}  {status.message}{self.left(status)}", soft_wrap=True
        )
