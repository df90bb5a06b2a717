"""Latency and load time on this host, of several files in turn."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from hwprune.errors import UsageError
from hwprune.verify import runner
from hwprune.verify.host import host_label

_LOADS = 3  # the median of three: the first one warms the file cache


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """How long one file takes on the host that measured it, which is not the target.

    Attributes:
        p50_ms: median of the runs.
        p90_ms: 90th percentile of the runs.
        load_ms: median time to create the session, in which a packed file is decoded.
        runs: timed runs, after the warm-up.
        threads: of onnxruntime's intra-operator pool.
        batch: samples a run.
        host: whose number this is.
        onnxruntime: its version.
    """

    p50_ms: float
    p90_ms: float
    load_ms: float
    runs: int
    threads: int
    batch: int
    host: str
    onnxruntime: str


def measure(
    files: Mapping[str, str],
    inputs: Sequence[NDArray[Any]] | Mapping[str, NDArray[Any]] | None = None,
    *,
    threads: int = 1,
    batch: int | None = None,
    runs: int = 100,
    warmup: int = 10,
    seed: int = 0,
    kernels: Collection[str] = (),
) -> dict[str, LatencyResult]:
    """Measure files in turn, A B A B, so that a busy moment of the machine meets all of them.

    Args:
        files: path by label.
        inputs: arrays in the order of the files' inputs; None makes random ones.
        threads: intra-operator threads; inter-operator is always one.
        batch: N of the random inputs; None is the files' fixed batch, else 1.
        runs: timed runs of each file.
        warmup: runs before that.
        seed: of the random inputs.
        kernels: the labels whose file runs with native kernels.

    Returns:
        one result per label.

    Raises:
        UsageError: a number below 1, or a batch that a file is not made for.
        ArtifactError, VerificationError: a file is missing or does not run.
    """
    for name, number in (("threads", threads), ("runs", runs), ("batch", batch or 1)):
        if number < 1:
            raise UsageError(f"{name} is {number}, expected at least 1")
    loads: dict[str, list[float]] = {label: [] for label in files}
    sessions: dict[str, Any] = {}
    for _ in range(_LOADS):
        for label, path in files.items():
            start = time.perf_counter()
            sessions[label] = runner.open_session(path, threads=threads, kernels=label in kernels)
            loads[label].append(_since(start))
    arrays = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
    given = {
        label: runner.random_inputs(session, batch=batch, seed=seed) if arrays is None else arrays
        for label, session in sessions.items()
    }
    for _ in range(warmup):
        for label, session in sessions.items():
            runner.run(session, given[label])
    times: dict[str, list[float]] = {label: [] for label in files}
    feeds = {
        label: dict(zip([e.name for e in session.get_inputs()], given[label], strict=True))
        for label, session in sessions.items()
    }
    for _ in range(runs):
        for label, session in sessions.items():
            start = time.perf_counter()
            session.run(None, feeds[label])
            times[label].append(_since(start))
    return {
        label: LatencyResult(
            p50_ms=float(np.percentile(times[label], 50)),
            p90_ms=float(np.percentile(times[label], 90)),
            load_ms=float(np.median(loads[label])),
            runs=runs,
            threads=threads,
            batch=runner.batch_of(sessions[label], given[label]),
            host=host_label(),
            onnxruntime=str(ort.__version__),
        )
        for label in files
    }


def _since(start: float) -> float:
    return 1000 * (time.perf_counter() - start)
