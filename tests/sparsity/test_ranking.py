"""Ranking: exact against a plain sort, with ties, limits, kept connections and odd values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.errors import HwpruneError, UsageError
from hwprune.ir import Masks, Ranking
from hwprune.sparsity import SCORES, followed_by, lamp, rank, rank_weights, topk
from hwprune.sparsity.scores import lamp_top


def plain(scores: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    """Return the order by an ordinary stable sort over everything."""
    every = [
        (-float(value), number, position)
        for number, array in enumerate(scores.values())
        for position, value in enumerate(array.reshape(-1))
        if value > -np.inf
    ]
    return [(number, position) for _, number, position in sorted(every)]


def order(ranking: Ranking) -> list[tuple[int, int]]:
    return list(zip(ranking.tensor.tolist(), ranking.position.tolist(), strict=True))


values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, float("-inf"), float("inf"), 1e-42, 3e38]),
    st.floats(width=32, allow_nan=False),
)
tensors = st.lists(st.lists(values, max_size=25), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(tensors, st.integers(0, 60), st.integers(1, 7))
def test_rank_equals_a_plain_sort_for_every_limit(
    lists: list[list[float]], limit: int, chunk: int
) -> None:
    scores = {str(i): np.array(part, dtype=np.float32) for i, part in enumerate(lists)}
    before = topk.CHUNK
    topk.CHUNK = chunk  # small, so that collections are cut many times
    try:
        found = rank(scores, limit=limit)
    finally:
        topk.CHUNK = before
    assert order(found) == plain(scores)[:limit]
    assert order(rank(scores)) == plain(scores)


@settings(max_examples=80, deadline=None)
@given(tensors, st.randoms(use_true_random=False), st.integers(0, 60))
def test_kept_connections_come_first_whatever_their_score(
    lists: list[list[float]], random: object, limit: int
) -> None:
    scores = {str(i): np.array(part, dtype=np.float32) for i, part in enumerate(lists)}
    keep = {
        name: np.array([random.random() < 0.4 for _ in array], dtype=np.bool_)  # type: ignore[attr-defined]
        for name, array in scores.items()
    }
    found = order(rank(scores, limit=limit, keep=Masks(keep)))
    kept = sorted(
        (-float(v), i, p)
        for i, (name, array) in enumerate(scores.items())
        for p, v in enumerate(array)
        if keep[name][p]
    )
    others = {n: np.where(keep[n], -np.inf, a).astype(np.float32) for n, a in scores.items()}
    assert found == ([(i, p) for _, i, p in kept] + plain(others))[:limit]


def test_ties_go_to_the_earlier_tensor_then_the_lower_index() -> None:
    scores = {"b": np.ones(3, dtype=np.float32), "a": np.ones(2, dtype=np.float32)}
    assert order(rank(scores, limit=4)) == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_a_nan_is_an_error_that_names_the_tensor() -> None:
    scores = {"fine": np.ones(3, dtype=np.float32), "bad": np.array([1, np.nan], dtype=np.float32)}
    with pytest.raises(UsageError, match="1 of 2 scores of 'bad'"):
        rank(scores, limit=1)
    with pytest.raises(UsageError, match="'bad' are NaN or infinite"):
        rank_weights({"bad": np.array([np.inf, 1], dtype=np.float32)})


def test_masks_of_another_network_cannot_be_kept() -> None:
    with pytest.raises(UsageError, match="no entry 'w'"):
        rank({"w": np.ones(2, dtype=np.float32)}, keep=Masks({"w": np.ones(3, dtype=np.bool_)}))


@pytest.mark.parametrize("score", ["lamp", "magnitude"])
@pytest.mark.parametrize("limit", [0, 1, 7, 500, 5000, None])
def test_rank_weights_is_the_ranking_of_the_scores(score: str, limit: int | None) -> None:
    rng = np.random.default_rng(3)
    weights = {
        "a": rng.standard_normal((40, 50), dtype=np.float32),
        # Few distinct values: ties everywhere.
        "b": rng.integers(-3, 4, (30, 3, 3)).astype(np.float32),
        "c": np.zeros((4, 4), dtype=np.float32),
        "d": np.full(3000, 0.25, dtype=np.float32),
    }
    expected = rank({n: SCORES[score](w) for n, w in weights.items()}, limit=limit)
    found = rank_weights(weights, score, limit)  # type: ignore[arg-type]
    assert order(found) == order(expected)


@given(
    sizes=st.lists(st.integers(0, 90), min_size=1, max_size=6),
    limit=st.integers(0, 200),
    levels=st.sampled_from([2, 5, 1000]),
    seed=st.integers(0, 999),
)
@settings(deadline=None)
def test_what_small_tensors_rank_bounds_the_large_ones_exactly(
    sizes: list[int], limit: int, levels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = {
        str(n): rng.integers(-levels, levels + 1, size).astype(np.float32) * np.float32(0.1)
        for n, size in enumerate(sizes)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "CHUNK", 8)  # so that few connections fill a collection
        found = rank_weights(weights, "lamp", limit)
    assert order(found) == order(rank({n: lamp(w) for n, w in weights.items()}, limit=limit))


@pytest.mark.parametrize("limit", [0, 1, 100, 999, 1500, 4000])
def test_lamp_top_is_bit_for_bit_the_best_of_lamp(limit: int) -> None:
    weight = np.random.default_rng(5).standard_normal((50, 60), dtype=np.float32)
    whole = lamp(weight).reshape(-1)
    positions, scores = lamp_top(weight, limit)
    assert positions.tolist() == np.argsort(-whole, kind="stable")[:limit].tolist()
    assert np.array_equal(scores, whole[positions])


def test_lamp_is_equation_four() -> None:
    weight = np.array([3.0, -1.0, 2.0, 0.0], dtype=np.float32)
    assert lamp(weight).tolist() == pytest.approx([1.0, 1 / 14, 4 / 13, 0.0])


def test_rankings_of_different_networks_cannot_be_joined() -> None:
    one = rank({"a": np.ones(2, dtype=np.float32)})
    with pytest.raises(HwpruneError, match="different networks"):
        followed_by(one, rank({"b": np.ones(2, dtype=np.float32)}))
