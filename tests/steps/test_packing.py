"""packing: never over budget, never half empty, and nothing stored that is zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hwprune.budget import fit, ranking_limit
from hwprune.encoding import stored_nonzeros, unpack
from hwprune.errors import HwpruneError
from hwprune.export.shrink import spread
from hwprune.ir import VALUE_TYPES, Masks, ValueType
from hwprune.sparsity import rank_weights
from hwprune.steps.packing import FULL_FRACTION, PackedModel, pack_model
from hwprune.steps.planning import Prepared, cost_of, module_weights

At = Callable[[int], Prepared]


def _masks(prepared: Prepared, value_type: ValueType) -> Masks:
    cost = cost_of(prepared, value_type)
    limit = ranking_limit(cost, prepared.budget_bytes, value_type)
    ranking = rank_weights(module_weights(prepared), "lamp", limit)
    return fit(cost, ranking, prepared.budget_bytes, value_type).masks


def _train(prepared: Prepared, masks: Masks, *, flatten: float) -> None:
    """Mask the module's weights; a part of the survivors becomes too small to be stored in int8."""
    generator = np.random.default_rng(0)
    parameters = dict(prepared.model.module.named_parameters())
    for name in masks:
        weight = parameters[name].detach().numpy()
        factor = np.where(generator.random(weight.shape) < flatten, np.float32(1e-4), np.float32(1))
        with torch.no_grad():
            parameters[name].copy_(torch.from_numpy(weight * factor * masks[name]))


def _check(prepared: Prepared, packed: PackedModel) -> None:
    assert len(packed.written.data) <= prepared.budget_bytes
    assert packed.written.encoding is not None
    weights = module_weights(prepared)
    for name, tensor in packed.written.packed.items():
        assert tensor.codec == "dense" or stored_nonzeros(tensor) == tensor.nonzeros
        nothing = np.zeros(weights[name].shape, np.float32)
        stored = spread(name, unpack(tensor), packed.written.kept, nothing)
        assert np.array_equal(stored != 0, packed.masks[name])
        assert np.all(weights[name][~packed.masks[name]] == 0)


@pytest.mark.parametrize("value_type", VALUE_TYPES)
@pytest.mark.parametrize("budget", [4_500, 8_000, 16_000])
def test_the_budget_is_used_and_never_exceeded(
    prepared: At, budget: int, value_type: ValueType
) -> None:
    now = prepared(budget)
    pretrained = {name: weight.copy() for name, weight in module_weights(now).items()}
    masks = _masks(now, value_type)
    _train(now, masks, flatten=0.0)
    packed = pack_model(now, masks, value_type, pretrained)
    _check(now, packed)
    assert len(packed.written.data) >= FULL_FRACTION * budget


@pytest.mark.parametrize("budget", [5_000, 7_000])
def test_survivors_that_quantise_to_zero_are_dropped_and_their_bytes_spent_again(
    prepared: At, budget: int
) -> None:
    now = prepared(budget)
    pretrained = {name: weight.copy() for name, weight in module_weights(now).items()}
    masks = _masks(now, "int8")
    _train(now, masks, flatten=0.3)
    packed = pack_model(now, masks, "int8", pretrained)
    _check(now, packed)
    assert packed.dropped > 0.2 * masks.nonzeros
    assert packed.respent > 0.2 * masks.nonzeros
    assert len(packed.written.data) >= FULL_FRACTION * budget
    assert packed.masks.nonzeros >= 0.9 * masks.nonzeros


@pytest.mark.parametrize("trained", [True, False])
def test_random_values_never_come_back_into_empty_channels(prepared: At, trained: bool) -> None:
    now = prepared(7_000)
    now = dataclasses.replace(now, model=dataclasses.replace(now.model, trained=trained))
    pretrained = {name: weight.copy() for name, weight in module_weights(now).items()}
    masks = _masks(now, "int8")
    for name in masks:
        masks[name][: len(masks[name]) // 2] = False
    _train(now, masks, flatten=0.0)
    empty = {name: ~mask.reshape(len(mask), -1).any(1) for name, mask in masks.by_name.items()}
    packed = pack_model(now, masks, "int8", pretrained)
    _check(now, packed)
    assert packed.respent > 0
    came = sum(int(packed.masks[name][empty[name]].sum()) for name in masks)
    assert (came > 0) == trained


def test_a_mask_that_is_too_large_is_trimmed(prepared: At) -> None:
    masks = _masks(prepared(9_000), "int8")
    now = prepared(8_000)
    pretrained = {name: weight.copy() for name, weight in module_weights(now).items()}
    _train(now, masks, flatten=0.0)
    packed = pack_model(now, masks, "int8", pretrained)
    _check(now, packed)
    assert packed.masks.nonzeros < masks.nonzeros
    assert all(np.all(masks[name] | ~packed.masks[name]) for name in masks)


def test_everything_lives_where_there_is_room(prepared: At) -> None:
    now = prepared(200_000)
    pretrained = {name: weight.copy() for name, weight in module_weights(now).items()}
    masks = _masks(now, "int8")
    assert masks.nonzeros == masks.weights
    packed = pack_model(now, masks, "int8", pretrained)
    _check(now, packed)
    assert set(packed.written.encoding.codecs.values()) == {"dense"}  # type: ignore[union-attr]


def test_a_budget_below_the_floor_is_never_written(prepared: At) -> None:
    now = prepared(500)
    empty = Masks({n: np.zeros(w.shape, np.bool_) for n, w in module_weights(now).items()})
    with pytest.raises(HwpruneError):
        pack_model(now, empty, "int8", module_weights(now))
