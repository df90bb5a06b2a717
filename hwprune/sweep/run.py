"""Run a grid of compilations: side by side, each once, those that failed once more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hwprune.errors import OutputError, UsageError
from hwprune.files import lock, replacing
from hwprune.sweep.grid import Planned

STATE_NAME = "sweep.json"
REPORT_NAME = "report.json"
# An artifact, or the answer that there is none; what the next sweep need not ask again.
_ANSWERS = (0, 3, 4, 5)
_USAGE_ERROR = 2  # would say the same again at once; the next sweep may find it mended
_GRACE_S = 30.0

Say = Callable[[str], None]
# Runs one compilation into a folder and returns its exit code.
Engine = Callable[[Planned, Path], int]


@dataclass(frozen=True, slots=True)
class SweepRun:
    """How a run came out.

    Attributes:
        name: of the run.
        arguments: what was asked.
        exit_code: of ``hwprune compile``; negative for the signal that ended it.
        attempts: how often it was started, in all.
        seconds: of the last attempt.
    """

    name: str
    arguments: tuple[str, ...]
    exit_code: int
    attempts: int
    seconds: float

    @property
    def answered(self) -> bool:
        """Return whether it came out, with an artifact or without."""
        return self.exit_code in _ANSWERS


def sweep(
    runs: Sequence[Planned], folder: Path, engine: Engine, *, jobs: int, retries: int, say: Say
) -> list[SweepRun]:
    """Run what is not answered yet; return the outcomes in the order of the runs.

    Each run has the folder of its name, and is started with ``--resume``: one that was interrupted
    goes on. What came out is written to sweep.json after each, so that the same call goes on too.

    Args:
        runs: the grid.
        folder: where the runs' folders and sweep.json go.
        engine: what runs one compilation.
        jobs: how many at a time.
        retries: how often a run that crashed or was killed is started again.
        say: is told of every start and end, in a line.

    Raises:
        UsageError: another sweep works in the folder, or a run of the folder was asked something
            else.
        OutputError: the folder cannot be written.
    """
    with _alone(folder):
        state = _State(folder, runs)
        left = [run for run in runs if not state.answered(run)]
        if len(left) < len(runs):
            say(f"{len(runs) - len(left)} of {len(runs)} runs are there already")
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            futures = [
                pool.submit(_one, run, folder / run.name, engine, retries, state, say)
                for run in left
            ]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [state.found[run.name] for run in runs]


def _one(run: Planned, folder: Path, engine: Engine, retries: int, state: _State, say: Say) -> None:
    for more in range(retries, -1, -1):
        say(f"{run.name}: started")
        start = time.monotonic()
        code = engine(run, folder)
        outcome = state.add(run, code, time.monotonic() - start)
        if outcome.answered or code == _USAGE_ERROR:
            say(f"{run.name}: exit code {code}")
            return
        how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
        say(f"{run.name}: {how}; {'it is tried again' if more else f'see {folder}.log'}")


@dataclass
class Processes:
    """The engine of one machine: a process for each compilation, its output in a log file.

    Attributes:
        threads: of each process.
    """

    threads: int

    def __post_init__(self) -> None:
        """Begin with no process."""
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def __call__(self, run: Planned, folder: Path) -> int:
        """Run one compilation."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "NO_COLOR": "1"}
        with opened_log(folder) as log:
            with self._lock:
                if self._stopped:
                    return -2
                # A group of its own: Ctrl-C reaches it from here, once, and not twice.
                process = subprocess.Popen(
                    command(run, folder), env=environment, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=log, start_new_session=True,
                )  # fmt: skip
                self._running.add(process)
            code = process.wait()
        with self._lock:
            self._running.discard(process)
        return code

    def stop(self) -> None:
        """End all runs; each leaves the checkpoint of its last epoch."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
            process.kill()  # nothing where it has ended


def opened_log(folder: Path) -> BinaryIO:
    """Open the log of the run that writes into a folder, behind what is in it.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        return open(f"{folder}.log", "ab")
    except OSError as error:
        raise OutputError(f"{folder}.log cannot be written: {error.strerror}") from None


def command(run: Planned, folder: Path) -> list[str]:
    """Return the command line of a run, started with this Python."""
    program = [sys.executable, "-m", "hwprune.cli", "compile"]
    return [*program, *run.arguments, "--resume", "-o", str(folder)]


class _State:
    """sweep.json: what came out so far."""

    def __init__(self, folder: Path, runs: Sequence[Planned]) -> None:
        """Read what is there.

        Raises:
            UsageError: it cannot be read, or a run of this name was asked something else.
        """
        self.path, self.found = folder / STATE_NAME, dict[str, SweepRun]()
        self._lock = threading.Lock()
        for one in _read(self.path):
            self.found[one.name] = one
        for run in runs:
            before = self.found.get(run.name)
            if before is not None and before.arguments != run.arguments:
                raise UsageError(
                    f"{folder} holds a run {run.name} with other options: "
                    f"{' '.join(before.arguments)}",
                    hint="give another -o, or the same options",
                )

    def answered(self, run: Planned) -> bool:
        """Return whether a run came out, and what it wrote is still there."""
        outcome = self.found.get(run.name)
        if outcome is None or not outcome.answered:
            return False
        written = outcome.exit_code in (0, 3)
        return not written or report_of(self.path.parent / run.name) is not None

    def add(self, run: Planned, code: int, seconds: float) -> SweepRun:
        """Note how a run came out, and write everything down."""
        with self._lock:
            before = self.found.get(run.name)
            attempts = 1 + (before.attempts if before is not None else 0)
            outcome = SweepRun(run.name, run.arguments, code, attempts, round(seconds, 1))
            self.found[run.name] = outcome
            document = {"schema_version": 1, "runs": [asdict(one) for one in self.found.values()]}
            try:
                with replacing(self.path) as stream:
                    stream.write((json.dumps(document, indent=2) + "\n").encode())
            except OSError as error:
                raise OutputError(f"{self.path} cannot be written: {error.strerror}") from None
        return outcome


def report_of(folder: Path) -> Path | None:
    """Return a run's report: that of its artifact, or of one that missed a limit."""
    for place in (folder, folder / "rejected"):
        if (place / REPORT_NAME).is_file():
            return place / REPORT_NAME
    return None


def _read(path: Path) -> list[SweepRun]:
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        return [_sweep_run(entry) for entry in document["runs"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} cannot be read: {type(error).__name__}: {error}",
            hint="take it away to begin anew, or give another -o",
        ) from None


def _sweep_run(entry: Mapping[str, Any]) -> SweepRun:
    return SweepRun(**{**entry, "arguments": tuple(entry["arguments"])})


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder: no second sweep works in it.

    Raises:
        UsageError: one does.
        OutputError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = (folder / ".sweep.lock").open("ab")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}") from None
    with held:
        try:
            lock(held.fileno(), wait=False)
        except OSError:
            raise UsageError(
                f"another sweep works in {folder}", hint="wait for it, or give another -o"
            ) from None
        yield
