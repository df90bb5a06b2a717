"""`hwprune sweep` and `hwprune report` of several runs, as commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwprune.cli.main import main
from hwprune.cli.sweep import _notes
from hwprune.sweep import Planned
from hwprune.sweep import run as sweeping
from hwprune.sweep.run import SweepRun

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hwprune(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command line: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, sample_record: dict[str, Any]) -> list[Planned]:
    """Replace the engine by one that writes a report as large and as good as the budget says."""
    seen: list[Planned] = []

    def engine(self: sweeping.Processes, run: Planned, folder: Path) -> int:
        seen.append(run)
        value = {name: run.arguments[place + 1] for place, name in enumerate(run.arguments[:-1])}
        kib = int(value["--budget"].removesuffix("KiB"))
        if kib == 1:
            return 4
        folder.mkdir()
        accuracy = {**sample_record["accuracy"], "final": 0.92 - 0.4 / kib}
        artifact = {**sample_record["artifact"], "bytes": kib * 1024}
        record = {
            **sample_record, "accuracy": accuracy, "artifact": artifact,
            "metric": {**sample_record["metric"], "final": accuracy["final"]},
            "target": value["--target"],
        }  # fmt: skip
        (folder / "report.json").write_text(json.dumps(record))
        return 0

    monkeypatch.setattr(sweeping.Processes, "__call__", engine)
    return seen


def test_a_sweep(hwprune: Run, asked: list[Planned], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    arguments = [
        "sweep", "net.pt", "--target", "raspberry-pi-5,jetson-nano", "--budget", "8KiB,16KiB",
        "--budget", "64KiB", "--data", "npz:a,b.npz", "--require", "size<=1MiB", "--require",
        "size<=2MiB", "--fixed-batch", "-o", folder, "--pick", "accuracy_drop<=3%",
    ]  # fmt: skip
    code, out, err = hwprune(*arguments)
    assert code == 0, err
    assert len(asked) == 6
    assert asked[0].arguments[:5] == ("net.pt", "--target", "raspberry-pi-5", "--budget", "8KiB")
    rest = asked[0].arguments[5:]
    assert sorted(rest) == sorted(
        ["--data", "npz:a,b.npz", "--require", "size<=1MiB", "--require", "size<=2MiB",
         "--fixed-batch"]
    )  # fmt: skip
    assert "the smallest with accuracy_drop<=3% is net-jetson-nano-16KiB" in out
    assert "the smallest with accuracy_drop<=3% is net-raspberry-pi-5-16KiB" in out
    for name in ("sweep.html", "sweep.md", "sweep.json"):
        assert (folder / name).stat().st_size > 100
    document = json.loads(hwprune(*arguments, "--json")[1])
    assert len(asked) == 6  # nothing is compiled twice
    assert document["picked"] == {
        "resnet20 for jetson-nano": "net-jetson-nano-16KiB",
        "resnet20 for raspberry-pi-5": "net-raspberry-pi-5-16KiB",
    }


def test_what_gives_no_artifact_is_told(hwprune: Run, asked: list[Planned], tmp_path: Path) -> None:
    common = ["sweep", "net.pt", "--target", "raspberry-pi-5", "-o", tmp_path / "out"]
    code, out, _ = hwprune(*common, "--budget", "1KiB,8KiB")
    assert code == 4
    assert "net-raspberry-pi-5-1KiB: no artifact, exit code 4 after 1 attempt," in out
    code, out, _ = hwprune(*common, "--budget", "8KiB", "--pick", "accuracy_drop<=0.1%")
    assert code == 3
    assert "no run has accuracy_drop<=0.1%" in out


def test_what_misses_a_limit_is_told() -> None:
    outcomes = [SweepRun(name, (), code, 1, 1.0) for name, code in (("a", 3), ("b", 0), ("c", 3))]
    assert _notes(outcomes, Path("out")) == [
        "a limit is not met, rejected.onnx in its folder: a, c"
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["net.pt"], "Missing option '--target'"),
        (["net.pt", "--target", "raspberry-pi-6"], "raspberry-pi-6"),
        (["net.pt", "--target", "raspberry-pi-5", "--budget", "much"], "'much'"),
        (["net.pt", "--target", "raspberry-pi-5", "--epochs", "1,x"], "net-raspberry-pi-5-x"),
        (["net.pt", "--target", "raspberry-pi-5", "--seed", "1,1"], "is there twice"),
        (["net.pt", "--target", "raspberry-pi-5", "--values", "int3"], "int3"),
        (["net.pt", "--target", "raspberry-pi-5", "--nothing"], "No such option"),
    ],
)
def test_bad_options_start_nothing(
    hwprune: Run, asked: list[Planned], tmp_path: Path, arguments: list[str], said: str
) -> None:
    code, _, err = hwprune("sweep", *arguments, "-o", tmp_path / "out")
    assert code == 2
    assert said in err
    assert asked == []
    assert not (tmp_path / "out").exists()


def test_reports_side_by_side(
    hwprune: Run, asked: list[Planned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hwprune("sweep", "net.pt", "--target", "raspberry-pi-5", "--budget", "8KiB,64KiB", "-o", "s")
    runs = ["s/net-raspberry-pi-5-64KiB", "s/net-raspberry-pi-5-8KiB/report.json"]
    code, out, _ = hwprune("report", *runs)
    assert code == 0
    assert out.index("8KiB") < out.index("64KiB")
    document = json.loads(hwprune("report", *runs, "--json")[1])
    assert [run["run"] for run in document["runs"]] == [
        "net-raspberry-pi-5-8KiB", "net-raspberry-pi-5-64KiB",
    ]  # fmt: skip
    for name, begin in (("side.html", "<!doctype html>"), ("side.md", "# 2 runs")):
        assert hwprune("report", *runs, "-o", name)[0] == 0
        assert (tmp_path / name).read_text().lstrip().startswith(begin)
    code, _, err = hwprune("report", *runs, "-o", "side.json")
    assert code == 2
    assert ".html or .md" in err
    assert hwprune("report", "s", runs[0])[0] == 2


def test_a_sweep_has_the_options_of_compile_but_always_resumes() -> None:
    from hwprune.cli.sweep import command

    names = {name for option in command.params for name in option.opts}
    assert {"--embed-preprocessing", "--budget", "--max-drop"} <= names
    assert not {"--resume", "--restart"} & names
