"""Which connections live. NumPy only; knows neither ONNX nor bytes.

Which stay (scores), which return (rules), how many per layer (allocation), when (schedules), and in
what course: events and strategies (course) are composed of pieces into strategies that approach the
budget from above (oneway), also from below (bothways), or leave it in cycles (east). Orders of
connections are exact and bounded in memory (ranking, selecting).
"""

from __future__ import annotations

from hwprune.sparsity.allocation import (
    ALLOCATIONS,
    GROWTHS,
    erk,
    global_,
    growth,
    rank_allocated,
)
from hwprune.sparsity.bothways import (
    bidirectional,
    bidirectional_iterative,
    bidirectional_one_shot,
)
from hwprune.sparsity.course import (
    Event,
    Fill,
    Initial,
    Phasing,
    Strategy,
)
from hwprune.sparsity.east import east
from hwprune.sparsity.masks import (
    Change,
    Repair,
    champions,
    compare,
    densities,
    masks_equal,
    repair_empty,
)
from hwprune.sparsity.oneway import cubic, dense, iterative, one_shot, rigl, set_
from hwprune.sparsity.ranking import followed_by, rank, rank_dead, rank_living, rank_weights
from hwprune.sparsity.rules import NEEDS_GRADIENT, RULES, Evidence
from hwprune.sparsity.scores import SCORES, lamp, magnitude
from hwprune.sparsity.selecting import select, select_living
from hwprune.sparsity.strategies import STRATEGIES, check_options, make, options_of, refuse_removed
from hwprune.sparsity.streaming import Streamed

__all__ = [
    "ALLOCATIONS",
    "GROWTHS",
    "NEEDS_GRADIENT",
    "RULES",
    "SCORES",
    "STRATEGIES",
    "Change",
    "Event",
    "Evidence",
    "Fill",
    "Initial",
    "Phasing",
    "Repair",
    "Strategy",
    "Streamed",
    "bidirectional",
    "bidirectional_iterative",
    "bidirectional_one_shot",
    "champions",
    "check_options",
    "compare",
    "cubic",
    "dense",
    "densities",
    "east",
    "erk",
    "followed_by",
    "global_",
    "growth",
    "iterative",
    "lamp",
    "magnitude",
    "make",
    "masks_equal",
    "one_shot",
    "options_of",
    "rank",
    "rank_allocated",
    "rank_dead",
    "rank_living",
    "rank_weights",
    "refuse_removed",
    "repair_empty",
    "rigl",
    "select",
    "select_living",
    "set_",
]
