"""``hwprune check`` and ``hwprune bench`` as functions. Neither needs torch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwprune.errors import UsageError
from hwprune.export.artifact import ArtifactFile, read_artifact
from hwprune.ir import Data
from hwprune.targets import Target, load
from hwprune.tasks import CLASSIFICATION, Task
from hwprune.verify import (
    CheckResult,
    Limit,
    compare_kernels,
    environment,
    kernels_unavailable_reason,
    measure,
    parse_limit,
    resident,
)
from hwprune.verify import check as check_file

_Path = str | os.PathLike[str]


def check(
    artifact: _Path,
    *,
    target: str | Target | None = None,
    require: str | Sequence[str | Limit] = (),
    task: str | Task | None = None,
    data: str | Data | None = None,
    baseline: _Path | None = None,
    may_worsen: Mapping[str, float] | None = None,
) -> CheckResult:
    """Check one artifact, as ``hwprune check`` does; what is wrong is returned, not raised.

    Args:
        artifact: an ONNX file, or a microcontroller's firmware folder.
        target: whose budget, opset, IR version, codecs and value types it has to keep.
        require: limits such as ``"size<=64KiB"``.
        task: what is measured on ``data``; classification without.
        data: a specification, or data, whose test part is measured.
        baseline: a report, an artifact, or a folder of either, that it must not be worse than.
        may_worsen: by how much a field may be worse, in its unit, a latency as a share.

    Raises:
        HwpruneError: something was asked for that there is not.
    """
    from hwprune.frontend import load_data
    from hwprune.frontend.task_file import load_task
    from hwprune.verify.baseline import read
    from hwprune.verify.firmware import check_firmware, is_firmware

    path = os.fspath(artifact)
    target = load(target) if isinstance(target, str) else target
    task = load_task(task) if isinstance(task, str) else task
    if task is not None and data is None:
        raise UsageError(
            f"--task {task.name} without --data: there is nothing to measure {task.metric.name} on",
            hint="give --data SPEC, whose test part is measured",
        )
    metric = None if task is None else task.metric.name
    given = [require] if isinstance(require, str) else require
    limits = [parse_limit(each, metric) if isinstance(each, str) else each for each in given]
    if is_firmware(path):
        return check_firmware(path, target=target, limits=limits).result
    split = None
    if data is not None:
        task = CLASSIFICATION if task is None else task
        split = (load_data(data, task=task) if isinstance(data, str) else data).test
    before = None if baseline is None else read(os.fspath(baseline), path, may_worsen)
    return check_file(path, target=target, limits=limits, task=task, split=split, baseline=before)


def bench(
    artifact: _Path,
    *,
    target: str | Target | None = None,
    threads: int = 1,
    batch: int | None = None,
    against: _Path | None = None,
    runs: int = 200,
) -> dict[str, Any]:
    """Measure latency, load time and resident memory on this host, as ``hwprune bench`` does.

    Args:
        artifact: an ONNX file. One that native kernels can run is measured at both of its speeds,
            after their outputs were compared.
        target: one that the file must be for; the numbers stay this host's.
        threads: a run.
        batch: samples a run; that of the file, else 1.
        against: a second file, measured in turn with it.
        runs: timed runs a file.

    Returns:
        what ``hwprune bench --json`` prints: ``results`` by ``artifact``, ``kernels`` and
        ``against``, with times in ms and sizes in bytes; ``ratio_p50``, ``host``, ``notes``.

    Raises:
        HwpruneError: a file that does not run, or that the target cannot read.
    """
    path = os.fspath(artifact)
    target = load(target) if isinstance(target, str) else target
    notes = ["stock onnxruntime decodes packed weights at load and runs them at dense speed"]
    found = read_artifact(path)
    if target is not None:
        notes.insert(0, _suits(found, target))
    files = {"artifact": path} | ({} if against is None else {"against": os.fspath(against)})
    alone = kernels_unavailable_reason(found)
    if alone is None:
        notes.append(f"native kernels against stock: {compare_kernels(found)}")
        files["kernels"] = path
    else:
        notes.append(f"native kernels: not run, {alone}")
    latency = measure(files, threads=threads, batch=batch, runs=runs, kernels={"kernels"})
    results: dict[str, dict[str, Any]] = {}
    for label, file in files.items():
        numbers = dataclasses.asdict(latency[label])
        for shared in ("host", "onnxruntime"):
            del numbers[shared]
        used = dataclasses.asdict(resident(file, kernels=label == "kernels"))
        results[label] = {"path": file, "bytes": Path(file).stat().st_size, **numbers, **used}

    def ratio(label: str) -> float | None:
        if not {label, "against"} <= results.keys():
            return None
        p50: float = results[label]["p50_ms"] / results["against"]["p50_ms"]
        return p50

    return {
        "host": latency["artifact"].host,
        "onnxruntime": latency["artifact"].onnxruntime,
        "target": target.name if target else None,
        "results": results,
        "ratio_p50": ratio("artifact"),
        "ratio_p50_kernels": ratio("kernels"),
        "environment": environment(),
        "notes": notes,
    }


def _suits(found: ArtifactFile, target: Target) -> str:
    """Return the label for a board; refuse what no measurement here can stand for.

    Raises:
        UsageError: a microcontroller, or a file that the target's runtime cannot read.
    """
    if target.kind == "microcontroller":
        raise UsageError(
            f"{target.name} is a microcontroller: a latency of this host says nothing about it",
            hint="leave --target out to measure this host",
        )
    if found.opset > target.runtime.opset or found.ir_version > target.runtime.ir_version:
        raise UsageError(
            f"the file has opset {found.opset} and IR version {found.ir_version}, {target.name} "
            f"reads up to opset {target.runtime.opset} and IR version {target.runtime.ir_version}",
            hint=f"compile with --target {target.name}",
        )
    return f"measured on this host, not on {target.name}"
