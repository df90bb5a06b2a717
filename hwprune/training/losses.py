"""What is minimised: the loss of the task, the distance to the dense network's answers, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hwprune.errors import DataError, UsageError
from hwprune.sampling import evenly_spread
from hwprune.tasks import Task
from hwprune.tasks.task import Imitation
from hwprune.training.batches import Batch, Batches
from hwprune.training.recipe import Recipe
from hwprune.trees import leaves, outputs_of, tree_map

# Samples that a variance is taken of.
_SAMPLES = 128


class Objective:
    """The loss of a batch: ``(1 - a) loss(labels) + a imitation(answers)``.

    ``a`` is ``distillation_weight``, 0 without a teacher and 1 without labels (arXiv 1503.02531,
    section 2). Squared errors of values are over their variance, so that recipes hold whatever
    units these are in.

    Args:
        task: says what the labels mean and how answers are imitated.
        recipe: weight, temperature and label smoothing.
        batches: the training data, which variances are taken of.
        teacher: the dense network, in eval mode where the batches are; or None.
    """

    def __init__(
        self, task: Task, recipe: Recipe, batches: Batches, teacher: nn.Module | None
    ) -> None:
        """Measure nothing yet."""
        self.task, self.recipe, self._teacher = task, recipe, teacher
        self._batches, self._known = batches, dict[str, torch.Tensor]()

    def __call__(self, outputs: Any, batch: Batch, answers: Any) -> torch.Tensor:
        """Return the mean loss of a batch.

        Args:
            outputs: of the network in training, in float32.
            batch: its inputs and labels.
            answers: outputs of the dense network, or None.

        Raises:
            DataError: neither labels nor a teacher.
            ModelError: the network has no such output.
        """
        targets = self.task.targets(batch.inputs, batch.labels)
        share = self.recipe.distillation_weight if targets is not None else 1.0
        parts = []
        if targets is not None and (answers is None or share < 1):
            hard = self._hard(outputs, targets, batch)
            parts.append(hard if answers is None else (1 - share) * hard)
        if answers is not None and share > 0:
            parts.append(share * self._imitation(outputs, answers))
        if not parts:
            raise nothing_to_learn_from()
        return sum(parts[1:], start=parts[0])

    def _hard(self, outputs: Any, targets: Any, batch: Batch) -> torch.Tensor:
        counted = self.task.counted(outputs)
        if self.task.loss is None:
            return LOSSES[self.task.name](counted, targets, self)
        loss = self.task.loss(counted, batch)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise UsageError(
                f"loss of {self.task.name} returned {_described(loss)}, which is no scalar tensor",
                hint="return one number for the batch, such as a mean over its samples",
            )
        return loss.reshape(())

    def _imitation(self, outputs: Any, answers: Any) -> torch.Tensor:
        """Return the mean over all outputs of floats: the one that counts as the task says."""
        task, parts = self.task, []
        kind = task.imitation
        if kind != "values" and task.outputs is not None:
            return self._like(task.counted(outputs), task.counted(answers), kind, "")
        both = list(zip(leaves(outputs), leaves(answers), strict=True))
        which = task.output or both[0][0][0]
        for (name, mine), (_, dense) in both:
            if mine.is_floating_point() and mine.ndim:
                parts.append(self._like(mine, dense, kind if name == which else "values", name))
        return parts[0] if len(parts) == 1 else torch.stack(parts).mean()

    def _like(
        self, mine: torch.Tensor, dense: torch.Tensor, kind: Imitation, name: str
    ) -> torch.Tensor:
        if kind == "values":
            return _distance(mine, dense, self.variance(f"output {name}"))
        axis, heat = self.task.class_axis, self.recipe.temperature
        if kind == "yes-or-no" or mine.shape[axis] == 1:
            return functional.binary_cross_entropy_with_logits(mine, dense.sigmoid())
        soft, wanted = (
            functional.log_softmax(each.movedim(axis, -1).flatten(0, -2) / heat, dim=1)
            for each in (mine, dense)
        )
        kl = functional.kl_div(soft, wanted, reduction="batchmean", log_target=True)
        return heat * heat * kl

    def variance(self, what: str) -> torch.Tensor:
        """Return how far samples of something vary: ``targets``, or ``output NAME`` when dense."""
        if what not in self._known:
            size = self._batches.size
            chosen = torch.from_numpy(evenly_spread(size, min(_SAMPLES, size)))
            found: dict[str, list[torch.Tensor]] = {}
            with torch.no_grad():
                for batch in self._batches.take(torch.split(chosen, 32)):
                    named = self._seen(batch, what)
                    for name, tensor in named.items():
                        found.setdefault(name, []).append(tensor.float())
            for name, tensors in found.items():
                whole = torch.cat(tensors)
                spread = (whole - whole.mean(0)).square().mean()
                # Of what never varies, its size.
                spread = spread if spread > 0 else whole.square().mean()
                self._known[name] = spread if spread > 0 else torch.ones_like(spread)
        return self._known[what]

    def _seen(self, batch: Batch, what: str) -> Mapping[str, torch.Tensor]:
        if what == "targets":
            return {what: self.task.targets(batch.inputs, batch.labels)}
        assert self._teacher is not None
        outputs = forward(self._teacher, batch.inputs)
        return {f"output {name}": each for name, each in leaves(outputs)}


def forward(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
    """Return what a network makes of inputs: a tensor or several, those of floats in float32."""
    return tree_map(
        lambda each: each.float() if each.is_floating_point() else each,
        outputs_of(module(*inputs)),
    )


def nothing_to_learn_from() -> DataError:
    """Return the error for data without labels and no teacher."""
    return DataError(
        "there is nothing to learn from: the data have no labels and no teacher was given",
        hint="give labelled data, or the dense model as teacher",
    )


def _described(value: Any) -> str:
    return f"a tensor of {tuple(value.shape)}" if hasattr(value, "shape") else repr(value)[:60]


def _distance(mine: torch.Tensor, right: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Return log(1 + squared error / variance).

    Near the aim that is the squared error itself; far off, where a network was just pruned, its
    gradient is bounded, as that of a cross entropy is, and the same learning rates hold.
    """
    return torch.log1p(functional.mse_loss(mine, right) / variance)


# -- the losses of the tasks ----------------------------------------------------------------------

Loss = Callable[[torch.Tensor, torch.Tensor, Objective], torch.Tensor]


def _classes(outputs: torch.Tensor, labels: torch.Tensor, of: Objective) -> torch.Tensor:
    return functional.cross_entropy(outputs, labels, label_smoothing=of.recipe.label_smoothing)


def _yes_or_no(outputs: torch.Tensor, labels: torch.Tensor, of: Objective) -> torch.Tensor:
    wanted = labels.float().reshape(outputs.shape)
    return functional.binary_cross_entropy_with_logits(outputs, wanted)


def _values(outputs: torch.Tensor, labels: torch.Tensor, of: Objective) -> torch.Tensor:
    wanted = labels.to(outputs.dtype).reshape(outputs.shape)
    return _distance(outputs, wanted, of.variance("targets"))


def _pixels(outputs: torch.Tensor, labels: torch.Tensor, of: Objective) -> torch.Tensor:
    counted = (labels >= 0) & (labels != 255)
    if outputs.shape[1] == 1:
        yes = (labels == 1).to(outputs.dtype)
        each = functional.binary_cross_entropy_with_logits(outputs[:, 0], yes, reduction="none")
        return each[counted].mean()
    wanted = torch.where(counted, labels, -100)
    return functional.cross_entropy(outputs, wanted, label_smoothing=of.recipe.label_smoothing)


def _symbols(outputs: torch.Tensor, labels: torch.Tensor, of: Objective) -> torch.Tensor:
    """CTC (Graves et al., 2006) with blank 0: (b, time, symbols), labels below 0 are none."""
    counted = labels >= 0
    times = torch.full((len(outputs),), outputs.shape[1], dtype=torch.int64)
    return functional.ctc_loss(
        outputs.log_softmax(2).transpose(0, 1), labels[counted], times, counted.sum(1).cpu(),
        zero_infinity=True,
    )  # fmt: skip


def _tokens(outputs: torch.Tensor, labels: torch.Tensor, of: Objective) -> torch.Tensor:
    following = labels[:, 1:].long()
    wanted = torch.where(following >= 0, following, -100)
    return functional.cross_entropy(outputs[:, :-1].flatten(0, 1), wanted.flatten())


LOSSES: Mapping[str, Loss] = {
    "classification": _classes, "multilabel": _yes_or_no, "regression": _values,
    "segmentation": _pixels, "reconstruction": _values, "ctc": _symbols, "causal-lm": _tokens,
}  # fmt: skip


def check_labels(task: Task, labels: torch.Tensor | None, outputs: torch.Tensor) -> None:
    """Check that labels are what outputs can answer.

    Raises:
        DataError: of classes, one below 0, or above the number of outputs; of yes and no, another
            number.
    """
    if labels is None or task.whole or task.imitation == "values":
        return
    if task.imitation == "yes-or-no":
        if not ((labels == 0) | (labels == 1)).all():
            raise DataError(
                f"labels run from {float(labels.min()):g} to {float(labels.max()):g}; {task.name}"
                " takes 0 and 1",
                hint="store one 0 or 1 for each output, or take --task classification",
            )
        return
    if task.name == "segmentation":
        labels = labels[labels != 255]
    if not task.takes_classes:
        labels = labels[labels >= 0]
    classes = max(outputs.shape[task.class_axis], 2 - task.takes_classes)
    low, high = (int(labels.min()), int(labels.max())) if labels.numel() else (1, 1)
    first = int(task.name == "ctc")
    if low < first or high >= classes:
        blank = ", of which 0 is the blank" if first else ""
        raise DataError(
            f"labels run from {low} to {high}, but the network has {classes} outputs{blank}",
            hint=f"expected class indices from {first} to {classes - 1}: is this the right data"
            " set?",
        )
