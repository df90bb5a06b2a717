"""The engine of a Ray cluster: a task for each compilation, on whichever node has room."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from hwprune.errors import UsageError
from hwprune.sweep.grid import Planned
from hwprune.sweep.run import Processes, opened_log

_LOST = -9  # the task's node or worker is gone: as a process that was killed


class RayCluster:
    """Runs compilations on a cluster; every node sees model, data and output under one path.

    Attributes:
        processors: of all nodes.
    """

    def __init__(self, address: str | None, threads: int) -> None:
        """Connect.

        Args:
            address: of the cluster, as Ray reads it; None for the one that RAY_ADDRESS or this
                machine names.
            threads: of each compilation; it takes as many processors.

        Raises:
            UsageError: Ray is not installed, or there is no such cluster.
        """
        try:
            import ray

            initialized = ray.is_initialized()
        except (ImportError, AttributeError):  # the latter: any folder of that name
            raise UsageError(
                "--engine ray needs Ray", hint="pip install '.[ray]' in the checkout, on every node"
            ) from None
        try:
            if not initialized:
                ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"there is no Ray cluster at {address or 'this machine'}: {error}",
                hint="start one with `ray start --head`, or give --ray-address",
            ) from None
        self.processors = int(ray.cluster_resources().get("CPU", 1))
        self._ray: Any = ray
        # Retries are the sweep's: it tells of them.
        self._task = ray.remote(num_cpus=threads, max_retries=0)(_compile)
        self._threads = threads
        self._references: set[Any] = set()
        self._lock = threading.Lock()

    def __call__(self, run: Planned, folder: Path) -> int:
        """Run one compilation; -9 where its node was lost."""
        reference = self._task.remote(run, str(folder.absolute()), self._threads)
        with self._lock:
            self._references.add(reference)
        try:
            return int(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            with opened_log(folder) as log:
                log.write(f"\nthe task was lost: {type(error).__name__}\n".encode())
            return _LOST
        finally:
            with self._lock:
                self._references.discard(reference)

    def stop(self) -> None:
        """End all runs; each leaves the checkpoint of its last epoch."""
        with self._lock:
            left = list(self._references)
        for reference in left:
            self._ray.cancel(reference)


def _compile(run: Planned, folder: str, threads: int) -> int:
    """Run one compilation on this node."""
    engine = Processes(threads)
    try:
        return engine(run, Path(folder))
    except BaseException:  # cancelled
        engine.stop()
        raise
