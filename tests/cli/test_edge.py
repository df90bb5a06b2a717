from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from hwprune.cli import main as edge
from hwprune.cli.options import LIMIT, SIZE, TARGET
from hwprune.errors import (
    InfeasibleError,
    LimitError,
    ModelError,
    UsageError,
    VerificationError,
)


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hwprune.cli", *arguments],
        capture_output=True, text=True, timeout=120, check=False, **options,
    )  # fmt: skip


Fail = Callable[[Callable[[], object]], None]


@pytest.fixture
def command_that(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Return a function that makes ``hwprune probe`` do what it is given."""

    def install(action: Callable[[], object]) -> None:
        @click.command("probe")
        @click.option("--json", "as_json", is_flag=True)
        def command(*, as_json: bool) -> None:
            action()

        module = types.ModuleType("probe_command")
        module.command = command  # type: ignore[attr-defined]
        module.__spec__ = edge.importlib.util.spec_from_loader("probe_command", loader=None)
        monkeypatch.setitem(sys.modules, "probe_command", module)
        monkeypatch.setitem(edge.COMMANDS, "probe", ("probe_command", "Probe."))

    return install


def raiser(error: BaseException) -> Callable[[], object]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (ModelError("what", hint="next"), 2, "ModelError"),
        (UsageError("what", hint="next"), 2, "UsageError"),
        (LimitError("what", hint="next"), 3, "LimitError"),
        (InfeasibleError("what", hint="next"), 4, "InfeasibleError"),
        (VerificationError("what", hint="next"), 5, "VerificationError"),
        (click.UsageError("what"), 2, "UsageError"),
        (click.BadParameter("what"), 2, "UsageError"),
        (ValueError("what"), 1, "ValueError"),
        (MemoryError("what"), 2, "MemoryError"),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (edge.Terminated(), 143, "Terminated"),
    ],
)
def test_every_error_ends_at_the_edge(
    command_that: Fail, capsys: pytest.CaptureFixture[str],
    error: BaseException, code: int, kind: str,
) -> None:  # fmt: skip
    command_that(raiser(error))
    assert edge.main(["probe"]) == code
    people = capsys.readouterr()
    assert people.out == ""
    assert people.err.startswith("hwprune: error: ")
    assert "Traceback" not in people.err
    assert edge.main(["probe", "--json"]) == code
    programs = capsys.readouterr()
    document = json.loads(programs.out)
    assert list(document) == ["schema_version", "error"]
    assert document["error"]["exit_code"] == code
    assert document["error"]["type"] == kind
    assert set(document["error"]) == {"type", "exit_code", "message", "hint"}
    assert programs.err.startswith("hwprune: error: ")


def test_message_and_hint_are_shown(command_that: Fail, capsys: pytest.CaptureFixture[str]) -> None:
    command_that(raiser(ModelError("it is \x1b[31mred", hint="paint it")))
    edge.main(["probe"])
    assert capsys.readouterr().err == "hwprune: error: it is \ufffd[31mred\n  hint: paint it\n"


def test_debug_shows_the_traceback(command_that: Fail, capsys: pytest.CaptureFixture[str]) -> None:
    command_that(raiser(ValueError("deep")))
    assert edge.main(["--debug", "probe"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_internal_error_asks_for_a_report(
    command_that: Fail, capsys: pytest.CaptureFixture[str]
) -> None:
    command_that(raiser(ValueError("")))
    assert edge.main(["probe"]) == 1
    text = capsys.readouterr().err
    assert "internal error: ValueError: no further message" in text
    assert "--debug" in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_a_run_lets_it_clean_up(command_that: Fail, number: signal.Signals) -> None:
    cleaned = []

    def action() -> None:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            cleaned.append(True)

    before = signal.signal(number, signal.SIG_DFL)  # nohup may run the tests, too
    try:
        command_that(action)
        assert edge.main(["probe"]) == 143
        assert cleaned == [True]
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_nohup_is_respected(command_that: Fail) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        command_that(lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert edge.main(["probe"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_exit_codes_of_a_command_are_kept(command_that: Fail) -> None:
    command_that(lambda: click.get_current_context().exit(3))
    assert edge.main(["probe"]) == 3
    command_that(lambda: None)
    assert edge.main(["probe"]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["chekc"], "No such command 'chekc'. Did you mean check?"),
        (["inspect"], "Missing argument"),
        (
            ["check", "x.onnx", "--target", "rp2040", "--target", "rp2350"],
            "'--target' is there twice",
        ),
        (["check", "x.onnx", "--requir", "size<=1"], "--require"),
        (["check", "x.onnx", "--require", "siez<=1"], "did you mean size"),
        (["check", "x.onnx", "--target", "jetson-nan"], "jetson-nano"),
        (["bench", "x.onnx", "--threads", "0"], "--threads"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert edge.main(arguments) == 2
    assert says in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert edge.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("check", "bench", "inspect", "report", "targets"):
        assert f"  {name} " in text
    assert edge.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("hwprune ")


def test_a_command_that_is_not_there_is_not_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(edge.COMMANDS, "later", ("hwprune.cli.later", "Not yet."))
    edge.main(["--help"])
    assert "later" not in capsys.readouterr().out
    assert edge.main(["later"]) == 2


@pytest.mark.parametrize("name", list(edge.COMMANDS))
def test_the_help_of_every_command_that_is_there(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if name not in edge.group.list_commands(click.Context(edge.group)):
        assert edge.main([name, "--help"]) == 2
        return
    assert edge.main([name, "--help"]) == 0
    assert "Usage: hwprune " in capsys.readouterr().out


# -- as a process -------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from hwprune.cli.main import main; main(['--help']); "
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'pydantic', 'rich', 'scipy'};"
        "sys.exit(' '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.returncode == 0


WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "onnxscript", "onnx_ir", "sklearn"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
from hwprune.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_gate_works_where_torch_is_not_installed(
    write_artifact: Callable[..., Path], put_report: Callable[..., Path]
) -> None:
    artifact = write_artifact()
    report = put_report(artifact)
    for arguments in (
        ["check", str(artifact), "--target", "nrf52840", "--require", "accuracy>=0.9"],
        ["inspect", str(artifact)],
        ["bench", str(artifact), "--runs", "2"],
        ["report", str(report)],
        ["report", str(report), "-o", str(artifact.parent / "report.html")],
        ["targets"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *arguments],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr.replace(f"wrote {report.parent}", "")) in (
            (0, ""),
            (0, "/report.html\n"),
        )


def test_a_closed_pipe_is_no_error(write_artifact: Callable[..., Path]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hwprune.cli", "inspect", str(write_artifact())],
            stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(write)
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii"])
def test_a_terminal_that_lacks_a_mark_shows_another(
    write_artifact: Callable[..., Path], encoding: str
) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = run("check", str(write_artifact()), env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert " ? readable " in done.stdout


def test_a_closed_stdout_is_no_error(write_artifact: Callable[..., Path]) -> None:
    command = [sys.executable, "-m", "hwprune.cli", "check", str(write_artifact())]
    for closing in ('exec "$@" >&-', 'exec "$@" >&- 2>&-'):
        done = subprocess.run(
            ["sh", "-c", closing, "sh", *command], stderr=subprocess.PIPE, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "arguments", [["check", "ARTIFACT"], ["check", "gone", "--json"], ["targets"], ["--help"]]
)
def test_a_full_stdout_is_said_in_one_line(
    write_artifact: Callable[..., Path], arguments: list[str]
) -> None:
    artifact = str(write_artifact())
    given = [artifact if argument == "ARTIFACT" else argument for argument in arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hwprune.cli", *given], stdout=full, stderr=subprocess.PIPE,
            text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    says = "hwprune: error: the result cannot be printed: No space left on device"
    assert done.stderr.splitlines()[-1] == says
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr


def test_an_oserror_of_a_command_is_not_one_of_printing(
    command_that: Fail, capsys: pytest.CaptureFixture[str]
) -> None:
    command_that(raiser(OSError(28, "No space left on device")))
    assert edge.main(["probe"]) == 1
    assert "internal error: OSError" in capsys.readouterr().err


def test_a_bad_artifact_as_a_process(tmp_path: Path) -> None:
    done = run("inspect", str(tmp_path / "gone.onnx"), "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["type"] == "ArtifactError"
    assert "gone.onnx" in done.stderr


# -- option types -------------------------------------------------------------------------------


def test_option_types_name_their_option() -> None:
    option = click.Option(["--budget"])
    assert SIZE.convert("64KiB", option, None) == 65_536
    assert SIZE.convert(5, option, None) == 5
    for text in ("0", "many", "-1"):
        with pytest.raises(UsageError, match="--budget: "):
            SIZE.convert(text, option, None)
    limit = LIMIT.convert("size<=1", None, None)
    assert LIMIT.convert(limit, None, None) is limit
    target = TARGET.convert("raspberry-pi-5", None, None)
    assert TARGET.convert(target, None, None) is target


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("hwprune comp", {"compile"}),
        ("hwprune compile --target jetson-n", {"jetson-nano"}),
        ("hwprune check --require latency.p5", {"latency.p50<="}),
        ("hwprune compile --strategy bidirectional-s", {"bidirectional-single"}),
        ("hwprune compile --recipe rew", {"rewind"}),
        ("hwprune compile --values codebook2", {"codebook256"}),
        ("hwprune check --task regr", {"regression"}),
        ("hwprune calibrate --extends raspberry-pi-5", {"raspberry-pi-5"}),
    ],
)
def test_a_shell_completes_values(words: str, offered: set[str]) -> None:
    environment = {
        **os.environ, "_HWPRUNE_COMPLETE": "bash_complete", "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }  # fmt: skip
    shown = subprocess.run(
        [sys.executable, "-m", "hwprune"], env=environment, capture_output=True, text=True
    ).stdout
    found = {line.partition(",")[2] for line in shown.splitlines()}
    assert offered <= found
    assert all(value.startswith(words.split()[-1]) for value in found)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_script(shell: str) -> None:
    environment = {**os.environ, "_HWPRUNE_COMPLETE": f"{shell}_source"}
    ran = subprocess.run(
        [sys.executable, "-m", "hwprune"], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0
    assert f"_HWPRUNE_COMPLETE={shell}_complete" in ran.stdout


def test_a_path_that_no_file_can_have_is_bad_input(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    odd = ("x" * 300, "x" * 5000, str(tmp_path / "loop"), str(tmp_path / "pipe"), "/dev/zero")
    for path in odd:
        for command in (["inspect"], ["report"], ["plan", "--target", "jetson-nano"]):
            assert edge.main([*command, path]) in (2, 5), (command, path[:30])
            said = capsys.readouterr().err
            assert "internal error" not in said
            assert max(map(len, said.splitlines())) < 1100
