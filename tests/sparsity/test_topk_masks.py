"""The best connections: exact against a plain sort, with ties, limits, guards and odd values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.errors import HwpruneError, UsageError
from hwprune.ir import Masks, Ranking
from hwprune.sparsity import (
    SCORES,
    LazyScores,
    followed_by,
    growth,
    lamp,
    masks_equal,
    rank,
    rank_weights,
    select,
    topk_masks,
)


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
    before = topk_masks._CHUNK
    topk_masks._CHUNK = chunk  # small, so that a tensor has many
    try:
        found = rank(scores, limit=limit)
    finally:
        topk_masks._CHUNK = before
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


@pytest.mark.parametrize("limit", [0, 1, 100, 999, 1500, 4000])
def test_the_best_lamp_scores_are_bit_for_bit_those_of_all(limit: int) -> None:
    weight = np.random.default_rng(5).standard_normal((50, 60), dtype=np.float32)
    whole, some = lamp(weight).reshape(-1), lamp(weight, limit).reshape(-1)
    best = np.argsort(-whole, kind="stable")[:limit]
    assert np.array_equal(some[best], whole[best])
    assert np.count_nonzero(some) == min(limit, weight.size)


def test_lamp_is_equation_four() -> None:
    weight = np.array([3.0, -1.0, 2.0, 0.0], dtype=np.float32)
    assert lamp(weight).tolist() == pytest.approx([1.0, 1 / 14, 4 / 13, 0.0])


def test_rankings_of_different_networks_cannot_be_joined() -> None:
    one = rank({"a": np.ones(2, dtype=np.float32)})
    with pytest.raises(HwpruneError, match="different networks"):
        followed_by(one, rank({"b": np.ones(2, dtype=np.float32)}))


# -- guards, masks, what is worked out when asked for ---------------------------------------------

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=4)
levels = st.sampled_from([0, 1, 2, 5, 1000])


@settings(max_examples=150, deadline=None)
@given(sizes, levels, st.integers(0, 999), st.integers(0, 130), st.sampled_from([3, 1 << 18]))
def test_select_is_a_ranking_cut_with_the_best_of_guarded_tensors_first(
    numbers: list[int], spread: int, seed: int, count: int, chunk: int
) -> None:
    generator = np.random.default_rng(seed)
    scores = {}
    for number, size in enumerate(numbers):  # few levels make ties
        values = generator.integers(-spread, spread + 1, size).astype(np.float32)
        scores[str(number)] = np.where(generator.random(size) < 0.6, values, np.float32(-np.inf))
    guard = tuple(scores)[::2]
    every = plain(scores)
    first = [next(each for each in every if each[0] == number) for number in {n for n, _ in every}
             if str(number) in guard]  # fmt: skip
    first.sort(key=every.index)
    expected = [*first, *(each for each in every if each not in first)][:count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk_masks, "_CHUNK", chunk)
        found = rank(scores, limit=count, guard=guard)
        masks = select(scores, count, guard=guard)
    assert order(found) == expected
    assert masks_equal(masks, found.masks(count))


def test_lazy_scores_are_worked_out_once_and_when_asked_for() -> None:
    asked = []

    def compute(name: str) -> np.ndarray:
        asked.append(name)
        return np.arange(4, dtype=np.float32)

    scores = LazyScores({"a": (2, 2), "b": (4,)}, compute)
    assert asked == []
    found = select(scores, 3)
    assert found["a"].tolist() == [[False, False], [True, True]]
    assert found["b"].tolist() == [False, False, False, True]
    assert asked == ["a", "b"]


def test_a_guard_keeps_every_tensor() -> None:
    scores = {"a": np.array([3, 1, 2], np.float32), "b": np.array([0.1, 0.3], np.float32)}
    assert select(scores, 2)["b"].sum() == 0
    assert select(scores, 2, guard=("a", "b"))["b"].tolist() == [False, True]


def test_growth_is_shared_out_and_never_more_than_is_pruned() -> None:
    alive = Masks(
        {
            "full": np.ones((4, 4), np.bool_),
            "few": np.arange(100).reshape(10, 10) < 3,
            "half": np.arange(300).reshape(3, 100) < 150,
        }
    )
    counts = growth("proportional", alive, 60)
    assert sum(counts.values()) == 60
    assert counts["full"] == 0
    assert counts["few"] == pytest.approx(60 * 3 / 153, abs=1)
    assert sum(growth("proportional", alive, 10_000).values()) == 97 + 150
