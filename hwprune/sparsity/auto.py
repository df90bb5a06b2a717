"""``--strategy auto``: the strategy that our records have ahead, by sparsity, steps and network.

Every threshold is here, with the record that it was read from.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from hwprune.sparsity.gradual import cubic
from hwprune.sparsity.mask_schedule import Strategy
from hwprune.sparsity.prune_regrow import bidirectional

# benchmarks/results/tuning.json: of cubic's settings on ResNet-20 at 97 %, the budget reached at
# 0.3 of the run, by magnitude, has the best validation accuracy.
PRUNE_UNTIL, SCORE, EVENTS = 0.3, "magnitude", 60
# benchmarks/results/shrink_exchange.json, an MLP and a small CNN, validation: the least sparsity at
# which the mean of shrink is ahead of that, and at which exchanges on top of shrink are ahead of
# shrink with three seeds or more, the interval above zero.
SHRINK_FROM = {"fully connected": 0.99, "convolutional": 0.98}
EXCHANGE_FROM = {"fully connected": 0.995, "convolutional": 0.98}
# That record has no run of fewer steps.
LEAST_STEPS = 1248


def auto(density: float, *, steps: int = 0, convolutional: bool = True) -> Strategy:
    """Return the strategy to take: cubic pruning, with shrink, or with shrink and exchanges.

    Args:
        density: the density the plan expects at the full budget.
        steps: optimiser steps of the run; 0 where that is not known: enough.
        convolutional: whether the network has weights of more than two dimensions.
    """
    kind = "convolutional" if convolutional else "fully connected"
    sparsity = 1 - density
    at = f"at {100 * sparsity:.1f} % sparsity"
    events = min(EVENTS, max(1, int(PRUNE_UNTIL * steps))) if steps else EVENTS
    down = partial(cubic, density, until=PRUNE_UNTIL, steps=events, start=0.5, score=SCORE)
    if 0 < steps < LEAST_STEPS:
        why = f"{steps:,} steps are fewer than any record of shrink has ({LEAST_STEPS:,})"
        return _because(down(), "cubic pruning", why)
    if sparsity >= EXCHANGE_FROM[kind]:
        chosen = bidirectional(density, prune_until=PRUNE_UNTIL, prune_steps=events, score=SCORE)
        why = f"{at} exchanges were ahead on a {kind} network"
        return _because(chosen, "cubic pruning with shrink, then exchanges", why)
    if sparsity >= SHRINK_FROM[kind]:
        why = f"{at} it was ahead on a {kind} network"
        return _because(down(shrink=1.0), "cubic pruning with shrink", why)
    why = f"{at} no record has anything ahead of it on a {kind} network"
    return _because(down(), "cubic pruning", why)


def _because(strategy: Strategy, what: str, why: str) -> Strategy:
    note = f"--strategy auto takes {what} ({strategy.name}): {why} (docs/strategies.md)"
    return replace(strategy, notes=(note,))
