"""Which packed layers are too dense to gain from a kernel, and the model with these dense.

The file stays as it is: what changes is the model that a session is made of, in memory. A layer
that goes over is held dense by onnxruntime, and its packed arrays are not held at all.

The rule knows a layer's weight, how much of it is stored, and how many threads a run has; nothing
of activations, of the clock or of what a run before took: a file has the same layers dense wherever
the same instruction set and as many threads are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hwprune.kernels import library
from hwprune.kernels.model_file import DOMAIN, ModelFile, Node

_KINDS = ("Conv", "Depthwise", "Gemm", "Linear", "MatMul")
# Larger weights than these are held by no second-level cache.
_CACHED_WEIGHTS = 1 << 18
# A product of fewer rows only reads each weight once, where it is dense; with fewer weights than
# these, calling the kernel takes longer than that.
_FEW_ROWS, _FEW_WEIGHTS = 16, 1 << 15


class _Limits(NamedTuple):
    """Up to which share of its weights a layer runs a kernel.

    Of convolutions with several taps and with one, each with a weight that a second-level cache
    holds and with a larger one; of products with many rows and with few. Memory sets no lower
    limit: a stored weight takes 6 bytes in a kernel, 8 in a very wide row, and 4 if all are.
    """

    wide: tuple[float, float]
    pointwise: tuple[float, float]
    rows: float
    row: float


# Below what was measured to be as fast as onnxruntime's dense operator: kernels and onnxruntime
# gain alike from AVX2 and AVX-512 (benchmarks/dense_or_sparse.py, see docs/kernels.md).
_X86 = _Limits((0.5, 0.35), (0.4, 0.3), 0.3, 0.1)
# Where kernels execute half of the instructions that the dense operator does: these were counted
# under emulation, no board was timed (benchmarks/arm_counts.py).
_NEON = _Limits((0.22, 0.18), (0.16, 0.16), 0.22, 0.02)
# Plain C++ computes one weight at a time, where onnxruntime still has vectors.
_PLAIN = _Limits((0.06, 0.04), (0.05, 0.03), 0.03, 0.01)
_BY_INSTRUCTIONS = {"avx512": _X86, "avx2": _X86, "neon": _NEON}
# With several threads onnxruntime divides each dense layer. A kernel divides what takes it 100
# microseconds and more (src/ort_calls.cpp) and loses some of that; most filters with few weights
# take less, and have one thread. So limits fall with the threads, by a part for each; no
# further than a quarter, since dense layers that are so short divide badly, too.
_FEW_FILTER_WEIGHTS, _FEW_BY_THREADS, _BY_THREADS, _LEAST_BY_THREADS = 1 << 16, 1.0, 1.5, 0.25
# A model is not rewritten, with its weights decoded, for layers that hold less than this of what a
# file stores.
LEAST_PART = 0.1


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """A packed layer that there is a kernel for.

    Attributes:
        kind: Conv, Depthwise, Gemm, Linear or MatMul.
        shape: of its weight, as ONNX's operator has it.
        density: the share of its weights that is stored.
        batch: samples in a run.
        threads: of a run.
    """

    kind: str
    shape: tuple[int, ...]
    density: float
    batch: int = 1
    threads: int = 1

    @property
    def weights(self) -> int:
        """Return the elements of the dense weight."""
        return math.prod(self.shape)

    @property
    def follows(self) -> bool:
        """Return whether the layers around it decide.

        Convolutions of onnxruntime keep activations in blocks of channels. To leave a kernel for
        one of these, and to come back, takes as long as a convolution of few products.
        """
        if self.kind == "Depthwise":
            return self.shape[2:] == (3, 3)  # others have no kernel of their own
        return self.kind == "Conv" and self.shape[1] < 8 and math.prod(self.shape[1:]) <= 32


@dataclass(frozen=True, slots=True)
class DenseFallback:
    """What goes over to onnxruntime's operators.

    Attributes:
        model: of the session, serialised.
        layers: names of their nodes.
        operators: those that no node of the model has any more.
        weight_bytes: of the decoded weights and biases.
    """

    model: bytes
    layers: tuple[str, ...]
    operators: set[str]
    weight_bytes: int


def density_limit(layer: PackedLayer, instructions: str | None = None) -> float:
    """Return the share of its weights up to which a layer runs its kernel.

    Args:
        layer: the layer.
        instructions: the instruction set; this processor's without.
    """
    limits = _BY_INSTRUCTIONS.get(instructions or library.instruction_set(), _PLAIN)
    if layer.follows:
        return 0.0 if limits is _PLAIN else 1.0
    if layer.kind == "Depthwise":
        return 0.0
    wide = layer.kind == "Conv" and math.prod(layer.shape[2:]) > 1
    share = 1.0
    if layer.threads > 1:
        few = wide and layer.weights < _FEW_FILTER_WEIGHTS
        part = _FEW_BY_THREADS if few else _BY_THREADS
        share = max(part / layer.threads, _LEAST_BY_THREADS)
    if layer.kind == "Conv":
        # Many samples share what is read of a weight; with one tap that was not measured.
        shared = wide and layer.batch >= _FEW_ROWS
        large = layer.weights > _CACHED_WEIGHTS and not shared
        return share * (limits.wide if wide else limits.pointwise)[large]
    if layer.kind == "Gemm" and layer.batch < _FEW_ROWS:
        return share * limits.row * (layer.weights >= _FEW_WEIGHTS)
    return share * limits.rows


def too_dense(layers: Sequence[PackedLayer]) -> set[int]:
    """Return which of a network's layers, in the order in which they run, are onnxruntime's."""
    dense = {i for i, layer in enumerate(layers) if layer.density > density_limit(layer)}
    stored = [layer.density * layer.weights for layer in layers]
    if sum(stored[i] for i in dense) < LEAST_PART * sum(stored):
        return set()
    for way in (range(len(layers)), reversed(range(len(layers)))):
        beside_dense = False
        for i in way:
            if not layers[i].follows:
                beside_dense = i in dense
            elif beside_dense:
                dense.add(i)
    return dense


def dense_fallback(
    model: ModelFile,
    operators: Collection[str],
    inputs: Mapping[str, Sequence[int]],
    threads: int = 1,
) -> DenseFallback | None:
    """Return what is better left to onnxruntime; None where nothing is.

    Args:
        model: of the file.
        operators: those that have kernels.
        inputs: shapes of the model's inputs, of which the first axis counts samples; 1 by default.
        threads: of a run.
    """
    batch = max((shape[0] for shape in inputs.values() if len(shape)), default=1)
    packed = [
        i for i, n in enumerate(model.nodes) if n.domain == DOMAIN and n.operator in operators
    ]
    try:
        chosen = too_dense([_layer(model, model.nodes[place], batch, threads) for place in packed])
        places = {packed[i] for i in chosen}
        data, weight_bytes = model.densified(places) if places else (b"", 0)
    # What is wrong with a file is said by onnxruntime and the kernels.
    except (ValueError, LookupError, ArithmeticError):
        return None
    if not places:
        return None
    left = {node.operator for place, node in enumerate(model.nodes) if place not in places}
    nodes = [model.nodes[place] for place in sorted(places)]
    names = tuple(node.name for node in nodes)
    return DenseFallback(data, names, {node.operator for node in nodes} - left, weight_bytes)


def _layer(model: ModelFile, node: Node, batch: int, threads: int) -> PackedLayer:
    name = node.operator.removeprefix("Csr").removeprefix("Dense")
    kind = next(kind for kind in _KINDS if name.startswith(kind))
    values = model.tensors[node.inputs[1]].dims
    shape = node.integers("shape") or values
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"{node.name}: a weight of shape {shape}")
    # Where two values share a byte, the node says how many there are.
    stored = min(2 * math.prod(values), *node.integers("count") or (math.prod(values),))
    return PackedLayer(kind, shape, stored / math.prod(shape), batch, threads)
