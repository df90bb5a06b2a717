"""Which connections are kept. NumPy only; knows neither ONNX nor bytes.

Which stay (scores), which return (growth_scores), how many per layer (allocation), when (schedules,
mask_schedule); from events (event_builders) strategies are put together that approach the budget
from above (gradual), go below it and back (prune_regrow), or leave it in cycles (east). One
selection of the best (topk_masks) serves them all.
"""

from __future__ import annotations

from hwprune.sparsity.allocation import ALLOCATIONS, GROWTH_ALLOCATIONS, at_prices, growth
from hwprune.sparsity.growth_scores import (
    GROWTH_SCORES,
    NEEDS_GRADIENT,
    NEEDS_MOMENTS,
    Evidence,
)
from hwprune.sparsity.mask_schedule import Fill, Initial, MaskEvent, Phasing, Strategy
from hwprune.sparsity.scores import SCORES, lamp, magnitude
from hwprune.sparsity.strategies import (
    STRATEGIES,
    check_options,
    make,
    options_of,
    refuse_removed,
)
from hwprune.sparsity.topk_masks import (
    LazyScores,
    followed_by,
    full,
    masks_equal,
    priced,
    rank,
    rank_allocated,
    rank_weights,
    select,
)

__all__ = [
    "ALLOCATIONS",
    "GROWTH_ALLOCATIONS",
    "GROWTH_SCORES",
    "NEEDS_GRADIENT",
    "NEEDS_MOMENTS",
    "SCORES",
    "STRATEGIES",
    "Evidence",
    "Fill",
    "Initial",
    "LazyScores",
    "MaskEvent",
    "Phasing",
    "Strategy",
    "at_prices",
    "check_options",
    "followed_by",
    "full",
    "growth",
    "lamp",
    "magnitude",
    "make",
    "masks_equal",
    "options_of",
    "priced",
    "rank",
    "rank_allocated",
    "rank_weights",
    "refuse_removed",
    "select",
]
