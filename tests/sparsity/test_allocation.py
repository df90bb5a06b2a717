"""Allocations sum exactly, never exceed a tensor, and rankings keep their shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.ir import Masks
from hwprune.sparsity import ALLOCATIONS, growth, rank_allocated
from hwprune.sparsity.allocation import erk

shapes = st.lists(
    st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple), min_size=1, max_size=5
)


@settings(max_examples=100, deadline=None)
@given(shapes, st.floats(0, 1), st.sampled_from(sorted(ALLOCATIONS)))
def test_counts_sum_to_the_total_and_the_ranking_respects_them(
    sizes: list[tuple[int, ...]], density: float, name: str
) -> None:
    rng = np.random.default_rng(0)
    scores = {str(i): rng.random(s, dtype=np.float32) for i, s in enumerate(sizes)}
    total = round(density * sum(a.size for a in scores.values()))
    counts = ALLOCATIONS[name](scores, total)
    assert sum(counts.values()) == total
    assert all(0 <= counts[n] <= scores[n].size for n in scores)
    masks = rank_allocated(scores, counts).masks(total)
    assert {n: int(masks[n].sum()) for n in masks} == counts
    for tensor, mask in masks.by_name.items():
        if 0 < counts[tensor] < mask.size:
            assert scores[tensor][mask].min() >= scores[tensor][~mask].max()


def test_erk_redistributes_what_a_full_tensor_cannot_take() -> None:
    scores = {"small": np.ones((4, 4), np.float32), "big": np.ones((64, 64, 3, 3), np.float32)}
    counts = erk(scores, 1000)
    assert counts == {"small": 16, "big": 984}
    # Unsaturated: in proportion to 8 and 134.
    assert erk(scores, 142) == {"small": 8, "big": 134}


def test_what_is_left_over_goes_to_the_largest_remainders() -> None:
    kept = {"a": 5, "b": 3, "c": 2}
    alive = Masks({name: np.arange(20) < count for name, count in kept.items()})
    # 2.0, 1.2 and 0.8 of four.
    assert growth("proportional", alive, 4) == {"a": 2, "b": 1, "c": 1}
    assert growth("proportional", alive, 5) == {"a": 3, "b": 1, "c": 1}  # 2.5, 1.5, 1: the earlier
    empty = Masks({"a": np.zeros(9, bool), "b": np.arange(9) < 8})
    assert growth("proportional", empty, 4) == {"a": 3, "b": 1}


def test_a_shorter_prefix_keeps_the_proportions() -> None:
    rng = np.random.default_rng(1)
    scores = {"a": rng.random(1000, dtype=np.float32), "b": 5 + rng.random(400, dtype=np.float32)}
    masks = rank_allocated(scores, {"a": 300, "b": 100}).masks(200)
    assert [int(masks[n].sum()) for n in masks] == pytest.approx([150, 50], abs=1)
