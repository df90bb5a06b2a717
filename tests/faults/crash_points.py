"""Kill hwprune, or fill its disk, at each change it makes to its folder; then look, and resume.

    python tests/faults/crash_points.py [--scenario NAME] [--points N] [--mode kill|full|broken]

Every request that changes the disk below the output folder is counted (``interpose.c``, loaded with
LD_PRELOAD: no clock is involved) and is a crash point. Each point has a process of its own, forked
from one that has imported everything and trained nothing. After it:

- the folder holds a whole artifact, the older one or the new one, and the report beside it is that
  model's (or none is said to be: ``hwprune check`` tells);
- the same command, with ``--resume``, ends as if nothing had happened: the same bytes, the same
  files, nothing left over;
- where the disk was full or broken and not the process killed: the exit code is that of an error,
  with a sentence and no traceback.

``--points`` takes as many, evenly spread; without it all are tried. Exit code 1 where one fails.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODES = {"kill": 1, "full": 2, "broken": 3}
PATIENCE_SECONDS = 300
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
    """

    words: tuple[str, ...]
    before: tuple[str, ...] | None = None
    cut: float | None = None
    expected: int = 0


def compiling(target: str, budget: str, epochs: int, *more: str) -> tuple[str, ...]:
    """Return the words of a compilation of the digits' network."""
    return ("compile", "MODEL", "--target", target, "--budget", budget, "--epochs", str(epochs),
            *COMMON, *more)  # fmt: skip


OLDER = compiling("jetson-nano", "14KiB", 1, "--seed", "3")
RUN = compiling("jetson-nano", "12KiB", 2)
SCENARIOS = {
    "compile": Scenario(RUN, OLDER),
    "compile into nothing": Scenario(RUN),
    "resume": Scenario(RUN, OLDER, cut=0.6),
    "rejected": Scenario((*RUN, "--require", "accuracy>=0.9999"), OLDER, expected=3),
    "firmware": Scenario(
        compiling("nrf52840", "24KiB", 1), compiling("nrf52840", "28KiB", 1, "--seed", "3")
    ),
}


def inside(words: tuple[str, ...], folder: Path, log: Path, model: Path) -> int:
    """Run the command line in a forked process and return its exit code, or minus the signal."""

    def run() -> int:
        from hwprune.cli.main import main

        place = [str(model) if word == "MODEL" else word for word in words]
        return main([*place, "-o", str(folder)])

    return forked(run, log)


def forked(run: Callable[[], int], log: Path) -> int:
    """Return what a function returns in a forked process: it prints into ``log``."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 99
        try:
            signal.alarm(PATIENCE_SECONDS)
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

    def attacked(
        self, words: tuple[str, ...], folder: Path, log: Path, model: Path, mode: int, at: int
    ) -> tuple[int, int]:
        """Run with the fault at a request; return the exit code and the requests that were made."""
        count = folder.parent / "requests"

        def run() -> int:
            from hwprune.cli.main import main

            self._library.fault_arm(os.fsencode(folder), mode, at)
            place = [str(model) if word == "MODEL" else word for word in words]
            try:
                return main([*place, "-o", str(folder)])
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
        if path.is_file() and not name.startswith((".resume", ".staging")) and name != ".hwprune":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def comparable(found: dict[str, str]) -> dict[str, str]:
    """Leave out what holds times: reports, and the model card that is made of them."""
    timed = ("report", "README")
    return {name: "" if name.rsplit("/")[-1].startswith(timed) else digest
            for name, digest in found.items()}  # fmt: skip


def faults_of(
    folder: Path, before: dict[str, str], after: dict[str, str], code: int, mode: str, log: Path
) -> Iterator[str]:
    """Yield what is wrong with a folder in which a run was disturbed."""
    found = state(folder)
    model, old, new = (each.get("model.onnx") for each in (found, before, after))
    if model not in (old, new):
        yield "model.onnx is neither the older one nor the new one"
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


def attack(name: str, scenario: Scenario, model: Path, work: Path, mode: str, points: int | None
           ) -> tuple[int, list[str]]:  # fmt: skip
    """Attack a scenario; return how many points were tried and what was found."""
    library, log, out = Interposed(), work / "log", work / "out"
    base, whole = work / "base", work / "whole"
    base.mkdir(parents=True)
    if scenario.before is not None:
        code = inside(scenario.before, base / "out", log, model)
        assert code == 0, (code, log.read_text())

    def prepared(place: Path) -> None:
        shutil.rmtree(place, ignore_errors=True)
        if (base / "out").exists():
            shutil.copytree(base / "out", place, symlinks=True)

    before = state(base / "out")
    prepared(out)
    code, requests = library.attacked(scenario.words, out, log, model, 0, 0)
    assert code == scenario.expected, (code, log.read_text())
    words = scenario.words
    shutil.copytree(out, whole)
    after = state(whole)
    if scenario.cut is not None:
        prepared(out)
        library.attacked(words, out, log, model, MODES["kill"], int(scenario.cut * requests))
        shutil.rmtree(base / "out")
        shutil.copytree(out, base / "out")
        words = (*words, "--resume")
        code, requests = library.attacked(words, out, log, model, 0, 0)
        assert code == scenario.expected, (code, log.read_text())
    wanted = requests if points is None else min(points, requests)
    found: list[str] = []
    for number in range(wanted):
        at = 1 + number * requests // wanted
        prepared(out)
        code, _ = library.attacked(words, out, log, model, MODES[mode], at)
        wrong = list(faults_of(out, before, after, code, mode, log))
        if not (mode == "broken" and code == scenario.expected):  # what it could do without
            again = words if "--resume" in words else (*words, "--resume")
            code = inside(again, out, log, model)
        if code != scenario.expected:
            wrong.append(f"the resume ended with {code}: {log.read_text(errors='replace')[-300:]}")
        elif comparable(state(out)) != comparable(after):
            differing = dict(comparable(state(out)).items() ^ comparable(after).items())
            wrong.append(f"after the resume other files: {', '.join(sorted(differing))}")
        leftovers = [path.name for path in out.glob(".*") if path.name != ".hwprune"]
        if leftovers:
            wrong.append(f"left over: {', '.join(leftovers)}")
        found += [f"{name}, {mode} at request {at} of {requests}: {each}" for each in wrong]
        for each in wrong:
            print(f"{name}, {mode} at request {at} of {requests}: {each}", flush=True)
    print(f"{name}, {mode}: {wanted} of {requests} points, {len(found)} findings", flush=True)
    return wanted, found


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
    options = parser.parse_args()
    if shutil.which("gcc") is None:
        print("SKIPPED: no gcc to build the library that counts and fails.")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if "interpose" not in os.environ.get("LD_PRELOAD", ""):
            environment = {**os.environ, "LD_PRELOAD": str(library_file(Path(folder))),
                           "OMP_NUM_THREADS": "1"}  # fmt: skip
            return subprocess.run([sys.executable, *sys.argv], env=environment).returncode
        model, log = Path(folder) / "digits.pt", Path(folder) / "log"
        import hwprune.compiler
        import hwprune.training.finetune  # noqa: F401

        assert forked(lambda: train(model), log) == 0, log.read_text()
        tried, found = 0, []
        for name in options.scenario or SCENARIOS:
            for mode in options.mode or MODES:
                work = Path(folder) / f"{name}-{mode}"
                more, wrong = attack(name, SCENARIOS[name], model, work, mode, options.points)
                tried, found = tried + more, found + wrong
                shutil.rmtree(work)
    print(f"{tried} points, {len(found)} findings")
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
