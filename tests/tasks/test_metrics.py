from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
from numpy.typing import NDArray

from hwprune.errors import DataError
from hwprune.tasks import METRICS
from hwprune.tasks.metrics import decoded, joined

Array = NDArray[Any]


def value(name: str, outputs: Array, labels: Array, parts: int = 3) -> float:
    """The metric, measured in parts."""
    cuts = [len(labels) * part // parts for part in range(parts + 1)]
    metric = METRICS[name]
    rows = [metric.rows(outputs[a:b], labels[a:b]) for a, b in itertools.pairwise(cuts)]
    return metric.value(joined(rows))


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(3)


def test_classes(draw: np.random.Generator) -> None:
    scores, labels = draw.integers(0, 4, (90, 5)).astype(np.float32), draw.integers(0, 4, 90)
    answers = scores.argmax(axis=1)
    assert value("accuracy", scores, labels) == reference.accuracy_score(labels, answers)
    f1 = reference.f1_score(labels, answers, average="macro")
    assert value("macro_f1", scores, labels) == pytest.approx(f1)  # class 4 is never right
    areas = [reference.roc_auc_score(labels == each, scores[:, each]) for each in range(4)]
    assert value("auroc", scores, labels) == pytest.approx(np.mean(areas))  # ties, and no class 4


def test_several_labels(draw: np.random.Generator) -> None:
    scores, labels = draw.standard_normal((80, 3)), draw.integers(0, 2, (80, 3))
    f1 = reference.f1_score(labels, scores > 0, average="macro")
    assert value("macro_f1", scores, labels) == pytest.approx(f1)
    assert value("auroc", scores, labels) == pytest.approx(reference.roc_auc_score(labels, scores))
    assert value("auroc", scores[:, :1], labels[:, 0]) == pytest.approx(
        reference.roc_auc_score(labels[:, 0], scores[:, 0])
    )


def test_values(draw: np.random.Generator) -> None:
    outputs, labels = draw.standard_normal((2, 50, 3, 2)).astype(np.float32)
    flat = labels.reshape(50, -1), outputs.reshape(50, -1)
    assert value("rmse", outputs, flat[0]) == pytest.approx(
        math.sqrt(reference.mean_squared_error(*flat))
    )
    assert value("mae", outputs, labels) == pytest.approx(reference.mean_absolute_error(*flat))


def test_pixels(draw: np.random.Generator) -> None:
    outputs, labels = draw.standard_normal((9, 4, 6, 5)), draw.integers(0, 4, (9, 6, 5))
    labels[:, 0] = 255
    labels[:, 1] = -1
    counted = (labels != 255) & (labels >= 0)
    found = reference.jaccard_score(
        labels[counted], outputs.argmax(axis=1)[counted], average="macro"
    )
    assert value("miou", outputs, labels) == pytest.approx(found)
    yes = reference.jaccard_score(
        (labels == 1)[counted], (outputs[:, 0] > 0)[counted], average=None
    )
    absent = np.where(labels == 2, 0, labels)  # a class that neither has says nothing
    both = np.where(np.arange(outputs.shape[1])[:, None, None] == 2, -9.0, outputs)
    found = reference.jaccard_score(
        absent[counted], both.argmax(axis=1)[counted], average="macro"
    )  # scikit-learn leaves it out too
    assert value("miou", both, absent) == pytest.approx(found)
    alone = np.where(counted, labels == 1, labels)
    assert value("miou", outputs[:, :1], alone) == pytest.approx(np.mean(yes))


def test_symbols() -> None:
    best = np.array([[1, 1, 0, 1, 2, 2], [0, 0, 3, 0, 0, 0]])
    outputs = np.eye(4)[best]
    assert decoded(outputs) == [[1, 1, 2], [3]]
    labels = np.array([[1, 2, 2, 3], [3, -1, -1, -1]])
    # 1 1 2 -> 1 2 2 3: a substitution and an insertion, of five symbols.
    assert value("cer", outputs, labels, parts=2) == pytest.approx(2 / 5)
    assert value("cer", outputs, np.array([[-1] * 4, [3, 3, 3, 3]]), parts=1) == 6 / 4


def test_tokens(draw: np.random.Generator) -> None:
    outputs, labels = draw.standard_normal((4, 6, 7)), draw.integers(0, 7, (4, 6))
    labels[1, 3:] = -100
    surprise = [
        -outputs[n, t, labels[n, t + 1]] + np.log(np.exp(outputs[n, t]).sum())
        for n in range(4)
        for t in range(5)
        if labels[n, t + 1] >= 0
    ]
    assert value("perplexity", outputs, labels) == pytest.approx(math.exp(np.mean(surprise)))


def test_what_is_no_number(draw: np.random.Generator) -> None:
    same = np.ones((5, 1))
    assert math.isnan(value("auroc", draw.standard_normal((5, 1)), same))
    assert math.isnan(value("cer", np.zeros((2, 3, 4)), np.full((2, 3), -1)))
    metric = METRICS["rmse"]
    assert metric.score(math.nan) == metric.score(math.inf) == -math.inf
    assert metric.score(1.0) < metric.score(0.5)
    assert METRICS["accuracy"].score(1.0) > METRICS["accuracy"].score(0.5)


@pytest.mark.parametrize(
    ("name", "outputs", "labels"),
    [
        ("accuracy", (4, 3, 2), (4,)),
        ("accuracy", (4, 3), (4, 3)),
        ("macro_f1", (4, 3), (4, 2)),
        ("auroc", (4, 3), (4, 2)),
        ("rmse", (4, 3), (4, 2)),
        ("mae", (4,), (5,)),
        ("miou", (4, 3, 8, 8), (4, 8, 7)),
        ("cer", (4, 3), (4, 3)),
        ("perplexity", (4, 3, 9), (4, 4)),
    ],
)
def test_shapes_that_do_not_belong_together(
    name: str, outputs: tuple[int, ...], labels: tuple[int, ...]
) -> None:
    with pytest.raises(DataError, match=name) as caught:
        METRICS[name].rows(np.zeros(outputs), np.zeros(labels, np.int64))
    assert str(outputs) in caught.value.message
    assert str(labels) in caught.value.message


def test_standard_errors(draw: np.random.Generator) -> None:
    metric, labels = METRICS["rmse"], draw.standard_normal(400)
    drawn = [
        metric.value(metric.rows(labels + draw.standard_normal(400), labels)) for _ in range(200)
    ]
    rows = metric.rows(labels + draw.standard_normal(400), labels)
    assert metric.standard_error(rows) == pytest.approx(np.std(drawn), rel=0.4)
    assert metric.standard_error(rows) == metric.standard_error(rows)  # nothing global is drawn
    right = np.arange(100) < 80
    assert METRICS["accuracy"].standard_error(right) == pytest.approx(math.sqrt(0.8 * 0.2 / 100))
    # Of samples that are all right one more could be wrong.
    assert METRICS["accuracy"].standard_error(np.ones(50, bool)) == pytest.approx(1 / 50)
