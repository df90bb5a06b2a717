"""The dense network's answers: had once for each view, the same wherever a run goes on from."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import training_nets as nets
from torch import nn

from hwprune.sparsity import make
from hwprune.training import Recipe
from hwprune.training.batches import Batch
from hwprune.training.config import FinetuneConfig
from hwprune.training.teacher import Teacher


class Counting(nn.Module):
    """Answers with sums over three strips of an image, and counts the images."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale, self.seen = scale, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        strips = [part.sum(dim=(1, 2, 3)) for part in images.tensor_split(3, dim=2)]
        return self.scale * torch.stack(strips, dim=1)


def teacher_of(
    network: nn.Module, epochs: int = 6, augment: Any = "crop-flip", **recipe: Any
) -> tuple[Teacher, FinetuneConfig]:
    data = dataclasses.replace(nets.digits(samples=1200), augment=augment)
    config = FinetuneConfig(
        module=network, data=data, names=(), strategy=make("one-shot", density=0.5),
        fill=lambda ranking, part: ranking.masks(1), recipe=Recipe(**recipe), teacher=network,
        seed=3,
    )  # fmt: skip
    return Teacher(network, config, config.batches(data.train), epochs, nullcontext), config


def seen(teacher: Teacher, config: FinetuneConfig, index: torch.Tensor, epoch: int) -> Batch:
    (batch,) = config.batches(config.data.train).take((index,))
    return teacher.view(batch, epoch)


def test_each_view_is_asked_for_once_and_comes_again() -> None:
    network = Counting()
    teacher, config = teacher_of(network, views=2)
    asked, index = network.seen, torch.tensor([700, 3, 41])
    first, second, third, fourth = (seen(teacher, config, index, epoch) for epoch in range(4))
    assert network.seen - asked == 2 * len(config.data.train)
    for early, late in ((first, third), (second, fourth)):
        assert torch.equal(early.inputs[0], late.inputs[0])
        assert torch.equal(early.answers, late.answers)
    assert not torch.equal(first.inputs[0], second.inputs[0])
    expected = network(second.inputs[0])
    assert torch.allclose(second.answers, expected, atol=float(expected.abs().max()) * 2**-10)
    assert torch.equal(second.answers, expected.half().float())


def test_a_run_that_goes_on_has_the_same_answers() -> None:
    index = torch.arange(100, 164)
    teacher, config = teacher_of(Counting(), views=3)
    whole = [seen(teacher, config, index, epoch) for epoch in range(6)][-1]
    later, config = teacher_of(Counting(), views=3)
    resumed = seen(later, config, index, 5)
    assert torch.equal(whole.inputs[0], resumed.inputs[0])
    assert torch.equal(whole.answers, resumed.answers)


def test_answers_too_large_for_fp16_are_kept_exactly() -> None:
    network = Counting(scale=1e6)
    teacher, config = teacher_of(network, views=1)
    batch = seen(teacher, config, torch.arange(5), 0)
    assert torch.equal(batch.answers, network(batch.inputs[0]))


@pytest.mark.parametrize(
    ("views", "recipe"),
    [
        (0, {"views": 0}),
        (0, {"views": 6}),  # no view would come again
        (5, {"views": 5}),
        (0, {"views": 4, "resident_bytes": 1000}),
        (1, {"views": 4, "augment": "none"}),
        (4, {"views": 4, "augment": "none", "cutout": 2}),
    ],
)
def test_views_are_kept_where_it_pays_and_fits(views: int, recipe: dict[str, Any]) -> None:
    assert teacher_of(Counting(), **recipe)[0].views == views
