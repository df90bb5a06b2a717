"""A course of stages, as the seed paper draws them: a sparsity, a whole retraining, the next one.

Each stage has a learning-rate schedule of its own, of the recipe's epochs, so that what a state
costs is the number of stages up to it. A stage that is sparser than the one before prunes (LAMP), a
denser one regrows, an equal one is trained once more: that is how one-way pruning is made to cost
what a trajectory of regrowth has cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Of what one round removes from what is left: LAMP's schedule, and the paper's.
REMOVED = 0.2


def rounds(count: int) -> list[float]:
    """Return the sparsities of iterative pruning after 1 to ``count`` rounds."""
    return [round(1 - (1 - REMOVED) ** number, 6) for number in range(1, count + 1)]


def course(
    stages: Sequence[float], *, regrow_score: str = "gradient", initial: Any = "zero"
) -> Any:
    """Return the strategy that goes through the stages.

    Args:
        stages: sparsities, at least one, the first above 0.
        regrow_score: what ranks dead connections where a stage is denser than the one before.
        initial: the value that a regrown connection starts from.
    """
    from hwprune.sparsity import MaskEvent, Strategy

    densities = [1 - sparsity for sparsity in stages]
    events = []
    before = 1.0
    for number, density in enumerate(densities):
        if density != before:
            grows = density > before
            stays = all(later == density for later in densities[number:])
            events.append(
                MaskEvent(
                    number / len(densities),
                    "regrow" if grows else "prune",
                    density=None if stays else density,
                    budget_fraction=1.0 if stays else None,
                    score=regrow_score if grows else "lamp",
                    initial=initial if grows else "zero",
                )
            )
        before = density
    restarts = tuple(number / len(densities) for number in range(1, len(densities)))
    return Strategy("staged", tuple(events), densities[-1], restarts)


def points(
    trajectory: Sequence[Mapping[str, Any]], weights: int, accuracy: float, validation: float
) -> list[dict[str, Any]]:
    """Return what each stage ended with, the last one from its final measurement.

    Args:
        trajectory: of a run along ``course``, observed.
        weights: the prunable weights.
        accuracy: of the final network, on the test images.
        validation: the same on the validation split.
    """
    trained = [point for point in trajectory if point["action"] == "train"]
    ends = [point for point in trained if "observed" in point]
    found = [
        {
            "epochs": point["epoch"],
            "nonzeros": point["nonzeros"],
            "sparsity": round(1 - point["nonzeros"] / weights, 6),
            "accuracy": point["observed"],
            "validation_accuracy": point["metric"],
        }
        for point in ends
    ]
    last = trained[-1]
    found.append(
        {
            "epochs": last["epoch"],
            "nonzeros": last["nonzeros"],
            "sparsity": round(1 - last["nonzeros"] / weights, 6),
            "accuracy": accuracy,
            "validation_accuracy": validation,
        }
    )
    return found


def seen_at(row: Any, sparsity: float) -> dict[str, Any] | None:
    """Return the last stage of a row at a sparsity, None where it has none."""
    near = [
        point
        for point in (row.model_extra or {})["stages"]
        if abs(point["sparsity"] - sparsity) < 5e-4
    ]
    return near[-1] if near else None
