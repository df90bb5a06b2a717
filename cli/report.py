"""``hwprune report``: the report of a run, in the terminal or as a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hwprune.cli.main import print_json
from hwprune.cli.options import console, json_option

if TYPE_CHECKING:
    from hwprune.report import Record


@click.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path())
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False), metavar="FILE",
    help="Write there; the suffix says how: .html, .md or .json.",
)  # fmt: skip
@json_option
def command(*, runs: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Show the report of RUN: a report.json, or the output folder that holds it.

    Several runs are put side by side, smallest first: what no other run of the same model beats in
    size and accuracy is on the frontier, and where that bends most is the knee.
    """
    from hwprune.errors import UsageError
    from hwprune.report import record

    suffix = Path(output).suffix.lower() if output is not None else ""
    forms = (".html", ".md", ".json") if len(runs) == 1 else (".html", ".md")
    if output is not None and suffix not in forms:
        raise UsageError(
            f"-o {output}: {suffix or 'no suffix'!r} is not a form of report",
            hint=f"end the name in {', '.join(forms[:-1])} or {forms[-1]}",
        )
    found = [record.read(run) for run in runs]
    if len(found) == 1:
        _one(found[0], output, suffix, as_json)
        return
    folders = [os.path.dirname(run) if run.endswith(".json") else run for run in runs]
    above = os.path.commonpath(list(map(os.path.abspath, folders)))
    labels = [os.path.relpath(folder, above) for folder in folders]
    _several(list(zip(labels, found, strict=True)), output, suffix, as_json)


def _one(found: Record, output: str | None, suffix: str, as_json: bool) -> None:
    from hwprune.report import record, render

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


def _several(
    found: list[tuple[str, Record]], output: str | None, suffix: str, as_json: bool
) -> None:
    from hwprune.report import comparison, record, render

    runs, title = comparison.compare(found), f"{len(found)} runs"
    if output is not None:
        write = render.comparison_html if suffix == ".html" else render.comparison_markdown
        record.write_text(write(runs, title), output)
        click.echo(f"wrote {output}", err=True)
    if as_json:
        print_json(
            {
                "runs": [
                    {
                        "run": run.label,
                        "on_frontier": run.on_frontier,
                        "is_knee": run.is_knee,
                        "report": run.record.model_dump(mode="json"),
                    }
                    for run in runs
                ]
            }
        )
    elif output is None:
        render.comparison_terminal(runs, console())
