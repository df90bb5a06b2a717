"""``hwprune sweep``: many compilations, a frontier, and the run that was looked for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hwprune.cli.compile import command as compile_command
from hwprune.cli.main import print_json
from hwprune.cli.options import LIMIT, console, json_option
from hwprune.errors import HwpruneError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hwprune.report.comparison import Compared
    from hwprune.sweep.grid import Planned
    from hwprune.sweep.run import SweepRun
    from hwprune.verify import Limit

# Options of compile that take several values here: VALUE,VALUE or repeated.
_AXES = ("target", "budget_bytes", "strategy", "values", "recipe", "epochs", "seed")
# Those that a sweep has for itself.
_OWN = ("model", "output", "as_json", "resume", "restart")


def _shared_options() -> list[click.Option]:
    """Return compile's options, as text: they are handed on as they were written."""
    made = []
    for option in compile_command.params:
        if not isinstance(option, click.Option) or option.name in _OWN:
            continue
        shared = copy.copy(option)
        if option.name in _AXES:
            shared.multiple, shared.required = True, False
            shared.help = f"{(option.help or '').split('.')[0]}. Several: A,B, or repeated."
        if not shared.is_flag:
            shared.type, shared.default, shared.show_default = click.STRING, None, False
        made.append(shared)
    return made


@click.command("sweep")
@click.argument("models", nargs=-1, metavar="[MODEL]...", type=click.Path())
@click.option(
    "-o", "--output", required=True, type=click.Path(), metavar="DIR",
    help="The folder of the sweep: a folder for each run, sweep.json, sweep.html and sweep.md.",
)  # fmt: skip
@click.option(
    "--jobs", type=click.IntRange(1), metavar="N",
    help="Runs at a time (default: one for each two processors). Threads are divided among them.",
)  # fmt: skip
@click.option(
    "--engine",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="Processes of this machine; or a Ray cluster, whose nodes see model, data and DIR under "
    "the same paths.",
)
@click.option(
    "--ray-address", metavar="ADDRESS", help="Of the cluster, as Ray reads it; else the one here."
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    metavar="N",
    help="Of each run (default: the processors divided by the runs at a time; on Ray 1).",
)
@click.option(
    "--retries",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="How often a run that crashed or was killed is started again.",
)
@click.option(
    "--pick",
    type=LIMIT,
    multiple=True,
    metavar="LIMIT",
    help="Name the smallest run that meets this, such as 'accuracy_drop<=1%'. Repeatable.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    models: tuple[str, ...],
    output: str,
    jobs: int | None,
    engine: str,
    ray_address: str | None,
    threads: int | None,
    retries: int,
    pick: tuple[Limit, ...],
    as_json: bool,
    **_: Any,
) -> None:
    """Compile each MODEL for every combination of targets, budgets, strategies and seeds.

    All options of `hwprune compile` are there. --target, --budget, --strategy, --values,
    --recipe, --epochs and --seed take several values. The same command goes on where it was left,
    and starts what failed again; each run's output is in DIR/RUN.log. The report has all runs, the
    frontier of each model, its knee, and the smallest run that meets --pick.

    Exit codes: 0 all runs came out, and one meets --pick; 2 bad usage or input; 3 no run meets
    --pick; else the worst of the runs that gave no artifact.
    """
    from hwprune.errors import worst_exit_code
    from hwprune.report import comparison, record
    from hwprune.sweep import grid, sweep
    from hwprune.sweep.on_ray import RayCluster
    from hwprune.sweep.run import Processes, report_of
    from hwprune.verify.host import cpu_count

    axes, rest = _asked(ctx)
    if "--target" not in axes:
        raise UsageError("Missing option '--target'.", hint="such as --target raspberry-pi-5")
    runs = grid(models or (None,), axes, rest)
    _try(runs)
    runner: Processes | RayCluster
    if engine == "ray":
        runner = cluster = RayCluster(ray_address, threads or 1)
        at_once = min(len(runs), jobs or max(1, cluster.processors // (threads or 1)))
    else:
        at_once = min(len(runs), jobs or max(1, cpu_count() // 2))
        runner = Processes(threads or max(1, cpu_count() // at_once))
    out, folder = console(stderr=True), Path(output)
    try:
        outcomes = sweep(
            runs, folder, runner, jobs=at_once, retries=retries,
            say=lambda line: out.print(line, soft_wrap=True),
        )  # fmt: skip
    except BaseException:
        runner.stop()
        raise
    reports = [(one.name, report_of(folder / one.name)) for one in outcomes if one.answered]
    compared = comparison.compare(
        [(name, record.read(path)) for name, path in reports if path is not None]
    )
    picked = _smallest(compared, pick) if pick else {}
    notes = [*_notes(outcomes, folder), *_picks(compared, picked, pick)]
    _write(compared, notes, folder, as_json=as_json, outcomes=outcomes, picked=picked)
    failed = [one.exit_code for one in outcomes if one.exit_code not in (0, 3)]
    missed = pick and (not picked or None in picked.values())
    ctx.exit(worst_exit_code([1 if code < 0 else code for code in failed]) or (3 if missed else 0))


command.params += _shared_options()


def _asked(ctx: click.Context) -> tuple[dict[str, list[str]], list[str]]:
    """Return the values of the options that vary, and the others as they were written."""
    axes: dict[str, list[str]] = {}
    rest: list[str] = []
    for option in _shared_options():
        name = option.name or ""
        if ctx.get_parameter_source(name) != ParameterSource.COMMANDLINE:
            continue
        value, written = ctx.params[name], max(option.opts, key=len)
        if name in _AXES:
            axes[written] = [part for text in value for part in text.split(",") if part]
        elif option.is_flag:
            rest.append(written)
        else:
            for text in value if option.multiple else (value,):
                rest += [written, text]
    return axes, rest


def _try(runs: list[Planned]) -> None:
    """Let compile read each run's options, before the first one starts.

    Raises:
        UsageError: it refuses them.
    """
    for run in runs:
        _try_one(run)


def _try_one(run: Planned) -> None:
    try:
        compile_command.make_context("compile", list(run.arguments))
    except click.ClickException as error:
        raise UsageError(f"{run.name}: {error.format_message()}") from None
    except HwpruneError as error:
        raise type(error)(f"{run.name}: {error.message}", hint=error.hint) from None


def _smallest(compared: list[Compared], pick: tuple[Limit, ...]) -> Mapping[str, Compared | None]:
    """Return for each model and target the smallest run that meets all limits, by its report."""
    from hwprune.verify import evaluate

    found: dict[str, Compared | None] = {}
    for run in sorted(compared, key=lambda run: run.size_bytes):
        where = f"{run.record.model} for {run.record.target}"
        found.setdefault(where, None)
        report = run.record.model_dump(mode="json")
        good = run.record.verdict.fits and run.record.verdict.verified
        if found[where] is None and good and all(evaluate(limit, report).met for limit in pick):
            found[where] = run
    return found


def _notes(outcomes: list[SweepRun], folder: Path) -> list[str]:
    from hwprune.units import format_count

    notes = [
        f"{one.name}: no artifact, "
        + (
            f"ended by signal {-one.exit_code}"
            if one.exit_code < 0
            else f"exit code {one.exit_code}"
        )
        + f" after {format_count(one.attempts, 'attempt')}, see {folder / one.name}.log"
        for one in outcomes
        if one.exit_code not in (0, 3)
    ]
    rejected = [one.name for one in outcomes if one.exit_code == 3]
    if rejected:
        notes.append(f"a limit is not met, rejected.onnx in its folder: {', '.join(rejected)}")
    return notes


def _picks(
    compared: list[Compared], picked: Mapping[str, Compared | None], pick: tuple[Limit, ...]
) -> list[str]:
    said = " and ".join(limit.text for limit in pick)
    lines = [
        f"{where}: the smallest with {said} is {run.label}, {run.size_bytes:,} B"
        if run is not None
        else f"{where}: no run has {said}"
        for where, run in picked.items()
    ]
    return lines if lines or not pick else [f"no run has {said}"]


def _write(
    compared: list[Compared],
    notes: list[str],
    folder: Path,
    *,
    as_json: bool,
    outcomes: list[SweepRun],
    picked: Mapping[str, Compared | None],
) -> None:
    import dataclasses

    from hwprune.report import record, render

    title = f"Sweep of {len(outcomes)} runs"
    record.write_text(render.comparison_html(compared, title, notes), folder / "sweep.html")
    record.write_text(render.comparison_markdown(compared, title, notes), folder / "sweep.md")
    out = console(stderr=as_json)
    render.comparison_terminal(compared, out, notes)
    out.print(f"\n{folder / 'sweep.html'}", soft_wrap=True)
    if as_json:
        marks = {run.label: run.mark for run in compared}
        print_json(
            {
                "runs": [
                    {**dataclasses.asdict(one), "mark": marks.get(one.name)} for one in outcomes
                ],
                "picked": {
                    where: None if run is None else run.label for where, run in picked.items()
                },
            }
        )
