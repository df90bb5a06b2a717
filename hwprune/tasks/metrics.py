"""Metrics, by NumPy alone: how good outputs are, with the direction in which that counts.

A metric turns outputs and labels into rows, one a sample, and rows into a number. So what is
measured batch by batch, by several processes or in onnxruntime is joined as rows, and the standard
error is a bootstrap over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import DataError
from hwprune.trees import leaves, tree_map
from hwprune.units import format_percent

Array = NDArray[Any]

# What a bootstrap draws: its standard error is right to a tenth then.
_DRAWS = 50


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that says how good outputs are.

    Attributes:
        name: as reports and limits call it.
        higher_is_better: the direction.
        rows: (outputs, labels) -> an array or tree of arrays, a row for each sample.
        number: rows -> the metric.
        is_share: it is the share of samples that are right.
        percent: people read it in per cent.
    """

    name: str
    higher_is_better: bool
    rows: Callable[[Any, Any], Any]
    number: Callable[[Any], Any]
    is_share: bool = False
    percent: bool = False

    def value(self, rows: Any) -> float:
        """Return the metric; NaN where it is no number."""
        found = self.number(rows)
        try:
            return float(found)
        except (TypeError, ValueError):
            return math.nan

    def show(self, value: float) -> str:
        """Return a value for people."""
        return format_percent(value) if self.percent else f"{value:.4g}"

    def score(self, value: float) -> float:
        """Return what is larger for what is better; minus infinity for what is no finite number."""
        if not math.isfinite(value):
            return -math.inf
        return value if self.higher_is_better else -value

    def standard_error(self, rows: Any) -> float:
        """Return the standard error of the metric: binomial for a share, else by bootstrap."""
        size = len(next(leaves(rows))[1])
        if self.is_share:
            share = self.value(rows)
            return math.sqrt(max(share * (1 - share), 1 / size) / size)
        draw = np.random.default_rng(0)
        found = []
        for _ in range(_DRAWS):
            chosen = draw.integers(0, size, size)
            found.append(self.value(tree_map(lambda part, i=chosen: part[i], rows)))
        finite = [value for value in found if math.isfinite(value)]
        return float(np.std(finite)) if finite else 0.0


def joined(parts: Sequence[Any]) -> Any:
    """Return the rows of several parts as those of the whole, in this order."""
    return tree_map(lambda *each: np.concatenate(each), parts[0], *parts[1:])


def _expect(fits: bool, metric: str, expected: str, outputs: Array, labels: Array) -> None:
    if not fits:
        raise DataError(
            f"{metric} needs {expected}; the output is {outputs.shape}, the labels {labels.shape}",
            hint="is this the task, and the output, that the labels are for?",
        )


# -- classes --------------------------------------------------------------------------------------


def _right(outputs: Array, labels: Array) -> Array:
    fits = outputs.ndim == 2 and labels.shape == outputs.shape[:1]
    _expect(fits, "accuracy", "an output of (samples, classes)", outputs, labels)
    return np.asarray(outputs.argmax(axis=1) == labels)


def _chosen(name: str, outputs: Array, labels: Array) -> tuple[Array, Array]:
    """Return (n, classes) of what is answered and of what is right, as booleans."""
    one = outputs.ndim == 2 and labels.shape == outputs.shape[:1]
    _expect(one or outputs.shape == labels.shape, name,
            "one class, or a yes or no for each class, per sample", outputs, labels)  # fmt: skip
    if not one:
        return outputs > 0, labels > 0
    classes = np.arange(outputs.shape[1])
    return outputs.argmax(axis=1)[:, None] == classes, labels[:, None] == classes


def _confusions(outputs: Array, labels: Array) -> Array:
    answered, right = _chosen("macro_f1", outputs, labels)
    both = answered & right
    return np.stack([both, answered & ~right, right & ~answered], axis=1)


def _macro_f1(rows: Array) -> float:
    """Return the mean of the classes that are answered or right anywhere."""
    hits, false, missed = rows.sum(axis=0, dtype=np.int64).reshape(3, -1)
    every = 2 * hits + false + missed
    return float(np.mean(2 * hits[every > 0] / every[every > 0])) if every.any() else math.nan


def _scores(outputs: Array, labels: Array) -> tuple[Array, Array]:
    if outputs.ndim == 2 and labels.shape == outputs.shape[:1] and outputs.shape[1] > 1:
        return outputs, labels[:, None] == np.arange(outputs.shape[1])
    flat = outputs.reshape(len(outputs), -1), labels.reshape(len(labels), -1)
    _expect(flat[0].shape == flat[1].shape, "auroc", "a score for each label", outputs, labels)
    return flat[0], flat[1] > 0


def _auroc(rows: tuple[Array, Array]) -> float:
    """Return the mean of the labels that some samples have and some have not."""
    found = []
    for scores, right in zip(rows[0].T, rows[1].T, strict=True):
        yes = int(right.sum())
        if not 0 < yes < len(right):
            continue
        _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(count) - (count - 1) / 2)[place]  # those that tie share their mean rank
        above = ranks[right].sum() - yes * (yes + 1) / 2
        found.append(above / (yes * (len(right) - yes)))
    return float(np.mean(found)) if found else math.nan


def counted_pixels(labels: Array) -> Array:
    """Return which pixels count: those below 0, and of 255, have no class."""
    return np.asarray((labels >= 0) & (labels != 255))


def _overlaps(outputs: Array, labels: Array) -> Array:
    """Return (n, 2, classes): pixels of both, and of either. One channel means yes or no."""
    fits = outputs.ndim >= 3 and outputs.shape[:1] + outputs.shape[2:] == labels.shape
    _expect(fits, "miou", "an output of (samples, classes, height, width) and labels without the "
            "classes", outputs, labels)  # fmt: skip
    answered = outputs.argmax(axis=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0) * 1
    counted, classes = counted_pixels(labels), range(max(2, outputs.shape[1]))
    rows = np.zeros((len(labels), 2, len(classes)), np.int64)
    axes = tuple(range(1, labels.ndim))
    for number in classes:
        mine, right = (answered == number) & counted, (labels == number) & counted
        rows[:, 0, number] = (mine & right).sum(axis=axes)
        rows[:, 1, number] = (mine | right).sum(axis=axes)
    return rows


def _miou(rows: Array) -> float:
    both, either = rows.sum(axis=0)
    return float(np.mean(both[either > 0] / either[either > 0])) if either.any() else math.nan


# -- values ---------------------------------------------------------------------------------------


def _errors(name: str, power: int) -> Callable[[Array, Array], Array]:
    """Return what gives (n, 2): the sum of a sample's errors to that power, and how many."""

    def rows(outputs: Array, labels: Array) -> Array:
        fits = len(outputs) == len(labels) and outputs.size == labels.size
        _expect(fits, name, "as many numbers as there are labels", outputs, labels)
        mine, right = (each.reshape(len(each), -1).astype(np.float64) for each in (outputs, labels))
        errors = np.abs(mine - right) ** power
        return np.stack([errors.sum(axis=1), np.full(len(errors), errors.shape[1])], axis=1)

    return rows


def _mean(rows: Array) -> float:
    total, count = rows.sum(axis=0)
    return float(total / count) if count else math.nan


# -- sequences ------------------------------------------------------------------------------------


def decoded(outputs: Array) -> list[list[int]]:
    """Return what (n, time, symbols) says: the best ones, repeats joined, blanks (0) left out."""
    best = outputs.argmax(axis=2)
    keep = np.concatenate([np.ones_like(best[:, :1], bool), best[:, 1:] != best[:, :-1]], axis=1)
    return [row[kept & (row != 0)].tolist() for row, kept in zip(best, keep, strict=True)]


def _edits(outputs: Array, labels: Array) -> Array:
    """Return (n, 2): edits from what is said to what is right, and the length of that."""
    fits = outputs.ndim == 3 and labels.ndim == 2 and len(outputs) == len(labels)
    _expect(fits, "cer", "an output of (samples, time, symbols) and labels of (samples, length)",
            outputs, labels)  # fmt: skip
    right = [row[row >= 0].tolist() for row in labels]
    return np.array(
        [(_distance(a, b), len(b)) for a, b in zip(decoded(outputs), right, strict=True)],
        np.int64,
    ).reshape(-1, 2)


def _distance(one: list[int], other: list[int]) -> int:
    """Return how many insertions, deletions and substitutions lead from one to the other."""
    row = list(range(len(other) + 1))
    for number, symbol in enumerate(one, 1):
        before, row[0] = row[0], number
        for place, wanted in enumerate(other, 1):
            before, row[place] = row[place], min(
                row[place] + 1, row[place - 1] + 1, before + (symbol != wanted)
            )  # fmt: skip
    return row[-1]


def _surprises(outputs: Array, labels: Array) -> Array:
    """Return (n, 2): the sum of -log p of the tokens that follow, and how many count."""
    fits = outputs.ndim == 3 and labels.shape == outputs.shape[:2]
    _expect(fits, "perplexity", "an output of (samples, length, tokens) and labels of (samples, "
            "length)", outputs, labels)  # fmt: skip
    logits, following = outputs[:, :-1].astype(np.float64), labels[:, 1:].astype(np.int64)
    counted = following >= 0
    logits -= logits.max(axis=2, keepdims=True)
    chosen = np.take_along_axis(logits, np.where(counted, following, 0)[..., None], axis=2)[..., 0]
    surprise = np.log(np.exp(logits).sum(axis=2)) - chosen
    return np.stack([np.where(counted, surprise, 0).sum(axis=1), counted.sum(axis=1)], axis=1)


# -- against the dense network --------------------------------------------------------------------


def answers_of(outputs: Any) -> tuple[tuple[Array, Array], ...]:
    """Return what ``rows_kept`` compares with: of each output of floats, how far samples vary."""
    floats = [each for _, each in leaves(outputs) if each.dtype.kind == "f" and each.ndim]
    wide = [each.reshape(len(each), -1).astype(np.float64) for each in floats]
    return tuple((each, np.square(each - each.mean(axis=0)).sum(axis=1)) for each in wide)


def rows_kept(outputs: Any, answers: Sequence[tuple[Array, Array]]) -> Array:
    """Return (n, outputs, 2): squared errors, and squares of what the dense network varies by."""
    floats = [each for _, each in leaves(outputs) if each.dtype.kind == "f" and each.ndim]
    rows = [
        (np.square(mine.reshape(len(mine), -1) - dense).sum(axis=1), spread)
        for mine, (dense, spread) in zip(floats, answers, strict=True)
    ]
    return np.moveaxis(np.array(rows, np.float64), -1, 0)


def share_kept(rows: Array) -> float:
    """Return how much of the variance is kept, the mean over all outputs; 1 is all of it."""
    errors, spread = rows.sum(axis=0).T
    return float(np.mean(1 - errors / np.maximum(spread, 1e-30)))


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "accuracy", True, _right, lambda rows: np.count_nonzero(rows) / len(rows), True, True
        ),
        Metric("macro_f1", True, _confusions, _macro_f1),
        Metric("auroc", True, _scores, _auroc),
        Metric("miou", True, _overlaps, _miou),
        Metric("rmse", False, _errors("rmse", 2), lambda rows: math.sqrt(_mean(rows))),
        Metric("mae", False, _errors("mae", 1), _mean),
        Metric("cer", False, _edits, _mean),
        Metric("perplexity", False, _surprises, lambda rows: float(np.exp(_mean(rows)))),
    )
}
