"""``--strategy auto``: the strategy that our records have ahead, by sparsity, steps and network.

Every threshold is here, with the record that it was read from.
"""

from __future__ import annotations

from dataclasses import replace

from hwprune.sparsity.gradual import cubic
from hwprune.sparsity.mask_schedule import Strategy
from hwprune.sparsity.prune_regrow import bidirectional

# benchmarks/results/tuning.json: of cubic's settings on ResNet-20 at 97 %, the budget reached at
# 0.3 of the run, by magnitude, has the best validation accuracy.
PRUNE_UNTIL, SCORE, EVENTS = 0.3, "magnitude", 60
# benchmarks/results/shrink_exchange.json, an MLP and a small CNN: the least sparsity from which, on
# validation with three seeds or more, shrink is ahead of that, and exchanges are ahead of shrink,
# of that and of cubic's own settings, all with 95 % intervals above zero.
EXCHANGE_FROM = {"fully connected": 0.995, "convolutional": 0.98}
# That record has no run of fewer steps. In it, from these sparsities on, cubic is better with its
# own settings (by LAMP, until 0.6) than by magnitude, in the mean.
LEAST_STEPS = 1248


def auto(density: float, *, steps: int = 0, convolutional: bool = True) -> Strategy:
    """Return the strategy to take: cubic pruning, or with shrink and exchanges after it.

    Args:
        density: the density the plan expects at the full budget.
        steps: optimiser steps of the run; 0 where that is not known: enough.
        convolutional: whether the network has weights of more than two dimensions.
    """
    kind = "convolutional" if convolutional else "fully connected"
    # The note names the boundary, not this plan's sparsity: plans on one side of it say the same.
    boundary = f"{100 * EXCHANGE_FROM[kind]:g} % sparsity"
    events = min(EVENTS, max(1, int(PRUNE_UNTIL * steps))) if steps else EVENTS
    if 1 - density < EXCHANGE_FROM[kind]:
        chosen = cubic(density, until=PRUNE_UNTIL, steps=events, start=0.5, score=SCORE)
        why = f"below {boundary} no record has anything ahead of it on a {kind} network"
        return _because(chosen, "cubic pruning", why)
    if 0 < steps < LEAST_STEPS:
        why = f"{steps:,} steps are fewer than any record of exchanges has ({LEAST_STEPS:,})"
        return _because(cubic(density, steps=events), "cubic pruning", why)
    chosen = bidirectional(density, prune_until=PRUNE_UNTIL, prune_steps=events, score=SCORE)
    why = f"from {boundary} on it was ahead on a {kind} network"
    return _because(chosen, "cubic pruning with shrink, then exchanges", why)


def _because(strategy: Strategy, what: str, why: str) -> Strategy:
    note = f"--strategy auto takes {what} ({strategy.name}): {why} (docs/strategies.md)"
    return replace(strategy, notes=(note,))
