"""Prune once, then fit what is left: everything that a run without training does.

With data (labels or not) the inputs are real; without, they are made from what the network's BN
layers remember. Each way says what it is good for, and warns above the sparsity where our own
measurement (benchmarks/accuracy/data_free.py) shows that it fails.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hwprune.ir import Data, Masks, Ranking, Split
from hwprune.least_squares.reconstruct import Reconstruction, least_squares
from hwprune.least_squares.saliency import reconstruction_scores
from hwprune.least_squares.synthesis import Synthetic, affordable, synthesise
from hwprune.sampling import evenly_spread
from hwprune.sparsity import priced, rank, rank_weights
from hwprune.tasks import IMITATION, Task
from hwprune.training import recalibrate_batchnorm
from hwprune.training.batches import Batches
from hwprune.training.evaluate import Judge
from hwprune.training.module_state import place, placed
from hwprune.training.sparse import SparseParameters, to_numpy
from hwprune.units import format_percent

# (message, steps done, steps in all)
Tell = Callable[[str, int, int], None]

# Up to here the way keeps most of the accuracy, and above here little is left: sparsities of
# ResNet-20 on CIFAR-10 in benchmarks/results/data_free.json (a test compares the two).
GOOD_TO = {"data": 0.8, "none": 0.7, "mask": 0.5}
FAILS_ABOVE = {"data": 0.85, "none": 0.8}
_INSTEAD = {
    "data": "train with --epochs, with or without labels",
    "none": "give --data: a few hundred inputs do",
    "mask": "give --data, a few hundred unlabelled inputs do",
}
# Samples of validation that the two ways of mending are compared on.
_VALIDATED = 1000


@dataclass(frozen=True, slots=True)
class Fitted:
    """What came of it; the weights are in the module.

    Attributes:
        masks: which connections are kept.
        metric: on validation, against labels; None without these.
        trajectory: for the report.
        notes: sentences for the report.
    """

    masks: Masks
    metric: float | None
    trajectory: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


class OneShot:
    """Prunes a dense network once and fits what is left, in place. Labels are not needed.

    Args:
        module: the dense network.
        names: keys of the prunable parameters.
        fill: what turns a ranking and a fraction of the budget into masks.
        seed: of everything that is random.
        device: where to compute.
        tell: told about each step.
        prices: what a connection of each tensor costs; without, all cost the same.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Sequence[str],
        fill: Callable[[Ranking, float], Masks],
        *,
        seed: int,
        device: str,
        tell: Tell,
        prices: Mapping[str, float] | None = None,
    ) -> None:
        """Copy the dense network: it is what is fitted to."""
        self.module, self.names, self.seed = module, names, seed
        self._dense, self._fill, self._tell = copy.deepcopy(module), fill, tell
        self._prices = prices or {}
        # Sums are kept in float64, which Apple's GPUs do not have.
        self._device = "cpu" if device == "mps" else device

    def on_data(self, data: Data, *, task: Task, recalibrates: bool) -> Fitted:
        """Prune and fit on inputs of the training part.

        What BN recalibration of the pruned weights would give is measured on validation too, where
        it may be done (``recalibrates``), and the better of the two is kept.
        """
        masks = self._prune(data.train)
        other = copy.deepcopy(self.module)
        report = self._fit(masks, data.train)
        judge = self._judge(data, task)
        reached = {"least squares": self._measured(judge, self.module)}
        if recalibrates and recalibrate_batchnorm(
            other, data.train, device=self._device, seed=self.seed
        ):
            reached["BN recalibration"] = self._measured(judge, other)
        notes = [
            "nothing was trained: connections were chosen once, and what was left of each layer "
            "was fitted to the dense network's outputs by least squares on "
            f"{report.samples:,} inputs of the training data, without labels (--epochs 0)"
        ]
        best = max(reached, key=lambda way: judge.metric.score(reached[way]))
        if best != "least squares":
            self.module.load_state_dict(other.state_dict())
            notes.append(
                "BN recalibration of the pruned weights did better than least squares here"
            )
        measured = ", ".join(
            f"{name} {judge.metric.show(value)}" for name, value in reached.items()
        )
        fidelity = judge.metric is IMITATION.metric
        what = "variance of the dense outputs that is kept" if fidelity else judge.name
        notes += [f"{what} on validation: {measured}", *_left_alone(report)]
        metric = reached[best] if task.measurable(data.validation) else None
        if metric is None:  # else the measurement speaks
            notes += _limits("data", masks)
        return Fitted(masks, metric, _trajectory(masks, metric), tuple(notes))

    def instead_of(
        self,
        trained: nn.Module,
        data: Data,
        *,
        task: Task,
        recalibrates: bool,
        store: Callable[[nn.Module], None],
    ) -> tuple[Fitted | None, str]:
        """Return what ``on_data`` makes of the network where it is better than a trained one.

        Args:
            trained: the network after training, its weights as stored.
            data: see ``on_data``; both are measured on validation.
            task: see ``on_data``.
            recalibrates: see ``on_data``.
            store: lets a module's weights be as stored.

        Returns:
            that or None, and a sentence that compares them.
        """
        fitted = self.on_data(data, task=task, recalibrates=recalibrates)
        store(self.module)
        judge = self._judge(data, task)
        reached, without = (self._measured(judge, each) for each in (trained, self.module))
        better = judge.metric.score(without) > judge.metric.score(reached)
        said = (
            f"{judge.name} on validation is {judge.metric.show(reached)} with training, and"
            f" {judge.metric.show(without)} with least squares alone (--epochs 0)"
        )
        if not better:
            return None, said
        return replace(fitted, metric=without), f"{said}, whose weights were taken"

    def before_training(
        self, data: Data, *, task: Task, store: Callable[[nn.Module], None]
    ) -> Fitted:
        """Prune and fit for training to go on from; measured with weights as ``store`` has them."""
        masks = self._prune(data.train)
        report = self._fit(masks, data.train)
        self._judged = self._judge(data, task)
        note = (
            "training went on from the weights that least squares gave on "
            f"{report.samples:,} inputs, its gradients clipped"
        )
        return Fitted(masks, self._as_stored(store), (), (note,))

    def _as_stored(self, store: Callable[[nn.Module], None]) -> float:
        shown = copy.deepcopy(self.module)
        store(shown)
        return self._measured(self._judged, shown)

    def is_behind(self, fitted: Fitted, *, store: Callable[[nn.Module], None]) -> tuple[bool, str]:
        """Return whether training made less of the module on validation than the fit was."""
        judge, was = self._judged, fitted.metric
        found = self._as_stored(store)
        assert was is not None  # `before_training` measured it
        score, show = judge.metric.score, judge.metric.show
        behind = score(was) > score(found) or not math.isfinite(found)
        note = f"{judge.name} on validation: least squares {show(was)}, trained {show(found)}"
        return behind, note + (": the weights of least squares were kept" if behind else "")

    def without_data(self, shapes: Sequence[tuple[int, ...]] | None) -> Fitted:
        """Prune and fit on inputs made from BN's statistics; without BN, mask by LAMP scores alone.

        Args:
            shapes: of each input, without the batch; None where inputs cannot be made.
        """
        nothing = (
            "no data: nothing was trained, regrown or recalibrated, and no accuracy was measured"
        )
        made = self._made_up(shapes)
        if isinstance(made, str):
            parameters = dict(self.module.named_parameters(remove_duplicate=False))
            weights = {name: to_numpy(parameters[name]) for name in self.names}
            masks = self._apply(rank_weights(weights, "lamp", prices=self._prices))
            note = (
                f"{nothing}; connections were chosen by LAMP scores of the weights alone, and what "
                f"is left is as it was: the network {made}, so no inputs were made from it"
            )
            return Fitted(masks, None, _trajectory(masks)[:1], (note, *_limits("mask", masks)))
        masks = self._prune(made)
        report = self._fit(masks, made)
        notes = (
            f"{nothing}; connections were chosen, and what was left of each layer was fitted to "
            f"the dense network's outputs by least squares, on {report.samples:,} inputs made from "
            f"what its BN layers remember (off by {made.before:.2g} as noise, by {made.after:.2g} "
            "now)",
            *_left_alone(report),
            *_limits("none", masks),
        )
        return Fitted(masks, None, _trajectory(masks), notes)

    def _made_up(self, shapes: Sequence[tuple[int, ...]] | None) -> Synthetic | str:
        """Return inputs made from BN's statistics, or why there are none."""
        if shapes is None:
            return "takes a fixed batch or no floats"
        size = affordable(self._dense, shapes)
        if size is None:
            return "is too large to make inputs for in a few minutes"
        try:
            made = synthesise(
                self._dense, shapes, samples=size[0], steps=size[1], device=self._device,
                seed=self.seed,
                progress=lambda at, of: self._tell("making inputs from BN statistics", at, of),
            )  # fmt: skip
        except IndexError:
            return "looks rows up by floats"
        return made or "has no BN statistics"

    def _apply(self, ranking: Ranking) -> Masks:
        masks = self._fill(ranking, 1.0)
        SparseParameters(self.module, self.names).set_masks(masks, None)
        return masks

    def _prune(self, split: Split) -> Masks:
        """Judge connections by what least squares can make up for, and mask the module."""
        scores = reconstruction_scores(
            self.module, split, self.names, device=self._device, seed=self.seed,
            progress=lambda name, at, of: self._tell(f"judging the connections of {name}", at, of),
        )  # fmt: skip
        return self._apply(rank(priced(scores, self._prices)))

    def _judge(self, data: Data, task: Task) -> Judge:
        """Return what measures on part of validation; without labels on all outputs."""
        size = len(data.validation)
        chosen = torch.from_numpy(evenly_spread(size, min(_VALIDATED, size)))
        batches = Batches(
            data.validation, device=self._device, resident_bytes=0, channels_last=False
        )
        place(self._dense, self._device, channels_last=False)
        task = task if task.measurable(data.validation) else IMITATION
        return Judge(task, batches, chosen, self._dense)

    def _measured(self, judge: Judge, module: nn.Module) -> float:
        with placed(self._device, module):
            return judge(module)

    def _fit(self, masks: Masks, split: Split) -> Reconstruction:
        return least_squares(
            self.module, self._dense, split, self.names, masks, device=self._device, seed=self.seed,
            progress=lambda name, at, of: self._tell(f"refitting {name}", at, of),
        )  # fmt: skip


def _left_alone(report: Reconstruction) -> list[str]:
    if not report.skipped:
        return []
    listed = "; ".join(f"{name} {reason}" for name, reason in report.skipped)
    return [f"least squares left {len(report.skipped)} tensors as they were: {listed}"]


def _limits(way: str, masks: Masks) -> list[str]:
    """Say what a way is good for, and warn where it fails."""
    sparsity, good = 1 - masks.nonzeros / masks.weights, GOOD_TO[way]
    notes = []
    worth = "a network whose weights were only masked is of little use"
    if way in FAILS_ABOVE:
        notes.append(
            f"least squares on {'real' if way == 'data' else 'made-up'} inputs is good to about "
            f"{good:.0%} sparsity (measured on ResNet-20 and CIFAR-10: see docs/results.md)"
        )
        fails = sparsity > FAILS_ABOVE[way]
        worth = f"{'little accuracy is left' if fails else 'accuracy falls fast'} without training"
    if sparsity > good:
        sparse = format_percent(sparsity)
        notes.append(f"warning: at {sparse} sparsity {worth}: {_INSTEAD[way]}")
    return notes


def _trajectory(masks: Masks, metric: float | None = None) -> tuple[dict[str, Any], ...]:
    unknown = dict.fromkeys(("loss", "lr", "seconds"))
    size = {"nonzeros": masks.nonzeros, "density": masks.nonzeros / masks.weights}
    return tuple(
        {"epoch": 0.0, "step": 0, "action": action, **size, "metric": reached, **unknown}
        for action, reached in (("prune", None), ("least squares", metric))
    )
