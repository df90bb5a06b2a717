"""The main job on an embedded default: train a small network, compile it for two devices.

    make demo        (or: python examples/demo.py, where hwprune is installed)

Everything is written below demo-out/. Nothing is downloaded: the images are the handwritten digits
that scikit-learn ships. The budgets leave room for less than a tenth of the network's weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hwprune.units import format_percent, format_seconds

OUT = Path("demo-out")
MODEL = OUT / "digits.pt"
MIN_SPARSITY = 0.9


@dataclass(frozen=True, slots=True)
class Job:
    """One compilation: a device and what the file may weigh there."""

    target: str
    budget: str

    @property
    def folder(self) -> Path:
        """Return the output folder."""
        return OUT / self.target


JOBS = (Job("raspberry-pi-zero-2w", "12KiB"), Job("stm32l072", "12KiB"))


def run(console: Console, *command: str | Path) -> int:
    """Show a command and run it; its output goes straight to the terminal."""
    words = [str(word) for word in command]
    console.print(f"\n[bold]$ {' '.join(words)}[/bold]", highlight=False, soft_wrap=True)
    return subprocess.run(words, check=False).returncode


def compile_command(job: Job) -> tuple[str | Path, ...]:
    """Return the command line that a user would type, by this environment's own hwprune."""
    hwprune = Path(sys.executable).with_name("hwprune")
    return (
        hwprune if hwprune.exists() else "hwprune",
        *("compile", MODEL, "--target", job.target, "--budget", job.budget),
        *("--data", "digits", "-o", job.folder),
    )


def percent(fraction: float | None) -> str:
    """Format what was measured; a dash for what was not."""
    return "-" if fraction is None else format_percent(fraction)


def table_of(records: list[tuple[Job, dict[str, Any]]]) -> Table:
    """Return one row per device, narrow enough for 80 columns."""
    table = Table(title="handwritten digits, compiled")
    table.add_column("target", no_wrap=True)
    for heading in ("budget", "file", "sparsity", "dense", "compiled"):
        table.add_column(heading, justify="right", no_wrap=True)
    for job, record in records:
        accuracy = record["accuracy"]
        table.add_row(
            job.target,
            f"{record['budget']['bytes']:,} B",
            f"{record['artifact']['bytes']:,} B",
            percent(record["result"]["sparsity"]),
            percent(accuracy["dense"]),
            percent(accuracy["final"]),
        )
    return table


def main() -> int:
    """Train, compile, show. Returns the exit code: 0 only if all of it did what it says."""
    console = Console()
    start = time.perf_counter()
    trainer = Path(__file__).with_name("train_digits.py")
    if code := run(console, sys.executable, trainer, MODEL):
        return code
    records = []
    for job in JOBS:
        if code := run(console, *compile_command(job)):
            return code
        records.append((job, json.loads((job.folder / "report.json").read_text())))
    console.print()
    console.print(table_of(records))
    for job, record in records:
        verdict = record["verdict"]
        passed = "fits and verified" if verdict["fits"] and verdict["verified"] else "failed"
        console.print(
            f"{job.folder / 'report.html'}  ({passed}: {verdict['scope']})",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"{format_seconds(time.perf_counter() - start)} in all")
    too_dense = [
        job.target for job, record in records if record["result"]["sparsity"] < MIN_SPARSITY
    ]
    if too_dense:
        console.print(
            f"less than {percent(MIN_SPARSITY)} sparse: {', '.join(too_dense)}", style="red"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
