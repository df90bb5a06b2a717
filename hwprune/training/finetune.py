"""Fine-tuning along a strategy: train, change the masks when an event is due, measure, report."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from hwprune.errors import DataError, UsageError
from hwprune.extreme.dyrelu import Phased, strip
from hwprune.extreme.reachability import Mended, Paths
from hwprune.ir import Data
from hwprune.sparsity import Event as MaskEvent
from hwprune.sparsity import Fill, Strategy
from hwprune.training import events, precision
from hwprune.training.applying import agreed_masks, apply_due
from hwprune.training.averaging import Pool
from hwprune.training.batches import epoch_order, steps_per_epoch
from hwprune.training.checkpoints import Checkpoint, Keeper
from hwprune.training.distributed import ALONE, World
from hwprune.training.evidence import NOTHING, Witness
from hwprune.training.feature import Feature
from hwprune.training.identity import identity_of, surroundings_of
from hwprune.training.journal import Journal
from hwprune.training.losses import check_labels
from hwprune.training.meter import Meter
from hwprune.training.modes import (
    borrowed,
    logits_of,
    place,
    recalibrate_batchnorm,
    seeded,
    set_mode,
    share_parameters,
)
from hwprune.training.quantised import Quantised, Store
from hwprune.training.recipe import Recipe
from hwprune.training.result import Event, TrainResult
from hwprune.training.resuming import capture, restore
from hwprune.training.setting import Setting
from hwprune.training.sparse import SparseParameters
from hwprune.training.stepper import Stepper

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
    store: Store | None = None,
    checkpoint: Checkpoint | None = None,
    world: World = ALONE,
    observe: Callable[[nn.Module], float] | None = None,
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
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        progress: called now and then with a sign of life.
        train_batchnorm: False keeps BN in eval mode with its statistics as they are.
        store: what weights become by being stored, or None: then they are trained as they are.
        checkpoint: where to keep the state of the run, and whether to continue from there. The
            file stays when the run has ended: ``checkpoint.discard()`` removes it.
        world: the processes that train together, all of which call this with the same arguments.
        observe: called with the module as it would be shipped, whenever a learning-rate schedule
            has ended and another follows; the trajectory holds what it returns (``observed``),
            and nothing depends on it.

    Raises:
        CheckpointError: the checkpoint is damaged, or is one of another run.
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
    # Dropout draws from the global generator: each process has samples of its own to draw for.
    with seeded(seed + 7919 * world.rank, device), borrowed(module):
        try:
            setting = Setting(
                module, data, names, strategy, fill, recipe, teacher, seed, device, progress,
                train_batchnorm, store, checkpoint, world, observe,
            )  # fmt: skip
            return Run(setting).go()
        finally:
            strip(module)
            for borrower in (module, teacher):
                if borrower is not None:
                    place(borrower, home, channels_last=False)


class Run:
    """A run in progress: all that changes while it lasts.

    That is: the module's and the optimiser's state, the masks, the step, the journal, the
    generators, and the features that keep a state of their own: what ``resuming`` captures.
    """

    def __init__(self, setting: Setting) -> None:
        """Place the networks on the device and look up when the events are due."""
        module, recipe, strategy = setting.module, setting.recipe, setting.strategy
        self.setting = setting
        self.generator = torch.Generator().manual_seed(setting.seed)
        # Its own generator: how often gradients are asked for must not change the batches.
        self.probe = torch.Generator().manual_seed(setting.seed + 1)
        place(module, setting.device, channels_last=recipe.channels_last)
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        if setting.teacher is not None:
            place(setting.teacher, setting.device, channels_last=recipe.channels_last)
            set_mode(setting.teacher, training=False)
        self.sparse = SparseParameters(module, setting.names, like=setting.teacher)
        self.batches = setting.batches(setting.data.train)
        self.epochs = strategy.epochs(recipe.epochs)
        if recipe.per_round:
            self.epochs *= len(strategy.restarts) + 1
        self.per_epoch = steps_per_epoch(self.batches.size, recipe.batch_size)
        self.steps = self.epochs * self.per_epoch
        self.step, self.epoch = 0, 0
        self.journal = Journal(setting.progress, self.epochs, self.steps)
        self.pending = [(self._due(event.progress), event) for event in strategy.events]
        self.last_change = max((step for step, _ in self.pending), default=0)
        # A schedule begins anew at the very step at which its round does.
        self.restarts = tuple(self._due(at) / max(1, self.steps) for at in strategy.restarts)
        store = setting.store if recipe.quantise_from < 1 else None
        # Half as long where BN stands still meanwhile: it has less time to lose anything.
        held = store is not None and store.holds_norms
        start = (1 + recipe.quantise_from) / 2 if held else recipe.quantise_from
        quantise_at = max(self.last_change, self._due(start))
        # Only epochs that were trained as the last one is are compared with it.
        self.settled_from = self.last_change if store is None else quantise_at
        plan, seed = strategy.phasing, setting.seed
        self.phased = Phased(module, plan, self._few, seed=seed, due=self._due)
        self.settled_from = max(self.settled_from, self.phased.gone)
        self.journal.notes += self.phased.notes
        self.paths = Paths(module, self.sparse, self._few)
        values = Quantised(module, self.sparse, store, quantise_at)
        wanted = recipe.precision if self.epochs else "fp32"
        chosen = setting.world.lead(precision.choose(wanted, setting.device))
        self.stepper = Stepper(setting, self.sparse, chosen, values)
        self.witness = Witness(self.stepper, self.sparse, self.batches, self.probe, setting.seed)
        self.pool = Pool(module, recipe.interpolate)
        self.features: dict[str, Feature] = {
            "average": self.stepper.average, "pool": self.pool, "values": values,
            "paths": self.paths,
        }  # fmt: skip
        self.keeper = Keeper(
            setting.checkpoint,
            partial(identity_of, setting),
            partial(surroundings_of, setting),
            setting.world,
        )
        self.changed_at = -1
        self.extreme: tuple[int, float] | None = None
        self.best: tuple[float, int, dict[str, torch.Tensor]] | None = None
        self.best_epoch = self.epochs or None

    def go(self) -> TrainResult:
        """Run from start to end."""
        module = self.setting.module
        set_mode(module, training=False)
        with torch.no_grad():
            check_labels(self.batches.labels, logits_of(module, self._few()).shape[1])
        self.meter = Meter(self.setting)
        if self.meter.metric == "agreement":
            note = "no labels: accuracy stands for agreement with the dense model"
            self.journal.notes.append(note)
        self._begin()
        while self.epoch < self.epochs:
            self.accuracy = self._epoch(self.epoch)
            self.epoch += 1
            if problem := self.keeper.keep(partial(capture, self)):
                self.journal.notes.append(problem)
                self.journal.say(self.epoch, self.step, message=problem)
        if self.phased.leave(self.stepper.optimizer):  # too few steps for it to have gone
            self.recalibrate()
            self.accuracy = self.measure()
        accuracy = self.accuracy
        apply_due(self, self.epochs, at_end=True)
        if self.step == 0 and self.setting.strategy.events:
            self.recalibrate()
            accuracy = self.measure()
        elif self.journal.trajectory and self.journal.trajectory[-1]["action"] != "train":
            accuracy = self.measure()
        return self._result(self._settle(accuracy))

    def _begin(self) -> None:
        """Continue from the checkpoint, or measure the dense network."""
        saved, said = self.keeper.read()
        if saved is None:
            self.dense_accuracy = self.accuracy = self.measure()
        else:
            restore(self, saved)
            done = f"continued after epoch {self.epoch} of {self.epochs}, from a checkpoint"
            said = (done, *said)
            self.journal.notes += said
        for each in said:
            self.journal.say(self.epoch, self.step, message=each)

    def _epoch(self, epoch: int) -> float:
        """Train one epoch, check the zeros, measure, and return the validation metric."""
        setting, recipe, journal = self.setting, self.setting.recipe, self.journal
        total = torch.zeros((), device=setting.device)
        clean = self.step >= self.settled_from
        order = epoch_order(self.batches.size, recipe.batch_size, self.generator)
        order = tuple(index[setting.rows] for index in order)
        set_mode(setting.module, training=True, train_batchnorm=setting.train_batchnorm)
        done = 0
        for batch in self.batches.take(order):
            if self.step / self.steps in self.restarts:
                self._collect()
            self.phased.at(self.step, self.stepper.optimizer)
            apply_due(self, epoch)
            rate = recipe.rate(self.step / self.steps, self.restarts)
            self.stepper.values.at(self.step)
            total += self.stepper.step(setting.augmented(batch, self.generator), rate)
            done, self.step = done + 1, self.step + 1
            if setting.device == "cpu" or done % _LOOK == 0 or done == self.per_epoch:
                self._check_loss(total, epoch)
            if journal.pulse_due:
                journal.say(epoch + 1, self.step, loss=float(total) / done)
        self.sparse.check()
        accuracy = self.measure()
        loss = float(total) / done
        self.record(epoch + 1, "train", accuracy=accuracy, loss=loss)
        if setting.observe is not None and self.step / self.steps in self.restarts:
            with self.stepper.shipped():
                self.journal.trajectory[-1]["observed"] = setting.observe(setting.module)
        told = f"epoch {epoch + 1} of {self.epochs}"
        journal.say(epoch + 1, self.step, loss=loss, accuracy=accuracy, message=told)
        if clean and recipe.checkpoint == "best" and accuracy > (self.best or (-1.0,))[0]:
            with self.stepper.average.exchanged():
                state = {k: v.detach().clone() for k, v in setting.module.state_dict().items()}
            self.best = (accuracy, epoch + 1, state)
        if clean and epoch + 1 < self.epochs:
            self._collect()
        return accuracy

    def measure(self) -> float:
        """Return the validation metric of what would be shipped now."""
        with self.stepper.shipped():
            return self.meter.measure()

    def _collect(self) -> None:
        """Hold the present solution for the average at the end."""
        with self.stepper.average.exchanged():
            self.pool.add()

    def _settle(self, accuracy: float) -> float:
        """Put what is to be shipped into the module, for good, and return its metric."""
        average, values = self.stepper.average, self.stepper.values
        values.at(self.step - 1)  # that of the last step, also where a resumed run takes none
        average.settle()
        if self.best is not None and self.best[0] > accuracy:
            accuracy, self.best_epoch, state = self.best
            self.setting.module.load_state_dict(state)
        before, tried = self.sparse.masks, list[Mended]()

        def finish() -> None:
            if self.sparse.masks.nonzeros > before.nonzeros:
                event = MaskEvent(1.0, "prune", budget_fraction=1.0)
                tried.append(agreed_masks(self, event, NOTHING))
                self.sparse.set_masks(tried[-1].masks, None)
                self.sparse.restart(tried[-1].opened)
            with values.calibrating():
                self.recalibrate()

        with torch.no_grad():
            joined = self.pool.merge(self.sparse, finish, self.measure)
        for mended in (each for each in tried if each.masks is self.sparse.masks):
            self.paths.count(mended)  # others did not join
        if joined:
            accuracy = self.measure()
            self.record(self.epochs, "average", accuracy=accuracy)
            self.journal.notes.append(f"averaged with {joined} of its earlier solutions")
        if values.settle():
            accuracy = self.meter.measure()
        return accuracy

    def recalibrate(self) -> None:
        """Take BN's statistics anew, unless BN is frozen."""
        if self.setting.train_batchnorm:
            recipe = self.setting.recipe
            recalibrate_batchnorm(
                self.setting.module,
                self.setting.data.train,
                samples=recipe.calibration_samples,
                batch=recipe.batch_size,
                device=self.setting.device,
                seed=self.setting.seed,
            )

    def _check_loss(self, total: torch.Tensor, epoch: int) -> None:
        if not math.isfinite(float(total)):
            rate = self.setting.recipe.learning_rate
            raise UsageError(
                f"training diverged in epoch {epoch + 1}, step {self.step} of {self.steps}:"
                " the loss is not a number",
                hint=f"lower the learning rate ({rate:g}) or set grad_clip,"
                " and check how the data are normalised",
            )

    def record(
        self, epoch: int, action: str, *, accuracy: float | None = None, loss: float | None = None
    ) -> None:
        """Add a point to the trajectory."""
        living = self.sparse.masks.nonzeros
        at = self.step / self.steps if self.steps else 0.0
        self.journal.record(
            # A change of the masks falls inside an epoch: fractions keep the order of a plot.
            epoch=round(self.step / self.per_epoch, 4) if self.steps else epoch,
            step=self.step,
            action=action,
            nonzeros=living,
            density=living / self.sparse.weights,
            accuracy=accuracy,
            loss=loss,
            lr=self.setting.recipe.rate(at, self.restarts) if self.steps else None,
        )

    def _result(self, accuracy: float) -> TrainResult:
        self.sparse.check()
        self.journal.notes += self.paths.notes
        if alone := events.collapsed(self.sparse.masks):
            self.journal.notes.append(f"one connection is all that is left of {', '.join(alone)}")
        return TrainResult(
            masks=self.sparse.masks,
            trajectory=tuple(self.journal.trajectory),
            epochs=self.epochs,
            cost_epochs=self.epochs * (2.0 if self.setting.recipe.sharpness else 1.0),
            steps=self.step,
            seconds=self.journal.seconds,
            metric=self.meter.metric,
            dense_accuracy=self.dense_accuracy,
            extreme_accuracy=None if self.extreme is None else self.extreme[1],
            extreme_nonzeros=None if self.extreme is None else self.extreme[0],
            final_accuracy=accuracy,
            best_epoch=self.best_epoch,
            precision=self.stepper.precision,
            notes=tuple(self.journal.notes),
        )

    def _few(self) -> tuple[torch.Tensor, ...]:
        """Return two samples."""
        return next(self.batches.take((torch.arange(min(2, self.batches.size)),))).inputs

    def _due(self, progress: float) -> int:
        return min(self.steps, round(progress * self.steps))
