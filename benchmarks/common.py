"""What the benchmarks share: where the data are, the record, rows that resume, and their tables."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bench_record

from hwprune.errors import CheckpointError
from hwprune.verify.host import environment

Config = dict[str, Any]
_toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BUILD = ROOT / "build"


def data_folder(given: str | None) -> Path | None:
    """Return the folder of --data-dir or HWPRUNE_DATA; None, with a clear line, where absent."""
    named = given or os.environ.get("HWPRUNE_DATA")
    if not named:
        print("skipped: no data; give --data-dir DIR or set HWPRUNE_DATA", file=sys.stderr)
        return None
    folder = Path(named)
    if not folder.is_dir():
        print(f"skipped: there is no folder {folder}", file=sys.stderr)
        return None
    return folder


def parse_rows(text: str | None, count: int) -> list[int]:
    """Return row numbers from ``0,3,5-8``; all for None.

    Raises:
        SystemExit: not such a list, or a row that is not there.
    """
    if text is None:
        return list(range(count))
    rows: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            rows += range(int(first), int(last or first) + 1)
    except ValueError:
        raise SystemExit(f"--rows {text}: expected numbers such as 0,3,5-8") from None
    if any(row >= count for row in rows):
        raise SystemExit(f"--rows {text}: rows are 0 to {count - 1}")
    return rows


def command_line(
    doc: str | None, *, data: bool = True, table: bool = True, resumes: bool = False
) -> argparse.ArgumentParser:
    """Return a parser with the options that the benchmarks share: --data-dir, --rows, --table.

    Args:
        doc: the benchmark's docstring, whose first line describes it.
        data: whether it reads the data folder.
        table: whether it prints a table.
        resumes: whether its rows go on from a kept state: then there is --restart.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    if data:
        parser.add_argument("--data-dir", help="the data folder (or HWPRUNE_DATA)")
    parser.add_argument("--rows", help="which rows, such as 0,2-4 (default all)")
    if table:
        parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    if resumes:
        parser.add_argument(
            "--restart",
            action="store_true",
            help="begin a row anew whose kept state is refused (other code, a damaged file)",
        )
    return parser


Wanted = Sequence[tuple[Config, int]]


def measure_rows(
    arguments: argparse.Namespace,
    experiment: Experiment,
    wanted: Wanted,
    run: Callable[[Config, int], None],
    table: Callable[[Experiment], str],
) -> int:
    """Run the rows that were asked for and are not in the record yet, then print the table.

    A row whose kept state is refused, as of other code, does not keep the others from running.

    Args:
        arguments: of ``command_line``'s parser.
        experiment: the record.
        wanted: configuration and seed of every row that there is.
        run: measures one row and adds it.
        table: the record as text.

    Returns:
        the exit code: 1 where a kept state was refused.
    """
    refused = 0
    if not arguments.table:
        for number in parse_rows(arguments.rows, len(wanted)):
            config, seed = wanted[number]
            if experiment.done(config, seed):
                continue
            print(f"row {number}: {config}, seed {seed}", flush=True)
            try:
                run(config, seed)
            except CheckpointError as error:
                if getattr(arguments, "restart", False):
                    print(f"  beginning anew: {error.message}", flush=True)
                    experiment.discard(config, seed)
                    run(config, seed)
                    continue
                refused += 1
                kept = " and ".join(map(str, experiment.kept(config, seed)))
                print(
                    f"row {number} was not run: {error.message}\n"
                    f"to begin it anew, add --restart, or delete {kept}",
                    file=sys.stderr,
                    flush=True,
                )
        experiment.declare(wanted)
    print(table(experiment))
    return 1 if refused else 0


class Experiment:
    """A record under benchmarks/results/, written after every row."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        """Open the record of ``name``; ``command`` is what reproduces it."""
        self.path = RESULTS / f"{name}.json"
        self.command = " ".join(command)
        # What runs is what was imported, whatever is committed until a row is done.
        self.build = build()

    def done(self, config: Mapping[str, Any], seed: int) -> bool:
        """Return whether this row was measured already."""
        record = bench_record.read(self.path)
        return record is not None and record.row(config, seed) is not None

    def add(
        self, config: Mapping[str, Any], seed: int, seconds: float, epochs: float, **measured: Any
    ) -> None:
        """Write a measured row, with where and by which build it was measured."""
        cost = {"epochs": epochs, "seconds": round(seconds, 1)}
        where = {"environment": environment(), "hwprune": self.build}
        row = {"config": dict(config), "seed": seed, "status": "run", "cost": cost}
        self._update([{**row, **where, **measured}])

    def declare(self, rows: Iterable[tuple[Mapping[str, Any], int]]) -> None:
        """Write rows that were not run as such, so that a table shows them."""
        there = {row.key for row in self.rows()}
        new = [
            {"config": dict(config), "seed": seed, "status": "not-run", "cost": None}
            for config, seed in rows
        ]
        new = [row for row in new if bench_record.Row.model_validate(row).key not in there]
        if new:
            self._update(new)

    def rows(self) -> list[bench_record.Row]:
        """Return all rows."""
        record = bench_record.read(self.path)
        return [] if record is None else list(record.rows)

    def state_path(self, config: Mapping[str, Any], seed: int) -> Path:
        """Return where a row keeps its state between epochs."""
        text = json.dumps([dict(config), seed], sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        # Trials, whose records lie elsewhere, keep theirs beside the record.
        folder = BUILD if self.path.parent == RESULTS else self.path.parent
        return folder / "studies" / self.path.stem / f"{name}.state"

    def output_path(self, config: Mapping[str, Any], seed: int) -> Path:
        """Return the folder that a row compiles into, which holds the compiler's state too."""
        return self.state_path(config, seed).with_suffix(".compiled")

    def kept(self, config: Mapping[str, Any], seed: int) -> list[Path]:
        """Return what is there to go on from: a file, a folder or nothing."""
        places = self.state_path(config, seed), self.output_path(config, seed)
        return [place for place in places if place.exists()]

    def discard(self, config: Mapping[str, Any], seed: int) -> None:
        """Remove what a row would go on from."""
        for place in self.kept(config, seed):
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink()

    def _update(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        host = {**environment(), "hwprune": self.build}
        bench_record.update(self.path, rows, environment=host, command=self.command)


def build() -> str:
    """Return what measures: hwprune's version and the checkout's commit, where git knows it.

    Such as ``0.1.0 (checkout 343f0ee, changed)``; without git ``0.1.0 (code 0123456789ab)``, a
    digest of hwprune's and the benchmarks' sources.
    """
    version = _toml.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    top = _git(ROOT, "rev-parse", "--show-toplevel")
    commit = _git(ROOT, "rev-parse", "--short", "HEAD")
    if top is None or commit is None or Path(top) != ROOT:
        return f"{version} (code {_sources_digest(ROOT)})"
    changed = ", changed" if _git(ROOT, "status", "--porcelain", "--untracked-files=no") else ""
    return f"{version} (checkout {commit}{changed})"


def _sources_digest(root: Path) -> str:
    digest = hashlib.sha256()
    for room in ("hwprune", "cli", "targets", "benchmarks"):
        for path in sorted((root / room).rglob("*")):
            if path.suffix in (".py", ".toml", ".cpp", ".h", ".hpp") and path.is_file():
                digest.update(f"{path.relative_to(root)}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _git(folder: Path, *words: str) -> str | None:
    try:
        ran = subprocess.run(
            ["git", "-C", str(folder), *words], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return ran.stdout.strip()


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        """Start."""
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Return the seconds so far."""
        return time.perf_counter() - self._start


def device_name(device: str) -> str:
    """Return what a device is called, such as ``NVIDIA H200`` or ``cpu``."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for what a row writes and nobody keeps."""
    return tempfile.TemporaryDirectory(prefix="hwprune-benchmark-")
