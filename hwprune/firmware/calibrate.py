"""Which values tensors take, found by running samples, and scales that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from hwprune.errors import DataError
from hwprune.firmware.network import ADD_DENOMINATOR, MAX_ADD_RATIO, is_add_ratio

Range = tuple[float, float]
Method = Literal["minmax", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse")

_BINS = 4096
_PERCENTILE = 0.9999
_SHRINKS = np.linspace(0.25, 1, 76)  # parts of the range that the least squared error is sought in
# Of a tensor that is zero for all samples; whatever a step is worth then, zero stays zero.
_SCALE_OF_NOTHING = 2.0**-7
_TRIES = 4096


@dataclass(frozen=True, slots=True)
class Histogram:
    """The values of a tensor over all samples.

    Attributes:
        low: the least.
        high: the largest.
        counts: how many there are in each part of the way from one to the other.
    """

    low: float
    high: float
    counts: NDArray[np.int64]

    def range(self, method: Method) -> Range:
        """Return what is to be told apart: all values, all but few, or with least squared error."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if method == "minmax" or self.low == self.high:
            return low, high
        edges = np.linspace(self.low, self.high, len(self.counts) + 1)
        if method == "percentile":
            shares = np.cumsum(self.counts) / self.counts.sum()
            first = int(np.searchsorted(shares, 1 - _PERCENTILE))
            last = int(np.searchsorted(shares, _PERCENTILE))
            return min(float(edges[first]), 0.0), max(float(edges[last + 1]), 0.0)
        centres = (edges[:-1] + edges[1:]) / 2
        errors = [self._error(centres, low * part, high * part) for part in _SHRINKS]
        best = _SHRINKS[int(np.argmin(errors))]
        return low * best, high * best

    def _error(self, centres: NDArray[np.float64], low: float, high: float) -> float:
        step = (high - low) / 255
        rounded = np.clip(np.rint((centres - low) / step), 0, 255) * step + low
        return float((self.counts * (rounded - centres) ** 2).sum())


def histograms(
    model: onnx.ModelProto, values: Mapping[str, str], batches: Sequence[NDArray[Any]]
) -> dict[str, Histogram]:
    """Run samples through an fp32 network and return what each tensor holds.

    Args:
        model: the network.
        values: the name in its graph of each tensor, by the tensor's name.
        batches: inputs, (n, ...) each.

    Raises:
        DataError: all samples are alike, or a tensor is not finite.
    """
    first = batches[0][:1]
    if all(np.array_equal(batch, np.broadcast_to(first, batch.shape)) for batch in batches):
        raise DataError(
            "all samples that int8 activations were to be calibrated with are the same",
            hint="give --data whose training part varies",
        )
    run = _runner(model, sorted({*values.values()}))
    limits: dict[str, tuple[float, float]] = {}
    for batch in batches:
        for name, array in run(batch).items():
            low, high = limits.get(name, (math.inf, -math.inf))
            limits[name] = min(low, float(array.min())), max(high, float(array.max()))
    for tensor, name in values.items():
        if not np.isfinite(limits[name]).all():
            raise DataError(f"calibration: {tensor!r} holds NaN or infinity for some samples")
    counts = {name: np.zeros(_BINS, np.int64) for name in limits}
    for batch in batches:
        for name, array in run(batch).items():
            low, high = limits[name]
            if low < high:
                counts[name] += np.histogram(array, _BINS, (low, high))[0]
    return {tensor: Histogram(*limits[name], counts[name]) for tensor, name in values.items()}


def _runner(model: onnx.ModelProto, names: Sequence[str]) -> Any:
    """Return a function from inputs to the named values of a network."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    given = opened.graph.input[0].name
    have = {output.name for output in opened.graph.output}
    opened.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name not in have and name != given
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        opened.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted = [name for name in names if name != given]

    def run(batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        found = dict(zip(wanted, session.run(wanted, {given: batch}), strict=True))
        return found | ({given: batch} if given in names else {})

    return run


# -- scales ---------------------------------------------------------------------------------------


def _float32(value: float) -> np.float32:
    rounded: np.float32 = np.float32(value)
    return rounded


def starting_scale(found: Range) -> np.float32:
    """Return the step of 256 values from one end of a range to the other."""
    low, high = found
    step = (high - low) / 255
    return _float32(step if step > 1e-30 else _SCALE_OF_NOTHING)


def add_ratio(
    operand: np.float32, total: np.float32, fixed: np.float32 | None
) -> tuple[int, np.float32 | None]:
    """Return the 64ths of a sum's scale that an operand has, and its scale to the bit.

    Args:
        operand: the scale that its range asks for; what is returned is not smaller.
        total: the sum's scale.
        fixed: the operand's scale where that is settled; then None is returned for it where it is
            no 64ths, as onnxruntime divides them, of the sum's.
    """
    if fixed is not None:
        ratio = round(float(fixed / total) * ADD_DENOMINATOR)
        return ratio, fixed if is_add_ratio(fixed, total, ratio) else None
    least = math.ceil(float(operand) / float(total) * ADD_DENOMINATOR * (1 - 1e-7))
    for ratio in range(min(max(least, 1), MAX_ADD_RATIO), MAX_ADD_RATIO + 1):
        near = np.float32(ratio * float(total) / ADD_DENOMINATOR)
        for scale in (near, *(np.nextafter(near, np.float32(way)) for way in (0, math.inf))):
            if is_add_ratio(scale, total, ratio):
                return ratio, scale
    raise AssertionError("one of these is a power of two")


def few_bits(scale: np.float32, count: int) -> np.float32:
    """Return the next larger scale at which sums of ``count`` elements are exact in float32."""
    bits = 24 - 8 - math.ceil(math.log2(max(count, 1)))
    fraction, exponent = math.frexp(float(scale))
    whole = 1 << max(bits, 1)
    return _float32(math.ldexp(math.ceil(fraction * whole) / whole, exponent))


def average_scale(
    x: np.float32, zero_point: int, y: np.float32, counts: Iterable[int]
) -> np.float32:
    """Return a scale, hardly larger than ``y``, at which no average lies near a tie.

    Onnxruntime divides a sum of real values by their number and by the scale, the rule multiplies
    by one factor: they differ in the last bits, and so agree where every possible value is farther
    from k + 1/2 than these. All sums are tried.

    Args:
        x: the scale of what is averaged, of ``few_bits``.
        zero_point: of that.
        y: the scale that the range of the averages asks for.
        counts: how many elements an average is of.
    """
    sums = {n: np.arange((-128 - zero_point) * n, (127 - zero_point) * n + 1) for n in counts}
    for attempt in range(_TRIES):
        scale = _float32(float(y) * (1 + attempt / 65536))
        if all(
            _far_from_ties(values * (float(x) / (float(scale) * n))) for n, values in sums.items()
        ):
            return scale
    return y


def _far_from_ties(values: NDArray[Any]) -> bool:
    values = values[np.abs(values) < 256]  # beyond that any zero point saturates
    distance = np.abs(values - np.floor(values) - 0.5)
    # Of the factor two roundings of 2^-24 at up to 2^8, and one of the product and of the sum.
    return bool((distance > 6 * 2.0**-17).all())
