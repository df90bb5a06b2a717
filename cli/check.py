"""``hwprune check``: is an artifact what it was promised to be? The gate for CI."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from hwprune.cli import github
from hwprune.cli.main import end_now, error_document, print_json
from hwprune.cli.options import (
    console,
    json_option,
    load_seconds_option,
    require_option,
    target_option,
    task_option,
)

if TYPE_CHECKING:
    from hwprune.targets import Target
    from hwprune.tasks import Task
    from hwprune.verify import CheckResult, Limit
    from hwprune.verify.gate_file import Gated

_MARKS = {"passed": ("✓", "green"), "failed": ("✗", "bold red"), "skipped": ("-", "dim")}


@click.command("check")
@click.argument("artifacts", nargs=-1, metavar="[ARTIFACT]...", type=click.Path())
@target_option
@require_option
@task_option
@click.option(
    "--data", metavar="SPEC",
    help="Measure the task's metric on the test part of these data, as compile does.",
)  # fmt: skip
@click.option(
    "--config",
    type=click.Path(),
    metavar="FILE",
    help="Artifacts and their limits; hwprune.toml is read where it is there.",
)
@click.option(
    "--baseline", type=click.Path(), metavar="FILE|DIR",
    help="What artifacts must not be worse than: a report, an artifact, a folder of either.",
)  # fmt: skip
@click.option(
    "--junit", type=click.Path(dir_okay=False), metavar="FILE", help="Write JUnit XML as well."
)
@load_seconds_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    artifacts: tuple[str, ...],
    target: Target | None,
    limits: tuple[Limit, ...],
    task: Task | None,
    data: str | None,
    config: str | None,
    baseline: str | None,
    junit: str | None,
    load_seconds: float,
    as_json: bool,
) -> None:
    """Check ONNX artifacts: the gate for CI.

    ARTIFACT is a file or a folder; a microcontroller's firmware folder is linked and run again.
    Without one, those of hwprune.toml are checked; what that file
    says of an artifact holds in addition to the options. Each must be one sound file whose
    operators mean what hwprune writes, not densified by another tool, unchanged since its
    report.json (where that lies beside it), within the target's budget, opset and IR version,
    within every --require, and no worse than its --baseline.

    Exit codes: 0 all passed; 2 unreadable, or a limit that cannot be measured; 3 over budget or
    over a limit; 5 verification failed.
    """
    from hwprune.errors import worst_exit_code
    from hwprune.gate import check
    from hwprune.verify.deadline import loads_within

    ctx.with_resource(loads_within(load_seconds, partial(end_now, as_json=as_json)))
    gated = _gated(artifacts, config)
    source = None
    if data is not None:
        from hwprune.frontend import load_data
        from hwprune.tasks import CLASSIFICATION

        source = load_data(data, task=task or CLASSIFICATION)
    results = [
        check(
            one.path, target=target or one.target, require=(*one.limits, *limits), task=task,
            data=source, baseline=baseline or one.baseline, may_worsen=one.may_worsen,
        )
        for one in gated
    ]  # fmt: skip
    code = worst_exit_code([result.exit_code for result in results])
    if junit is not None:
        from hwprune.report.record import write_text
        from hwprune.verify.junit import junit as to_junit

        write_text(to_junit(results), junit)
    _print(results, to_stderr=as_json)
    if github.runs_here():
        for line in github.commands(results):
            click.echo(line, err=as_json)
        github.add_to_summary(results)
    if as_json:
        document: dict[str, Any] = {
            "exit_code": code,
            "artifacts": [_document(result) for result in results],
        }
        if code:
            document["error"] = _error(results, code)
        print_json(document)
    ctx.exit(code)


def _gated(artifacts: tuple[str, ...], config: str | None) -> list[Gated]:
    """Return what to check: the artifacts that were given, or all of the gate file.

    Raises:
        UsageError: nothing to check, a bad gate file, or an artifact that is not in it.
    """
    from hwprune.errors import UsageError
    from hwprune.verify import gate_file
    from hwprune.verify.gate_file import Gated

    listed = None
    if config is not None or os.path.exists(gate_file.NAME):
        listed = gate_file.read(config or gate_file.NAME)
    if not artifacts:
        if listed is None:
            raise UsageError(
                f"no ARTIFACT was given, and there is no {gate_file.NAME} here",
                hint="name a file or folder, or write hwprune.toml: docs/ci.md has an example",
            )
        return listed
    known = {os.path.realpath(one.path): one for one in listed or ()}
    files = [file for path in artifacts for file in gate_file.files_of(path)]
    unknown = [file for file in files if os.path.realpath(file) not in known]
    if config is not None and unknown:
        raise UsageError(
            f"{config} does not list {', '.join(unknown[:5])}",
            hint="add an [[artifact]] entry for it, or leave --config out",
        )
    return [
        dataclasses.replace(known.get(os.path.realpath(file), Gated(file)), path=file)
        for file in files
    ]


def _document(result: CheckResult) -> dict[str, Any]:
    keys = ("bytes", "sha256", "form", "opset", "ir_version", "nonzeros", "weights")
    steps = [dataclasses.asdict(step) for step in result.steps]
    for step in steps:
        del step["error_type"]
    return {
        "path": result.path,
        "ok": result.ok,
        "exit_code": result.exit_code,
        "scope": result.scope,
        **{key: getattr(result.artifact, key, None) for key in keys},
        "steps": steps,
        "limits": [dataclasses.asdict(limit) for limit in result.limits],
    }


def _error(results: list[CheckResult], code: int) -> dict[str, Any]:
    """Return the failure that the exit code stands for."""
    failed = next(
        (result, step) for result in results for step in result.failures if step.exit_code == code
    )
    result, step = failed
    kind = step.error_type or "HwpruneError"
    return error_document(kind, code, f"{result.path}: {step.name}: {step.message}", step.hint)


def _print(results: list[CheckResult], *, to_stderr: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console(stderr=to_stderr)
    for result in results:
        style = "bold green" if result.ok else "bold red"
        state = "passed" if result.ok else f"failed (exit code {result.exit_code})"
        out.print(Text(f"{result.path}: {state}; {result.scope}", style=style), soft_wrap=True)
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for step in result.steps:
            mark, colour = _MARKS[step.outcome]
            message = step.message + (f"\nhint: {step.hint}" if step.hint else "")
            table.add_row(Text(f" {mark}", style=colour), Text(step.name), Text(message))
        out.print(table)
    if len(results) > 1:
        passed = sum(result.ok for result in results)
        out.print(Text(f"{passed} of {len(results)} artifacts passed", style="bold"))
