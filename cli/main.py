"""The group ``hwprune``: its commands are imported when they are run, and every error ends here."""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import importlib
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

import click

from hwprune.cli.memory import require_room, shortage
from hwprune.errors import HwpruneError, OutputError

SCHEMA_VERSION = 1
INTERNAL_ERROR, USAGE_ERROR, INTERRUPTED, TERMINATED, PIPE_CLOSED = 1, 2, 130, 143, 141

# Of a path as it was given, whichever the option: no file can have it, or it is somebody else's.
_OF_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS)
# The commands in the order of --help: module and short help; one whose module is not there is not
# listed. Help stands here, so that `hwprune --help` imports none of them.
COMMANDS: dict[str, tuple[str, str]] = {
    "compile": ("hwprune.cli.compile", "Compile a trained network to fit a device's byte budget."),
    "sweep": ("hwprune.cli.sweep", "Compile many times: targets, budgets, strategies, seeds."),
    "plan": ("hwprune.cli.plan", "Say what fits a budget, before any training."),
    "check": ("hwprune.cli.check", "Check artifacts: the gate for CI."),
    "bench": ("hwprune.cli.bench", "Measure latency and memory on this host."),
    "calibrate": ("hwprune.cli.calibrate", "Write a device profile of measured facts."),
    "inspect": ("hwprune.cli.inspect", "Show what is in an artifact, or in any ONNX file."),
    "report": ("hwprune.cli.report", "Show the report of a run, or write it as HTML or Markdown."),
    "targets": ("hwprune.cli.targets", "List, show and check device profiles."),
}


# How long a signal waits for Python before the process ends without clean-up.
PATIENCE_SECONDS = 3.0


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; a BaseException, so that only clean-up code sees it on its way."""

    hint: str | None = None


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands that are there, in the order of ``COMMANDS``."""
        return [name for name, (module, _) in COMMANDS.items() if importlib.util.find_spec(module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None where there is none of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, and suggest one where the name is wrong."""
        name = args[0]
        if not name.startswith("-") and name not in self.list_commands(ctx):
            import difflib

            close = difflib.get_close_matches(name, self.list_commands(ctx), n=2)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
        found, command, rest = super().resolve_command(ctx, args)
        if command is not None and not ctx.resilient_parsing:
            _refuse_repeats(command, found or "", rest, ctx)
            if not {"-h", "--help"} & set(rest):
                require_room(found or "")
        return found, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


def _refuse_repeats(command: click.Command, name: str, args: list[str], ctx: click.Context) -> None:
    """Refuse an option that takes one value and is there twice: click would take the last.

    Raises:
        click.UsageError: names the option.
    """
    inner = click.Context(command, info_name=name, parent=ctx)
    seen: set[str | None] = set()
    try:
        given = command.make_parser(inner).parse_args(list(args))[2]
    except click.UsageError as error:
        error.ctx = error.ctx or inner  # whose help to see
        raise
    for option in given:
        once = isinstance(option, click.Option) and not (option.multiple or option.is_flag)
        if once and option.name in seen:
            raise click.UsageError(f"Option {option.opts[0]!r} is there twice.", inner)
        seen.add(option.name)


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    import importlib.metadata

    try:
        version = importlib.metadata.version("hwprune")
    except importlib.metadata.PackageNotFoundError:
        version = "(a checkout that is not installed)"
    click.echo(f"hwprune {version}")
    ctx.exit()


@click.group("hwprune", cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version,
    help="Show the version.",
)  # fmt: skip
def group(*, debug: bool) -> None:
    """Compile trained networks into sparse ONNX files that fit a device's byte budget.

    Exit codes: 0 fits and verified; 1 internal error; 2 bad usage or input; 3 a limit is not met;
    4 the budget is infeasible; 5 verification failed; 130 Ctrl-C; 143 SIGTERM or a
    terminal that was closed.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; no error of a command gets past here."""
    # Python looks for garbage once more as it ends: with torch, a second for what ends anyway.
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    args = list(sys.argv[1:] if arguments is None else arguments)
    if "_HWPRUNE_COMPLETE" in os.environ:  # shell completion: click's own business
        group.main(args, prog_name="hwprune")
    options = args[: args.index("--")] if "--" in args else args
    try:
        _make_stdout_usable()
        with _ends_clean_up(), _followers_quiet("--debug" in options):
            code = _run(args, as_json="--json" in options, debug="--debug" in options)
            sys.stdout.flush()
            return code
    except OSError as error:  # only one of printing comes here
        # Python would complain once more while flushing at exit: give it somewhere to write.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # Whoever read our output has seen enough, as in `hwprune inspect | head`.
        if isinstance(error, BrokenPipeError):
            return PIPE_CLOSED
        reason = error.strerror or error
        with contextlib.suppress(OSError):
            click.echo(f"hwprune: error: the result cannot be printed: {reason}", err=True)
        return OutputError.exit_code


def _make_stdout_usable() -> None:
    """Give a closed stdout somewhere to write, and let a terminal show ? for what it lacks."""
    if sys.stdout is None:  # a daemon's; the next file to be opened would become stdout
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open for as long as the process lives
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def _run(args: list[str], *, as_json: bool, debug: bool) -> int:
    try:
        with group.make_context("hwprune", args) as context:
            group.invoke(context)
        return 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if isinstance(error, OSError) and _is_of_printing(error):
            raise
        if debug:
            import traceback

            traceback.print_exception(error)
        kind, code, message, hint = _problem(error)
        _show(error_document(kind, code, message, hint), as_json=as_json)
        return code


def _is_of_printing(error: OSError) -> bool:
    """Return whether it was raised by what prints: every other file is written by our own code."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    module = "" if last is None else last.tb_frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in ("click", "rich")


def _problem(error: BaseException) -> tuple[str, int, str, str | None]:
    """Return an error's kind, the exit code it becomes, what to say about it, and a hint."""
    if (short := shortage(error)) is not None:
        return "MemoryError", USAGE_ERROR, *short
    if isinstance(error, HwpruneError):
        return type(error).__name__, error.exit_code, error.message, error.hint
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "hwprune"
        return "UsageError", USAGE_ERROR, error.format_message(), f"see `{path} --help`"
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "Interrupted", INTERRUPTED, "interrupted", getattr(error, "hint", None)
    if isinstance(error, Terminated):
        return "Terminated", TERMINATED, "terminated", error.hint
    if isinstance(error, OSError) and error.errno in _OF_PATHS and error.filename:
        name = os.fsdecode(error.filename)
        return (
            "UsageError",
            USAGE_ERROR,
            f"{name}: {error.strerror}",
            "give another path, or check its permissions",
        )
    text = str(error).strip() or "no further message"
    return (
        type(error).__name__,
        INTERNAL_ERROR,
        f"internal error: {type(error).__name__}: {text}",
        "this is a defect of hwprune: run it again with --debug, and report what it prints",
    )


def _show(problem: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json({"error": problem})
    click.secho("hwprune: error: ", fg="red", bold=True, err=True, nl=False)
    click.echo(_shown(problem["message"]), err=True)
    if problem["hint"]:
        click.echo(f"  hint: {_shown(problem['hint'])}", err=True)


def _shown(text: str) -> str:
    """Return what a screen can take of text in which files have their say."""
    from hwprune.units import printable

    lines = printable(text).split("\n")
    return "\n".join(f"{line[:997]}..." if len(line) > 1000 else line for line in lines)


def error_document(kind: str, exit_code: int, message: str, hint: str | None) -> dict[str, Any]:
    """Return the ``error`` part of a failure's JSON document."""
    return {"type": kind, "exit_code": exit_code, "message": message, "hint": hint}


def print_json(document: dict[str, Any]) -> None:
    """Print the one JSON document of ``--json``, schema_version first."""
    import json

    text = json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2, allow_nan=False)
    click.echo(text)


@contextlib.contextmanager
def _ends_clean_up() -> Iterator[None]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into exceptions, so that half-written files are taken away.

    Native code, such as onnxruntime's loading, keeps Python from seeing them: then the process ends
    without. A signal that is ignored, as ``nohup`` does with SIGHUP, stays so.
    """
    if threading.current_thread() is not threading.main_thread():  # others handle signals
        yield
        return
    taken = threading.Event()

    def end(number: int, frame: FrameType | None) -> NoReturn:
        taken.set()
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def watch() -> None:
        while arrived := os.read(reading, 1):
            if arrived[0] in before and not taken.wait(PATIENCE_SECONDS):
                given_up = KeyboardInterrupt() if arrived[0] == signal.SIGINT else Terminated()
                end_now(given_up)
        os.close(reading)

    ends = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    known = {number: signal.getsignal(number) for number in ends}
    before = {number: known[number] for number in ends if known[number] is not signal.SIG_IGN}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in before:
        signal.signal(number, end)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)


def _forget_wakeup() -> None:
    """Let the signals of a forked process be its own."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


def end_now(error: BaseException, *, as_json: bool = False) -> NoReturn:
    """Say what is wrong, if anybody is there to hear, and end, whatever other threads are at."""
    kind, code, message, hint = _problem(error)
    try:
        _show(error_document(kind, code, message, hint), as_json=as_json)
        sys.stdout.flush()
    finally:
        os._exit(code)


@contextlib.contextmanager
def _followers_quiet(debug: bool) -> Iterator[None]:
    """Print nothing where ``torchrun`` started this process as a second or later one.

    The first says everything, the errors of the others included.
    """
    rank = os.environ.get("RANK", "0") if "WORLD_SIZE" in os.environ else "0"
    if debug or not rank.isdecimal() or int(rank) == 0:
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_wakeup)
