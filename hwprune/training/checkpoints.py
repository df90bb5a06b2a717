"""Checkpoints of a run: where they lie, when they are written, and whose they are.

A run that is continued from one ends bit for bit as the run would have that was not interrupted, on
the same device, processes and threads, compiled by torch or not; on others it goes on too, and says
so. A checkpoint is only taken by a run of the same identity: another network, other data, seed,
options or code are refused by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwprune.errors import CheckpointError, HwpruneError
from hwprune.files import partial_of
from hwprune.training.distributed import World
from hwprune.training.statefile import read_state, write_state

Identity = Mapping[str, str | int | float | bool | None]
"""What a run depends on: values by names that a person understands."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a run keeps its state, and whether it continues from there.

    Attributes:
        path: one file; its folder is made when it is first written.
        resume: continue from it where it is there; without, the first checkpoint replaces it.
        every_seconds: the least time between two; they are written after an epoch only.
        identity: what the caller's part of the run depends on, such as the budget: for people, by
            name. What ``finetune`` is given otherwise it knows by itself.
    """

    path: Path
    resume: bool = False
    every_seconds: float = 30.0
    identity: Identity = field(default_factory=dict)

    def discard(self) -> None:
        """Remove the file, and its folder where that is empty then."""
        for _ in range(2):  # a disk that fails once may work again
            for file in (self.path, partial_of(self.path)):
                with suppress(OSError):
                    file.unlink(missing_ok=True)
            with suppress(OSError):
                self.path.parent.rmdir()


class CheckpointManager:
    """Reads and writes the checkpoint of a run, or does nothing where none is wanted.

    Args:
        checkpoint: where; None for nowhere.
        identity: of the run, asked for only where there is a checkpoint.
        surroundings: what may differ, at the price of the last bits.
        world: its processes; the leader writes, all read.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        identity: Callable[[], Identity],
        surroundings: Callable[[], Identity],
        world: World,
    ) -> None:
        """Start the clock, and check that all processes run the same."""
        self._checkpoint, self._world = checkpoint, world
        self._identity: Identity = {}
        self._surroundings: Identity = {}
        self._written = time.monotonic()
        self._warned = False
        if checkpoint is not None or world.size > 1:
            self._identity = {**identity(), **(checkpoint.identity if checkpoint else {})}
            self._surroundings = surroundings()
            for rank, other in enumerate(world.gather(self._identity)):
                if differing := differences(other, self._identity, "there", "here"):
                    raise HwpruneError(
                        f"process {rank} of {world.size} trains something else: {differing[0]}",
                        hint="start all processes with the same command, code and data",
                    )

    def read(self) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
        """Return the state to continue from, None to start anew, and sentences about it.

        Raises:
            CheckpointError: the checkpoint is damaged, or is one of another run.
        """
        checkpoint = self._checkpoint
        if checkpoint is None:
            return None, ()
        there = self._world.broadcast(checkpoint.path.exists())
        if not checkpoint.resume:
            if there:
                return None, (
                    "the checkpoint of an interrupted run is here, and will be replaced: --resume"
                    " would have continued it",
                )
            return None, ()
        if not there:
            return None, ("there is no checkpoint to resume from: starting from the beginning",)
        found = read_state(checkpoint.path)
        try:
            identity, surroundings, state = (
                found[key] for key in ("identity", "surroundings", "state")
            )
        except (KeyError, TypeError):
            raise CheckpointError(
                f"{checkpoint.path} is not the checkpoint of a run",
                hint="run without --resume to start anew",
            ) from None
        if differing := differences(identity, self._identity, "the checkpoint", "this run"):
            raise CheckpointError(
                f"{checkpoint.path} is the checkpoint of another run: " + "; ".join(differing),
                hint="repeat the interrupted command and add --resume, or leave --resume out to"
                " start anew: that replaces the checkpoint",
            )
        moved = differences(surroundings, self._surroundings, "before", "now")
        return state, tuple(
            f"continued elsewhere, so not bit for bit as without the interruption: {each}"
            for each in moved
        )

    def keep(self, state: Callable[[], Mapping[str, Any]]) -> str | None:
        """Write a checkpoint if one is due. All processes call this together.

        A disk that is full does not end the run that the checkpoint is there to protect.

        Args:
            state: returns the state of the run; called if one is due.

        Returns:
            a sentence where it could not be written, once.
        """
        checkpoint = self._checkpoint
        if checkpoint is None:
            return None
        due = time.monotonic() - self._written >= checkpoint.every_seconds
        if not self._world.broadcast(due):
            return None
        whole = {
            "identity": dict(self._identity),
            "surroundings": dict(self._surroundings),
            "state": state(),
        }
        told = None
        if self._world.leads:
            try:
                checkpoint.path.parent.mkdir(parents=True, exist_ok=True)
                write_state(checkpoint.path, whole)
            except OSError as error:
                with suppress(OSError):
                    checkpoint.path.parent.rmdir()  # empty, unless an older one is there
                if not self._warned:
                    told = f"no checkpoint could be written ({error.strerror or error}): training"
                    told += " went on without"
                self._warned = True
        self._written = time.monotonic()
        return told


def differences(old: Identity, new: Identity, old_name: str, new_name: str) -> list[str]:
    """Return what differs between two identities, in words."""
    return [
        f"{name} was {old.get(name)!s} in {old_name}, is {new.get(name)!s} in {new_name}"
        if old_name != "before"
        else f"{name} {old.get(name)!s} before, {new.get(name)!s} now"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
