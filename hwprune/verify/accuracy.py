"""Accuracy of an exported file, in onnxruntime: of what is shipped, not of the PyTorch model."""

from __future__ import annotations

import numpy as np

from hwprune.errors import DataError, VerificationError
from hwprune.ir import Split
from hwprune.verify import runner


def accuracy_of(path: str, split: Split, *, batch: int = 256, threads: int = 1) -> float:
    """Return the fraction of samples whose largest output is their label.

    Args:
        path: the file; its first output is (n, classes).
        split: samples with labels.
        batch: samples a run, where the file does not fix it.
        threads: of onnxruntime.

    Raises:
        DataError: the split is empty or has no labels.
        ArtifactError: there is no such file.
        VerificationError: it does not run on these samples, or its output is not (n, classes).
    """
    labels = split.labels
    if labels is None or not len(split):
        what = "no samples" if labels is not None else "no labels"
        raise DataError(f"accuracy needs labelled samples; the data have {what}")
    session = runner.open_session(path, threads=threads)
    step = runner.fixed_batch(session) or batch
    right = 0
    for start in range(0, len(split), step):
        indices = np.arange(start, min(start + step, len(split)), dtype=np.int64)
        output = runner.run_in_batches(session, split.batch(indices), batch=step)[0]
        if output.ndim != 2 or len(output) != len(indices):
            raise VerificationError(
                f"{path}: accuracy needs an output of (samples, classes), "
                f"{len(indices)} samples gave {output.shape}"
            )
        right += int(np.count_nonzero(output.argmax(axis=1) == labels[indices]))
    return right / len(split)
