"""EAST's pieces: cycles on their cosine, ERK with its floor, what makes one strategy another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hwprune.errors import UsageError
from hwprune.ir import Masks
from hwprune.sparsity import growth, make
from hwprune.sparsity.allocation import erk
from hwprune.sparsity.east import cycles, density_at
from hwprune.sparsity.event_builders import Grow, Prune


def shaped(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def test_a_cycle_is_the_cosine_of_the_paper() -> None:
    for place in np.linspace(0, 1, 21):
        expected = 0.01 + (0.03 - 0.01) * (1 - math.cos(2 * math.pi * place)) / 2
        assert density_at(float(place), 0.01, 3.0) == pytest.approx(expected)
    assert density_at(0.0, 0.01, 3.0) == density_at(1.0, 0.01, 3.0) == 0.01
    assert density_at(0.5, 0.5, 3.0) == 1.0  # never more than everything


def test_cycles_rise_by_growth_fall_by_pruning_and_end_at_the_budget() -> None:
    events = cycles(
        2, 3.0, 0.4, density=0.01, steps=4, prune=Prune("magnitude", "erk"),
        grow=Grow("gradient", allocation="towards-erk"),
    )  # fmt: skip
    assert [event.action for event in events] == ["regrow", "regrow", "prune", "prune"] * 2
    assert [event.progress for event in events] == pytest.approx([0.05 * n for n in range(1, 9)])
    aims = [event.density for event in events]
    assert aims[:3] == pytest.approx([0.02, 0.03, 0.02])
    assert [event.budget_fraction for event in events[3::4]] == [1.0, 1.0]
    assert {event.score for event in events} == {"magnitude", "gradient"}


@pytest.mark.parametrize(
    "wrong",
    [{"cycle_count": 0}, {"cycle_peak": 1.0}, {"cycle_peak": float("inf")}, {"cycle_steps": 1},
     {"cycle_until": 0.8}, {"updates": 0}, {"drop": 1.0}, {"last_drop": 0.6}, {"dyrelu_gone": 1.0},
     {"dyrelu_hold": 0.6}, {"dyrelu_gone": 0.0, "dyrelu_hold": 0.0}, {"score": "luck"}],
    ids=str,
)  # fmt: skip
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make("east", density=0.01, **wrong)


def test_the_exchanges_share_falls_over_the_whole_run() -> None:
    whole = make("east", density=0.01, cyclic=False)
    after = make("east", density=0.01)
    shares = {round(e.progress, 9): e.share for e in whole.events if e.share is not None}
    assert (len(shares), min(shares.values()) >= 0.5, max(shares.values()) <= 0.995) == (18, 1, 1)
    late = [event for event in after.events if event.share is not None]
    assert len(late) == 8
    assert all(0.4 < event.progress < 0.75 for event in late)
    # As large as it is at that time without cycles.
    times, values = list(shares), [share for share in shares.values() if share is not None]
    found = [event.share for event in late]
    assert found == pytest.approx(np.interp([e.progress for e in late], times, values), abs=2e-3)


# -- ERK ------------------------------------------------------------------------------------------

RESNET34 = {
    "stem": (64, 3, 3, 3),
    **{
        f"{stage}.{number}": (width, width, 3, 3)
        for stage, (width, count) in enumerate([(64, 6), (128, 7), (256, 11), (512, 5)])
        for number in range(count)
    },
    "down": (128, 64, 1, 1),
    "head": (10, 512),
}


@pytest.mark.parametrize("density", [1e-2, 1e-3, 5e-4, 1e-4])
def test_erk_leaves_no_layer_of_a_resnet_without(density: float) -> None:
    sizes = {name: math.prod(shape) for name, shape in RESNET34.items()}
    total = round(density * sum(sizes.values()))
    counts = erk(shaped(RESNET34), total)
    assert sum(counts.values()) == total
    assert min(counts.values()) >= max(1, total // len(counts) // 10)
    assert all(counts[name] <= sizes[name] for name in sizes)
    # Above the floor, and below its size, each is in proportion to its dimensions.
    scale = counts["3.0"] / sum(RESNET34["3.0"])
    assert counts["2.0"] == pytest.approx(scale * sum(RESNET34["2.0"]), abs=1.5)


def test_the_floor_takes_from_the_others_and_shrinks_where_it_must() -> None:
    shapes = {"wide": (1000, 1000), "thin": (1, 3), "small": (2, 5)}
    counts = erk(shaped(shapes), 600)
    assert counts == {"wide": 587, "thin": 3, "small": 10}  # 20 is more than they have
    counts = erk(shaped({"wide": (1000, 1000), "thin": (1, 300)}), 400)
    assert counts["thin"] == 52  # its share, 301 of 2301, is above its floor of 20
    thin = {"wide": (9000, 1000), "thin": (1, 50)}
    assert erk(shaped(thin), 400) == {"wide": 380, "thin": 20}  # 2 by its share
    assert erk(shaped(shapes), 2) == {"wide": 1, "thin": 0, "small": 1}
    assert erk(shaped(shapes), 0) == {"wide": 0, "thin": 0, "small": 0}


def test_growth_towards_erk_ends_at_erk() -> None:
    draw = np.random.default_rng(0)
    shapes = {"a": (20, 30), "b": (5, 4), "c": (64, 8, 3, 3)}
    alive = Masks({name: draw.random(shape) < 0.05 for name, shape in shapes.items()})
    living = {name: int(alive[name].sum()) for name in shapes}
    added = 300
    after = {n: living[n] + c for n, c in growth("towards-erk", alive, added).items()}
    assert sum(after.values()) == alive.nonzeros + added
    assert after == erk(shaped(shapes), alive.nonzeros + added)
    # One that is above its share already keeps what it has.
    full = Masks({**alive.by_name, "b": np.ones((5, 4), bool)})
    counts = growth("towards-erk", full, 40)
    assert counts["b"] == 0
    assert sum(counts.values()) == 40
