"""Which packed layers are too dense to gain from a kernel, and the model with these dense.

The file stays as it is: what changes is the model that a session is made of, in memory. A layer
that goes over is held dense by onnxruntime, and its packed arrays are not held at all.

The rule knows a layer's weight and how much of it is stored, nothing of activations, of the clock
or of what a run before took: a file has the same layers dense wherever the same instruction set is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap

from hwprune.kernels import library
from hwprune.kernels.model_file import DOMAIN, ModelFile, Node

# Up to which share of its weights a layer runs a kernel: below what was measured to be as fast as
# onnxruntime's dense operator, by a tenth or more (benchmarks/dense_or_sparse.py, see
# docs/kernels.md): by what the layer is, and whether a second-level cache holds its weights. Memory
# sets no lower limit: a stored weight takes 6 bytes in a kernel (8 in a very wide row), 4 if dense.
_CACHED_WEIGHTS = 1 << 18
_LIMITS = {"wide": (0.5, 0.35), "pointwise": (0.4, 0.3), "rows": (0.3, 0.3), "row": (0.1, 0.1)}
# Of a product with fewer rows the dense one only reads each weight once; with less than these
# weights, calling the kernel takes longer than that.
_FEW_ROWS, _FEW_WEIGHTS = 16, 1 << 15
# Kernels and onnxruntime gain alike from AVX2 and AVX-512. NEON was not measured: a margin. Plain
# C++ computes one weight at a time, where onnxruntime still has vectors.
_BY_INSTRUCTIONS = {"avx512": 1.0, "avx2": 1.0, "neon": 0.75}
_PLAIN = 0.125
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
    """

    kind: str
    shape: tuple[int, ...]
    density: float
    batch: int = 1

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
        few = self.kind in ("Conv", "Depthwise") and self.shape[1] < 8
        return few and math.prod(self.shape[1:]) <= 32 and not self.is_wide_depthwise

    @property
    def is_wide_depthwise(self) -> bool:
        """Return whether channels are apart and the kernel is not the 3x3 one of the library."""
        return self.kind == "Depthwise" and self.shape[2:] != (3, 3)


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
    operators: frozenset[str]
    weight_bytes: int


def density_limit(layer: PackedLayer) -> float:
    """Return the share of its weights up to which a layer runs its kernel on this processor."""
    by_instructions = _BY_INSTRUCTIONS.get(library.instruction_set(), _PLAIN)
    if layer.is_wide_depthwise:
        return 0.0
    if layer.kind in ("Conv", "Depthwise"):
        limits = _LIMITS["wide" if math.prod(layer.shape[2:]) > 1 else "pointwise"]
    elif layer.kind == "Gemm" and layer.batch < _FEW_ROWS:
        limits = (0.0, 0.0) if layer.weights < _FEW_WEIGHTS else _LIMITS["row"]
    else:
        limits = _LIMITS["rows"]
    return by_instructions * limits[layer.weights > _CACHED_WEIGHTS]


def too_dense(
    layers: Sequence[PackedLayer], limit: Callable[[PackedLayer], float] | None = None
) -> set[int]:
    """Return which of a network's layers are left to onnxruntime.

    Args:
        layers: in the order in which they run.
        limit: see ``density_limit``, which is the default.
    """
    limit = density_limit if limit is None else limit
    leads = [i for i, layer in enumerate(layers) if not layer.follows]
    dense = {i for i in leads if layers[i].density > limit(layers[i])}
    stored = [layer.density * layer.weights for layer in layers]
    if not dense or sum(stored[i] for i in dense) < LEAST_PART * sum(stored):
        return set()
    for i in range(len(layers)):
        around = [j for j in leads if j < i][-1:] + [j for j in leads if j > i][:1]
        if layers[i].follows and dense.intersection(around):
            dense.add(i)
    return dense


def dense_fallback(
    data: bytes | mmap, inputs: Mapping[str, Sequence[int]], operators: Collection[str]
) -> DenseFallback | None:
    """Return what is better left to onnxruntime; None where nothing is.

    Args:
        data: the file.
        inputs: shapes of the model's inputs, of which the first axis counts samples; 1 by default.
        operators: those that have kernels.
    """
    batch = max((shape[0] for shape in inputs.values() if len(shape)), default=1)
    try:
        model = ModelFile(data)
        places = [
            place
            for place, node in enumerate(model.nodes)
            if node.domain == DOMAIN and node.operator in operators
        ]
        layers = [_layer(model, model.nodes[place], batch) for place in places]
        chosen = {places[i] for i in too_dense(layers)}
        if not chosen:
            return None
        data, weight_bytes = model.densified(chosen)
    # What is wrong with a file is said by onnxruntime and the kernels.
    except (ValueError, LookupError, ArithmeticError):
        return None
    left = {node.operator for place, node in enumerate(model.nodes) if place not in chosen}
    nodes = [model.nodes[place] for place in sorted(chosen)]
    return DenseFallback(
        data,
        tuple(node.name for node in nodes),
        frozenset(node.operator for node in nodes) - left,
        weight_bytes,
    )


def _layer(model: ModelFile, node: Node, batch: int) -> PackedLayer:
    name = node.operator.removeprefix("Csr").removeprefix("Dense")
    kinds = ("Conv", "Depthwise", "Gemm", "Linear", "MatMul")
    kind = next(kind for kind in kinds if name.startswith(kind))
    values = model.tensors[node.inputs[1]].dims
    shape = node.integers("shape") or values
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"{node.name}: a weight of shape {shape}")
    # Where two values share a byte, the node says how many there are.
    stored = min(2 * math.prod(values), *node.integers("count") or (math.prod(values),))
    return PackedLayer(kind, shape, stored / math.prod(shape), batch)
