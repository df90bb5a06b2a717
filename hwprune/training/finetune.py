"""Fine-tuning along a strategy: train, change the masks when an event is due, measure, report."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwprune.errors import DataError, UsageError
from hwprune.ir import Data
from hwprune.sparsity import Event as MaskEvent
from hwprune.sparsity import Fill, Strategy
from hwprune.training import events, precision
from hwprune.training.batches import Batch, Batches, augment, epoch_order, steps_per_epoch
from hwprune.training.evaluate import predictions, share_of
from hwprune.training.losses import check_labels, loss_of
from hwprune.training.modes import (
    borrowed,
    frozen_statistics,
    logits_of,
    place,
    recalibrate_batchnorm,
    seeded,
    set_mode,
    share_parameters,
)
from hwprune.training.optimizer import sgd
from hwprune.training.recipe import Recipe
from hwprune.training.result import Event, TrainResult
from hwprune.training.sparse import SparseParameters

# Seconds between two signs of life.
_PULSE = 0.5
# Steps between two looks at the loss on a device where looking waits for the queue.
_LOOK = 25


def finetune(
    module: nn.Module,
    *,
    data: Data,
    names: Sequence[str],
    strategy: Strategy,
    fill: Fill,
    recipe: Recipe,
    teacher: nn.Module | None,
    seed: int,
    device: str = "cpu",
    progress: Callable[[Event], None] | None = None,
    train_batchnorm: bool = True,
) -> TrainResult:
    """Prune (and regrow) a network along a strategy while it is trained. Works in place.

    The result depends on the arguments, the thread count and the machine's arithmetic only; global
    random state is left as it was. Batches are drawn alike whatever the strategy.

    Args:
        module: a classifier; ends in eval mode on the device it came from.
        data: trained on ``train``, measured on ``validation``; ``test`` is not read.
        names: keys of the prunable parameters.
        strategy: what happens to the masks, and when.
        fill: (ranking, fraction of the byte budget) -> masks.
        recipe: how to train.
        teacher: the dense model that is imitated, or None; may be ``module`` itself (copied).
        seed: of the order of samples, augmentation and dropout.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        progress: called now and then with a sign of life.
        train_batchnorm: False keeps BN in eval mode with its statistics as they are.

    Raises:
        DataError: neither labels nor a teacher, an empty split, or a label out of range.
        ModelError: the network does not return one row of class scores per sample.
        UsageError: the loss is not a number any more, or nothing can be pruned.
        HwpruneError: a pruned weight is not zero (a bug).
    """
    if data.train.labels is None and teacher is None:
        raise DataError(
            "there is nothing to learn from: the data have no labels and no teacher was given",
            hint="give labelled data, or the dense model as teacher",
        )
    home = next(module.parameters()).device
    if teacher is not None and share_parameters(teacher, module):
        teacher = copy.deepcopy(teacher)
    with seeded(seed, device), borrowed(module):
        try:
            run = _Run(
                module, data, names, strategy, fill, recipe, teacher, seed, device, progress,
                train_batchnorm,
            )  # fmt: skip
            return run.go()
        finally:
            for borrower in (module, teacher):
                if borrower is not None:
                    place(borrower, home, channels_last=False)


class _Run:
    """All that changes during a run, in one place: what a checkpoint would have to hold.

    That is: the module's and the optimiser's state, the masks, the step, the trajectory and the
    two generators.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Data,
        names: Sequence[str],
        strategy: Strategy,
        fill: Fill,
        recipe: Recipe,
        teacher: nn.Module | None,
        seed: int,
        device: str,
        progress: Callable[[Event], None] | None,
        train_batchnorm: bool,
    ) -> None:
        self.module, self.data, self.recipe, self.device = module, data, recipe, device
        self.strategy, self.fill, self.progress = strategy, fill, progress
        self.train_batchnorm, self.seed = train_batchnorm, seed
        self.started = self.pulse = time.perf_counter()
        self.generator = torch.Generator().manual_seed(seed)
        # Its own generator: how often gradients are asked for must not change the batches.
        self.probe = torch.Generator().manual_seed(seed + 1)
        place(module, device, channels_last=recipe.channels_last)
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        self.teacher = teacher
        if teacher is not None:
            place(teacher, device, channels_last=recipe.channels_last)
            set_mode(teacher, training=False)
        self.sparse = SparseParameters(module, names)
        self.optimizer = sgd(module, recipe)
        self.batches = self._batches(data.train)
        self.epochs = strategy.epochs(recipe.epochs)
        self.per_epoch = steps_per_epoch(self.batches.size, recipe.batch_size)
        self.steps = self.epochs * self.per_epoch
        self.step = 0
        self.trajectory: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.pending = [(self._due(event), event) for event in strategy.events]
        self.last_change = max((step for step, _ in self.pending), default=0)
        self.changed_at = -1
        self.extreme: tuple[int, float] | None = None
        self.best: tuple[float, int, dict[str, torch.Tensor]] | None = None

    def go(self) -> TrainResult:
        """Run from start to end."""
        first = next(self.batches.take((torch.arange(min(2, self.batches.size)),)))
        set_mode(self.module, training=False)
        with torch.no_grad():
            check_labels(self.batches.labels, logits_of(self.module, first.inputs).shape[1])
        self.precision = self._choose_precision()
        self._prepare_validation()
        self.dense_accuracy = accuracy = self._measure()
        for epoch in range(self.epochs):
            accuracy = self._epoch(epoch)
        self._apply_due(self.epochs, at_end=True)
        if self.step == 0 and self.strategy.events:
            self._recalibrate()
            accuracy = self._measure()
        elif self.trajectory and self.trajectory[-1]["action"] != "train":
            accuracy = self._measure()
        return self._result(accuracy)

    # -- parts of the loop ----------------------------------------------------------------------

    def _epoch(self, epoch: int) -> float:
        """Train one epoch, check the zeros, measure, and return the validation metric."""
        total = torch.zeros((), device=self.device)
        clean = self.step >= self.last_change
        order = epoch_order(self.batches.size, self.recipe.batch_size, self.generator)
        set_mode(self.module, training=True, train_batchnorm=self.train_batchnorm)
        done = 0
        for batch in self.batches.take(order):
            self._apply_due(epoch)
            total += self._train_step(augment(batch, self.data.augment, self.generator))
            done, self.step = done + 1, self.step + 1
            if self.device == "cpu" or done % _LOOK == 0 or done == self.per_epoch:
                self._check_loss(total, epoch)
            self._say(epoch + 1, float(total) / done if self._pulse_due() else None)
        self.sparse.check()
        accuracy = self._measure()
        loss = float(total) / done
        self._record(epoch + 1, "train", accuracy=accuracy, loss=loss)
        self._say(epoch + 1, loss, accuracy, f"epoch {epoch + 1} of {self.epochs}", always=True)
        if clean and self.recipe.checkpoint == "best" and accuracy > (self.best or (-1.0,))[0]:
            state = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
            self.best = (accuracy, epoch + 1, state)
        return accuracy

    def _train_step(self, batch: Batch) -> torch.Tensor:
        """Take one optimiser step and return the loss, without waiting for it."""
        rate = self.recipe.rate(self.step / self.steps, self.strategy.restarts)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._backward(batch)
        self.sparse.mask_gradients()
        if self.recipe.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.grad_clip)
        self.optimizer.step()
        return loss

    def _backward(self, batch: Batch) -> torch.Tensor:
        """Put the gradients of one batch into the parameters and return the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        kind = torch.device(self.device).type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            teacher_logits = None
            if self.teacher is not None and self._wants_teacher(batch):
                with torch.no_grad():
                    teacher_logits = logits_of(self.teacher, batch.inputs)
            logits = logits_of(self.module, batch.inputs)
        loss = loss_of(logits, batch.labels, teacher_logits, self.recipe)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _wants_teacher(self, batch: Batch) -> bool:
        return batch.labels is None or self.recipe.distillation_weight > 0

    def _apply_due(self, epoch: int, *, at_end: bool = False) -> None:
        """Apply the events whose step has come."""
        while self.pending and (at_end or self.pending[0][0] <= self.step):
            _, event = self.pending.pop(0)
            if event.action == "regrow":
                self._look_at_extreme(epoch)
            gradients = self._gradients() if events.needs_gradient(event) else None
            masks = events.masks_after(
                event, self.sparse, gradients, self.fill, density=self.strategy.density
            )
            self.sparse.set_masks(masks, self.optimizer, initial=event.initial)
            self.changed_at = self.step
            self._record(epoch, event.action)
            density = masks.nonzeros / self.sparse.weights
            told = f"{event.action} to {masks.nonzeros:,} nonzeros ({100 * density:.2f} %)"
            self._say(epoch, None, None, told, always=True)

    def _look_at_extreme(self, epoch: int) -> None:
        """Measure the state with the fewest connections, once it has been trained."""
        living = self.sparse.masks.nonzeros
        trained = self.changed_at < self.step or self.epochs == 0
        if not trained or living >= (self.extreme or (self.sparse.weights,))[0]:
            return
        if self.epochs == 0:
            self._recalibrate()
        self.extreme = (living, self._measure())
        self._record(epoch, "extreme", accuracy=self.extreme[1])
        set_mode(self.module, training=self.epochs > 0, train_batchnorm=self.train_batchnorm)

    def _gradients(self) -> dict[str, NDArray[np.float32]]:
        """Return the mean gradient of a few batches with respect to all weights, dead or alive."""
        sums: dict[str, NDArray[np.float32]] = {}
        set_mode(self.module, training=True, train_batchnorm=self.train_batchnorm)
        with frozen_statistics(self.module):
            for _ in range(self.recipe.gradient_batches):
                index = torch.randperm(self.batches.size, generator=self.probe)
                index = index[: self.recipe.batch_size]
                for batch in self.batches.take((index,)):
                    self._backward(augment(batch, self.data.augment, self.probe))
                for name, gradient in self.sparse.gradients().items():
                    sums[name] = sums[name] + gradient if name in sums else gradient
        self.optimizer.zero_grad(set_to_none=True)
        return sums

    # -- measuring and reporting ----------------------------------------------------------------

    def _prepare_validation(self) -> None:
        """Decide what validation is measured against: labels, or the dense model's answers."""
        self.validation = self._batches(self.data.validation)
        self.metric: Literal["accuracy", "agreement"] = "accuracy"
        targets = self.validation.labels
        if targets is None:
            self.metric = "agreement"
            self.notes.append("no labels: accuracy stands for agreement with the dense model")
            targets = predictions(self.teacher or self.module, self.validation)
        self.targets = targets

    def _measure(self) -> float:
        accuracy = share_of(self.module, self.validation, self.targets)
        set_mode(self.module, training=True, train_batchnorm=self.train_batchnorm)
        return accuracy

    def _recalibrate(self) -> None:
        if self.train_batchnorm:
            samples, batch = self.recipe.calibration_samples, self.recipe.batch_size
            recalibrate_batchnorm(
                self.module,
                self.data.train,
                samples=samples,
                batch=batch,
                device=self.device,
                seed=self.seed,
            )

    def _check_loss(self, total: torch.Tensor, epoch: int) -> None:
        if not math.isfinite(float(total)):
            raise UsageError(
                f"training diverged in epoch {epoch + 1}, step {self.step} of {self.steps}:"
                " the loss is not a number",
                hint=f"lower the learning rate ({self.recipe.learning_rate:g}) or set grad_clip,"
                " and check how the data are normalised",
            )

    def _record(
        self, epoch: int, action: str, *, accuracy: float | None = None, loss: float | None = None
    ) -> None:
        living = self.sparse.masks.nonzeros
        at = self.step / self.steps if self.steps else 0.0
        self.trajectory.append(
            {
                # A change of the masks falls inside an epoch: fractions keep the order of a plot.
                "epoch": round(self.step / self.per_epoch, 4) if self.steps else epoch,
                "step": self.step,
                "action": action,
                "nonzeros": living,
                "density": living / self.sparse.weights,
                "accuracy": accuracy,
                "loss": loss,
                "lr": self.recipe.rate(at, self.strategy.restarts) if self.steps else None,
                "seconds": time.perf_counter() - self.started,
            }
        )

    def _pulse_due(self) -> bool:
        return self.progress is not None and time.perf_counter() - self.pulse > _PULSE

    def _say(
        self,
        epoch: int,
        loss: float | None,
        accuracy: float | None = None,
        message: str = "",
        *,
        always: bool = False,
    ) -> None:
        if self.progress is None or not (always or self._pulse_due()):
            return
        self.pulse = time.perf_counter()
        message = message or f"epoch {epoch} of {self.epochs}"
        self.progress(Event(epoch, self.step, self.steps, loss, accuracy, message))

    def _result(self, accuracy: float) -> TrainResult:
        best_epoch = self.epochs or None
        if self.best is not None and self.best[0] > accuracy:
            accuracy, best_epoch, state = self.best
            self.module.load_state_dict(state)
        self.sparse.check()
        if alone := events.collapsed(self.sparse.masks):
            self.notes.append(f"one connection is all that is left of {', '.join(alone)}")
        return TrainResult(
            masks=self.sparse.masks,
            trajectory=tuple(self.trajectory),
            epochs=self.epochs,
            steps=self.step,
            seconds=time.perf_counter() - self.started,
            metric=self.metric,
            dense_accuracy=self.dense_accuracy,
            extreme_accuracy=None if self.extreme is None else self.extreme[1],
            extreme_nonzeros=None if self.extreme is None else self.extreme[0],
            final_accuracy=accuracy,
            best_epoch=best_epoch,
            precision=self.precision,
            notes=tuple(self.notes),
        )

    # -- small things ---------------------------------------------------------------------------

    def _due(self, event: MaskEvent) -> int:
        return min(self.steps, round(event.progress * self.steps))

    def _batches(self, split: Any) -> Batches:
        return Batches(
            split,
            device=self.device,
            resident_bytes=self.recipe.resident_bytes,
            channels_last=self.recipe.channels_last,
        )

    def _choose_precision(self) -> Literal["fp32", "bf16"]:
        count = min(self.recipe.batch_size, self.batches.size)
        batch = next(self.batches.take((torch.arange(count),)))
        chosen, note = precision.choose(
            self.recipe.precision if self.epochs else "fp32", self.module, batch.inputs, self.device
        )
        if note is not None:
            self.notes.append(note)
        return chosen
