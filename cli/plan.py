"""``hwprune plan``: what fits a budget, before any training."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from hwprune.cli.main import print_json
from hwprune.cli.modelling import collector_paused, load, model_options
from hwprune.cli.options import VALUES, console, json_option, task_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from hwprune.steps.fitting import Fitting
    from hwprune.steps.planning import FrontierPoint
    from hwprune.targets import Target

_MOST_LAYERS = 40


@click.command("plan")
@click.argument("model", type=click.Path(), metavar="MODEL")
@model_options
@click.option(
    "--values", default="auto", show_default=True,
    type=VALUES, metavar="auto|TYPE",
    help="The type of the stored weights: fp32, fp16 or int8 (auto shows each that the target can "
    "decode), int4, codebook16 or codebook256.",
)  # fmt: skip
@click.option(
    "--data", metavar="SPEC",
    help="As for compile: what the file says of them takes some bytes, at most 1 % of the budget.",
)  # fmt: skip
@click.option(
    "--require",
    "limits",
    multiple=True,
    metavar="LIMIT",
    help="An upper limit on latency.p50 that masks are planned for, such as 'latency.p50<=0.3x' "
    "(of the dense file's); shows what more and less time and bytes would give. Repeatable.",
)
@task_option
@json_option
def command(*, model: str, target: Target, data: str | None, as_json: bool, **asked: Any) -> None:
    """Say what fits: bytes, fixed cost, and how many weights of MODEL survive. Takes seconds.

    Counts are exact for the file that would be written, with the connections that LAMP scores of
    the trained weights choose. Times are predicted by a model of the target's core, for one
    thread, and not measured. Exit code 4: not even the empty network fits, or is fast enough.
    """
    out = console(stderr=True)
    if out.is_terminal:  # importing torch takes seconds
        out.print(f"reading {model}, for {target.name}", soft_wrap=True)
    with collector_paused():
        loaded, source = load(model, asked, data=data, task=asked.pop("task"), mapped=True)
        from hwprune.steps.fitting import plan_model

        found = plan_model(loaded, target, data=source, **asked)
    if as_json:
        print_json(_document(loaded.name, target, found))
    _print(loaded.name, target, found, to_stderr=as_json)


def _document(model: str, target: Target, found: Fitting) -> dict[str, object]:
    return {
        "model": model,
        "target": target.name,
        "budget": {"bytes": found.budget_bytes, "reason": target.budget_reason},
        "dense": {"bytes": found.dense_bytes, "fits": found.fits_dense},
        "weights": found.weights,
        "plans": {
            kind: {
                "max_nonzeros": plan.max_nonzeros,
                "sparsity": 1 - plan.max_nonzeros / plan.weights,
                "used_bytes": plan.used_bytes,
                "slack_bytes": plan.slack_bytes,
                "floor_bytes": plan.floor_bytes,
                "floor_parts": [{"what": what, "bytes": size} for what, size in plan.floor_parts],
                "limited_by": plan.limited_by,
                "strategy": found.strategies[kind],
                "predicted_time": found.times.get(kind),
                "layers": [asdict(layer) for layer in plan.layers],
            }
            for kind, plan in found.plans.items()
        },
        "image": None if found.image is None else asdict(found.image),
        "time_model": found.core or None,
        "frontier": [asdict(point) for point in found.frontier],
        "not_pruned": [asdict(tensor) for tensor in found.skipped],
        "notes": list(found.notes),
    }


def _print(model: str, target: Target, found: Fitting, *, to_stderr: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from hwprune.units import format_bytes, format_percent

    out = console(stderr=to_stderr)
    out.print(Text(f"{model} for {target.name}", style="bold"))
    for note in found.notes:
        out.print(f"  {note}", soft_wrap=True)
    out.print(f"  budget  {format_bytes(found.budget_bytes)}")
    if found.budget_bytes == target.budget_bytes:
        out.print(f"          {target.budget_reason}", soft_wrap=True)
    out.print(f"  dense   {format_bytes(found.dense_bytes)} as fp32, {found.weights:,} weights")
    if found.fits_dense:
        out.print(
            f"  The dense fp32 model fits. Pruning starts at a budget below "
            f"{format_bytes(found.dense_bytes)}."
        )
    if found.image is not None:
        image = found.image
        streamed = f", {len(image.streamed)} tensors streamed by rows" if image.streamed else ""
        out.print(
            f"  image   about {format_bytes(image.flash_bytes)} of flash with int8 values; "
            f"{format_bytes(image.ram_bytes)} of {format_bytes(target.ram_bytes)} RAM, the most at "
            f"{image.peak!r}{streamed}",
            soft_wrap=True,
            markup=False,
        )
        if image.instructions is not None:
            took = f"{image.instructions / 1e6:.2f} million instructions"
            if image.cycles is not None:
                least, most = (each / 1e6 for each in image.cycles)
                took += f" and {least:.1f} to {most:.1f} million cycles"
            out.print(f"          about {took} a run, projected for {target.core}", soft_wrap=True)
    table = Table(title="What fits", title_justify="left", box=None)
    names = ["values", "nonzeros", "sparsity", "file", "slack", "floor"]
    for name in (*names, *(["time, predicted"] if found.times else []), "codecs"):
        table.add_column(name, justify="left" if name in ("values", "codecs") else "right")
    for kind, plan in found.plans.items():
        codecs = sorted({layer.codec for layer in plan.layers})
        table.add_row(
            kind,
            f"{plan.max_nonzeros:,}" + (" (all)" if plan.limited_by == "weights" else ""),
            format_percent(1 - plan.max_nonzeros / plan.weights),
            f"{plan.used_bytes:,} B",
            f"{plan.slack_bytes:,} B",
            f"{plan.floor_bytes:,} B",
            *([f"{found.times[kind]:.3f}x"] if found.times else []),
            ", ".join(codecs),
        )
    out.print(table)
    if found.times:
        out.print(f"  times are multiples of the dense network's: {found.core}", soft_wrap=True)
    if found.frontier:
        _print_frontier(out, found.frontier)
    for said in dict.fromkeys(filter(None, found.strategies.values())):
        out.print(f"  {said}", soft_wrap=True)
    fullest = max(found.plans.values(), key=lambda plan: plan.max_nonzeros)
    out.print(Text(f"\nLayers with {fullest.value_type} values", style="bold"))
    layers = Table(box=None)
    for name in ("tensor", "shape", "weights", "nonzeros", "density", "codec", "bytes"):
        layers.add_column(name, justify="left" if name in ("tensor", "codec") else "right")
    for layer in fullest.layers[:_MOST_LAYERS]:
        layers.add_row(
            layer.name,
            "x".join(map(str, layer.shape)),
            f"{layer.weights:,}",
            f"{layer.nonzeros:,}",
            format_percent(layer.nonzeros / layer.weights),
            layer.codec,
            f"{layer.bytes:,}",
        )
    out.print(layers)
    if len(fullest.layers) > _MOST_LAYERS:
        out.print(f"  and {len(fullest.layers) - _MOST_LAYERS} more: --json lists all")
    out.print(Text("\nFloor: what no pruning removes", style="bold"))
    for what, size in fullest.floor_parts:
        out.print(f"  {size:>10,} B  {what}")
    reasons: dict[str, int] = {}
    for tensor in found.skipped:
        reasons[tensor.reason] = reasons.get(tensor.reason, 0) + tensor.bytes
    for reason, size in reasons.items():
        out.print(f"  not pruned, {size:,} B as fp32: {reason}", soft_wrap=True)


def _print_frontier(out: Console, points: Sequence[FrontierPoint]) -> None:
    from rich.table import Table

    from hwprune.units import format_percent

    table = Table(title="What bytes and time would give", title_justify="left", box=None)
    for name in ("limits", "file", "nonzeros", "time, predicted", "of a layer's squares"):
        table.add_column(name, justify="left" if name == "limits" else "right")
    for each in points:
        table.add_row(
            each.what, f"{each.file_bytes:,} B", f"{each.nonzeros:,}", f"{each.time:.3f}x",
            format_percent(each.kept),
        )  # fmt: skip
    out.print(table)
