"""Do two sets of outputs agree, but for what rounding does to them?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import VerificationError
from hwprune.units import format_percent

Arrays = Sequence[NDArray[Any]]

# A file against the torch network that holds its decoded weights: folded BN, other operators.
MAX_ERROR_TO_NETWORK = 1e-4
# Native kernels against stock onnxruntime: both compute in float32, each in its own order.
MAX_ERROR_OF_KERNELS = 1e-5
# How far two right computations may be apart, in what the reference changes by when its weights or
# inputs move by one ulp, or when it runs in float64 (seen: 4), and in ulps of the value (seen: 2).
_SPREAD = 16.0
_ULPS = 4.0


@dataclass(frozen=True, slots=True)
class Parity:
    """How near two sets of outputs are.

    Attributes:
        relative_error: largest |output - reference| of all elements, each over its own range
            (max - min) in the samples, or over that of its output. Of an element that hardly
            varies, over the range at which the error that rounding explains would just be allowed.
        top1_agreement: the fraction of samples with the same largest class in the first output,
            or one as large; None where that output is not (samples, classes).
    """

    relative_error: float
    top1_agreement: float | None

    def __str__(self) -> str:
        """Return in words how near they are."""
        same = ""
        if self.top1_agreement is not None:
            share = self.top1_agreement
            same = ", same top-1" if share == 1 else f", top-1 of {format_percent(share)} the same"
        return f"outputs differ by {self.relative_error:.1e} of their range{same}"


def compare(
    outputs: Arrays,
    references: Arrays,
    *,
    limit: float,
    names: Sequence[str],
    each: bool = True,
    rounding: Callable[[], Arrays] | None = None,
) -> Parity:
    """Compare outputs with references, one array each, in the same order.

    Args:
        outputs: what is judged.
        references: what is right.
        limit: the relative error that is allowed; ``Parity.relative_error`` is above it exactly
            where an element is off by more than this share of its range and more than rounding
            explains.
        names: of the outputs, for messages.
        each: hold each element against its own range; else against that of its whole output.
        rounding: what rounding does to each element of the references; asked only where an output
            is off by more than ``limit``.

    Raises:
        VerificationError: there are more outputs or fewer, they have other shapes, or hold NaN or
            infinity where the reference does not.
    """
    if len(outputs) != len(references):
        raise VerificationError(f"the file has {len(outputs)} outputs, not {len(references)}")
    pairs = [
        _finite(output, reference, f"output {name!r}")
        for name, output, reference in zip(names, outputs, references, strict=True)
    ]
    errors = [np.abs(output - reference) for output, reference in pairs]
    scales = [_range(reference if each else reference.reshape(1, -1)) for _, reference in pairs]
    worst = [_largest(e / scale) for e, scale in zip(errors, scales, strict=True)]
    if rounding is not None and not max(worst, default=0.0) <= limit:
        for place, noise in enumerate(rounding()):
            explained = np.maximum(
                _SPREAD * _over_samples(np.max, np.nan_to_num(noise, posinf=0.0)),
                _ULPS * np.finfo(np.float32).eps * np.abs(pairs[place][1]),
            )
            scales[place] = np.maximum(scales[place], explained / limit)
            worst[place] = _largest(errors[place] / scales[place])
    slack = limit * _largest(scales[0]) if scales else 0.0
    return Parity(max(worst, default=0.0), _agreement(outputs, references, slack))


def changes(base: Arrays, others: Sequence[Arrays]) -> Arrays:
    """Return the largest |other - base| of each element of each array."""
    return [
        np.max([np.abs(np.subtract(other[place], array, dtype=np.float64)) for other in others], 0)
        for place, array in enumerate(base)
    ]


def _finite(
    output: NDArray[Any], reference: NDArray[Any], what: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both, with 0 where both are NaN or infinite."""
    if output.shape != reference.shape:
        raise VerificationError(f"{what} is {output.shape}, the reference {reference.shape}")
    wide, expected = output.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(np.isfinite(wide), finite):
        raise VerificationError(f"{what} holds NaN or infinity where the reference does not")
    return np.where(finite, wide, 0.0), np.where(finite, expected, 0.0)


def _range(reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return max - min of each element over the samples; of a constant its magnitude."""
    span, magnitude = _over_samples(np.ptp, reference), _over_samples(np.max, np.abs(reference))
    scale: NDArray[np.float64] = np.where(span > 0, span, np.where(magnitude > 0, magnitude, 1.0))
    return scale


def _over_samples(reduce: Any, array: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reduce over the samples, the first axis; over everything where there is but one."""
    axis = 0 if array.ndim and len(array) > 1 else None
    found: NDArray[np.float64] = reduce(array, axis=axis, keepdims=True) if array.size else array
    return found


def _largest(array: NDArray[np.float64]) -> float:
    return float(np.max(array, initial=0.0))


def _agreement(outputs: Arrays, references: Arrays, slack: float) -> float | None:
    if not outputs or outputs[0].ndim != 2 or outputs[0].shape[1] < 2 or not len(outputs[0]):
        return None
    chosen, right = outputs[0].argmax(axis=1), references[0].argmax(axis=1)
    rows = np.arange(len(right))
    # A tie: as large as the largest, up to the error that both may have.
    tied = references[0][rows, chosen] >= references[0][rows, right] - 2 * slack
    return float(np.mean((chosen == right) | tied))
