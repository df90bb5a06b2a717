"""What is minimised: the labels' cross entropy, the teacher's distribution, or both."""

from __future__ import annotations

import torch
from torch.nn import functional

from hwprune.errors import DataError
from hwprune.training.recipe import Recipe


def loss_of(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    teacher_logits: torch.Tensor | None,
    recipe: Recipe,
) -> torch.Tensor:
    """Return the mean loss of a batch.

    ``(1 - a) CE(labels) + a T^2 KL(teacher || student)`` (arXiv 1503.02531, section 2); ``a`` is 0
    without a teacher and 1 without labels.

    Args:
        logits: (b, classes) of the network in training.
        labels: (b,) or None.
        teacher_logits: (b, classes) or None.
        recipe: weight, temperature and label smoothing.

    Raises:
        DataError: neither labels nor a teacher.
    """
    share = recipe.distillation_weight if labels is not None else 1.0
    parts = []
    if labels is not None and (teacher_logits is None or share < 1):
        hard = functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        parts.append(hard if teacher_logits is None else (1 - share) * hard)
    if teacher_logits is not None and share > 0:
        heat = recipe.temperature
        soft = functional.kl_div(
            functional.log_softmax(logits / heat, dim=1),
            functional.log_softmax(teacher_logits / heat, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        parts.append(share * heat * heat * soft)
    if not parts:
        raise DataError(
            "there is nothing to learn from: the data have no labels and no teacher was given",
            hint="give labelled data, or the dense model as teacher",
        )
    return sum(parts[1:], start=parts[0])


def check_labels(labels: torch.Tensor | None, classes: int) -> None:
    """Check that labels are classes of the network.

    Raises:
        DataError: a label below 0, or above the number of outputs.
    """
    if labels is None:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"labels run from {low} to {high}, but the network has {classes} outputs",
            hint=f"expected class indices from 0 to {classes - 1}: is this the right data set?",
        )
