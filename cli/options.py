"""Options that several commands share. Their types validate before any work starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click
from click.shell_completion import CompletionItem

from hwprune.errors import HwpruneError, UsageError
from hwprune.units import parse_bytes, printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    from hwprune.targets import Target
    from hwprune.tasks import Task
    from hwprune.verify import Limit

    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # cannot be subscripted before click 8.5

_T = TypeVar("_T")
_METRIC = "hwprune.metric"


class Parsed(_ParamType, Generic[_T]):
    """Text that the library turns into a value, before any work starts; an error names the option.

    Args:
        name: what the value is.
        parse: takes the text; what it raises is a HwpruneError.
        known: returns values that a shell can complete.
    """

    def __init__(
        self,
        name: str,
        parse: Callable[[str], _T],
        known: Callable[[], Iterable[str]] | None = None,
    ) -> None:
        self.name, self._parse, self._known = name, parse, known

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the known values, else files."""
        if self._known is None:
            return super().shell_complete(ctx, param, incomplete)
        return completed(self._known())(ctx, param, incomplete)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> _T:
        """Return the value; a default is one already."""
        if not isinstance(value, str):
            found: _T = value
            return found
        try:
            return self._parse(value)
        except HwpruneError as error:
            name = param.opts[0] if isinstance(param, click.Option) else None
            message = f"{name}: {error.message}" if name else error.message
            raise type(error)(message, hint=error.hint) from None


def completed(
    values: Iterable[str],
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return the function with which click completes one of the values, or the path of a file."""
    known = sorted(values)

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        found = [CompletionItem(value) for value in known if value.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]

    return complete


def _positive_size(text: str) -> int:
    size = parse_bytes(text)
    if size == 0:
        raise UsageError("a size of 0 bytes holds nothing", hint="give a size such as 64KiB")
    return size


def _limit(text: str) -> Limit:
    from hwprune.verify.limits import parse_limit

    # Set by --task, which is parsed first: limits may name its metric.
    context = click.get_current_context(silent=True)
    return parse_limit(text, None if context is None else context.meta.get(_METRIC))


def _task(text: str) -> Task:
    from hwprune.frontend.task_file import load_task

    task = load_task(text)
    if (context := click.get_current_context(silent=True)) is not None:
        context.meta[_METRIC] = task.metric.name
    return task


def _target(text: str) -> Target:
    from hwprune.targets import load

    return load(text)


def target_names() -> list[str]:
    """Return what names a built-in profile."""
    from hwprune.targets import aliases, names

    return [*names(), *aliases()]


def _task_names() -> list[str]:
    from hwprune.tasks import TASKS

    return list(TASKS)


def _limit_fields() -> list[str]:
    from hwprune.verify.fields import FIELDS

    return [f"{name}<=" for name in FIELDS]


SIZE, LIMIT = Parsed("size", _positive_size), Parsed("limit", _limit, _limit_fields)
TARGET = Parsed("target", _target, target_names)
TASK = Parsed("task", _task, _task_names)
# Those of hwprune.ir, which is not imported for a line of help.
VALUES = click.Choice(["auto", "fp32", "fp16", "int8", "int4", "codebook16", "codebook256"])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout; text goes to stderr."
)
target_option = click.option(
    "--target", type=TARGET, metavar="NAME|FILE.toml", help="The device; see `hwprune targets`."
)
require_option = click.option(
    "--require",
    "limits",
    type=LIMIT,
    multiple=True,
    metavar="LIMIT",
    help="A limit such as 'size<=512KiB', 'accuracy>=91%', 'latency.p50<=0.5x'. Repeatable.",
)
task_option = click.option(
    "--task", type=TASK, is_eager=True, metavar="NAME|FILE.py",
    help="What the network is for: classification (the default with class labels), multilabel, "
    "regression, segmentation, reconstruction, ctc or causal-lm, with ?metric=NAME and "
    "?output=NAME; or a file with loss, metric and higher_is_better.",
)  # fmt: skip
load_seconds_option = click.option(
    "--load-seconds", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True,
    metavar="SECONDS",
    help="Give up where onnxruntime takes longer to load a file or to run it once.",
)  # fmt: skip
remote_python_option = click.option(
    "--remote-python", default="python3", show_default=True, metavar="PATH",
    help="The Python there.",
)  # fmt: skip


def refuse_without_on(ctx: click.Context, where: str | None, *options: str) -> None:
    """Refuse what is said of a device where none is asked.

    Raises:
        UsageError: names the first such option that was given.
    """
    for option in options if where is None else ():
        if ctx.get_parameter_source(option) is not click.core.ParameterSource.DEFAULT:
            raise UsageError(
                f"--{option.replace('_', '-')} is for --on alone",
                hint="name the device with --on ssh://USER@HOST, or leave the option out",
            )


threads_option = click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads a run."
)


def console(*, stderr: bool = False) -> Console:
    """Return a console that treats text from files as text, and lets a closed pipe be seen."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            """Render without what could steer the terminal, wherever the text comes from."""
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=printable(segment.text))

    width: int | None = None
    height: int | None = None
    if os.environ.get("TERM") in ("dumb", "unknown"):  # rich would take 80 columns, whatever it has
        width, height = shutil.get_terminal_size((80, 25))
    return Plain(
        stderr=stderr, markup=False, highlight=False, emoji=False, width=width, height=height
    )
