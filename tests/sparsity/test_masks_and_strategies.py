"""Masks, schedules and the shape of every strategy."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.errors import UsageError
from hwprune.ir import Masks
from hwprune.sparsity import (
    STRATEGIES,
    Event,
    Strategy,
    champions,
    compare,
    densities,
    make,
    masks_equal,
    rank,
    repair_empty,
)
from hwprune.sparsity.masks import full
from hwprune.sparsity.schedules import cosine, cubic, iterative


def _masks(**arrays: list[int]) -> Masks:
    return Masks({name: np.array(values, dtype=np.bool_) for name, values in arrays.items()})


def test_repair_gives_an_empty_tensor_its_best_and_keeps_the_count() -> None:
    scores = {"a": np.array([3, 1, 2], np.float32), "b": np.array([0.1, 0.3], np.float32)}
    repaired = repair_empty(_masks(a=[1, 1, 1], b=[0, 0]), scores)
    assert repaired.collapsed == ("b",)
    assert masks_equal(repaired.masks, _masks(a=[1, 0, 1], b=[0, 1]))
    untouched = _masks(a=[1, 0, 0], b=[1, 0])
    assert repair_empty(untouched, scores).masks is untouched
    # Nobody can spare one: the count grows rather than that another tensor collapses.
    assert repair_empty(_masks(a=[1, 0, 0], b=[0, 0]), scores).masks.nonzeros == 2


def test_champions_keep_every_tensor_alive() -> None:
    scores = {"a": np.array([3, 1, 2], np.float32), "b": np.array([0.1, 0.3], np.float32)}
    assert rank(scores).masks(2)["b"].sum() == 0
    assert rank(scores, keep=champions(scores)).masks(2)["b"].tolist() == [False, True]


def test_compare_and_density() -> None:
    before, after = _masks(a=[1, 1, 0, 0]), _masks(a=[0, 1, 1, 1])
    change = compare(before, after)
    assert (change.grown, change.pruned) == ({"a": 2}, {"a": 1})
    assert densities(after) == {"a": 0.75}
    assert not masks_equal(before, after)
    assert not masks_equal(before, _masks(b=[1, 1, 0, 0]))
    assert full({"a": (2, 2)})["a"].all()


def test_schedules() -> None:
    assert [cubic(p, 1.0, 0.2) for p in (-1, 0, 0.5, 1, 2)] == pytest.approx([1, 1, 0.3, 0.2, 0.2])
    assert [cosine(p, 1.0, 0.0) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert iterative(0.8**3) == pytest.approx((0.8, 0.64, 0.512))
    assert len(iterative(0.8**20)) == 20
    assert iterative(0.6)[-1] == 0.6
    with pytest.raises(UsageError):
        iterative(0.0)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"dense"}))
@pytest.mark.parametrize("density", [0.5, 0.05, 0.004])
def test_every_strategy_is_ordered_and_ends_by_filling_the_budget(
    name: str, density: float
) -> None:
    strategy = make(name, density=density)
    assert strategy.name == name
    assert strategy.events[-1].budget_fraction == 1.0
    assert strategy.epochs(12) == 12
    times = [event.progress for event in strategy.events]
    assert times == sorted(times)
    downhill = [e.density for e in strategy.events if e.density is not None]
    assert downhill == sorted(downhill, reverse=True)
    assert all(aim > density * 0.9 for aim in downhill)


def test_bidirectional_dips_by_its_depth_and_climbs_in_steps() -> None:
    strategy = make("bidirectional", density=0.1, depth=0.8, steps=2, initial="pretrained")
    fractions = [e.budget_fraction for e in strategy.events if e.budget_fraction is not None]
    assert fractions == pytest.approx([0.8, 0.9, 1.0])
    assert strategy.regrows
    assert {e.initial for e in strategy.events if e.action == "regrow"} == {"pretrained"}


def test_cyclic_dips_less_each_round() -> None:
    strategy = make("cyclic", density=0.1, rounds=3, amplitude=0.4)
    fractions = [e.budget_fraction for e in strategy.events if e.budget_fraction is not None]
    assert fractions == pytest.approx([1.0, 0.6, 1.0, 0.7, 1.0, 0.9, 1.0])


def test_dense_spends_nothing() -> None:
    strategy = make("dense", density=0.3)
    assert strategy.events == ()
    assert strategy.epochs(12) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"density": 0.5, "budget_fraction": 0.5},
        {},
        {"density": 0.0},
        {"budget_fraction": 1.5},
        {"density": 0.5, "score": "luck"},
        {"density": 0.5, "allocation": "luck"},
        {"density": 0.5, "initial": "luck"},
    ],
)
def test_an_event_refuses_what_makes_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Event(0.5, "prune", **wrong)  # type: ignore[arg-type]


def test_a_strategy_refuses_disorder_and_an_unfilled_budget() -> None:
    last = Event(0.2, "prune", budget_fraction=1.0)
    with pytest.raises(UsageError, match="out of order"):
        Strategy("x", (Event(0.5, "prune", density=0.5), last))
    with pytest.raises(UsageError, match="does not fill"):
        Strategy("x", (Event(0.5, "prune", density=0.5),))
    with pytest.raises(UsageError, match="unknown strategy 'x'"):
        make("x", density=0.5)
    for name, wrong in (("bidirectional", {"steps": 0}), ("cyclic", {"rounds": 0})):
        with pytest.raises(UsageError):
            make(name, density=0.5, **wrong)
