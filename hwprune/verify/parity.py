"""Do the file's outputs equal those of the network that holds its decoded weights?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import VerificationError
from hwprune.verify import runner


@dataclass(frozen=True, slots=True)
class Parity:
    """How near two sets of outputs are.

    Attributes:
        relative_error: largest |file - reference|, over the reference's range (max - min); the
            worst of all outputs.
        top1_agreement: the fraction of samples with the same largest class in the first output;
            None where that output is not (samples, classes).
    """

    relative_error: float
    top1_agreement: float | None


def compare(
    path: str,
    feeds: Mapping[str, NDArray[Any]] | Sequence[NDArray[Any]],
    references: Sequence[NDArray[Any]] | Mapping[str, NDArray[Any]],
    *,
    batch: int = 128,
    threads: int = 1,
    kernels: bool = False,
) -> Parity:
    """Run a file in onnxruntime and compare its outputs with the references.

    Args:
        path: the file.
        feeds: one array per input, in the file's order: (n, ...).
        references: one array per output, in the file's order.
        batch: samples a run, where the file does not fix it.
        threads: of onnxruntime.
        kernels: run the file with native kernels.

    Raises:
        ArtifactError: there is no such file.
        VerificationError: it does not run, its outputs have other shapes, or hold NaN or infinity
            where the reference does not.
    """
    arrays = list(feeds.values()) if isinstance(feeds, Mapping) else list(feeds)
    expected = list(references.values()) if isinstance(references, Mapping) else list(references)
    session = runner.open_session(path, threads=threads, kernels=kernels)
    names = [entry.name for entry in session.get_outputs()]
    outputs = runner.run_in_batches(session, arrays, batch=batch)
    if len(outputs) != len(expected):
        raise VerificationError(
            f"{path} has {len(outputs)} outputs, the reference network {len(expected)}"
        )
    errors = [
        _relative_error(output, reference, f"{path}: output {name!r}")
        for name, output, reference in zip(names, outputs, expected, strict=True)
    ]
    return Parity(max(errors, default=0.0), _agreement(outputs, expected))


def _relative_error(output: NDArray[Any], reference: NDArray[Any], what: str) -> float:
    if output.shape != reference.shape:
        raise VerificationError(f"{what} is {output.shape}, the reference {reference.shape}")
    if not output.size:
        return 0.0
    wide, expected = output.astype(np.float64), reference.astype(np.float64)
    if not np.array_equal(np.isfinite(wide), np.isfinite(expected)):
        raise VerificationError(f"{what} holds NaN or infinity where the reference does not")
    finite = np.isfinite(expected)
    if not finite.any():
        return 0.0
    wide, expected = wide[finite], expected[finite]
    largest = float(np.max(np.abs(wide - expected)))
    # A constant output has no range; its magnitude is the scale then.
    span = float(np.ptp(expected)) or float(np.max(np.abs(expected))) or 1.0
    return largest / span


def _agreement(outputs: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]) -> float | None:
    if not outputs or outputs[0].ndim != 2 or outputs[0].shape[1] < 2 or not len(outputs[0]):
        return None
    return float(np.mean(outputs[0].argmax(axis=1) == expected[0].argmax(axis=1)))
