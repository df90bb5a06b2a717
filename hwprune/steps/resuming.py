"""Where a compilation keeps the state of its training, and what says that it is the same one.

The checkpoint lies in the output folder, outside the staging that a later run cleans, and under the
same lock: ``<output>/.resume/run.safetensors``. It survives a kill, Ctrl-C and errors; publishing
the result (or a rejected one) removes it. The artifact of an earlier run beside it stays as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hwprune.ir import Plan
from hwprune.steps.planning import Prepared

if TYPE_CHECKING:
    from hwprune.training import Checkpoint

NAME = Path(".resume") / "run.safetensors"


def checkpoint_of(
    output: Path, prepared: Prepared, plan: Plan, *, resume: bool, every_seconds: float
) -> Checkpoint:
    """Return where the training of a compilation is kept, with all that decides its masks.

    Args:
        output: the output folder.
        prepared: the model and the target.
        plan: what the file is planned as.
        resume: continue from there.
        every_seconds: the least time between two checkpoints.
    """
    from hwprune.training import Checkpoint

    identity: dict[str, str | int | float | bool | None] = {
        "the target": prepared.target.name,
        "the budget in bytes": prepared.budget_bytes,
        "values": plan.value_type,
        "what fits": plan.max_nonzeros,
        "the floor in bytes": plan.floor_bytes,
        "the dense file in bytes": prepared.dense_bytes,
    }
    return Checkpoint(output / NAME, resume, every_seconds, identity)


def discard_checkpoint(output: Path) -> None:
    """Remove the checkpoint of a compilation that is finished."""
    from hwprune.training import Checkpoint

    Checkpoint(output / NAME).discard()
