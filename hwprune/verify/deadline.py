"""How long onnxruntime may take to load a file or to run it once: a small one may ask for hours."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from hwprune.errors import VerificationError

GiveUp = Callable[[VerificationError], None]
_LIMIT: ContextVar[tuple[float, GiveUp] | None] = ContextVar("limit", default=None)


@contextmanager
def loads_within(seconds: float, give_up: GiveUp) -> Iterator[None]:
    """Limit each load and each run in the body.

    Args:
        seconds: of one file.
        give_up: called with the error, in another thread, while onnxruntime goes on: it ends the
            process.
    """
    token = _LIMIT.set((seconds, give_up))
    try:
        yield
    finally:
        _LIMIT.reset(token)


@contextmanager
def limited(path: str, does: str = "load") -> Iterator[None]:
    """Hold what a file does in the body to the limit there is."""
    if (limit := _LIMIT.get()) is None:
        yield
        return
    seconds, give_up = limit
    error = VerificationError(
        f"{path} does not {does} within {seconds:g} s",
        hint="--load-seconds allows more; a file of a megabyte that needs minutes is no network",
    )
    timer = threading.Timer(seconds, give_up, [error])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
