"""What the runtime's code takes in flash: a table, so that no size depends on a compiler here.

``code_bytes.json`` holds, for each core, what the linker kept of the runtime for a network with a
single convolution, and what each further operator and format adds. ``python benchmarks/mcu.py
--code-bytes`` measures it again: a test says when that is due.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from hwprune.firmware.formats import FormatName
from hwprune.firmware.memory_plan import MemoryPlan
from hwprune.firmware.network import (
    Add,
    AveragePool,
    Concat,
    GlobalAveragePool,
    IntegerNetwork,
    MaxPool,
    Reshape,
    Softmax,
)

FLOAT = ", fp32"  # behind a core: of activations in fp32
TABLE = Path(__file__).parent / "code_bytes.json"
# For other releases of the compiler, and padding: of the same sources GCC 13.2 makes, for a
# Cortex-M0, M3, M4F, M7 and M33, from 1.3 % less to 0.8 % more than the GCC 12.2 of the table.
MARGIN = 1 / 32
# Functions of the runtime that networks may do without, by the class of the layer that calls them.
KERNELS = {
    Add: "add", MaxPool: "max_pool", AveragePool: "average_pool", Softmax: "softmax",
    GlobalAveragePool: "global_pool", Reshape: "reshape", Concat: "concat",
}  # fmt: skip


def code_bytes(core: str, plan: MemoryPlan, formats: Iterable[FormatName]) -> int:
    """Return the reserve for code: start-up, runtime, and a main that runs the network once.

    Args:
        core: as profiles name it; one that is not in the table takes the most of all that are.
        plan: of the network.
        formats: that its layers are stored in.
    """
    kernels = {KERNELS[type(each.layer)] for each in plan.layers if type(each.layer) in KERNELS}
    parts = ["base", *sorted(kernels), *(f"decode_{name}" for name in {*formats})]
    parts += ["output"] * (len(plan.network.outputs) - 1)
    rows = _rows(row_of(core, plan.network))
    return max(round(sum(row[part] for part in parts) * (1 + MARGIN)) for row in rows)


def row_of(core: str, network: IntegerNetwork) -> str:
    """Return the name of a row of the table."""
    return core if network.activations == "int8" else core + FLOAT


def part_bytes(core: str, part: str) -> int:
    """Return what one part of the runtime takes on a core, without the margin."""
    return max(row[part] for row in _rows(core))


def _rows(name: str) -> Sequence[Mapping[str, int]]:
    if name in _table():
        return [_table()[name]]
    return [row for key, row in _table().items() if key.endswith(FLOAT) == name.endswith(FLOAT)]


@cache
def _table() -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = json.loads(TABLE.read_text())["bytes"]
    return table
