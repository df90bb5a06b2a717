"""The state of a run as one tree of values: taken between two epochs, given back to a new run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hwprune.ir import Masks
from hwprune.training.modes import global_generators, set_global_generators

if TYPE_CHECKING:
    from hwprune.training.finetune import Run


def capture(run: Run) -> dict[str, Any]:
    """Return all that ``restore`` needs to go on from here to the bit; nothing is copied.

    What a run is made with (the pretrained values, the teacher, the events) is not a part of it: a
    new run is made with the same. Several processes call this together.
    """
    return {
        "module": run.setting.module.state_dict(),
        "masks": dict(run.sparse.masks.by_name),
        "stepper": run.stepper.state(),
        "journal": run.journal.state(),
        "features": {name: feature.state() for name, feature in run.features.items()},
        "generators": [run.generator.get_state(), run.probe.get_state()],
        # Dropout: every process draws for its own samples.
        "global generators": run.setting.world.gather(global_generators(run.setting.device)),
        "progress": [run.step, run.epoch, run.changed_at, len(run.pending)],
        "accuracies": [run.dense_accuracy, run.accuracy],
        "extreme": run.extreme,
        "best": run.best,
    }


def restore(run: Run, state: Mapping[str, Any]) -> None:
    """Take back what ``capture`` returned, in a run that was made alike and has not begun."""
    setting, rank = run.setting, run.setting.world.rank
    # The masks first: features ask for them.
    run.sparse.set_masks(Masks(state["masks"]), None)
    # What had left the network by then is in none of the states.
    run.phased.at(state["progress"][0] - 1, run.stepper.optimizer)
    setting.module.load_state_dict(state["module"])
    run.stepper.load(state["stepper"])
    run.journal.load(state["journal"])
    for name, feature in run.features.items():
        feature.load(state["features"][name])
    for generator, saved in zip((run.generator, run.probe), state["generators"], strict=True):
        generator.set_state(saved)
    if rank < len(state["global generators"]):
        set_global_generators(state["global generators"][rank], setting.device)
    run.step, run.epoch, run.changed_at, pending = state["progress"]
    run.stepper.values.at(run.step - 1)  # as after the last step that was taken
    run.pending = run.pending[len(run.pending) - pending :]
    run.dense_accuracy, run.accuracy = state["accuracies"]
    run.extreme, run.best = state["extreme"], state["best"]
