"""The two speeds of a file: stock onnxruntime, and with hwprune's operator library beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from hwprune.errors import VerificationError
from hwprune.export.artifact import ArtifactFile
from hwprune.kernels import library
from hwprune.kernels.session import operator_names
from hwprune.verify import parity, runner

# Both compute in float32, each in its own order.
MAX_RELATIVE_ERROR = 1e-5
_SAMPLES = 16


def why_no_kernels() -> str | None:
    """Return why no file has a second speed on this host, None where kernels are installed."""
    return "this installation has no native kernels" if library.path() is None else None


def why_one_speed(artifact: ArtifactFile) -> str | None:
    """Return why a file has no second speed on this host, None where kernels can run it."""
    if artifact.form == "dense":
        return "a dense file has one speed"
    if artifact.form == "inlined":
        return "the inlined form has one speed"
    absent = why_no_kernels()
    if absent is None and not any(map(library.knows, operator_names(artifact.path))):
        return "no layer of the file is one that a kernel is for"
    return absent


def compare_speeds(
    path: str, feeds: Sequence[NDArray[Any]] | None = None, *, threads: int = 1
) -> parity.Parity:
    """Run a file at both speeds and compare the outputs, those of stock onnxruntime being right.

    Args:
        path: a file of the form with functions.
        feeds: one array per input; None makes random ones.
        threads: of onnxruntime.

    Raises:
        VerificationError: the outputs differ, or the file does not run at one of the speeds.
        UsageError: random inputs cannot be made for this file.
        KernelsError: the library does not load, or onnxruntime refuses it.
    """
    stock = runner.open_session(path, threads=threads)
    batch = runner.fixed_batch(stock) or _SAMPLES
    arrays = runner.random_inputs(stock, batch=batch) if feeds is None else list(feeds)
    expected = runner.run_in_batches(stock, arrays, batch=batch)
    found = parity.compare(path, arrays, expected, batch=batch, threads=threads, kernels=True)
    agrees = found.top1_agreement is None or found.top1_agreement == 1.0
    if not (found.relative_error <= MAX_RELATIVE_ERROR and agrees):
        classes = "" if agrees else ", and the largest class of some samples is another one"
        raise VerificationError(
            f"with native kernels the outputs differ from stock onnxruntime's by "
            f"{found.relative_error:.1e} of their range (at most {MAX_RELATIVE_ERROR:.0e} is "
            f"right){classes}",
            hint="this is a defect of hwprune's kernels: please report it with the file",
        )
    return found


def describe(found: parity.Parity) -> str:
    """Return in words how near the two speeds are."""
    same = "" if found.top1_agreement is None else ", same top-1"
    return f"outputs differ by {found.relative_error:.1e} of their range{same}"
