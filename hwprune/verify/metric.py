"""The metric of an exported file, in onnxruntime: of what is shipped, not of the PyTorch model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune import preprocessing
from hwprune.errors import DataError, VerificationError
from hwprune.ir import Split
from hwprune.tasks import Task
from hwprune.tasks.metrics import joined
from hwprune.trees import Outputs, leaves, tree_map
from hwprune.verify import runner

# Numbers that come out of one run, where a sample has many.
_NUMBERS = 1 << 22


def metric_of(path: str, split: Split, task: Task, *, batch: int = 256, threads: int = 1) -> float:
    """Return the task's metric of a file.

    Args:
        path: the file.
        split: samples with labels, where the task needs them.
        task: what is measured, and of which output; names are those of the file's outputs.
        batch: samples a run at most, where the file does not fix it.
        threads: of onnxruntime.

    Raises:
        DataError: the split is empty or has no labels, or they do not fit the outputs.
        ModelError: there is no such output.
        ArtifactError: there is no such file.
        VerificationError: it does not run on these samples.
    """
    labels = split.labels
    if not task.measurable(split) or not len(split):
        what = "no samples" if not len(split) else "no labels"
        raise DataError(f"{task.metric.name} needs labelled samples; the data have {what}")
    session = runner.open_session(path, threads=threads)
    names = [entry.name for entry in session.get_outputs()]
    fixed, parts, done = runner.fixed_batch(session), [], 0
    how = preprocessing.parse(session.get_modelmeta().custom_metadata_map.get("preprocessing"))
    step = fixed or 1  # until it is known how large outputs are
    while done < len(split):
        indices = np.arange(done, min(done + step, len(split)), dtype=np.int64)
        inputs = split.batch(indices)
        # A file that normalises by itself reads values as they are stored.
        given = inputs if how is None or not how.embedded else [_stored(path, how, inputs[0])]
        found = runner.run_in_batches(session, given, batch=step)
        lost = [output.shape for output in found if len(output) != len(indices)]
        if lost:
            raise VerificationError(
                f"{path}: {len(indices)} samples gave an output of {lost[0]}: "
                f"{task.metric.name} needs outputs with samples first"
            )
        outputs = task.counted(found[0] if len(found) == 1 else Outputs(found, names))
        mine = None if labels is None else tree_map(lambda part, at=indices: part[at], labels)
        parts.append(task.metric.rows(outputs, task.targets(inputs, mine)))
        done += len(indices)
        size = max(each.size for _, each in leaves(outputs)) // len(indices)
        step = fixed or min(batch, max(1, _NUMBERS // max(1, size)))
    return task.metric.value(joined(parts))


def _stored(path: str, how: preprocessing.Preprocessing, inputs: NDArray[Any]) -> NDArray[Any]:
    """Return normalised inputs as the file reads them."""
    try:
        return how.stored(inputs)
    except ValueError:
        raise VerificationError(
            f"{path}: the preprocessing in its metadata does not fit inputs of {inputs.shape}"
        ) from None
