"""``hwprune calibrate``: a device profile from the device itself."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from hwprune.cli.main import print_json
from hwprune.cli.options import (
    Parsed,
    console,
    json_option,
    refuse_without_on,
    remote_python_option,
    target_names,
)
from hwprune.errors import OutputError


@click.command("calibrate")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False), required=True, metavar="FILE.toml",
    help="The profile to write.",
)  # fmt: skip
@click.option(
    "--on", "where", metavar="ssh://USER@HOST[:PORT]",
    help="The device, which needs Python, NumPy and onnxruntime; without it this machine.",
)  # fmt: skip
@remote_python_option
@click.option(
    "--extends", type=Parsed("target", str, target_names), metavar="NAME",
    help="The profile that says what cannot be measured, such as raspberry-pi-5.",
)  # fmt: skip
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    output: str,
    where: str | None,
    remote_python: str,
    extends: str | None,
    as_json: bool,
) -> None:
    """Write a device profile of measured facts, for --target.

    Measured: cores, clock, RAM, last-level cache, the version of onnxruntime, the newest form of
    file that it runs, and whether it folds functions as it loads them. Each is labelled as
    measured; the default budget follows from the cache, as with the built-in profiles.
    """
    from hwprune.calibrate import calibrate, profile
    from hwprune.remote import THIS_MACHINE, parse_destination
    from hwprune.report.record import write_text
    from hwprune.targets import load, load_file

    refuse_without_on(ctx, where, "remote_python")
    path = Path(output)
    if path.suffix != ".toml":
        raise OutputError(f"{output} does not end in .toml", hint="--target finds a file by that")
    if extends is not None:
        load(extends)  # before the device is asked
    there = THIS_MACHINE if where is None else parse_destination(where, remote_python)
    found = calibrate(there)
    text = profile(found, extends=extends, description=f"{found.device['cpu']}, as measured")
    with tempfile.TemporaryDirectory() as folder:  # a profile that is not valid replaces no other
        tried = Path(folder) / path.name
        tried.write_text(text, encoding="utf-8")
        target = load_file(tried)
    write_text(text, path)
    document = {"file": output, "name": target.name, "folds_functions": found.folds}
    if as_json:
        print_json(document | {"device": dict(found.device), "budget_bytes": target.budget_bytes})
    out = console(stderr=as_json)
    out.print(text, soft_wrap=True)
    out.print(f"{output}: {target.budget_reason}", soft_wrap=True)
    out.print(f"hwprune plan MODEL --target {output}", soft_wrap=True)
