"""The device of a compilation, and the processes that ``torchrun`` started for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwprune.training import World


@contextmanager
def together(wish: str) -> Iterator[tuple[str, World]]:
    """Choose the device, and meet the other processes where there are any, until the block ends.

    Args:
        wish: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Yields:
        the device, and the processes to train with.

    Raises:
        UsageError: there is no such device, or not one for every process.
    """
    from hwprune.training.devices import resolve
    from hwprune.training.distributed import joined, launched

    local = {}
    if launched():
        local = {
            "local_rank": int(os.environ.get("LOCAL_RANK", "0")),
            "local_size": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        }
    device = resolve(wish, **local)
    with joined(device) as world:
        yield device, world
