"""Cycles of a run, estimated from counted instructions and what a core's manual says of each class.

Not measured: the tables are for memory without wait states and say ranges, and a chip's flash may
be slower. Arm publishes them for these cores only:

    Cortex-M0    Technical Reference Manual DDI 0432C, table 3-1
    Cortex-M0+   DDI 0484C, table 3-1
    Cortex-M3    DDI 0337I, table 3.1
    Cortex-M4    100166_0001, table 3-1, and table 7-1 for its floating-point unit

Of Cortex-M7, M33, M55 and M85 there are none, and RISC-V says nothing of time.
"""

from __future__ import annotations

from collections.abc import Mapping

# What the plugin counts, in its order: of all instructions some are of one of these classes. `word`
# is each register that a load or store of several moves beyond its first; `taken` are branches.
CLASSES = (
    "all", "load", "store", "word", "multiply", "accumulate", "long", "divide", "taken",
)  # fmt: skip
Range = tuple[int, int]

# Cycles beyond the one that every instruction takes: the fewest and the most.
_M4: dict[str, Range] = {
    "load": (0, 1),  # a load beside another one takes one cycle
    "store": (0, 1),
    "word": (1, 1),
    "divide": (1, 11),
    "taken": (1, 3),  # the pipeline is filled again
}
_M0: dict[str, Range] = {"load": (1, 1), "store": (1, 1), "word": (1, 1)}
EXTRA: dict[str, dict[str, Range]] = {
    # Of chips with the small multiplier a product takes 32 cycles: that is not in the range.
    "Cortex-M0": _M0 | {"taken": (2, 3)},
    "Cortex-M0+": _M0 | {"taken": (1, 2)},
    "Cortex-M3": _M4 | {"accumulate": (1, 1), "long": (2, 6)},
    "Cortex-M4": _M4,
    "Cortex-M4F": _M4,
}


def estimated(core: str, counts: Mapping[str, int]) -> Range | None:
    """Return the fewest and the most cycles of a run, or None where there are none to be known.

    Args:
        core: as profiles name it.
        counts: of the run, by the names of ``CLASSES``; empty where they were not counted.
    """
    extra = EXTRA.get(core)
    if extra is None or not counts:
        return None
    low, high = (
        counts["all"] + sum(counts[name] * cycles[end] for name, cycles in extra.items())
        for end in (0, 1)
    )
    return low, high
