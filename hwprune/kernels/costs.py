"""What a layer takes with a kernel and with onnxruntime's dense operator: estimates.

Nanoseconds on one core of a Zen 3 with AVX2, fitted by ``benchmarks/dense_or_sparse.py`` to times
of layers inside networks; what is not fitted there (linear and depthwise layers, changes of layout,
convolutions outside the blocked layout) is read off the same profiles. Only the ratios of the two
sides matter, and a wrong choice costs time, never correctness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwprune.kernels import library

# -- the dense operators of onnxruntime
CALL = 0.0
MAC = {False: 0.0194, True: 0.0183}  # by whether the kernel is pointwise
DEPTHWISE_MAC = 0.07
OUTSIDE_BLOCKS = 1.6  # convolutions that onnxruntime does not do in its blocked layout
WEIGHT_BYTE, INPUT, OUTPUT = 0.0887, 0.437, 0.192
# A sum with a second tensor is mostly a node of its own.
ADDED, ADDED_CALL = 0.3, 4000.0
# An activation that goes from one layout to the other, per element, and the node that does it.
REORDER, REORDER_CALL = 0.25, 4000.0

# -- kernels, beside the estimate of src/choice.cpp
KERNEL_CALL = 1440.0
# The second holds where the weights come from the third-level cache or from memory.
KERNEL, KERNEL_STREAMED = 1.09, 1.21
STREAMED_BYTES, BYTES_PER_NONZERO = 300e3, 6
DOT_NONZERO = 0.66  # of a linear layer with one row of input
PLANE_MAC, PLANE_ROW = {1: 0.05, 2: 0.12}, 8.0  # of 3x3 depthwise layers, by their stride


@dataclass(frozen=True, slots=True)
class Problem:
    """A convolution over one input shape, or a linear layer as one over a single position.

    Attributes:
        inputs, outputs, group: as in ONNX's Conv.
        kernel, strides, dilations: one number per spatial axis.
        pads: the begins of all axes, then the ends.
        spatial: extents of the input.
        batch: images, or rows of a linear layer.
        nonzeros: stored weights.
        residual: whether a second tensor is added.
    """

    inputs: int
    outputs: int
    group: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    spatial: tuple[int, ...]
    batch: int
    nonzeros: int
    residual: bool

    @property
    def positions(self) -> int:
        """Return how many output positions an image has."""
        axes = len(self.kernel)
        return math.prod(
            (self.spatial[i] + self.pads[i] + self.pads[i + axes] - 1 - reach) // stride + 1
            for i, stride in enumerate(self.strides)
            for reach in [(self.kernel[i] - 1) * self.dilations[i]]
        )

    @property
    def specification(self) -> tuple[int, ...]:
        """Return what ``library.estimate`` takes."""
        own = (self.inputs, self.outputs, self.group, len(self.kernel))
        return own + self.kernel + self.strides + self.dilations + self.pads + self.spatial

    @property
    def weights(self) -> int:
        """Return the elements of the dense weight."""
        return self.outputs * (self.inputs // self.group) * math.prod(self.kernel)

    @property
    def is_linear(self) -> bool:
        """Return whether it looks at a single position."""
        return math.prod(self.kernel) == 1 and self.positions == 1

    @property
    def is_depthwise(self) -> bool:
        """Return whether every channel is on its own."""
        return self.group > 1 and self.group == self.inputs

    @property
    def blocked(self) -> bool:
        """Return whether onnxruntime brings it to its blocked layout (NCHWc)."""
        if len(self.kernel) != 2 or self.outputs % 4:
            return False
        return self.is_depthwise or (self.group == 1 and (self.inputs < 8 or self.inputs % 4 == 0))


def dense_cost(problem: Problem) -> float:
    """Return nanoseconds with onnxruntime's operator, without changes of layout."""
    results = problem.batch * problem.outputs * problem.positions
    macs = problem.batch * problem.weights * problem.positions
    pointwise = math.prod(problem.kernel) == 1
    per_mac = DEPTHWISE_MAC if problem.is_depthwise else MAC[pointwise]
    if not problem.blocked and not problem.is_linear:
        per_mac *= OUTSIDE_BLOCKS
    read = problem.batch * problem.inputs * math.prod(problem.spatial)
    # Every image has its weights read again, a matrix product does not.
    streams = 1 if problem.is_linear else problem.batch
    cost = CALL + per_mac * macs + WEIGHT_BYTE * 4 * problem.weights * streams + OUTPUT * results
    cost += 0 if problem.is_depthwise else INPUT * read
    return cost + (ADDED * results + ADDED_CALL if problem.residual else 0)


def kernel_cost(problem: Problem, threads: int) -> float | None:
    """Return nanoseconds with a kernel; None for what is not estimated."""
    if len(problem.kernel) > 3 or problem.positions < 1:
        return None
    if problem.is_linear and problem.batch == 1:
        return KERNEL_CALL + DOT_NONZERO * problem.nonzeros
    if problem.is_depthwise and problem.kernel == (3, 3) and problem.nonzeros == problem.weights:
        stride = min(problem.strides[0], 2)
        macs = problem.batch * problem.weights * problem.positions
        rows = problem.batch * problem.outputs * (problem.spatial[0] // problem.strides[0])
        return KERNEL_CALL + PLANE_MAC[stride] * macs + PLANE_ROW * rows
    estimate = library.estimate(problem.specification, problem.nonzeros, problem.batch, threads)
    if estimate < 0:
        return None
    streamed = problem.nonzeros * BYTES_PER_NONZERO > STREAMED_BYTES
    return KERNEL_CALL + (KERNEL_STREAMED if streamed else KERNEL) * estimate


def reorder_cost(elements: int) -> float:
    """Return nanoseconds of bringing an activation from one layout to the other."""
    return REORDER_CALL + REORDER * elements
