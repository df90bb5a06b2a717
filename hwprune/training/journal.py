"""What a run tells: the trajectory for the report, and signs of life for whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from hwprune.training.result import Event

# Seconds between two signs of life.
_PULSE = 0.5


class Journal:
    """The trajectory, the notes and the clock of a run.

    Args:
        progress: called now and then, None where nobody watches.
        epochs: of the run.
        steps: of the run.
    """

    def __init__(self, progress: Callable[[Event], None] | None, epochs: int, steps: int) -> None:
        """Start the clock."""
        self._progress, self._epochs, self._steps = progress, epochs, steps
        self._started = self._pulse = time.perf_counter()
        self.trajectory: list[dict[str, Any]] = []
        self.notes: list[str] = []

    @property
    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self._started

    @property
    def pulse_due(self) -> bool:
        """Return whether a sign of life is due."""
        return self._progress is not None and time.perf_counter() - self._pulse > _PULSE

    def state(self) -> dict[str, Any]:
        """Return what was recorded, and how long the run has taken."""
        return {"trajectory": self.trajectory, "notes": self.notes, "seconds": self.seconds}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state`` returned: the clock goes on from there."""
        self.trajectory, self.notes = state["trajectory"], state["notes"]
        self._started = time.perf_counter() - state["seconds"]

    def record(self, **point: Any) -> None:
        """Add a point to the trajectory; the time is added here."""
        self.trajectory.append({**point, "seconds": self.seconds})

    def say(
        self,
        epoch: int,
        step: int,
        *,
        loss: float | None = None,
        accuracy: float | None = None,
        message: str = "",
    ) -> None:
        """Give a sign of life: always with a message, otherwise if one is due."""
        if self._progress is None or not (message or self.pulse_due):
            return
        self._pulse = time.perf_counter()
        message = message or f"epoch {epoch} of {self._epochs}"
        self._progress(Event(epoch, step, self._steps, loss, accuracy, message))
