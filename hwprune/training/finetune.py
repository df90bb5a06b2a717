"""Fine-tuning along a strategy: train, change the masks when an event is due, measure, report."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import nn

from hwprune.errors import DataError, UsageError
from hwprune.sparsity import MaskEvent
from hwprune.tasks import IMITATION
from hwprune.training import precision
from hwprune.training.averaging import MovingAverage, Pool
from hwprune.training.batches import Batch, augment, epoch_order, steps_per_epoch
from hwprune.training.checkpoints import CheckpointManager
from hwprune.training.config import FinetuneConfig
from hwprune.training.devices import kept_memory
from hwprune.training.engine import Engine, due, value_phase
from hwprune.training.evaluate import Validator
from hwprune.training.events import collapsed
from hwprune.training.evidence import GradientStats
from hwprune.training.hooks import Hook, Proposal, Stage
from hwprune.training.identity import identity_of, surroundings_of
from hwprune.training.losses import Objective, check_labels, forward, nothing_to_learn_from
from hwprune.training.masters import MasterWeights
from hwprune.training.module_state import (
    borrowed,
    frozen_statistics,
    global_generators,
    logits_of,
    place,
    put,
    recalibrate_batchnorm,
    seeded,
    set_global_generators,
    set_mode,
    share_parameters,
    state_of,
)
from hwprune.training.optimizer import sgd
from hwprune.training.result import Journal, TrainResult
from hwprune.training.sharpness import Sharpness
from hwprune.training.sparse import SparseParameters
from hwprune.training.teacher import Teacher

# Steps between two looks at the loss on a device where looking waits for the queue.
_LOOK = 25


def finetune(config: FinetuneConfig) -> TrainResult:
    """Prune (and regrow) a network along a strategy while it is trained. Works in place.

    The result depends on the arguments, the thread count and the machine's arithmetic only; global
    random state is left as it was. Batches are drawn alike whatever the strategy.

    Raises:
        CheckpointError: the checkpoint is damaged, or is one of another run.
        DataError: neither labels nor a teacher, an empty split, or a label out of range.
        ModelError: the network has not the output that the task takes.
        UsageError: the loss is not a number any more, or nothing can be pruned.
        HwpruneError: a pruned weight is not zero (a bug).
    """
    module, teacher, device = config.module, config.teacher, config.device
    if teacher is None and not config.task.measurable(config.data.train):
        raise nothing_to_learn_from()
    home = next(module.parameters()).device
    if teacher is not None and share_parameters(teacher, module):
        teacher = copy.deepcopy(teacher)
        config = replace(config, teacher=teacher)
    # Dropout draws from the global generator: each process has samples of its own to draw for.
    seed = config.seed + 7919 * config.world.rank
    with seeded(seed, device), borrowed(module), kept_memory(device):
        run = None
        try:
            run = Run(config)
            return run.train()
        finally:
            if run is not None:
                run.close()
            for borrower in (module, teacher):
                if borrower is not None:
                    place(borrower, home, channels_last=False)


class Run:
    """A run in progress: the loop, and all that changes while it lasts."""

    def __init__(self, config: FinetuneConfig) -> None:
        """Place the networks on the device and look up when things are due."""
        module, recipe, strategy = config.module, config.recipe, config.strategy
        self.config, self.module, self.recipe = config, module, recipe
        self.generator = torch.Generator().manual_seed(config.seed)
        # Its own generator: how often gradients are asked for must not change the batches.
        self.probe = torch.Generator().manual_seed(config.seed + 1)
        place(module, config.device, channels_last=recipe.channels_last)
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        if config.teacher is not None:
            place(config.teacher, config.device, channels_last=recipe.channels_last)
            set_mode(config.teacher, training=False)
        self.checkpoints = CheckpointManager(
            config.checkpoint, partial(identity_of, config), partial(surroundings_of, config),
            config.world,
        )  # fmt: skip
        self.batches = config.batches(config.data.train)
        self.objective = Objective(config.task, recipe, self.batches, config.teacher)
        self.epochs = strategy.epochs(recipe.epochs)
        if recipe.per_round:
            self.epochs *= len(strategy.restarts) + 1
        self.per_epoch = steps_per_epoch(self.batches.size, recipe.batch_size)
        self.steps = self.epochs * self.per_epoch
        # A schedule begins anew at the very step at which its round does.
        self.restarts = tuple(due(at, self.steps) / max(1, self.steps) for at in strategy.restarts)
        self.journal = Journal(config.progress, self.epochs, self.steps)

        self.sparse = SparseParameters(module, config.names, like=config.teacher)
        store = config.store if recipe.quantise_from < 1 else None
        start = 0 if store is None else value_phase(
            strategy, store, recipe.quantise_from, self.steps
        )  # fmt: skip
        self.masters = MasterWeights(module, self.sparse, store, start)
        self.engine = Engine(
            self.sparse, self.masters, strategy, config.fill, steps=self.steps, seed=config.seed,
            world=config.world, gradients=self._probed, before_change=self._before_change,
            changed=self._changed,
        )  # fmt: skip
        stage = Stage(
            module, self.sparse, strategy, self._few, config.seed, self.steps,
            lambda progress: due(progress, self.steps),
        )  # fmt: skip
        self.average = MovingAverage(module, self.sparse, self.masters, recipe.ema_decay)
        self.hooks: dict[str, Hook] = {**config.hooks(stage), "average": self.average}
        if recipe.sharpness:
            self.hooks["sharpness"] = Sharpness(module, self.masters, recipe.sharpness)
        self.engine.hooks = self.hooks
        changes = [at for at, _ in self.engine.pending]
        # Only epochs that were trained as the last one is are compared with it.
        later = [hook.settled_from for hook in self.hooks.values()]
        self.settled_from = max([*changes, start, *later], default=0)

        self.network, teacher = module, config.teacher
        if recipe.compiled:
            self.network = cast("nn.Module", torch.compile(module))
            teacher = cast("nn.Module", torch.compile(teacher)) if teacher is not None else None
        wanted = recipe.precision if self.epochs else "fp32"
        self.precision: Literal["fp32", "bf16"] = config.world.broadcast(
            precision.choose(wanted, config.device)
        )
        self.teacher: Teacher | None = None
        labelled = config.task.measurable(config.data.train)
        if teacher is not None and (not labelled or recipe.distillation_weight > 0):
            self.teacher = Teacher(teacher, config, self.batches, self.epochs, self.autocast)
        self.optimizer = sgd(module, recipe)
        self.engine.attach(self.optimizer)
        self.pool = Pool(module, recipe.interpolate)
        self.epoch, self.changed_at = 0, -1
        self.extreme: tuple[int, float] | None = None
        self.best: tuple[float, int, dict[str, torch.Tensor]] | None = None
        self.best_epoch = self.epochs or None

    # -- the loop ---------------------------------------------------------------------------------

    def train(self) -> TrainResult:
        """Run from start to end."""
        set_mode(self.module, training=False)
        task = self.config.task
        with torch.no_grad():
            few = self._few()
            if task.takes_classes:
                logits_of(self.module, few)
            check_labels(task, self.batches.labels, task.counted(forward(self.module, few)))
        self.validator = Validator(self.config)
        if self.validator.judge.name == "agreement":
            note = "no labels: accuracy stands for agreement with the dense model"
            self.journal.notes.append(note)
        elif self.validator.judge.name == IMITATION.metric.name:
            note = "no labels: what is measured is the share of the dense outputs' variance kept"
            self.journal.notes.append(note)
        self._begin()
        while self.epoch < self.epochs:
            self.metric = self._epoch()
            if problem := self.checkpoints.keep(self.state_dict):
                self.journal.notes.append(problem)
                self.journal.say(self.epoch, self.step, message=problem)
        metric = self.metric
        self.engine.change_masks(at_end=True)
        if self.step == 0 and self.config.strategy.events:
            self.recalibrate()
            metric = self.measure()
        elif self.journal.trajectory and self.journal.trajectory[-1]["action"] != "train":
            metric = self.measure()
        return self._result(self._settle(metric))

    def _epoch(self) -> float:
        """Train one epoch, check the zeros, measure, and return the validation metric."""
        config, journal = self.config, self.journal
        total = torch.zeros((), device=config.device)
        clean = self.step >= self.settled_from
        order = epoch_order(self.batches.size, self.recipe.batch_size, self.generator)
        set_mode(self.module, training=True, train_batchnorm=config.train_batchnorm)
        done = 0
        for batch in self.batches.take(tuple(index[config.rows] for index in order)):
            total += self._step(batch)
            done += 1
            if config.device == "cpu" or done % _LOOK == 0 or done == self.per_epoch:
                self._check_loss(total)
            if journal.pulse_due:
                journal.say(self.epoch + 1, self.step, loss=float(total) / done)
        self.epoch += 1
        self.sparse.check()
        exact = self.epoch == self.epochs or self.recipe.checkpoint == "best"
        metric, loss = self.measure(exact=exact), float(total) / done
        self.record("train", metric=metric, loss=loss)
        if config.observe is not None and self.step / self.steps in self.restarts:
            with self.shipped():
                journal.trajectory[-1]["observed"] = config.observe(self.module)
        message = f"epoch {self.epoch} of {self.epochs}"
        living = self.sparse.masks
        journal.say(self.epoch, self.step, loss=loss, metric=metric, message=message, masks=living)
        score = self.validator.judge.metric.score
        better = self.best is None or score(metric) > score(self.best[0])
        if clean and self.recipe.checkpoint == "best" and better:
            self.best = (metric, self.epoch, {n: t.clone() for n, t in self.solution().items()})
        if clean and self.epoch < self.epochs:
            self.pool.add(self.solution())
        return metric

    def _step(self, batch: Batch) -> torch.Tensor:
        """Take one optimiser step and return the loss, without waiting for it."""
        at = self.step / self.steps
        if at in self.restarts:
            self.pool.add(self.solution())
        for hook in self.hooks.values():
            hook.before_step(self.step, self.optimizer)
        self.engine.before_step()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(at, self.restarts)
        if self.teacher is not None and self.teacher.views:
            batch = self.teacher.view(batch, self.epoch)
        else:
            batch = self.drawn(batch, self.generator)
        loss = self.backward(batch)
        for hook in self.hooks.values():
            hook.after_backward(lambda: self.backward(batch))
        self.engine.moments.add(self.step)
        if self.recipe.grad_clip is not None:
            self.sparse.mask_gradients()
            nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.grad_clip)
        self.optimizer.step()
        return loss

    def backward(self, batch: Batch, *, eager: bool = False) -> torch.Tensor:
        """Put the gradients of one batch into the parameters and return the loss.

        Args:
            batch: what to learn from.
            eager: run the network as it is, where ordinary steps go through ``torch.compile``.
        """
        config = self.config
        eager = eager or any(hook.eager for hook in self.hooks.values())
        network = self.module if eager else self.network
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            outputs = forward(network, batch.inputs)
        loss = self.objective(outputs, batch, batch.answers)
        loss.backward()  # type: ignore[no-untyped-call]
        return config.world.mean_gradients(
            self.module, loss.detach(), len(batch.inputs[0]), config.batch_size
        )

    def drawn(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return this process's share of a training batch, changed anew, with the answers to it."""
        batch = augment(
            batch, self.config.data.augment, generator, cutout=self.recipe.cutout,
            rows=self.config.rows, of=self.config.batch_size,
        )  # fmt: skip
        return batch if self.teacher is None else self.teacher.ask(batch)

    def autocast(self) -> torch.autocast:
        """Return the arithmetic of a step."""
        kind = torch.device(self.config.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def step(self) -> int:
        """Return how many optimiser steps were taken."""
        return self.engine.step

    # -- the masks --------------------------------------------------------------------------------

    def _probed(self) -> dict[str, torch.Tensor]:
        """Return the sum of the gradients of ``gradient_batches`` batches, BN held still.

        That is no reason to compile the network anew.
        """
        config = self.config
        sums: dict[str, torch.Tensor] = {}
        set_mode(self.module, training=True, train_batchnorm=config.train_batchnorm)
        with frozen_statistics(self.module):
            for _ in range(self.recipe.gradient_batches):
                index = torch.randperm(self.batches.size, generator=self.probe)
                for batch in self.batches.take((index[: config.batch_size][config.rows],)):
                    self.backward(self.drawn(batch, self.probe), eager=True)
                for name, gradient in self.sparse.gradients().items():
                    sums[name] = sums[name].add_(gradient) if name in sums else gradient
                self.optimizer.zero_grad(set_to_none=True)
        return sums

    def _before_change(self, event: MaskEvent) -> None:
        """Measure the state with the fewest connections, once it has been trained."""
        living = self.sparse.masks.nonzeros
        trained = self.changed_at < self.step or self.epochs == 0
        fewest = self.extreme[0] if self.extreme else self.sparse.weights
        if event.action != "regrow" or not trained or living >= fewest:
            return
        if self.epochs == 0:
            self.recalibrate()
        self.extreme = (living, self.measure())
        self.record("extreme", metric=self.extreme[1])
        set_mode(self.module, training=self.epochs > 0, train_batchnorm=self.config.train_batchnorm)

    def _changed(self, event: MaskEvent, proposal: Proposal) -> None:
        """Report a change of the masks and, once, which tensors only the guard keeps: collapse."""
        masks, journal = proposal.untouched, self.journal
        for name in collapsed(masks):
            why = "its best connection was kept" if masks[name].any() else "none of it fits"
            note = f"layer collapse in {name}: {why}"
            if note not in journal.notes:
                journal.notes.append(note)
        self.changed_at = self.step
        self.record(event.action)
        kept = proposal.masks.nonzeros
        share = 100 * kept / self.sparse.weights
        message = f"{event.action} to {kept:,} nonzeros ({share:.2f} %)"
        journal.say(self.epoch, self.step, message=message)

    # -- measuring --------------------------------------------------------------------------------

    @contextmanager
    def shipped(self) -> Iterator[None]:
        """Let the module hold inside what it would be shipped with."""
        with ExitStack() as stack:
            for hook in self.hooks.values():
                stack.enter_context(hook.for_measuring())
            yield

    def measure(self, *, exact: bool = True) -> float:
        """Return the validation metric of what would be shipped; else in a step's precision."""
        with self.shipped(), nullcontext() if exact else self.autocast():
            return self.validator.measure()

    def solution(self) -> dict[str, torch.Tensor]:
        """Return parameters and buffers by name, averaged, not as stored; no copies."""
        live = {name: tensor.detach() for name, tensor in state_of(self.module).items()}
        return {**live, **self.masters.values, **self.average.values}

    def recalibrate(self) -> None:
        """Take BN's statistics anew, unless BN is frozen."""
        if self.config.train_batchnorm:
            recalibrate_batchnorm(
                self.module, self.config.data.train, samples=self.recipe.calibration_samples,
                batch=self.recipe.batch_size, device=self.config.device, seed=self.config.seed,
            )  # fmt: skip

    # -- the end ----------------------------------------------------------------------------------

    def _settle(self, metric: float) -> float:
        """Put what is to be shipped into the module, for good, and return its metric."""
        self.masters.reveal()
        for hook in self.hooks.values():
            hook.finish()
        score = self.validator.judge.metric.score
        if self.best is not None and score(self.best[0]) > score(metric):
            metric, self.best_epoch, state = self.best
            put(self.module, state)
        before, tried = self.sparse.masks, list[Proposal]()
        last = MaskEvent(1.0, "prune", budget_fraction=1.0)

        def finish() -> None:
            if self.sparse.masks.nonzeros > before.nonzeros:
                tried.append(self.engine.propose(last, GradientStats()))
                self.sparse.set_masks(tried[-1].masks)
                self.sparse.restart(tried[-1].opened)
            with nullcontext() if self.masters.holds_norms else self.masters.shown():
                self.recalibrate()

        def measure() -> float:
            with self.masters.shown():
                return score(self.validator.measure())

        with torch.no_grad():
            joined = self.pool.merge(self.sparse, finish, measure)
        for proposal in (each for each in tried if each.masks is self.sparse.masks):
            for hook in self.hooks.values():  # others did not join
                hook.after_mask_change(last, proposal)
        if joined:
            with self.masters.shown():
                metric = self.validator.measure()
            self.record("average", metric=metric)
            self.journal.notes.append(f"averaged with {joined} of its earlier solutions")
        if self.masters.finish():
            metric = self.validator.measure()
        return metric

    def _result(self, metric: float) -> TrainResult:
        self.sparse.check()
        for hook in self.hooks.values():
            self.journal.notes += hook.notes
        if alone := collapsed(self.sparse.masks):
            self.journal.notes.append(f"one connection is all that is left of {', '.join(alone)}")
        return TrainResult(
            masks=self.sparse.masks,
            trajectory=tuple(self.journal.trajectory),
            epochs=self.epochs,
            cost_epochs=self.epochs * (2.0 if self.recipe.sharpness else 1.0),
            steps=self.step,
            seconds=self.journal.seconds,
            metric=self.validator.judge.name,
            dense_metric=self.dense_metric,
            extreme_metric=None if self.extreme is None else self.extreme[1],
            extreme_nonzeros=None if self.extreme is None else self.extreme[0],
            final_metric=metric,
            rows=self.validator.rows,
            best_epoch=self.best_epoch,
            precision=self.precision,
            notes=tuple(self.journal.notes),
        )

    def close(self) -> None:
        """Leave the module as it was made."""
        self.engine.detach()
        for hook in self.hooks.values():
            hook.close()

    # -- what is told -----------------------------------------------------------------------------

    def record(
        self, action: str, *, metric: float | None = None, loss: float | None = None
    ) -> None:
        """Add a point to the trajectory."""
        kept = self.sparse.masks.nonzeros
        self.journal.record(
            # A change of the masks falls inside an epoch: fractions keep the order of a plot.
            epoch=round(self.step / self.per_epoch, 4),
            step=self.step,
            action=action,
            nonzeros=kept,
            density=kept / self.sparse.weights,
            metric=metric,
            loss=loss,
            lr=self.recipe.rate(self.step / self.steps, self.restarts) if self.steps else None,
        )

    def _check_loss(self, total: torch.Tensor) -> None:
        if not math.isfinite(float(total)):
            raise UsageError(
                f"training diverged in epoch {self.epoch + 1}, step {self.step} of {self.steps}:"
                " the loss is not a number",
                hint=f"lower the learning rate ({self.recipe.learning_rate:g}) or set grad_clip,"
                " and check how the data are normalised",
            )

    def _few(self) -> tuple[torch.Tensor, ...]:
        """Return two samples."""
        return next(self.batches.take((torch.arange(min(2, self.batches.size)),))).inputs

    # -- a checkpoint -----------------------------------------------------------------------------

    def _begin(self) -> None:
        """Continue from the checkpoint, or measure the dense network."""
        saved, said = self.checkpoints.read()
        if saved is None:
            self.dense_metric = self.metric = self.measure()
            if not math.isfinite(self.dense_metric):
                raise DataError(
                    f"the {self.validator.judge.name} of the dense network is"
                    f" {self.dense_metric}, which is no finite number",
                    hint="is this the right task, and are the labels of its validation samples"
                    " right?",
                )
        else:
            self.load_state_dict(saved)
            done = f"continued after epoch {self.epoch} of {self.epochs}, from a checkpoint"
            said = (done, *said)
            self.journal.notes += said
        for each in said:
            self.journal.say(self.epoch, self.step, message=each)

    def state_dict(self) -> dict[str, Any]:
        """Return all that it takes to go on from here to the bit; nothing is copied.

        What a run is made with (the pretrained values, the teacher, the events) is not a part of
        it: a new run is made with the same. Several processes call this together.
        """
        return {
            "engine": self.engine.state_dict(),
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.precision,
            "journal": self.journal.state_dict(),
            "pool": self.pool.state_dict(),
            "generators": [self.generator.get_state(), self.probe.get_state()],
            # Dropout: every process draws for its own samples.
            "global generators": self.config.world.gather(global_generators(self.config.device)),
            "progress": [self.step, self.epoch, self.changed_at],
            "metrics": [self.dense_metric, self.metric],
            "extreme": self.extreme,
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned, in a run that was made alike."""
        rank = self.config.world.rank
        self.engine.load_state_dict(state["engine"])
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision = state["precision"]
        self.journal.load_state_dict(state["journal"])
        self.pool.load_state_dict(state["pool"])
        for generator, saved in zip((self.generator, self.probe), state["generators"], strict=True):
            generator.set_state(saved)
        if rank < len(state["global generators"]):
            set_global_generators(state["global generators"][rank], self.config.device)
        _, self.epoch, self.changed_at = state["progress"]
        self.dense_metric, self.metric = state["metrics"]
        self.extreme, self.best = state["extreme"], state["best"]
