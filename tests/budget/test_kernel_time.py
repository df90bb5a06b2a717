"""kernel_time: what a connection costs, and rankings that keep to a limit; costs are given."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.budget import NetworkTime, Prefixes, TensorTime, TimeLimit, least_share
from hwprune.ir import Masks, Ranking

# Two tensors of 100 weights: a connection of the first takes fifty times as long.
SLOW = TensorTime(100, fixed=10, each=50, dense=3000, densest=0.5)
QUICK = TensorTime(100, fixed=10, each=1, dense=200, densest=0.5)
NETWORK = NetworkTime({"slow": SLOW, "quick": QUICK}, rest=5, clock_hz=1000, core="given")


def in_turns() -> Ranking:
    """All connections, one of each tensor after the other."""
    tensor = np.tile(np.array([0, 1], np.int32), 100)
    shapes = {"slow": (10, 10), "quick": (100,)}
    return Ranking(shapes, tensor, np.repeat(np.arange(100), 2))


def test_time_never_falls_with_a_connection_and_ends_at_the_dense_operators() -> None:
    times = [SLOW.cycles(count) for count in range(101)]
    assert times == sorted(times)
    assert times[0] == 10
    assert times[50] == 10 + 50 * 50
    assert times[51] == times[100] == SLOW.dense  # too dense for a kernel
    assert NETWORK.dense == 5 + 3000 + 200
    assert NETWORK.cycles({"slow": 2, "quick": 3}) == 5 + 110 + 13


def test_prices_are_one_multiplier_for_bytes_and_one_for_time() -> None:
    assert NETWORK.prices(0) == {"slow": 1, "quick": 1}
    half = NETWORK.prices(0.5)
    assert half["slow"] > 1 > half["quick"] > 0
    # By time alone, nearly: in proportion to what a connection takes.
    alone = NETWORK.prices(1)
    assert alone["slow"] / alone["quick"] == pytest.approx(50, rel=0.05)
    free = NetworkTime({"a": TensorTime(4, 1, 0, 1, 1)}, 0, 1, "given")
    assert free.prices(1) == {"a": 1}


def test_the_least_share_that_is_enough_is_found() -> None:
    assert least_share(lambda share: True) == 0
    assert least_share(lambda share: False) == 1
    assert 0.3 <= least_share(lambda share: share >= 0.3) <= 0.3 + 2**-10


def test_an_arranged_ranking_keeps_each_order_and_is_fast_enough() -> None:
    ranking = in_turns()
    before = NETWORK.of(ranking.masks(60))
    limit = TimeLimit(NETWORK, before / 2)
    found = limit.arranged(ranking, 60)
    assert NETWORK.of(ranking.masks(60)) > limit.most >= NETWORK.of(found.masks(60))
    # No more than it has to: the next coarser trade would be too slow.
    assert NETWORK.of(found.masks(60)) > 0.9 * limit.most
    assert sorted(zip(found.tensor, found.position, strict=True)) == sorted(
        zip(ranking.tensor, ranking.position, strict=True)
    )
    for number in (0, 1):
        assert np.all(np.diff(found.position[found.tensor == number]) > 0)
    # However little time there is, each tensor's first connection stays in front.
    least = TimeLimit(NETWORK, 0).arranged(ranking, 60)
    assert set(least.tensor[:2]) == {0, 1}


def test_prefixes_end_where_time_does() -> None:
    ranking = in_turns()
    prefixes, limit = Prefixes(ranking), TimeLimit(NETWORK, 600)
    count = prefixes.in_time(limit)
    assert NETWORK.of(ranking.masks(count)) <= 600 < NETWORK.of(ranking.masks(count + 1))
    assert prefixes.in_time(None) == len(ranking) == prefixes.in_time(TimeLimit(NETWORK, 1e9))
    whole = Masks({"slow": np.ones((10, 10), bool), "quick": np.ones(100, bool)})
    assert not limit.holds(whole)
