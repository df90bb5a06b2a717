"""``hwprune bench``: latency, load time and resident memory of files, on this host."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from hwprune.cli.main import SCHEMA_VERSION, end_now, print_json
from hwprune.cli.options import (
    console,
    json_option,
    load_seconds_option,
    refuse_without_on,
    remote_python_option,
    target_option,
    threads_option,
)
from hwprune.errors import UsageError

if TYPE_CHECKING:
    from hwprune.targets import Target


@click.command("bench")
@click.argument("artifact", type=click.Path())
@target_option
@threads_option
@click.option("--batch", type=click.IntRange(1), help="Samples a run; the default is 1.")
@click.option(
    "--against", type=click.Path(), metavar="FILE", help="A second file, measured in turn with it."
)
@click.option(
    "--runs", type=click.IntRange(1), default=200, show_default=True, help="Timed runs a file."
)
@click.option(
    "--on", "where", metavar="ssh://USER@HOST[:PORT]",
    help="Measure on that device, which needs Python, NumPy and onnxruntime; nothing stays there.",
)  # fmt: skip
@remote_python_option
@click.option(
    "--kernels-library",
    type=click.Path(),
    metavar="FILE",
    help="Native kernels for its processor, where those of this installation are for another.",
)
@click.option(
    "--record", type=click.Path(dir_okay=False), metavar="FILE", help="Write a record as JSON."
)
@load_seconds_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    artifact: str,
    target: Target | None,
    threads: int,
    batch: int | None,
    against: str | None,
    runs: int,
    where: str | None,
    remote_python: str,
    kernels_library: str | None,
    record: str | None,
    load_seconds: float,
    as_json: bool,
) -> None:
    """Measure ARTIFACT: latency, load time, resident memory, on this host or on a device.

    An artifact that hwprune's native kernels can run is measured at both of its speeds, after their
    outputs were compared. The numbers are this host's and are labelled so; with --target, it is
    first made sure that the artifact is one that the target could run.
    """
    from hwprune.verify.deadline import loads_within

    ctx.with_resource(loads_within(load_seconds, partial(end_now, as_json=as_json)))
    refuse_without_on(ctx, where, "remote_python", "kernels_library")
    if where is not None:
        for option, given in (("--against", against), ("--target", target)):
            if given is not None:
                raise UsageError(f"{option} is not for --on", hint="measure one file on the device")
        found_there = _on_device(
            artifact, where, remote_python, kernels_library, runs=runs, threads=threads, batch=batch
        )
        _write_record(found_there, record)
        if as_json:
            print_json(found_there)
        _print_there(found_there, to_stderr=as_json)
        return
    from hwprune.gate import bench

    document = bench(
        artifact, target=target, threads=threads, batch=batch, against=against, runs=runs
    )
    _write_record(document, record)
    if as_json:
        print_json(document)
    _print(document, to_stderr=as_json)


def _on_device(
    artifact: str,
    where: str,
    python: str,
    kernels_library: str | None,
    *,
    runs: int,
    threads: int,
    batch: int | None,
) -> dict[str, Any]:
    """Measure on a device that ssh reaches, with inputs that are made here."""
    import hashlib
    import io
    from pathlib import Path

    import numpy as np

    from hwprune.export.artifact import read_artifact
    from hwprune.kernels import library
    from hwprune.kernels.session import operator_names
    from hwprune.remote import measure_there, parse_destination
    from hwprune.verify import runner

    destination = parse_destination(where, python)
    found = read_artifact(artifact)
    session = runner.open_session(artifact)
    arrays = runner.random_inputs(session, batch=batch)
    archive = io.BytesIO()
    names = [entry.name for entry in session.get_inputs()]
    np.savez(archive, **dict(zip(names, arrays, strict=True)))
    data = Path(artifact).read_bytes()
    measured = measure_there(
        destination, data, archive.getvalue(), runs=runs, threads=threads,
        kernels=found.form == "functions" and any(map(library.knows, operator_names(data))),
        library_path=None if kernels_library is None else Path(kernels_library),
    )  # fmt: skip
    sizes = [len(array) for array in arrays if array.ndim]
    return {
        "on": str(destination),
        "path": artifact,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "threads": threads,
        "batch": sizes[0] if sizes else 1,
        **measured,
    }


def _write_record(document: dict[str, Any], path: str | None) -> None:
    if path is not None:
        import json

        from hwprune.report.record import write_text

        write_text(
            json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2) + "\n", path
        )


def _print_there(found: dict[str, Any], *, to_stderr: bool) -> None:
    from rich.text import Text

    from hwprune.report.terminal import table
    from hwprune.units import format_bytes

    out, device, results = console(stderr=to_stderr), found["device"], found["results"]
    out.print(
        Text(
            f"Measured on {found['on']}: {device['cpu']}, {device['cores']} cores, "
            f"{device['machine']}, onnxruntime {device['onnxruntime']}",
            style="bold",
        ),
        soft_wrap=True,
    )
    out.print(f"{found['path']}, {format_bytes(found['bytes'])}, {found['threads']} threads")
    rows = [
        (
            name,
            f"{result['p50_ms']:.3f} ms",
            f"{result['p90_ms']:.3f} ms",
            f"{result['load_ms']:.1f} ms",
            "-" if result["added_bytes"] is None else f"{result['added_bytes'] / 2**20:.1f} MiB",
        )
        for label, name in (("stock", "stock onnxruntime"), ("kernels", "native kernels"))
        if (result := results.get(label)) is not None
    ]
    columns = ("p50", "p90", "load", "by load")
    out.print(table(("", *columns), rows, right=columns))
    if found["no_kernels"] is not None:
        out.print(f"note: native kernels: not run, {found['no_kernels']}", soft_wrap=True)
    else:
        apart = results["difference"]
        said = "are not finite" if apart is None else f"differ by {apart:.1e}"
        out.print(f"note: {results['kernels_status']}, outputs {said}")
    for when in ("before", "after"):
        known = {key: value for key, value in found[when].items() if value is not None}
        told = ", ".join(f"{key} {value}" for key, value in known.items())
        out.print(f"note: {when}: {told or 'temperature and governor are not known'}")


def _print(document: dict[str, Any], *, to_stderr: bool) -> None:
    from rich.text import Text

    from hwprune.report.terminal import table
    from hwprune.units import format_bytes, format_count

    out, results = console(stderr=to_stderr), document["results"]
    first = results["artifact"]
    out.print(
        Text(
            f"Measured on {document['host']}, onnxruntime {document['onnxruntime']}", style="bold"
        ),
        soft_wrap=True,
    )
    threads = format_count(first["threads"], "thread")
    out.print(
        f"{first['runs']} runs, {threads}, batch {first['batch']}"
        + (", files in turn" if len(results) > 1 else "")
    )
    for label, found in results.items():
        what = f"{found['path']}, {format_bytes(found['bytes'])}"
        what = "the artifact, with native kernels" if label == "kernels" else what
        out.print(Text(f"{label}: {what}"), soft_wrap=True)
    columns = ("p50", "p90", "load", "resident", "by load", "weights")
    rows = [
        (
            label,
            f"{found['p50_ms']:.3f} ms",
            f"{found['p90_ms']:.3f} ms",
            f"{found['load_ms']:.1f} ms",
            f"{found['resident_bytes'] / 2**20:.1f} MiB",
            f"{found['added_bytes'] / 2**20:.1f} MiB",
            "-" if found["weight_bytes"] is None else f"{found['weight_bytes'] / 2**20:.2f} MiB",
        )
        for label, found in results.items()
    ]
    out.print(table(("", *columns), rows, right=columns))
    for key, how in (("ratio_p50", ""), ("ratio_p50_kernels", " with native kernels")):
        if document[key] is not None:
            against = results["against"]["path"]
            out.print(f"p50{how} is {document[key]:.2f}x of {against}", soft_wrap=True)
    for note in document["notes"]:
        out.print(f"note: {note}", soft_wrap=True)
