"""What extreme sparsity hands to the loop of ``training``, which knows nothing of it."""

from __future__ import annotations

from hwprune.extreme.dyrelu import Phased
from hwprune.extreme.reachability import Reachability
from hwprune.training.hooks import Hook, Stage


def extreme_hooks(stage: Stage) -> dict[str, Hook]:
    """Return the hooks of a run: DyReLU where its strategy phases it out, and reachability."""
    phased = Phased(stage)
    paths = Reachability(stage.module, stage.sparse, stage.inputs, phased.plain)
    return {"dyrelu": phased, "reachability": paths}
