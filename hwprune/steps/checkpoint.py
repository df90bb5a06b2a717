"""What a run keeps beside the artifact: its network, and until it ends the state of its training.

The network, pruned weights exactly zero, and its masks are published with the artifact, so that
neither is lost with the run. The state of the training lies in the output folder too, outside the
staging that a later run cleans, and under the same lock: ``<output>/.resume/run.safetensors``. It
survives a kill, Ctrl-C and errors, until a result is published (or rejected).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hwprune.errors import OutputError, UsageError
from hwprune.ir import Masks, Plan
from hwprune.job import Job
from hwprune.steps.time_limit import planned_limits
from hwprune.training import Checkpoint

WEIGHTS_NAME, MASKS_NAME = "weights.safetensors", "masks.safetensors"
STATE_NAME = Path(".resume") / "run.safetensors"


def save_checkpoint(module: Any, masks: Masks | None, folder: Path) -> None:
    """Write the module's state (pruned weights exactly zero) and the masks as safetensors.

    Args:
        module: the network after packing.
        masks: what lives; None where nothing was pruned.
        folder: is made here; weights.safetensors, masks.safetensors (uint8, 0 or 1).

    Raises:
        OutputError: the folder cannot be written.
    """
    import safetensors.numpy
    import safetensors.torch

    try:
        folder.mkdir()
        # save_model stores a tied tensor once, under its first name.
        safetensors.torch.save_model(module, str(folder / WEIGHTS_NAME))
        if masks is not None:
            arrays = {name: masks[name].astype(np.uint8) for name in masks}
            safetensors.numpy.save_file(arrays, str(folder / MASKS_NAME))
    except (OSError, safetensors.SafetensorError) as error:
        raise OutputError(
            f"{folder} cannot be written: {error}", hint="check permissions and free space"
        ) from None


def training_state(job: Job, plan: Plan) -> Checkpoint:
    """Return where the state of a training is kept, with what decides its masks."""
    identity: dict[str, str | int | float | bool | None] = {
        "the target": job.target.name,
        "the form": "inlined" if job.target.runtime.inline_functions else "functions",
        "the budget in bytes": plan.budget_bytes,
        "values": plan.value_type,
        "what fits": plan.max_nonzeros,
        "the floor in bytes": plan.floor_bytes,
        "the dense file in bytes": plan.dense_bytes,
        "limits on latency": ", ".join(limit.text for limit in planned_limits(job.limits)) or None,
    }
    return Checkpoint(job.output / STATE_NAME, job.resume, job.checkpoint_seconds, identity)


def refuse_unfinished(output: Path) -> None:
    """Refuse to start anew where an interrupted run would be lost.

    Raises:
        UsageError: there is the state of one.
    """
    if (output / STATE_NAME).exists():
        raise UsageError(
            f"{output} holds the checkpoint of a run that was interrupted",
            hint="add --resume to go on from it, or --restart to start anew",
        )


def discard_training_state(output: Path) -> None:
    """Remove the state of a training that is finished."""
    Checkpoint(output / STATE_NAME).discard()
