"""Selecting equals ranking and cutting, with ties, guards, chunks and odd values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.errors import UsageError
from hwprune.ir import Masks, Ranking
from hwprune.sparsity import (
    Streamed,
    champions,
    growth,
    lamp,
    masks_equal,
    rank,
    rank_dead,
    rank_living,
    select,
    select_living,
    topk,
)

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=4)
levels = st.sampled_from([0, 1, 2, 5, 1000])


def network(
    numbers: list[int], spread: int, seed: int, density: float = 0.6
) -> tuple[dict[str, np.ndarray], Masks]:
    """Return weights, zero where dead, and masks; few levels make ties and living zeros."""
    generator = np.random.default_rng(seed)
    alive = {str(n): generator.random(size) < density for n, size in enumerate(numbers)}
    weights = {
        name: np.where(
            mask, generator.integers(-spread, spread + 1, mask.size) * np.float32(0.1), 0
        ).astype(np.float32)
        for name, mask in alive.items()
    }
    return weights, Masks(alive)


def living_scores(weights: dict[str, np.ndarray], alive: Masks) -> dict[str, np.ndarray]:
    return {n: np.where(alive[n], lamp(w), np.float32(-np.inf)) for n, w in weights.items()}


def order(ranking: Ranking) -> list[tuple[int, int]]:
    return list(zip(ranking.tensor.tolist(), ranking.position.tolist(), strict=True))


@settings(max_examples=150, deadline=None)
@given(sizes, levels, st.integers(0, 999), st.integers(0, 130), st.sampled_from([3, 1 << 18]))
def test_select_is_a_ranking_cut(
    numbers: list[int], spread: int, seed: int, count: int, chunk: int
) -> None:
    weights, alive = network(numbers, spread, seed)
    scores = {n: np.where(alive[n], w, np.float32(-np.inf)) for n, w in weights.items()}
    keep = champions(scores)
    count = max(count, keep.nonzeros)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "CHUNK", chunk)
        found = select(scores, count, keep)
    assert masks_equal(found, rank(scores, limit=count, keep=keep).masks(count))


@settings(max_examples=200, deadline=None)
@given(sizes, levels, st.integers(0, 999), st.integers(0, 130), st.sampled_from([3, 1 << 18]))
def test_select_living_and_rank_living_are_lamp_with_guards(
    numbers: list[int], spread: int, seed: int, count: int, chunk: int
) -> None:
    weights, alive = network(numbers, spread, seed)
    scores = living_scores(weights, alive)
    expected = rank(scores, limit=count, keep=champions(scores))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "CHUNK", chunk)
        assert order(rank_living(weights, alive, limit=count)) == order(expected)
        count = max(count, champions(scores).nonzeros)
        found = select_living(weights, alive, count)
    assert masks_equal(found, rank(scores, limit=count, keep=champions(scores)).masks(count))


def test_scores_that_round_to_one_number_go_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many nearly equal weights: LAMP scores tie in float32 though magnitudes differ."""
    generator = np.random.default_rng(0)
    base = np.float32(1) + generator.integers(0, 40, 60_000).astype(np.float32) * np.float32(1e-7)
    weights = {"a": base, "b": base[::-1].copy()}
    alive = Masks({name: np.ones(w.size, np.bool_) for name, w in weights.items()})
    scores = living_scores(weights, alive)
    monkeypatch.setattr(topk, "CHUNK", 1000)
    for count in (70_001, 90_003, 110_007):
        expected = rank(scores, limit=count, keep=champions(scores)).masks(count)
        assert masks_equal(select_living(weights, alive, count), expected)


@settings(max_examples=100, deadline=None)
@given(sizes, levels, st.integers(0, 999), st.integers(0, 60))
def test_rank_dead_is_the_dense_score_of_the_dead(
    numbers: list[int], spread: int, seed: int, limit: int
) -> None:
    alive = network(numbers, spread, seed)[1]
    dense = network(numbers, spread, seed + 1, density=1.1)[0]
    scores = {n: np.where(alive[n], np.float32(-np.inf), lamp(w)) for n, w in dense.items()}
    assert order(rank_dead(dense, alive, limit=limit)) == order(rank(scores, limit=limit))


def test_streamed_scores_are_worked_out_when_asked_for() -> None:
    asked = []

    def compute(name: str) -> np.ndarray:
        asked.append(name)
        return np.arange(4, dtype=np.float32)

    scores = Streamed({"a": (4,), "b": (4,)}, compute)
    assert asked == []
    nothing = Masks({n: np.zeros(4, np.bool_) for n in scores})
    found = select(scores, 3, nothing)
    assert found["a"].tolist() == [False, False, True, True]
    assert found["b"].tolist() == [False, False, False, True]
    assert set(asked) == {"a", "b"}
    assert order(rank(scores, limit=2)) == [(0, 3), (1, 3)]


def test_a_nan_is_an_error() -> None:
    bad = {"w": np.array([1, np.nan, 2], np.float32)}
    alive = Masks({"w": np.ones(3, np.bool_)})
    with pytest.raises(UsageError, match="'w'"):
        select(bad, 2, Masks({"w": np.zeros(3, np.bool_)}))
    with pytest.raises(UsageError, match="'w'"):
        select_living(bad, alive, 2)
    with pytest.raises(UsageError, match="'w'"):
        rank_living(bad, alive)


def test_growth_is_shared_out_and_never_more_than_is_dead() -> None:
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
