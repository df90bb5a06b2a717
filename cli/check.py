"""``hwprune check``: is an artifact what it was promised to be? The gate for CI."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from hwprune.cli.main import error_document, print_json
from hwprune.cli.options import console, json_option, require_option, target_option

if TYPE_CHECKING:
    from hwprune.targets import Target
    from hwprune.verify import CheckResult, Limit

_MARKS = {"passed": ("✓", "green"), "failed": ("✗", "bold red"), "skipped": ("-", "dim")}


@click.command("check")
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...", type=click.Path())
@target_option
@require_option
@click.option(
    "--junit", type=click.Path(dir_okay=False), metavar="FILE", help="Write JUnit XML as well."
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    artifacts: tuple[str, ...],
    target: Target | None,
    limits: tuple[Limit, ...],
    junit: str | None,
    as_json: bool,
) -> None:
    """Check ONNX artifacts: the gate for CI.

    Each must be one sound file whose operators mean what hwprune writes, not densified by another
    tool, unchanged since its report.json (where that lies beside it), within the target's budget,
    opset and IR version, and within every --require.

    Exit codes: 0 all passed; 2 unreadable, or a limit that cannot be measured; 3 over budget or
    over a limit; 5 verification failed.
    """
    from hwprune.errors import worst_exit_code
    from hwprune.verify import check

    results = [check(path, target=target, limits=limits) for path in artifacts]
    code = worst_exit_code([result.exit_code for result in results])
    if junit is not None:
        from hwprune.report.record import write_text
        from hwprune.verify.junit import junit as to_junit

        write_text(to_junit(results), junit)
    _print(results, to_stderr=as_json)
    if as_json:
        document: dict[str, Any] = {
            "exit_code": code,
            "artifacts": [_document(result) for result in results],
        }
        if code:
            document["error"] = _error(results, code)
        print_json(document)
    ctx.exit(code)


def _document(result: CheckResult) -> dict[str, Any]:
    keys = ("bytes", "sha256", "form", "opset", "ir_version", "nonzeros", "weights")
    steps = [asdict(step) for step in result.steps]
    for step in steps:
        del step["error_type"]
    return {
        "path": result.path,
        "ok": result.ok,
        "exit_code": result.exit_code,
        "scope": result.scope,
        **{key: getattr(result.artifact, key, None) for key in keys},
        "steps": steps,
        "limits": [asdict(limit) for limit in result.limits],
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
