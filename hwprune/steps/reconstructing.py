"""Without training: choose connections once, then let least squares make up for what is gone.

With data (labels or not) the inputs are real; without, they are made from what the network's BN
layers remember. Each way says what it is good for, and warns above the sparsity where our own
measurement (benchmarks/accuracy/data_free.py) shows that it fails.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwprune.ir import Data, Masks, Ranking, Split
from hwprune.sparsity import rank, rank_weights
from hwprune.steps.planning import Prepared, module_weights
from hwprune.units import format_percent

if TYPE_CHECKING:
    from torch import nn

    from hwprune.least_squares.reconstruct import Reconstruction

Fill = Callable[[Ranking, float], Masks]
# (message, steps done, steps in all)
Tell = Callable[[str, int, int], None]

# Up to here the way keeps most of the accuracy, and above here little is left: sparsities of
# ResNet-20 on CIFAR-10 in benchmarks/results/data_free.json (a test compares the two).
GOOD_TO = {"data": 0.8, "none": 0.7, "mask": 0.5}
FAILS_ABOVE = {"data": 0.85, "none": 0.8}
_VALIDATED = 1000


@dataclass(frozen=True, slots=True)
class Fitted:
    """What came of it; the weights are in the module.

    Attributes:
        masks: what lives.
        accuracy: on validation, against labels; None without these.
        trajectory: for the report.
        notes: sentences for the report.
    """

    masks: Masks
    accuracy: float | None
    trajectory: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


def fit_with_data(
    prepared: Prepared, fill: Fill, data: Data, *, seed: int, device: str, tell: Tell
) -> Fitted:
    """Prune once and refit on a few hundred inputs of the training part; labels are not needed.

    What BN recalibration alone would give is measured too, on validation (against labels, or the
    dense network's answers), and the better of the two is kept.
    """
    from hwprune.training import recalibrate_batchnorm

    device = _with_float64(device)
    module = prepared.model.module
    dense = copy.deepcopy(module)
    masks = _prune(prepared, fill, data.train, seed=seed, device=device, tell=tell)
    other = copy.deepcopy(module)
    report = _refit(prepared, dense, data.train, masks, seed=seed, device=device, tell=tell)
    measure = _Measure(data, dense, device)
    reached = {"least squares": measure(module)}
    if not prepared.model.batchnorm_frozen and recalibrate_batchnorm(
        other, data.train, device=device, seed=seed
    ):
        reached["BN recalibration"] = measure(other)
    notes = [
        f"nothing was trained: connections were chosen once, and what was left of each layer was "
        f"fitted to the dense network's outputs by least squares on {report.samples:,} inputs of "
        f"the training data, without labels (--epochs 0)"
    ]
    if reached["least squares"] < reached.get("BN recalibration", 0.0):
        module.load_state_dict(other.state_dict())
        notes.append("BN recalibration of the pruned weights did better than least squares here")
    told = ", ".join(f"{name} {format_percent(value)}" for name, value in reached.items())
    notes += [f"{measure.metric} on validation: {told}", *_left_alone(report)]
    notes += _limits("data", masks, "train with --epochs, with or without labels")
    best = max(reached.values())
    points = (
        _point("prune", masks, None), _point("least squares", masks, best),
    )  # fmt: skip
    accuracy = best if measure.metric == "accuracy" else None
    return Fitted(masks, accuracy, points, tuple(notes))


def start_from_fit(
    prepared: Prepared, fill: Fill, data: Data, *, seed: int, device: str, tell: Tell
) -> tuple[Masks, str]:
    """Prune once and refit, for training to go on from; return the masks and a note."""
    device = _with_float64(device)
    dense = copy.deepcopy(prepared.model.module)
    masks = _prune(prepared, fill, data.train, seed=seed, device=device, tell=tell)
    report = _refit(prepared, dense, data.train, masks, seed=seed, device=device, tell=tell)
    return masks, (
        "no labels and one-shot: training went on from the weights that least squares gave on "
        f"{report.samples:,} inputs"
    )


def fit_without_data(
    prepared: Prepared, fill: Fill, *, seed: int, device: str, tell: Tell
) -> Fitted:
    """Prune and refit on inputs made from BN's statistics; without BN, by LAMP scores alone."""
    from hwprune.least_squares.synthesis import affordable, synthesise

    device = _with_float64(device)
    module = prepared.model.module
    dense = copy.deepcopy(module)
    shapes = _float_shapes(prepared)
    size = None if shapes is None else affordable(dense, shapes)
    synthetic = None
    if shapes is not None and size is not None:
        synthetic = synthesise(
            dense, shapes, samples=size[0], steps=size[1], device=device, seed=seed,
            progress=lambda step, of: tell("making inputs from BN statistics", step, of),
        )  # fmt: skip
    nothing = "no data: nothing was trained, regrown or recalibrated, and no accuracy was measured"
    if synthetic is None:
        if shapes is None:
            why = "takes a fixed batch or no floats"
        elif size is None:
            why = "is too large to make inputs for in a few minutes"
        else:
            why = "has no BN statistics"
        masks = fill(rank_weights(module_weights(prepared), "lamp"), 1.0)
        _apply(prepared, masks)
        told = (
            f"{nothing}; connections were chosen by LAMP scores of the weights alone, and what is "
            f"left is as it was: the network {why}, so no inputs were made from it"
        )
        return Fitted(masks, None, (_point("prune", masks, None),), (told, *_mask_alone(masks)))
    masks = _prune(prepared, fill, synthetic, seed=seed, device=device, tell=tell)
    report = _refit(prepared, dense, synthetic, masks, seed=seed, device=device, tell=tell)
    notes = [
        f"{nothing}; connections were chosen, and what was left of each layer was fitted to the "
        f"dense network's outputs by least squares, on {report.samples:,} inputs made from what "
        f"its BN layers remember (off by {synthetic.before:.2g} as noise, by "
        f"{synthetic.after:.2g} now)"
    ]
    notes += [*_left_alone(report), *_limits("none", masks, "give --data: a few hundred inputs do")]
    points = (_point("prune", masks, None), _point("least squares", masks, None))
    return Fitted(masks, None, points, tuple(notes))


def _with_float64(device: str) -> str:
    """Return where sums in float64 can be kept: Apple's GPUs have none."""
    return "cpu" if device == "mps" else device


def _prune(
    prepared: Prepared, fill: Fill, split: Split, *, seed: int, device: str, tell: Tell
) -> Masks:
    """Judge connections by what least squares can make up for, and mask the module."""
    from hwprune.least_squares.saliency import reconstruction_scores

    scores = reconstruction_scores(
        prepared.model.module, split, prepared.names, device=device, seed=seed,
        progress=lambda name, number, of: tell(f"judging the connections of {name}", number, of),
    )  # fmt: skip
    masks = fill(rank(scores), 1.0)
    _apply(prepared, masks)
    return masks


class _Measure:
    """Accuracy on part of validation, or agreement with the dense network without labels."""

    def __init__(self, data: Data, dense: nn.Module, device: str) -> None:
        import numpy as np

        from hwprune.steps.choosing import Part
        from hwprune.training.batches import Batches
        from hwprune.training.evaluate import predictions

        # Spread over the split: some data sets are sorted by class.
        count = min(_VALIDATED, len(data.validation))
        chosen = np.linspace(0, len(data.validation) - 1, count).astype(np.int64)
        self._batches = Batches(
            Part(data.validation, chosen), device=device, resident_bytes=0, channels_last=False
        )
        self._device = device
        self.metric = "accuracy"
        targets = self._batches.labels
        if targets is None:
            self.metric = "agreement with the dense model"
            dense.to(device)
            targets = predictions(dense, self._batches)
        self._targets = targets

    def __call__(self, module: nn.Module) -> float:
        """Return the share of right answers."""
        from hwprune.training.evaluate import share_of

        home = next(module.parameters()).device
        module.to(self._device)
        share = share_of(module, self._batches, self._targets)
        module.to(home)
        return share


def _apply(prepared: Prepared, masks: Masks) -> None:
    from hwprune.training.sparse import SparseParameters

    SparseParameters(prepared.model.module, prepared.names).set_masks(masks, None)


def _refit(
    prepared: Prepared,
    dense: nn.Module,
    split: Split,
    masks: Masks,
    *,
    seed: int,
    device: str,
    tell: Tell,
) -> Reconstruction:
    from hwprune.least_squares.reconstruct import least_squares

    return least_squares(
        prepared.model.module, dense, split, prepared.names, masks, device=device, seed=seed,
        progress=lambda layer, number, of: tell(f"refitted {layer.name}", number, of),
    )  # fmt: skip


def _float_shapes(prepared: Prepared) -> tuple[tuple[int, ...], ...] | None:
    """Return the inputs' shapes without the batch; None where inputs cannot be made up."""
    specs = prepared.model.inputs
    if any(spec.dtype != "float32" or spec.shape[:1] != (None,) for spec in specs):
        return None
    return tuple(spec.with_batch(1)[1:] for spec in specs)


def _left_alone(report: Reconstruction) -> list[str]:
    if not report.skipped:
        return []
    told = "; ".join(f"{name} {reason}" for name, reason in report.skipped)
    return [f"least squares left {len(report.skipped)} tensors as they were: {told}"]


def _limits(way: str, masks: Masks, instead: str) -> list[str]:
    """Say what a way is good for, and warn where it fails."""
    sparsity = 1 - masks.nonzeros / masks.weights
    good, fails = GOOD_TO[way], FAILS_ABOVE[way]
    source = "made-up" if way == "none" else "real"
    notes = [
        f"least squares on {source} inputs is good to about {good:.0%} sparsity (measured on "
        "ResNet-20 and CIFAR-10: see docs/results.md)"
    ]
    if sparsity > good:
        worth = "little accuracy is left" if sparsity > fails else "accuracy falls fast"
        notes.append(
            f"warning: at {format_percent(sparsity)} sparsity {worth} without training: {instead}"
        )
    return notes


def _mask_alone(masks: Masks) -> list[str]:
    sparsity = 1 - masks.nonzeros / masks.weights
    if sparsity <= GOOD_TO["mask"]:
        return []
    return [
        f"warning: at {format_percent(sparsity)} sparsity a network whose weights were only "
        "masked is of little use: give --data, a few hundred unlabelled inputs do"
    ]


def _point(action: str, masks: Masks, accuracy: float | None) -> dict[str, Any]:
    return {
        "epoch": 0.0,
        "step": 0,
        "action": action,
        "nonzeros": masks.nonzeros,
        "density": masks.nonzeros / masks.weights,
        "accuracy": accuracy,
        "loss": None,
        "lr": None,
        "seconds": None,
    }
