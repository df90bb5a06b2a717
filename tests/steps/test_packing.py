"""packing: never over budget, never half empty, and nothing stored that is zero."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from steps_tools import At, pack, weights_in

from hwprune.budget import fit, ranking_limit
from hwprune.encoding import stored_nonzeros, unpack
from hwprune.errors import HwpruneError
from hwprune.export.removal import scatter_channels
from hwprune.ir import VALUE_TYPES, Masks, ValueType
from hwprune.sparsity import rank_weights
from hwprune.steps import packing
from hwprune.steps.packing import FULL_FRACTION, PackedModel
from hwprune.steps.planning import Prepared


def _masks(prepared: Prepared, value_type: ValueType, budget: int) -> Masks:
    cost = prepared.template.cost(value_type)
    limit = ranking_limit(cost, budget, value_type)
    ranking = rank_weights(weights_in(prepared), "lamp", limit)
    return fit(cost, ranking, budget, value_type).masks


def _train(prepared: Prepared, masks: Masks, *, flatten: float) -> None:
    """Mask the module's weights; a part of the survivors becomes too small to be stored in int8."""
    generator = np.random.default_rng(0)
    parameters = dict(prepared.model.module.named_parameters())
    for name in masks:
        weight = parameters[name].detach().numpy()
        factor = np.where(generator.random(weight.shape) < flatten, np.float32(1e-4), np.float32(1))
        with torch.no_grad():
            parameters[name].copy_(torch.from_numpy(weight * factor * masks[name]))


def _check(prepared: Prepared, packed: PackedModel, budget: int) -> None:
    assert len(packed.written.data) <= budget
    assert packed.written.encoding is not None
    weights = weights_in(prepared)
    for name, tensor in packed.written.packed.items():
        assert tensor.codec == "dense" or stored_nonzeros(tensor) == tensor.nonzeros
        nothing = np.zeros(weights[name].shape, np.float32)
        stored = scatter_channels(name, unpack(tensor), packed.written.kept, nothing)
        assert np.array_equal(stored != 0, packed.masks[name])
        assert np.all(weights[name][~packed.masks[name]] == 0)


@pytest.mark.parametrize("value_type", VALUE_TYPES)
@pytest.mark.parametrize("budget", [4_500, 8_000, 16_000])
def test_the_budget_is_used_and_never_exceeded(
    prepared: At, budget: int, value_type: ValueType
) -> None:
    now = prepared()
    pretrained = weights_in(now)
    masks = _masks(now, value_type, budget)
    _train(now, masks, flatten=0.0)
    packed = pack(now, masks, value_type, pretrained, budget)
    _check(now, packed, budget)
    assert len(packed.written.data) >= FULL_FRACTION * budget


@pytest.mark.parametrize("budget", [5_000, 7_000])
def test_survivors_that_quantise_to_zero_are_dropped_and_their_bytes_spent_again(
    prepared: At, budget: int
) -> None:
    now = prepared()
    pretrained = weights_in(now)
    masks = _masks(now, "int8", budget)
    _train(now, masks, flatten=0.3)
    packed = pack(now, masks, "int8", pretrained, budget)
    _check(now, packed, budget)
    assert packed.dropped > 0.2 * masks.nonzeros
    assert packed.respent > 0.2 * masks.nonzeros
    assert len(packed.written.data) >= FULL_FRACTION * budget
    assert packed.masks.nonzeros >= 0.9 * masks.nonzeros


@pytest.mark.parametrize("trained", [True, False])
def test_random_values_never_come_back_into_empty_channels(prepared: At, trained: bool) -> None:
    now = prepared()
    now = dataclasses.replace(now, model=dataclasses.replace(now.model, trained=trained))
    pretrained = weights_in(now)
    masks = _masks(now, "int8", 7_000)
    for name in masks:
        masks[name][: len(masks[name]) // 2] = False
    _train(now, masks, flatten=0.0)
    empty = {name: ~mask.reshape(len(mask), -1).any(1) for name, mask in masks.by_name.items()}
    packed = pack(now, masks, "int8", pretrained, 7_000)
    _check(now, packed, 7_000)
    assert packed.respent > 0
    came = sum(int(packed.masks[name][empty[name]].sum()) for name in masks)
    assert (came > 0) == trained


def test_a_mask_that_is_too_large_is_trimmed(prepared: At) -> None:
    now = prepared()
    masks = _masks(now, "int8", 9_000)
    pretrained = weights_in(now)
    _train(now, masks, flatten=0.0)
    packed = pack(now, masks, "int8", pretrained, 8_000)
    _check(now, packed, 8_000)
    assert packed.masks.nonzeros < masks.nonzeros
    assert all(np.all(masks[name] | ~packed.masks[name]) for name in masks)


def test_everything_lives_where_there_is_room(prepared: At) -> None:
    now = prepared()
    pretrained = weights_in(now)
    masks = _masks(now, "int8", 200_000)
    assert masks.nonzeros == masks.weights
    packed = pack(now, masks, "int8", pretrained, 200_000)
    _check(now, packed, 200_000)
    assert set(packed.written.encoding.codecs.values()) == {"dense"}  # type: ignore[union-attr]


@pytest.mark.parametrize(("size", "taken"), [(900, True), (1000, False), (1100, False)])
def test_dead_channels_stay_where_nothing_is_saved(size: int, taken: bool) -> None:
    """Without them an operator may change its kind, and the file need another body."""

    def template(size: int, **more: Any) -> Any:
        encoding = SimpleNamespace(file_bytes=size)
        cost = SimpleNamespace(encoding=lambda positions, kind: encoding)
        return SimpleNamespace(cost=lambda kinds: cost, kept={}, **more)

    small = template(size)
    whole = template(1000, without=lambda removal: small)
    found, saved = packing._smaller(whole, SimpleNamespace(removal=None), Masks({}), "int8")  # type: ignore[arg-type]
    assert (found is small) == taken
    assert saved == (100 if taken else 0)


def test_a_budget_below_the_floor_is_never_written(prepared: At) -> None:
    now = prepared()
    empty = Masks({n: np.zeros(w.shape, np.bool_) for n, w in weights_in(now).items()})
    with pytest.raises(HwpruneError):
        pack(now, empty, "int8", weights_in(now), 500)
