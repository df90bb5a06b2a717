"""A limit of latency as something to solve for: what layers take by a model, and how much may be.

The model knows shapes, counts and a core's constants, and no clock: masks are the same wherever
they are found. That the limit is met is measured afterwards, as it is without this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hwprune.budget import (
    NetworkTime,
    Prefixes,
    TensorTime,
    TimeLimit,
    fit,
    least_share,
)
from hwprune.encoding import FileCost
from hwprune.errors import InfeasibleError
from hwprune.export.graph import Shape, activation_shapes, name_of, value_in
from hwprune.export.prunable import WeightUse
from hwprune.export.template import Template
from hwprune.ir import Ranking, ValueType
from hwprune.kernels.dense_path import PackedLayer, density_limit
from hwprune.targets import Target
from hwprune.verify.limits import Limit

# The limits that masks can meet: of the speed that kernels give.
_SOLVED = ("latency.p50", "latency.kernels.p50")
# The model is off by some per cent, the measurement too: this part of a limit is planned for.
_PLANNED = 0.9
# Of that, what a plan leaves to weights that move while they train, and to bytes spent again.
_ROOM = 0.98


@dataclass(frozen=True, slots=True)
class _Core:
    """What a core takes, in cycles of one thread.

    Attributes:
        lanes: floats in a vector.
        tile: vectors of outputs that a kernel computes together.
        product: a dense operator's multiply-add of vectors, all around it included.
        weight: for a dense operator to read a weight.
        vector: a nonzero's multiply-add of a vector.
        nonzero: a nonzero, for each tile.
        activation: a vector of input that a kernel copies, or of output that it writes.
        node: calling an operator.
        instructions: the instruction set, as ``kernels`` calls it.
        source: where the numbers are from.
    """

    lanes: int
    tile: int
    product: float
    weight: float
    vector: float
    nonzero: float
    activation: float
    node: float
    instructions: str
    source: str


_X86 = _Core(
    8, 14, 0.95, 0.4, 0.95, 1.5, 2.0, 9000, "avx2", "fitted to benchmarks/results/latency.json"
)


def _arm(dense: float, tile: float) -> _Core:
    """Return a core of which llvm-mca says so many multiply-adds a cycle; the rest is as on x86."""
    source = "inner loops by llvm-mca (docs/kernels.md), all else as on x86"
    return replace(
        _X86, lanes=4, tile=24, product=1 / dense, vector=1 / tile, instructions="neon",
        source=source,
    )  # fmt: skip


# By the beginning of a core's name.
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
    graph, shapes = template.graph, activation_shapes(template.graph)
    tensors, layers = {}, set()
    for tensor in template.prunable:
        uses = [u for u in template.layout.uses[tensor.name] if u.kind != "Weight"]
        layers |= {use.node for use in uses}
        each = [_use(use, tensor.shape, shapes, core) for use in uses]
        tensors[tensor.name] = TensorTime(
            tensor.weights,
            sum(t.fixed for t in each),
            sum(t.each for t in each),
            sum(t.dense for t in each),
            min((t.densest for t in each), default=0.0),
        )
    others = [node for node in graph.nodes if node not in layers]
    written = [_sizes(shapes, name_of(value)) for node in others for value in node.outputs]
    rest = core.activation * sum(_vectors(math.prod(sizes), core) for sizes in written)
    return NetworkTime(tensors, rest, target.clock_hz, f"{target.core}: {core.source}")


def _use(
    use: WeightUse, shape: tuple[int, ...], shapes: Mapping[str, Shape], core: _Core
) -> TensorTime:
    """Return what a layer takes."""
    weights = math.prod(shape)
    given = _sizes(shapes, name_of(value_in(use.node, 0)))
    made = _sizes(shapes, name_of(use.node.outputs[0]))
    convolves = use.kind in ("Conv", "Depthwise", "ConvTranspose")
    over = given if use.kind == "ConvTranspose" else made
    positions = math.prod(over[2:] if convolves else over[:-1])
    vectors = _vectors(positions, core)
    moved = _vectors(math.prod(given), core) * (shape[-1] if convolves else 1)
    moved += _vectors(math.prod(made), core)
    fixed = core.node + core.activation * moved
    each = core.vector * vectors + core.nonzero * math.ceil(vectors / core.tile)
    dense = core.node + weights * (core.product * positions / core.lanes + core.weight)
    if use.kind == "ConvTranspose":  # there is no kernel for it
        return TensorTime(weights, dense, 0.0, dense, 1.0)
    layer = PackedLayer(use.kind, shape, 1.0)
    return TensorTime(weights, fixed, each, dense, density_limit(layer, core.instructions))


def _sizes(shapes: Mapping[str, Shape], name: str) -> list[int]:
    """Return the sizes of an activation of one sample; those that have a name count once."""
    return [size if isinstance(size, int) else 1 for size in shapes.get(name, ())]


def _vectors(floats: int, core: _Core) -> int:
    return math.ceil(floats / core.lanes)


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
    if tightest is None or network.dense <= cycles[tightest]:  # masks never make it slower
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
    cost: FileCost,
    budget_bytes: int,
    value_type: ValueType,
    time: TimeLimit,
    order: Callable[[Mapping[str, float]], Ranking],
) -> dict[str, float]:
    """Return what a connection costs where bytes are used up in time; empty where bytes decide.

    One multiplier for each constraint: a connection is kept where its score is worth its bytes
    times the one and its cycles times the other. The least multiplier of time that does is found by
    bisection; every ranking is cut where it fills the bytes.

    Args:
        cost: of the file.
        budget_bytes: what it may weigh.
        value_type: of its values.
        time: what it may take.
        order: prices -> the ranking by scores over prices.
    """
    most, count = _ROOM * time.most, 0

    def holds(share: float) -> bool:
        prefixes = Prefixes(order(time.network.prices(share) if share else {}))
        return prefixes.cycles(min(count, prefixes.length), time) <= most

    share = 0.0
    for _ in range(2):  # sparser layers have longer positions: the count that fits moves a little
        ranking = order(time.network.prices(share) if share else {})
        count = fit(cost, ranking, budget_bytes, value_type).count
        share = least_share(holds)
        if not share:
            return {}
    return time.network.prices(share)
