"""A limit of latency as something to solve for: what layers take by a model, and how much may be.

The model knows shapes, counts and a core's constants, and no clock: masks are the same wherever
they are found. That the limit is met is measured afterwards, as it is without this.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hwprune.budget import NetworkTime, TensorTime, TimeLimit, least_share
from hwprune.errors import InfeasibleError
from hwprune.export.graph import Shape, activation_shapes, name_of, value_in
from hwprune.export.prunable import WeightUse
from hwprune.export.template import Template
from hwprune.kernels.dense_path import PackedLayer, density_limit
from hwprune.sparsity import at_prices
from hwprune.targets import Target
from hwprune.verify.limits import Limit

# The limits that masks can meet: of the speed that kernels give.
_SOLVED = ("latency.p50", "latency.kernels.p50")
# The model is off by some per cent, the measurement too: this part of a limit is planned for.
_PLANNED = 0.9
# A shorter network is mostly calls, which the model knows too little of: limits are only judged.
_LEAST_CYCLES = 1e6
# Of that, what a plan leaves to weights that move while they train, and to bytes spent again.
_ROOM = 0.98


@dataclass(frozen=True, slots=True)
class _Core:
    """What a core takes, in cycles of one thread.

    Attributes:
        lanes: floats in a vector.
        tile: vectors of outputs that a kernel computes together.
        product: a dense operator's multiply-add of vectors, all around it included.
        alone: the same of a depthwise layer.
        weight: for a dense operator to read a weight.
        vector: a nonzero's multiply-add of a vector.
        nonzero: a nonzero, for each tile.
        row: a row of the weight, for each tile.
        call: calling a kernel.
        dense_call: calling a dense operator, and what lies between two of them.
        element: an element that any other operator writes.
        instructions: the instruction set, as ``kernels`` calls it.
        source: where the numbers are from.
    """

    lanes: int
    tile: int
    product: float
    alone: float
    weight: float
    vector: float
    nonzero: float
    row: float
    call: float
    dense_call: float
    element: float
    instructions: str
    source: str


# Least squares to the 30 medians of the first table of docs/latency.md but for ViT's, as if they
# were from 3.5 GHz: dense networks come out within 2 %, kernels within 16 %.
_X86 = _Core(
    lanes=8, tile=14, product=0.63, alone=3.3, weight=1.27, vector=1.31, nonzero=3.9, row=153,
    call=21_400, dense_call=31_000, element=0.56, instructions="avx2",
    source="a model fitted to one x86-64 core with AVX2",
)  # fmt: skip
# Of a dense multiply-add, the cycles that the fit found over those that AVX2 needs at least; and of
# rows and calls on Arm over those on x86, where ResNet-20's instructions with next to nothing kept
# are 15 % of the dense ones (counted, docs/kernels.md).
_LOSS, _ARM_CALLS = 1.26, 2.7


def _arm(dense: float, tile: float) -> _Core:
    """Return a core of which llvm-mca says so many multiply-adds a cycle."""
    return replace(
        _X86, lanes=4, tile=24, product=_LOSS / dense, vector=_LOSS / tile,
        row=_ARM_CALLS * _X86.row, call=_ARM_CALLS * _X86.call, instructions="neon",
        source="a model of counted instructions and llvm-mca, not of a board",
    )  # fmt: skip


# By the beginning of a core's name; the numbers are those of the table in docs/kernels.md.
_CORES: Mapping[str, _Core] = {
    "Cortex-A53": _arm(0.65, 0.17),
    "Cortex-A57": _arm(0.98, 0.80),
    "Cortex-A72": _arm(0.98, 0.80),
    "Cortex-A78": _arm(1.93, 1.90),
    "Cortex": _arm(1.93, 1.33),
    "aarch64": _arm(1.93, 1.33),
}


def network_time(template: Template, target: Target) -> NetworkTime | None:
    """Return what a network takes on a target; None where no kernels run it."""
    if target.runtime.kind != "onnxruntime" or template.inline:
        return None
    core = next((c for name, c in _CORES.items() if target.core.startswith(name)), _X86)
    shapes, layout = activation_shapes(template.graph), template.layout
    uses = {
        tensor.name: [use for use in layout.uses[tensor.name] if use.kind != "Weight"]
        for tensor in template.prunable
    }

    def others(nodes: Iterable[ir.Node]) -> float:
        written = [_sizes(shapes, value) for node in nodes for value in node.outputs]
        return core.element * sum(math.prod(sizes) for sizes in written)

    tensors, layers = {}, set()
    for tensor in template.prunable:
        each = [_use(use, tensor.shape, shapes, core) for use in uses[tensor.name]]
        parts = {part for use in uses[tensor.name] for part in (use.node, *layout.parts(use))}
        fused = parts - {use.node for use in uses[tensor.name]}
        layers |= parts
        tensors[tensor.name] = TensorTime(
            tensor.weights,
            sum(t.fixed for t in each),
            sum(t.each for t in each),
            sum(t.dense for t in each) + others(fused),
            min((t.densest for t in each), default=0.0),
        )
    rest = others(node for node in template.graph.nodes if node not in layers)
    return NetworkTime(tensors, rest, target.clock_hz, f"{target.core}, {core.source}")


def _use(
    use: WeightUse, shape: tuple[int, ...], shapes: Mapping[str, Shape], core: _Core
) -> TensorTime:
    """Return what a layer takes."""
    weights = math.prod(shape)
    turned = use.kind == "ConvTranspose"
    over = _sizes(shapes, value_in(use.node, 0) if turned else use.node.outputs[0])
    convolves = turned or use.kind in ("Conv", "Depthwise")
    positions = math.prod(over[2:] if convolves else over[:-1])
    vectors = math.ceil(positions / core.lanes)
    tiles = math.ceil(vectors / core.tile)
    product = core.alone if use.kind == "Depthwise" else core.product
    dense = core.dense_call + weights * (product * positions / core.lanes + core.weight)
    if turned:  # there is no kernel for it
        return TensorTime(weights, dense, 0.0, dense, 1.0)
    fixed = core.call + core.row * shape[use.channel_axis] * tiles
    each = core.vector * vectors + core.nonzero * tiles
    densest = density_limit(PackedLayer(use.kind, shape, 1.0), core.instructions)
    return TensorTime(weights, fixed, each, dense, densest)


def _sizes(shapes: Mapping[str, Shape], value: ir.Value) -> list[int]:
    """Return the sizes of an activation of one sample; those that have a name count once."""
    return [size if isinstance(size, int) else 1 for size in shapes.get(name_of(value), ())]


def time_limit(network: NetworkTime, limits: Sequence[Limit]) -> TimeLimit | None:
    """Return what the limits on latency leave of time; None where any masks are fast enough.

    Raises:
        InfeasibleError: the network takes longer with every prunable weight gone.
    """
    cycles = {
        limit: limit.value * (network.dense if limit.relative else network.clock_hz / 1000)
        for limit in planned_limits(limits)
    }
    tightest = min(cycles, key=cycles.__getitem__, default=None)
    # Masks never make it slower.
    if tightest is None or network.dense <= max(cycles[tightest], _LEAST_CYCLES):
        return None
    floor = network.cycles(dict.fromkeys(network.tensors, 0))
    if floor > cycles[tightest]:
        enough = math.ceil(110 * floor / network.dense) / 100
        raise InfeasibleError(
            f"--require {tightest.text} cannot be met: with every prunable weight gone the network "
            f"is predicted to take {shown(network, floor)}, of which "
            f"{floor / network.dense - network.rest / network.dense:.3f}x is for calling its "
            f"{len(network.tensors)} pruned layers and moving their activations, and "
            f"{network.rest / network.dense:.3f}x for what is not pruned ({network.core})",
            hint=f"give latency.p50<={enough:g}x or more, or a network with fewer layers",
        )
    planned = cycles[tightest] * _PLANNED
    return TimeLimit(network, planned if floor <= planned else cycles[tightest], tightest.text)


def planned_limits(limits: Sequence[Limit]) -> list[Limit]:
    """Return the limits that are planned for."""
    return [limit for limit in limits if limit.field in _SOLVED and limit.op in ("<=", "<")]


def shown(network: NetworkTime, cycles: float) -> str:
    """Return a predicted time for people."""
    ms = 1000 * cycles / network.clock_hz
    return f"{cycles / network.dense:.3f}x of the dense network's time ({ms:.3g} ms)"


def solved_prices(
    time: TimeLimit, ascending: Mapping[str, NDArray[np.float32]], count: int
) -> dict[str, float]:
    """Return what a connection costs where so many are fast enough; empty where they are anyway.

    One multiplier for each constraint: a connection is kept where its score is worth its bytes
    times the one and its cycles times the other. Bytes hold about as many connections whichever
    they are; the least multiplier of time that is enough is found by bisection.

    Args:
        time: what the network may take.
        ascending: the scores of each tensor, (n,) and sorted.
        count: how many connections the bytes hold.
    """

    def holds(share: float) -> bool:
        counts = at_prices(ascending, time.network.prices(share), count)
        return time.network.cycles(counts) <= _ROOM * time.most

    share = least_share(holds)
    return time.network.prices(share) if share else {}
