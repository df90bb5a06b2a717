"""``hwprune report``: the report of a run, in the terminal or as a file."""

from __future__ import annotations

from pathlib import Path

import click

from hwprune.cli.main import print_json
from hwprune.cli.options import console, json_option


@click.command("report")
@click.argument("run", type=click.Path())
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False), metavar="FILE",
    help="Write there; the suffix says how: .html, .md or .json.",
)  # fmt: skip
@json_option
def command(*, run: str, output: str | None, as_json: bool) -> None:
    """Show the report of RUN: a report.json, or the output folder that holds it."""
    from hwprune.errors import UsageError
    from hwprune.report import record, render

    suffix = Path(output).suffix.lower() if output is not None else ""
    if output is not None and suffix not in (".html", ".md", ".json"):
        raise UsageError(
            f"-o {output}: {suffix or 'no suffix'!r} is not a form of report",
            hint="end the name in .html, .md or .json",
        )
    found = record.read(run)
    if output is not None:
        if suffix == ".json":
            record.write(found, output)
        else:
            text = render.html(found) if suffix == ".html" else render.markdown(found)
            record.write_text(text, output)
        click.echo(f"wrote {output}", err=True)
    if as_json:
        print_json(found.model_dump(mode="json"))
    elif output is None:
        render.terminal(found, console())
