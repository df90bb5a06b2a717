"""``hwprune targets``: which devices there are, what is known of one, is a profile valid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hwprune.cli.main import print_json
from hwprune.cli.options import console, json_option
from hwprune.units import printable

if TYPE_CHECKING:
    from hwprune.targets import FactRow, Target


@click.group("targets", invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, *, as_json: bool) -> None:
    """List and show device profiles, and check one of your own.

    Without a subcommand: list.
    """
    context.obj = as_json  # `targets --json show NAME` means the same as `targets show NAME --json`
    if context.invoked_subcommand is None:
        context.invoke(list_, as_json=as_json)


@command.command("list")
@json_option
@click.pass_obj
def list_(above: bool | None, *, as_json: bool) -> None:
    """List the built-in profiles."""
    from hwprune.targets import load, names

    targets = [load(name) for name in names()]
    # Boards first, then chips; by budget, so that the table reads as a scale.
    targets.sort(key=lambda target: (target.kind, target.budget_bytes, target.name))
    if as_json or above:
        print_json({"targets": [_summary(target) for target in targets]})
    else:
        _print_list(targets)


@command.command("show")
@click.argument("name")
@json_option
@click.pass_obj
def show(above: bool | None, name: str, *, as_json: bool) -> None:
    """Show everything known of NAME (a name, an alias or a TOML file), with its sources."""
    from hwprune.targets import load

    target = load(name)
    if as_json or above:
        print_json({"target": _summary(target) | _details(target)})
    else:
        _print_target(target)


@command.command("check")
@click.argument("file", type=click.Path())
@json_option
@click.pass_obj
def check(above: bool | None, file: str, *, as_json: bool) -> None:
    """Check the profile in FILE: prints OK, or what is wrong with exit code 2."""
    from hwprune.targets import load_file

    target = load_file(file)
    open_fields = [fact.field for fact in target.facts() if not fact.confirmed]
    if as_json or above:
        print_json(
            {"file": file, "ok": True, "unconfirmed": open_fields, "target": _summary(target)}
        )
        return
    click.echo(f"OK: {printable(file)} describes {target.name}, {target.kind}")
    click.echo(f"    {target.budget_reason}")
    if open_fields:
        click.echo(f"    unconfirmed: {', '.join(open_fields)}")


def _summary(target: Target) -> dict[str, Any]:
    keys = (
        "name", "description", "kind", "core", "cores", "clock_hz", "memory_bytes", "ram_bytes",
        "budget_bytes",
    )  # fmt: skip
    return {key: getattr(target, key) for key in keys} | {"aliases": list(target.aliases)}


def _details(target: Target) -> dict[str, Any]:
    return {
        "budget_reason": target.budget_reason,
        "runtime": target.runtime.model_dump(),
        "codecs": list(target.codecs),
        "value_types": list(target.value_types),
        "source_path": target.source_path,
        "facts": [fact._asdict() for fact in target.facts()],
    }


# -- for people ---------------------------------------------------------------------------------


def _print_list(targets: list[Target]) -> None:
    from rich.table import Table

    # Close columns, so that the longest alias fits on 80 columns.
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("kind")
    table.add_column("core", no_wrap=True)
    table.add_column("default budget", justify="right", no_wrap=True)
    table.add_column("aliases", overflow="fold")
    for target in targets:
        core = target.core if target.cores == 1 else f"{target.cores}x {target.core}"
        # Aliases are the only column that can spare room on a narrow terminal.
        table.add_row(
            target.name,
            "board" if target.kind == "linux" else "MCU",
            core,
            f"{target.budget_bytes:,} B",
            ", ".join(target.aliases),
        )
    console().print(table)
    console().print("\n`hwprune targets show NAME` says what is known of one, with sources.")


def _print_target(target: Target) -> None:
    from rich.table import Table

    out = console()
    runtime = target.runtime
    out.print(f"{target.name}: {target.description}", style="bold")
    for label, text in (
        ("kind", target.kind),
        ("aliases", ", ".join(target.aliases) or "none"),
        ("default budget", target.budget_reason),
        ("runtime", f"{runtime.kind} {runtime.version or ''}".rstrip()),
        ("artifacts", f"opset {runtime.opset}, IR version {runtime.ir_version}, {_form(target)}"),
        ("codecs", ", ".join(target.codecs)),
        ("value types", ", ".join(target.value_types)),
        ("file", target.source_path),
    ):
        out.print(f"{label + ':':16}{text}", soft_wrap=True)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("fact", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("source", overflow="fold")
    for fact in target.facts():
        mark = "" if fact.confirmed else "(unconfirmed) "
        table.add_row(fact.field, _value(fact), mark + fact.source)
    out.print("", table)


def _form(target: Target) -> str:
    return "functions inlined" if target.runtime.inline_functions else "with functions"


def _value(fact: FactRow) -> str:
    if isinstance(fact.value, bool):
        return "yes" if fact.value else "no"
    if isinstance(fact.value, int) and fact.field.endswith("_origin"):
        return f"0x{fact.value:08x}"
    if isinstance(fact.value, int) and fact.unit:
        return f"{fact.value:,} {fact.unit}"
    return str(fact.value)
