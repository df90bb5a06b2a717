"""ir: the values that travel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprune.ir import LayerPlan, Masks, Packed, Plan, PrunableTensor, Ranking, TensorSpec


def test_a_specification_takes_a_batch() -> None:
    spec = TensorSpec("x", (None, 3, None), "float32")
    assert spec.with_batch(5) == (5, 3, 5)


def test_masks_count_and_give_positions() -> None:
    masks = Masks({"a": np.array([[True, False], [False, True]]), "b": np.zeros(3, np.bool_)})
    assert (masks.nonzeros, masks.weights, len(masks), list(masks)) == (2, 7, 2, ["a", "b"])
    positions = masks.positions()
    assert positions["a"].tolist() == [0, 3]
    assert positions["b"].tolist() == []


@given(st.integers(0, 12), st.randoms(use_true_random=False))
def test_top_and_masks_of_a_ranking_agree(count: int, random: object) -> None:
    order = np.random.default_rng(random.getrandbits(32)).permutation(12)  # type: ignore[attr-defined]
    shapes = {"a": (2, 4), "b": (4,)}
    tensor = np.where(order < 8, 0, 1).astype(np.int32)
    position = np.where(order < 8, order, order - 8).astype(np.int64)
    ranking = Ranking(shapes, tensor, position)
    top, masks = ranking.top(count), ranking.masks(count)
    assert masks.nonzeros == count
    for name, shape in shapes.items():
        assert masks[name].shape == shape
        assert top[name].tolist() == masks.positions()[name].tolist()


def test_sizes_are_counted() -> None:
    assert PrunableTensor("w", (4, 3, 3, 3), 0, ("Conv",)).weights == 108
    packed = Packed("w", (4, 3), "gap8", "fp32", {"values": np.zeros(5, np.float32)})
    assert packed.nonzeros == 5
    layer = LayerPlan("w", (4, 3), 12, 5, "gap8", "fp32", 60)
    plan = Plan(1000, 100, (), "fp32", 5, 990, (layer, layer), 4000, "budget")
    assert (plan.weights, plan.slack_bytes) == (24, 10)


def test_values_do_not_change_after_they_were_made() -> None:
    spec = TensorSpec("x", (None,), "float32")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "y"  # type: ignore[misc]
