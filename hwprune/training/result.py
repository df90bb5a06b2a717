"""What fine-tuning reports: while it runs (Progress, Journal) and when it is done (TrainResult)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hwprune.ir import Masks

# Seconds between two signs of life.
_PULSE = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """One sign of life, for a progress bar.

    Attributes:
        epoch: the epoch in progress, from 1; 0 before the first.
        step: optimiser steps done.
        of: optimiser steps in all.
        loss: mean training loss of this epoch so far, None before the first step.
        metric: on validation, where it was just measured.
        message: a short line for people.
        masks: what lives, at the end of an epoch.
    """

    epoch: int
    step: int
    of: int
    loss: float | None
    metric: float | None
    message: str
    masks: Masks | None = None


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came of it; the weights are in the module that was trained, in place.

    Attributes:
        masks: the final masks; every weight outside them is exactly zero.
        trajectory: one dict per change of the masks and per epoch: epoch, step, action (``prune``,
            ``regrow``, ``train``, or ``average`` of several solutions), nonzeros, density,
            metric, loss, lr, seconds (since the start). What was not measured at that point is
            None. Where the caller observes, the ends of rounds have ``observed`` too.
        epochs: epochs spent.
        cost_epochs: what they cost, in epochs of one forward and backward pass a sample.
        steps: optimiser steps taken.
        seconds: wall time, evaluation included.
        metric: the name of the task's metric; without labels ``agreement`` with the dense model,
            or ``fidelity`` to its outputs.
        dense_metric: the metric before anything was pruned, on the validation split.
        extreme_metric: the metric in the state with the fewest connections, just before it is
            regrown; None where nothing is regrown.
        extreme_nonzeros: how many connections lived then.
        final_metric: the metric of the weights that are returned, on the validation split.
        rows: what the metric was last taken of, None where a run went on after its last epoch.
        best_epoch: the epoch (from 1) whose weights are returned; None without training.
        precision: ``fp32`` or ``bf16``.
        notes: sentences for the report.
    """

    masks: Masks
    trajectory: tuple[dict[str, Any], ...]
    epochs: int
    cost_epochs: float
    steps: int
    seconds: float
    metric: str
    dense_metric: float
    extreme_metric: float | None
    extreme_nonzeros: int | None
    final_metric: float
    rows: Any
    best_epoch: int | None
    precision: Literal["fp32", "bf16"]
    notes: tuple[str, ...] = ()


class Journal:
    """The trajectory, the notes and the clock of a run.

    Args:
        progress: called now and then, None where nobody watches.
        epochs: of the run.
        steps: of the run.
    """

    def __init__(
        self, progress: Callable[[Progress], None] | None, epochs: int, steps: int
    ) -> None:
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

    def state_dict(self) -> dict[str, Any]:
        """Return what was recorded, and how long the run has taken."""
        return {"trajectory": self.trajectory, "notes": self.notes, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned: the clock goes on from there."""
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
        metric: float | None = None,
        message: str = "",
        masks: Masks | None = None,
    ) -> None:
        """Give a sign of life: always with a message, otherwise if one is due."""
        if self._progress is None or not (message or self.pulse_due):
            return
        self._pulse = time.perf_counter()
        message = message or f"epoch {epoch} of {self._epochs}"
        self._progress(Progress(epoch, step, self._steps, loss, metric, message, masks))
