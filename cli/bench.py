"""``hwprune bench``: latency, load time and resident memory of files, on this host."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from hwprune.cli.main import print_json
from hwprune.cli.options import console, json_option, target_option, threads_option
from hwprune.errors import UsageError

if TYPE_CHECKING:
    from hwprune.targets import Target
    from hwprune.verify import LatencyResult, MemoryResult


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
@click.option(
    "--remote-python", default="python3", show_default=True, metavar="PATH",
    help="The Python there.",
)  # fmt: skip
@click.option(
    "--kernels-library",
    type=click.Path(),
    metavar="FILE",
    help="Native kernels for its processor, where those of this installation are for another.",
)
@click.option(
    "--record", type=click.Path(dir_okay=False), metavar="FILE", help="Write a record as JSON."
)
@json_option
def command(
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
    as_json: bool,
) -> None:
    """Measure ARTIFACT: latency, load time, resident memory, on this host or on a device.

    An artifact that hwprune's native kernels can run is measured at both of its speeds, after their
    outputs were compared. The numbers are this host's and are labelled so; with --target, it is
    first made sure that the artifact is one that the target could run.
    """
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
    from hwprune.export.artifact import read_artifact
    from hwprune.verify import (
        compare_kernels,
        environment,
        kernels_unavailable_reason,
        measure,
        resident,
    )

    notes = ["stock onnxruntime decodes packed weights at load and runs them at dense speed"]
    found = read_artifact(artifact)
    if target is not None:
        notes.insert(0, _suits(found.opset, found.ir_version, target))
    files = {"artifact": artifact} | ({"against": against} if against is not None else {})
    alone = kernels_unavailable_reason(found)
    if alone is None:
        notes.append(f"native kernels against stock: {compare_kernels(found)}")
        files["kernels"] = artifact
    else:
        notes.append(f"native kernels: not run, {alone}")
    latency = measure(files, threads=threads, batch=batch, runs=runs, kernels={"kernels"})
    memory = {label: resident(path, kernels=label == "kernels") for label, path in files.items()}
    host = latency["artifact"].host
    results = {
        label: _document(path, latency[label], memory[label]) for label, path in files.items()
    }
    document = {
        "host": host,
        "onnxruntime": latency["artifact"].onnxruntime,
        "target": target.name if target else None,
        "results": results,
        "ratio_p50": _ratio(latency, "artifact"),
        "ratio_p50_kernels": _ratio(latency, "kernels"),
        "environment": environment(),
        "notes": notes,
    }
    _write_record(document, record)
    if as_json:
        print_json(document)
    _print(files, latency, memory, notes, to_stderr=as_json)


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

        write_text(json.dumps({"schema_version": 1, **document}, indent=2) + "\n", path)


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
        out.print(
            f"note: {results['kernels_status']}, outputs differ by {results['difference']:.1e}"
        )
    for when in ("before", "after"):
        known = {key: value for key, value in found[when].items() if value is not None}
        told = ", ".join(f"{key} {value}" for key, value in known.items())
        out.print(f"note: {when}: {told or 'temperature and governor are not known'}")


def _suits(opset: int, ir_version: int, target: Target) -> str:
    """Return the label for a board; refuse what no measurement here can stand for.

    Raises:
        UsageError: a microcontroller, or a file that the target's runtime cannot read.
    """
    if target.kind == "microcontroller":
        raise UsageError(
            f"{target.name} is a microcontroller: a latency of this host says nothing about it",
            hint="leave --target out to measure this host",
        )
    if opset > target.runtime.opset or ir_version > target.runtime.ir_version:
        raise UsageError(
            f"the file has opset {opset} and IR version {ir_version}, {target.name} reads up to "
            f"opset {target.runtime.opset} and IR version {target.runtime.ir_version}",
            hint=f"compile with --target {target.name}",
        )
    return f"measured on this host, not on {target.name}"


def _ratio(latency: dict[str, LatencyResult], label: str) -> float | None:
    if "against" not in latency or label not in latency:
        return None
    return latency[label].p50_ms / latency["against"].p50_ms


def _document(path: str, latency: LatencyResult, memory: MemoryResult) -> dict[str, Any]:
    from pathlib import Path

    numbers = dataclasses.asdict(latency)
    for shared in ("host", "onnxruntime"):
        del numbers[shared]
    size = Path(path).stat().st_size
    return {"path": path, "bytes": size, **numbers, **dataclasses.asdict(memory)}


def _print(
    files: dict[str, str],
    latency: dict[str, LatencyResult],
    memory: dict[str, MemoryResult],
    notes: list[str],
    *,
    to_stderr: bool,
) -> None:
    from pathlib import Path

    from rich.text import Text

    from hwprune.report.terminal import table
    from hwprune.units import format_bytes

    out = console(stderr=to_stderr)
    first = latency["artifact"]
    out.print(
        Text(f"Measured on {first.host}, onnxruntime {first.onnxruntime}", style="bold"),
        soft_wrap=True,
    )
    threads = "1 thread" if first.threads == 1 else f"{first.threads} threads"
    out.print(
        f"{first.runs} runs, {threads}, batch {first.batch}"
        + (", files in turn" if len(files) > 1 else "")
    )
    for label, path in files.items():
        size = format_bytes(Path(path).stat().st_size)
        what = "the artifact, with native kernels" if label == "kernels" else f"{path}, {size}"
        out.print(Text(f"{label}: {what}"), soft_wrap=True)
    columns = ("p50", "p90", "load", "resident", "by load", "weights")
    rows = []
    for label in files:
        result, used = latency[label], memory[label]
        rows.append(
            (
                label,
                f"{result.p50_ms:.3f} ms",
                f"{result.p90_ms:.3f} ms",
                f"{result.load_ms:.1f} ms",
                f"{used.resident_bytes / 2**20:.1f} MiB",
                f"{used.added_bytes / 2**20:.1f} MiB",
                "-" if used.weight_bytes is None else f"{used.weight_bytes / 2**20:.2f} MiB",
            )
        )
    out.print(table(("", *columns), rows, right=columns))
    for label, how in (("artifact", ""), ("kernels", " with native kernels")):
        ratio = _ratio(latency, label)
        if ratio is not None:
            out.print(f"p50{how} is {ratio:.2f}x of {files['against']}", soft_wrap=True)
    for note in notes:
        out.print(f"note: {note}", soft_wrap=True)
