"""Do the data belong to the network? Asked before anything is traced or trained."""

from __future__ import annotations

import math
from typing import Any

from hwprune.errors import DataError, HwpruneError, ModelError
from hwprune.frontend.data import check_labels
from hwprune.frontend.inputs import describe
from hwprune.ir import Data, Model
from hwprune.sampling import evenly_spread, sample_shapes
from hwprune.tasks import Task

# Enough to tell a network that works from one that guesses, and quick on a large one.
_SAMPLES = 256
# Of fewer samples nobody can say that a network guesses.
_TELLING = 32


def check_data(model: Model, data: Data, task: Task) -> tuple[str, ...]:
    """Run the network on a few validation samples, and measure what it says.

    Returns:
        notes: that its accuracy is near chance, which another normalisation often explains.

    Raises:
        DataError: samples of another shape than the network reads, or labels that it cannot give.
        ModelError: the network has not the output that the task takes.
    """
    count = min(_SAMPLES, len(data.validation))
    if not count:
        raise DataError(
            f"{data.name}: the validation split is empty", hint="give more samples, or a part of it"
        )
    chosen = evenly_spread(len(data.validation), count)
    _check_shapes(model, sample_shapes(data.validation), data)
    if not task.measurable(data.validation) or _fixed(model):
        return ()
    outputs, value = _measured(model, data, task, chosen)
    if task.takes_classes:
        check_labels(data, outputs=outputs.shape[1])
    if not math.isfinite(value):
        raise DataError(
            f"{data.name}: {task.metric.name} of the dense network on {count} validation samples"
            f" is {value}, which is no finite number",
            hint="are the labels right, and is this the task and the metric that they are for?",
        )
    return _near_chance(value, count, data) if task.takes_classes else ()


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


def _measured(model: Model, data: Data, task: Task, chosen: Any) -> tuple[Any, float]:
    """Return the output that counts, of two samples, and the metric of all that were chosen."""
    import torch

    from hwprune.training.batches import Batches
    from hwprune.training.evaluate import Judge
    from hwprune.training.losses import check_labels as check_values
    from hwprune.training.losses import forward
    from hwprune.training.module_state import logits_of

    batches = Batches(data.validation, device="cpu", resident_bytes=0, channels_last=False)
    try:
        with torch.no_grad():
            (few,) = batches.take((torch.from_numpy(chosen[:2]),))
            if task.takes_classes:
                logits_of(model.module, few.inputs)
            outputs = task.counted(forward(model.module, few.inputs))
        if not task.takes_classes:
            check_values(task, batches.labels, outputs)
        return outputs, Judge(task, batches, torch.from_numpy(chosen), None)(model.module)
    except HwpruneError:
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
