"""The parts of training on their own: batches, augmentation, recipe, losses, BN, precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn

from hwprune.errors import DataError, ModelError, UsageError
from hwprune.frontend.sources.normalize import Normalizer
from hwprune.frontend.sources.parts import ArrayPart
from hwprune.frontend.sources.splits import NormalizedSplit
from hwprune.tasks import CLASSIFICATION
from hwprune.training import Recipe, precision, recalibrate_batchnorm
from hwprune.training.batches import Batch, Batches, augment, epoch_order, steps_per_epoch
from hwprune.training.losses import Objective
from hwprune.training.module_state import logits_of, place, set_mode


@pytest.mark.parametrize("resident_bytes", [0, 1 << 30])
@pytest.mark.parametrize("channels_last", [True, False])
def test_batches_are_the_same_held_or_streamed(resident_bytes: int, channels_last: bool) -> None:
    split = nets.digits(samples=300).train
    batches = Batches(
        split, device="cpu", resident_bytes=resident_bytes, channels_last=channels_last
    )
    order = epoch_order(len(split), 64, torch.Generator().manual_seed(0))
    assert len(order) == steps_per_epoch(len(split), 64) == 3
    for index, batch in zip(order, batches.take(order), strict=True):
        assert np.array_equal(batch.inputs[0].numpy(), split.batch(index.numpy())[0])
        assert batch.labels is not None
        assert np.array_equal(batch.labels.numpy(), split.labels[index.numpy()])
    assert sum(len(batch.inputs[0]) for batch in batches) == len(split)


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_that_are_bytes_are_held_as_bytes_and_normalised_alike(channels_last: bool) -> None:
    drawn = np.random.default_rng(0)
    images = drawn.integers(0, 256, (40, 3, 6, 5), dtype=np.uint8)
    normalizer = Normalizer("given", None, (0.5, 0.4, 0.3), (0.2, 0.3, 0.1))
    labels = np.zeros(40, np.int64)
    split = NormalizedSplit(ArrayPart(images, labels), normalizer, "here", labels)
    room = images.nbytes  # four times too little for floats
    batches = Batches(split, device="cpu", resident_bytes=room, channels_last=channels_last)
    assert batches._held is not None
    assert batches._held[0].dtype == torch.uint8
    index = torch.randperm(40)[:16]
    (batch,) = batches.take((index,))
    assert np.array_equal(batch.inputs[0].numpy(), split.batch(index.numpy())[0])
    order = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.inputs[0].is_contiguous(memory_format=order)


def test_shift_moves_each_image_and_repeats_its_border() -> None:
    images = torch.arange(1.0, 65).reshape(1, 1, 8, 8).repeat(64, 1, 1, 1)
    moved = augment(Batch((images,), None), "shift", torch.Generator().manual_seed(0)).inputs[0]
    padded = torch.nn.functional.pad(images[:1], (1, 1, 1, 1), mode="replicate")[0, 0]
    windows = {
        tuple(padded[y : y + 8, x : x + 8].flatten().tolist()) for y in range(3) for x in range(3)
    }
    found = {tuple(image.flatten().tolist()) for image in moved}
    assert found == windows


@pytest.mark.parametrize("channels_last", [True, False])
def test_crop_flip_is_a_window_of_the_padded_image(channels_last: bool) -> None:
    images = torch.randn(2, 3, 8, 8).repeat(20, 1, 1, 1)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    moved = augment(Batch((images,), None), "crop-flip", torch.Generator().manual_seed(0)).inputs[0]
    assert moved.is_contiguous(memory_format=torch.channels_last) or not channels_last
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    for source, image in zip(padded, moved, strict=True):
        windows = [source[:, y : y + 8, x : x + 8] for y in range(9) for x in range(9)]
        assert any(torch.equal(image, w) or torch.equal(image, w.flip(2)) for w in windows)
    assert any(not torch.equal(moved[i], moved[i + 2]) for i in range(0, 38, 2))


def test_none_and_flat_inputs_pass_through() -> None:
    batch = Batch((torch.ones(4, 8),), None)
    generator = torch.Generator()
    assert augment(batch, "crop-flip", generator) is batch
    images = Batch((torch.ones(4, 1, 8, 8),), None)
    assert augment(images, "none", generator) is images


def test_the_rate_warms_up_falls_and_restarts() -> None:
    recipe = Recipe(learning_rate=1.0, warmup_fraction=0.1, final_fraction=0.01)
    assert [recipe.rate(p) for p in (0, 0.05, 0.1, 0.55, 1)] == pytest.approx(
        [0, 0.5, 1, 0.505, 0.01]
    )
    assert recipe.rate(0.5, (0.5,)) == 0
    assert recipe.rate(0.55, (0.5,)) == pytest.approx(1.0)
    steps = Recipe(learning_rate=1.0, schedule="step", warmup_fraction=0.0)
    assert [steps.rate(p) for p in (0, 0.49, 0.5, 0.74, 0.75, 1)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


@pytest.mark.parametrize(
    "wrong", [{"epochs": -1}, {"learning_rate": 0}, {"temperature": 0}, {"precision": "int4"}]
)
def test_a_recipe_refuses_what_makes_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Recipe(**wrong)  # type: ignore[arg-type]


def test_the_loss_is_a_mixture() -> None:
    logits, teacher = torch.randn(6, 4), torch.randn(6, 4)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    recipe = Recipe(distillation_weight=0.25, temperature=2.0)
    hard = nn.functional.cross_entropy(logits, labels)
    soft = 4 * nn.functional.kl_div(
        (logits / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="batchmean"
    )
    split = nets.digits(samples=60).train
    batches = Batches(split, device="cpu", resident_bytes=0, channels_last=False)

    def loss_of(labels: torch.Tensor | None, answers: torch.Tensor | None) -> torch.Tensor:
        objective = Objective(CLASSIFICATION, recipe, batches, None)
        return objective(logits, Batch((logits,), labels), answers)

    assert torch.isclose(loss_of(labels, None), hard)
    assert torch.isclose(loss_of(None, teacher), soft)
    mixed = loss_of(labels, teacher)
    assert torch.isclose(mixed, 0.75 * hard + 0.25 * soft)
    with pytest.raises(DataError):
        loss_of(None, None)


def test_recalibration_takes_the_statistics_of_the_data() -> None:
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.5))
    split = nets.digits(samples=600).train
    assert recalibrate_batchnorm(module, split, samples=420, batch=105) == 1
    images = split.arrays[0]
    layer = module[0]
    assert float(layer.running_mean) == pytest.approx(float(images.mean()), abs=1e-4)
    assert float(layer.running_var) == pytest.approx(float(images.var()), rel=0.02)
    assert layer.momentum == 0.1
    assert not any(part.training for part in module.modules())
    assert recalibrate_batchnorm(nn.Linear(2, 2), split) == 0


def test_a_network_of_volumes_and_images_is_placed_as_far_as_there_is_an_order() -> None:
    module = nn.ModuleList([nn.Conv3d(2, 3, 3), nn.Conv2d(2, 3, 3)])
    volume, image = (layer.weight for layer in module)
    values = volume.detach().clone(), image.detach().clone()
    place(module, "cpu", channels_last=True)
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert not image.is_contiguous()
    assert volume.is_contiguous()
    assert torch.equal(volume, values[0])
    assert torch.equal(image, values[1])
    place(module, "cpu", channels_last=False)
    assert image.is_contiguous()


def test_logits_must_be_rows_of_classes() -> None:
    assert logits_of(nn.Identity(), (torch.ones(2, 3),)).shape == (2, 3)
    with pytest.raises(ModelError, match=r"\(2, 3, 4\), expected \(batch, classes\)"):
        logits_of(nn.Identity(), (torch.ones(2, 3, 4),))


def test_a_module_that_cannot_change_its_mode_stays_as_it_is() -> None:
    class Fixed(nn.Module):
        def train(self, mode: bool = True) -> Fixed:
            raise NotImplementedError

    set_mode(Fixed(), training=True)


@pytest.mark.parametrize("flag", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_the_precision_follows_from_what_the_processor_has(
    monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    for name in precision._BF16_FLAGS:
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert precision.choose("auto", "cpu") == "fp32"
    monkeypatch.setattr(torch.cpu, flag, lambda: True)
    assert precision.choose("auto", "cpu") == "bf16"
    assert precision.choose("auto", "mps") == "fp32"
    assert precision.choose("fp32", "cpu") == "fp32"
    for name in precision._BF16_FLAGS:  # a torch that cannot tell
        monkeypatch.delattr(torch.cpu, name)
    assert precision.choose("auto", "cpu") == "fp32"
    assert precision.choose("bf16", "cpu") == "bf16"
    for has, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has: has)
        assert precision.choose("auto", "cuda:1") == chosen
