"""Kill hwprune, or fill its disk, at each change it makes to its folder; then look, and resume.

    python tests/faults/crash_points.py [--scenario NAME] [--points N] [--done FILE]
                                        [--mode kill|full|broken|quota]

Every request that changes the disk below the output folder is counted (``interpose.c``, loaded with
LD_PRELOAD: no clock is involved) and is a crash point. Each point has a process of its own, forked
from one that has imported everything and planned once. After it:

- the folder holds a whole artifact, the older one or the new one, and the report beside it is that
  model's (or none is said to be: ``hwprune check`` tells);
- the same command, with ``--resume``, ends as if nothing had happened: the same bytes, the same
  files, nothing left over;
- where the disk was full or broken, or a quota used up: the exit code is that of an error,
  with a sentence and no traceback.

``--points`` takes as many of each scenario, evenly spread; without it all are tried, in an order in
which those tried at any time are spread evenly. ``--done`` keeps what was tried in a file: the same
call goes on behind it. Exit code 1 where one fails.

A sweep's own requests are attacked, not those of the compilations that it starts; a measurement on
a device is attacked here, where an ``ssh`` that runs commands on this machine stands for one.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODES = {"kill": 1, "full": 2, "broken": 3, "quota": 4}
# For a run that hangs: of its processor's time, and on the clock where it waits for ever.
CPU_SECONDS, SECONDS = 300, 900
COMMON = (
    "--data", "digits", "--values", "int8", "--checkpoint-every", "0", "--max-drop", "off",
)  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """What is run, over what: words of the command line, without the output folder.

    Attributes:
        words: of the run that is attacked.
        before: of the run whose good artifact lies in the folder; none where it is empty.
        cut: the part of its requests after which the attacked run was killed once before; then it
            is the resume that is attacked.
        expected: the exit code of the run that nobody disturbs.
        again: words that go on after the attack.
        output: the option that names the folder, and what follows it below the folder.
    """

    words: tuple[str, ...]
    before: tuple[str, ...] | None = None
    cut: float | None = None
    expected: int = 0
    again: tuple[str, ...] = ("--resume",)
    output: tuple[str, str] = ("-o", "")


def compiling(target: str, budget: str, epochs: int, *more: str) -> tuple[str, ...]:
    """Return the words of a compilation of the digits' network."""
    return ("compile", "MODEL", "--target", target, "--budget", budget, "--epochs", str(epochs),
            *COMMON, *more)  # fmt: skip


OLDER = compiling("jetson-nano", "14KiB", 1, "--seed", "3")
RUN = compiling("jetson-nano", "12KiB", 2)
BENCH = ("bench", "ARTIFACT", "--on", "ssh://here", "--remote-python", sys.executable)
SCENARIOS = {
    "compile": Scenario(RUN, OLDER),
    "compile into nothing": Scenario(RUN),
    "resume": Scenario(RUN, OLDER, cut=0.6),
    "rejected": Scenario((*RUN, "--require", "accuracy>=0.9999"), OLDER, expected=3),
    "firmware": Scenario(
        compiling("nrf52840", "24KiB", 1), compiling("nrf52840", "28KiB", 1, "--seed", "3")
    ),
    "sweep": Scenario(
        ("sweep", "MODEL", "--target", "jetson-nano", "--budget", "12KiB,14KiB", "--epochs", "0",
         *COMMON, "--jobs", "1"), again=(),
    ),
    "bench on": Scenario(
        (*BENCH, "--runs", "2"), (*BENCH, "--runs", "1"),
        again=(), output=("--record", "record.json"),
    ),
}  # fmt: skip


def command(scenario: Scenario, words: tuple[str, ...], folder: Path, model: Path) -> list[str]:
    """Return a command line with the files in their places."""
    places = {"MODEL": str(model), "ARTIFACT": str(model.with_suffix(".onnx"))}
    option, below = scenario.output
    return [*(places.get(word, word) for word in words), option, str(folder / below)]


def inside(scenario: Scenario, words: tuple[str, ...], folder: Path, log: Path, model: Path) -> int:
    """Run the command line in a forked process and return its exit code, or minus the signal."""

    def run() -> int:
        from hwprune.cli.main import main

        return main(command(scenario, words, folder, model))

    return forked(run, log)


def forked(run: Callable[[], int], log: Path) -> int:
    """Return what a function returns in a forked process: it prints into ``log``."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 99
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            signal.alarm(SECONDS)
            with log.open("wb") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            code = run()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:  # whatever got out is what the log and 99 say
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Interposed:
    """The library that counts and fails, as this process has it loaded."""

    def __init__(self) -> None:
        """Find it among what was loaded at the start."""
        self._library = ctypes.CDLL(None)
        self._library.fault_seen.restype = ctypes.c_long
        self._library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long]

    def disarm(self) -> None:
        """Let everything pass."""
        self._library.fault_arm(b"", 0, 0)

    def attacked(
        self, scenario: Scenario, words: tuple[str, ...], folder: Path, log: Path, model: Path,
        mode: int, at: int,
    ) -> tuple[int, int]:  # fmt: skip
        """Run with the fault at a request; return the exit code and the requests that were made."""
        count = folder.parent / "requests"

        def run() -> int:
            from hwprune.cli.main import main

            self._library.fault_arm(os.fsencode(folder), mode, at)
            try:
                return main(command(scenario, words, folder, model))
            finally:
                count.write_text(str(self._library.fault_seen()))

        count.unlink(missing_ok=True)
        code = forked(run, log)
        return code, int(count.read_text()) if count.exists() else 0


def state(folder: Path) -> dict[str, str]:
    """Return a hash of each file that an artifact is made of, by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = name.startswith((".resume", ".staging")) or path.name in (
            ".hwprune",
            ".sweep.lock",
        )
        if path.is_file() and not hidden:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def comparable(found: dict[str, str]) -> dict[str, str]:
    """Leave out what holds times: reports, what is made of them, and logs."""
    timed = ("report", "README", "sweep.json", "record.json")

    def is_timed(name: str) -> bool:
        return name.rsplit("/")[-1].startswith(timed) or name.endswith(".log")

    return {name: "" if is_timed(name) else digest for name, digest in found.items()}


def faults_of(
    folder: Path, before: dict[str, str], after: dict[str, str], code: int, mode: str, log: Path
) -> Iterator[str]:
    """Yield what is wrong with a folder in which a run was disturbed."""
    found = state(folder)
    model, old, new = (each.get("model.onnx") for each in (found, before, after))
    if model not in (old, new):
        yield "model.onnx is neither the older one nor the new one"
    for path in [*folder.glob("sweep.json"), *folder.glob("record.json")]:
        try:
            json.loads(path.read_bytes())
        except ValueError:
            yield f"{path.name} is half"
    report = folder / "report.json"
    if model is not None and report.exists():
        try:
            described = json.loads(report.read_bytes())["artifact"]["sha256"]
        except (ValueError, KeyError):
            yield "report.json is half"
            described = model
        if described != model and "sha256 was" not in checked(folder, log):
            yield "report.json is another model's, and check does not say so"
    said = log.read_text(errors="replace")
    if mode == "kill":
        if code != -signal.SIGKILL:
            yield f"the run ended with {code}, not by the kill"
    else:
        if "Traceback" in said or "internal error" in said or code in (1, 99) or code < 0:
            yield f"exit code {code}: {said[-300:]}"
        if [*folder.glob(".staging-*")] and mode == "broken":
            yield "a staging folder is left"


def checked(folder: Path, log: Path) -> str:
    """Return what ``hwprune check`` says of a folder."""
    from hwprune.cli.main import main

    said = log.with_suffix(".check")
    code = forked(lambda: main(["check", str(folder)]), said)
    return said.read_text(errors="replace") if code else ""


class Attack:
    """A scenario that is ready to be attacked.

    Attributes:
        requests: how many the run makes that nobody disturbs.
    """

    def __init__(self, name: str, scenario: Scenario, model: Path, work: Path) -> None:
        """Make the artifact that is there before, and run once undisturbed."""
        self._name, self._scenario, self._model = name, scenario, model
        self._library, self._log, self._out = Interposed(), work / "log", work / "out"
        self._base = work / "base"
        self._base.mkdir(parents=True)
        base = self._base / "out"
        if scenario.before is not None:
            if scenario.output[1]:
                base.mkdir()
            code = inside(scenario, scenario.before, base, self._log, model)
            assert code == 0, (code, self._log.read_text())
        self._before = state(base)
        self._words = scenario.words
        self.requests = self._undisturbed()
        self._after = state(self._out)
        if scenario.cut is not None:
            self._prepare()
            self._attacked("kill", int(scenario.cut * self.requests))
            shutil.rmtree(base)
            shutil.copytree(self._out, base)
            self._words = (*self._words, *scenario.again)
            self.requests = self._undisturbed()

    def _undisturbed(self) -> int:
        self._prepare()
        code, requests = self._attacked("", 0)
        assert code == self._scenario.expected, (code, self._log.read_text())
        return requests

    def _prepare(self) -> None:
        shutil.rmtree(self._out, ignore_errors=True)
        if (self._base / "out").exists():
            shutil.copytree(self._base / "out", self._out, symlinks=True)
        elif self._scenario.output[1]:
            self._out.mkdir()

    def _attacked(self, mode: str, at: int) -> tuple[int, int]:
        return self._library.attacked(
            self._scenario, self._words, self._out, self._log, self._model, MODES.get(mode, 0), at
        )

    def points(self, most: int | None) -> list[int]:
        """Return points spread evenly, in an order in which each beginning is spread evenly."""
        wanted = self.requests if most is None else min(most, self.requests)
        order = sorted(range(wanted), key=lambda number: f"{number:032b}"[::-1])
        return [1 + number * self.requests // wanted for number in order]

    def wrong(self, mode: str, at: int) -> Iterator[str]:
        """Disturb the run at a request, resume it, and yield what is wrong."""
        scenario, out, log = self._scenario, self._out, self._log
        self._prepare()
        code, _ = self._attacked(mode, at)
        yield from faults_of(out, self._before, self._after, code, mode, log)
        if not (mode == "broken" and code == scenario.expected):  # what it could do without
            resumes = set(scenario.again) <= set(self._words)
            again = self._words if resumes else (*self._words, *scenario.again)
            code = inside(scenario, again, out, log, self._model)
        found, after = comparable(state(out)), comparable(self._after)
        if code != scenario.expected:
            yield f"the resume ended with {code}: {log.read_text(errors='replace')[-300:]}"
        elif found != after:
            differing = dict(found.items() ^ after.items())
            yield f"after the resume other files: {', '.join(sorted(differing))}"
        left = [
            path.name for path in out.glob(".*") if path.name not in (".hwprune", ".sweep.lock")
        ]
        if left:
            yield f"left over: {', '.join(left)}"


class Done:
    """What was tried, a line of JSON each; in a file, where one is given."""

    def __init__(self, path: Path | None) -> None:
        """Read what is there."""
        self._path = path
        self._lines: list[dict[str, Any]] = []
        if path is not None and path.exists():
            self._lines = [json.loads(line) for line in path.read_text().splitlines()]

    def knows(self, *point: Any) -> bool:
        """Return whether a point was tried."""
        return any(line["point"] == list(point) for line in self._lines)

    def add(self, name: str, mode: str, at: int, wrong: list[str]) -> None:
        """Note a point."""
        self._lines.append({"point": [name, mode, at], "wrong": wrong})
        if self._path is not None:
            with self._path.open("a") as stream:
                stream.write(json.dumps(self._lines[-1]) + "\n")

    def of(self, name: str, mode: str) -> tuple[int, list[str]]:
        """Return how many points of a scenario were tried, and what was found."""
        lines = [line for line in self._lines if line["point"][:2] == [name, mode]]
        return len(lines), [each for line in lines for each in line["wrong"]]


def in_this_process() -> None:
    """Let a sweep fork its compilations, which then need not import torch, and are not attacked."""
    from hwprune.cli.main import main as hwprune
    from hwprune.sweep.run import Processes, opened_log

    def run(self: Processes, run: Any, folder: Path) -> int:
        def compiled() -> int:
            library = Interposed()
            library.disarm()
            return hwprune(["compile", *run.arguments, "--resume", "-o", str(folder)])

        with opened_log(folder) as log:  # by its number: under its name it would be attacked again
            return forked(compiled, Path(f"/proc/self/fd/{log.fileno()}"))

    Processes.__call__ = run  # type: ignore[method-assign]


def keep_trace() -> None:
    """Let runs take torch's export of the network from here: it writes nothing, and takes long."""
    from hwprune.export import trace

    kept: list[Any] = []
    real = trace._exported
    home = os.getpid()

    def exported(model: Any) -> Any:
        if os.getpid() == home and not kept:
            kept.append(real(model))
        return kept.pop() if os.getpid() != home and kept else real(model)

    trace._exported = exported


def library_file(folder: Path) -> Path:
    """Build the library that is loaded before all others."""
    built = folder / "interpose.so"
    source = str(HERE / "interpose.c")
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", source, "-o", str(built), "-ldl"], check=True)
    return built


def main() -> int:
    """Attack what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", choices=SCENARIOS, action="append")
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--points", type=int)
    parser.add_argument("--done", type=Path)
    options = parser.parse_args()
    if shutil.which("gcc") is None:
        print("SKIPPED: no gcc to build the library that counts and fails.")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if "interpose" not in os.environ.get("LD_PRELOAD", ""):
            ssh = Path(folder) / "ssh"
            ssh.write_text('#!/bin/sh\nfor word; do :; done\nexec sh -c "$word"\n')
            ssh.chmod(0o755)
            environment = {
                **os.environ, "LD_PRELOAD": str(library_file(Path(folder))),
                "OMP_NUM_THREADS": "1", "PATH": f"{folder}:{os.environ['PATH']}",
            }  # fmt: skip
            return subprocess.run([sys.executable, *sys.argv], env=environment).returncode
        model, log = Path(folder) / "digits.pt", Path(folder) / "log"
        import hwprune.compiler
        import hwprune.training.finetune

        assert forked(lambda: train(model), log) == 0, log.read_text()
        there = Path(folder) / "made"
        assert inside(SCENARIOS["compile"], OLDER, there, log, model) == 0, log.read_text()
        shutil.copy(there / "model.onnx", model.with_suffix(".onnx"))
        in_this_process()
        from hwprune.cli.main import main as hwprune

        keep_trace()
        plan = ("plan", str(model), "--target", "jetson-nano", "--budget", "12KiB")
        with contextlib.redirect_stdout(io.StringIO()):
            assert hwprune(plan) == 0
        done = Done(options.done)
        attacks = {
            name: Attack(name, SCENARIOS[name], model, Path(folder) / name)
            for name in options.scenario or SCENARIOS
        }
        modes = options.mode or MODES
        rounds = [[(name, at) for at in each.points(options.points)]
                  for name, each in attacks.items()]  # fmt: skip
        for name, at in (point for turn in zip_longest(*rounds) for point in turn if point):
            for mode in modes:
                if not done.knows(name, mode, at):
                    wrong = list(attacks[name].wrong(mode, at))
                    for each in wrong:
                        print(f"{name}, {mode} at request {at}: {each}", flush=True)
                    done.add(name, mode, at, wrong)
        total, found = 0, 0
        for name, attack in attacks.items():
            for mode in modes:
                tried, wrong = done.of(name, mode)
                print(f"{name}, {mode}: {tried} of {attack.requests}, {len(wrong)} findings")
                total, found = total + tried, found + len(wrong)
    print(f"{total} points, {found} findings")
    return 1 if found else 0


def train(path: Path) -> int:
    """Train the demo's network for some epochs."""
    import torch

    sys.path.insert(0, str(HERE.parents[1] / "examples"))
    from train_digits import train as trained

    torch.save(trained(epochs=3, seed=0).state_dict(), path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
