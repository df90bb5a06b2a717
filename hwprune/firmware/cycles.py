"""Cycles of a run, estimated from counted instructions and what a core's manual says of each class.

Not measured: the tables are for memory without wait states and say ranges, and a chip's flash may
be slower. Arm publishes them for these cores only:

    Cortex-M0    Technical Reference Manual DDI 0432C, table 3-1
    Cortex-M0+   DDI 0484C, table 3-1
    Cortex-M3    DDI 0337I, table 3.1
    Cortex-M4    100166_0001, table 3-1, and table 7-1 for its floating-point unit

Of Cortex-M7, M33, M55 and M85 there are none: their reference manuals do not time instructions.
RISC-V says nothing of time either. ``no_table`` is the sentence for people.
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


# Instructions of a core for one of a Cortex-M4, and cycles for one of its own where it has a table:
# the mean, the least and the most of MLPerf Tiny's networks with 90 % zeros (benchmarks/mcu.py).
_ARMV6M, _DSP, _HELIUM, _RV32 = 2.1, 1.0, 0.75, 1.75
PER_M4: dict[str, float] = {
    "Cortex-M0": _ARMV6M, "Cortex-M0+": _ARMV6M, "Cortex-M3": 1.1, "Cortex-M4": _DSP,
    "Cortex-M4F": _DSP, "Cortex-M7": _DSP, "Cortex-M33": _DSP, "Cortex-M55": _HELIUM,
    "Cortex-M85": _HELIUM, "RV32IMC": _RV32, "RV32IMAC": _RV32,
}  # fmt: skip
PER_INSTRUCTION: dict[str, tuple[float, float]] = {
    "Cortex-M0": (1.38, 1.5), "Cortex-M0+": (1.25, 1.5), "Cortex-M3": (1.21, 1.98),
    "Cortex-M4": (1.07, 1.6), "Cortex-M4F": (1.07, 1.6),
}  # fmt: skip


def projected(core: str, instructions: float) -> tuple[int | None, Range | None]:
    """Return instructions and cycles of a run before there is an image; None where unknown.

    Args:
        core: as profiles name it.
        instructions: what a memory plan projects for a Cortex-M4.
    """
    if core not in PER_M4:
        return None, None
    here = instructions * PER_M4[core]
    ratio = PER_INSTRUCTION.get(core)
    return round(here), None if ratio is None else (round(here * ratio[0]), round(here * ratio[1]))


def no_table(core: str) -> str | None:
    """Return a sentence on why a core's cycles are not estimated; None where they are."""
    if core in EXTRA:
        return None
    whose = "RISC-V" if core.startswith("RV") else "the manual of this core"
    return f"cycles: not estimated for {core}, as {whose} has no table of them"


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
