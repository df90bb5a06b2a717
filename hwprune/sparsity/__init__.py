"""Which connections live. NumPy only; knows neither ONNX nor bytes.

Four questions are four files: which (scores), how much per layer (allocation), when (schedules),
and in what course (strategies).
"""

from __future__ import annotations

from hwprune.sparsity.allocation import ALLOCATIONS, erk, global_, rank_allocated, uniform
from hwprune.sparsity.masks import (
    Change,
    Repair,
    champions,
    compare,
    densities,
    masks_equal,
    repair_empty,
)
from hwprune.sparsity.ranking import followed_by, rank, rank_weights
from hwprune.sparsity.scores import NEEDS_GRADIENT, SCORES, gradient, lamp, magnitude, taylor
from hwprune.sparsity.strategies import (
    STRATEGIES,
    Event,
    Fill,
    Initial,
    Strategy,
    bidirectional,
    cubic,
    cyclic,
    dense,
    iterative,
    make,
    one_shot,
)

__all__ = [
    "ALLOCATIONS",
    "NEEDS_GRADIENT",
    "SCORES",
    "STRATEGIES",
    "Change",
    "Event",
    "Fill",
    "Initial",
    "Repair",
    "Strategy",
    "bidirectional",
    "champions",
    "compare",
    "cubic",
    "cyclic",
    "dense",
    "densities",
    "erk",
    "followed_by",
    "global_",
    "gradient",
    "iterative",
    "lamp",
    "magnitude",
    "make",
    "masks_equal",
    "one_shot",
    "rank",
    "rank_allocated",
    "rank_weights",
    "repair_empty",
    "taylor",
    "uniform",
]
