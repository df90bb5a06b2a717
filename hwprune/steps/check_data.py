"""Do the data belong to the network? Asked before anything is traced or trained."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hwprune.errors import DataError, ModelError
from hwprune.frontend.data import check_labels
from hwprune.frontend.inputs import describe
from hwprune.ir import Data, Model
from hwprune.sampling import evenly_spread, sample_shapes

# Enough to tell a network that works from one that guesses, and quick on a large one.
_SAMPLES, _BATCH = 256, 64
# Of fewer samples nobody can say that a network guesses.
_TELLING = 32


def check_data(model: Model, data: Data) -> tuple[str, ...]:
    """Run the network on a few validation samples.

    Returns:
        notes: that its accuracy is near chance, which another normalisation often explains.

    Raises:
        DataError: samples of another shape than the network reads, or labels that it cannot give.
        ModelError: labels, but the network does not return one row of class scores per sample.
    """
    count = min(_SAMPLES, len(data.validation))
    if not count:
        raise DataError(
            f"{data.name}: the validation split is empty", hint="give more samples, or a part of it"
        )
    chosen = evenly_spread(len(data.validation), count)
    _check_shapes(model, sample_shapes(data.validation), data)
    labels = data.validation.labels
    if labels is None or _fixed(model):
        return ()
    right, outputs = 0, 0
    for start in range(0, count, _BATCH):
        indices = chosen[start : start + _BATCH]
        scores = _scores(model, data, indices)
        outputs = scores.shape[1]
        right += int(np.count_nonzero(scores.argmax(axis=1) == labels[indices]))
    check_labels(data, outputs=outputs)
    return _near_chance(right / count, count, data)


def check_batch(model: Model) -> None:
    """Refuse to train what takes one batch size only.

    Raises:
        ModelError: an exported program whose batch is fixed.
    """
    if _fixed(model):
        raise ModelError(
            f"{model.source} takes batches of {model.inputs[0].shape[0]} only, so it cannot be "
            "trained or measured on data",
            hint="export it again with a dynamic batch (dynamic_shapes of torch.export.export), or "
            "leave --data out",
        )


def _fixed(model: Model) -> bool:
    """Return whether the module itself, and not only its file, is bound to one batch size."""
    return model.kind in ("exported-program", "onnx") and any(
        spec.shape and None not in spec.shape for spec in model.inputs
    )


def _check_shapes(model: Model, shapes: list[tuple[int, ...]], data: Data) -> None:
    wanted = [tuple(spec.shape[1:]) for spec in model.inputs]
    if wanted != shapes:
        found = ", ".join("x".join(map(str, shape)) for shape in shapes)
        raise DataError(
            f"{data.name}: samples have the shape {found}, the network reads "
            f"{describe(model.inputs)}",
            hint="check that the data set and the network belong together",
        )


def _scores(model: Model, data: Data, indices: Any) -> Any:
    import torch

    from hwprune.training.modes import logits_of

    arrays = data.validation.batch(indices)
    try:
        with torch.no_grad():
            return logits_of(model.module, tuple(map(torch.from_numpy, arrays))).numpy()
    except ModelError:
        raise
    except Exception as error:  # whatever a stranger's forward method raises
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"{data.name}: the network does not take its samples: {line[:300]}",
            hint="check that the data set and the network belong together",
        ) from error


def _near_chance(accuracy: float, count: int, data: Data) -> tuple[str, ...]:
    if not data.classes or data.classes < 2 or count < _TELLING:
        return ()
    chance = 1 / data.classes
    if accuracy > chance + 2 * math.sqrt(chance * (1 - chance) / count):
        return ()
    return (
        f"hint: before pruning, {100 * accuracy:.1f} % of {count} validation samples are right, "
        f"near chance ({100 * chance:.1f} %): is the normalisation ({data.normalize}) the one it "
        "was trained with (--data SPEC?normalize=...), and is the order of the classes the same?",
    )
