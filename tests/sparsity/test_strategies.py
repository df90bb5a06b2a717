"""Schedules and the shape of every strategy."""

from __future__ import annotations

import pytest

from hwprune.errors import UsageError
from hwprune.sparsity import STRATEGIES, MaskEvent, Strategy, auto, make
from hwprune.sparsity.schedules import cosine, cubic, iterative
from hwprune.sparsity.strategies import REMOVED


def test_schedules() -> None:
    assert [cubic(p, 1.0, 0.2) for p in (-1, 0, 0.5, 1, 2)] == pytest.approx([1, 1, 0.3, 0.2, 0.2])
    assert [cosine(p, 1.0, 0.0) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert iterative(0.8**3) == pytest.approx((0.8, 0.64, 0.512))
    assert len(iterative(0.8**20)) == 20
    assert iterative(0.6)[-1] == 0.6
    assert iterative(0.1, removed=1.0) == (0.1,)
    with pytest.raises(UsageError):
        iterative(0.0)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"dense"}))
@pytest.mark.parametrize("density", [0.5, 0.05, 0.004])
def test_every_strategy_is_ordered_and_ends_by_filling_the_budget(
    name: str, density: float
) -> None:
    strategy = make(name, density=density)
    assert strategy.name == name or STRATEGIES[name].adapts
    assert strategy.events[-1].budget_fraction == 1.0
    assert strategy.epochs(12) == 12
    times = [event.progress for event in strategy.events]
    assert times == sorted(times)
    downhill = [
        e.density for e in strategy.events if e.density is not None and e.action != "regrow"
    ]
    assert name == "east" or downhill == sorted(downhill, reverse=True)  # its cycles come twice
    # What goes below the budget on purpose: an extreme state, and what is exchanged at once.
    lowest = {"bidirectional-iterative": 0.5}
    assert all(aim > density * lowest.get(name, 1.0) * 0.9 for aim in downhill)
    assert all(0 <= restart < 1 for restart in strategy.restarts)
    assert strategy.regrows or not name.startswith("bidirectional")


def test_the_single_dip_goes_down_by_its_depth_and_climbs_in_steps() -> None:
    strategy = make("bidirectional-single", density=0.1, depth=0.8, steps=2, initial="pretrained")
    fractions = [e.budget_fraction for e in strategy.events if e.budget_fraction is not None]
    assert fractions == pytest.approx([0.8, 0.9, 1.0])
    assert strategy.regrows
    assert {e.initial for e in strategy.events if e.action == "regrow"} == {"pretrained"}


def test_bidirectional_shrinks_on_the_way_then_exchanges_less_and_less_and_rests() -> None:
    strategy = make("bidirectional", density=0.02)
    down = [e for e in strategy.events if e.progress <= 0.3]
    swaps = [e for e in strategy.events if e.progress > 0.3]
    assert {(e.action, e.shrink, e.score) for e in down} == {("prune", 1.0, "magnitude")}
    assert (down[0].progress, down[0].density, down[-1].budget_fraction) == (0.0, 0.5, 1.0)
    assert [e.action for e in swaps] == ["prune", "regrow"] * 30
    drops = [1 - e.share for e in swaps if e.share is not None]
    times = [e.progress for e in swaps[::2]]
    assert drops == pytest.approx([0.1 * cosine((t - 0.3) / 0.45, 1, 0) for t in times])
    assert max(times) < 0.75
    assert {(e.score, e.initial, e.budget_fraction) for e in swaps[1::2]} == {
        ("signal-to-noise", "zero", 1.0)
    }
    assert not any(e.shrink for e in swaps)


def test_shrink_and_a_start_are_options_of_cubic() -> None:
    plain, shrunk = make("cubic", density=0.1), make("cubic", density=0.1, shrink=1.0, start=0.25)
    assert {e.shrink for e in plain.events} == {0.0}
    assert {e.shrink for e in shrunk.events} == {1.0}
    assert (plain.events[0].progress, shrunk.events[0].progress) == (pytest.approx(0.02), 0.0)
    assert shrunk.events[0].density == 0.25


def test_strategies_declare_what_others_decide_by() -> None:
    assert [n for n, kind in STRATEGIES.items() if not kind.prunes] == ["dense"]
    assert [n for n, kind in STRATEGIES.items() if kind.shares_weights] == ["east"]
    assert [n for n, kind in STRATEGIES.items() if kind.starts_from_fit] == ["one-shot"]


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
        MaskEvent(0.5, "prune", **wrong)  # type: ignore[arg-type]


def test_a_strategy_refuses_disorder_and_an_unfilled_budget() -> None:
    last = MaskEvent(0.2, "prune", budget_fraction=1.0)
    with pytest.raises(UsageError, match="out of order"):
        Strategy("x", (MaskEvent(0.5, "prune", density=0.5), last))
    with pytest.raises(UsageError, match="does not fill"):
        Strategy("x", (MaskEvent(0.5, "prune", density=0.5),))
    with pytest.raises(UsageError, match="no strategy 'x'"):
        make("x", density=0.5)
    with pytest.raises(UsageError):
        make("bidirectional-single", density=0.5, steps=0)


def test_wrong_options_name_the_right_ones() -> None:
    with pytest.raises(UsageError, match="'cubic' has no option 'depth'") as caught:
        make("cubic", density=0.5, depth=0.9)
    assert "until, steps, start, shrink, exchange" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="bidirectional-single: steps is '3'"):
        make("bidirectional-single", density=0.5, steps="3")
    with pytest.raises(UsageError, match="rewind is 1"):
        make("bidirectional-single", density=0.5, rewind=1)
    with pytest.raises(UsageError, match="'dense' has no option"):
        make("dense", density=0.5, steps=3)
    assert (
        make("bidirectional-single", density=0.5, depth=1) is not None
    )  # a whole number is a number
    for wrong in ({"regrow_score": "luck"}, {"regrow_allocation": "lamp"}, {"initial": "luck"}):
        with pytest.raises(UsageError, match=r"luck|lamp"):
            make("bidirectional-single", density=0.5, **wrong)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("rigl", {"updates": 0}),
        ("bidirectional", {"until": 0.3}),
        ("bidirectional", {"drop": 0.0}),
        ("cubic", {"start": 0.0}),
        ("set", {"drop": 1.0}),
        ("bidirectional-one-shot", {"steps": 0}),
        ("bidirectional-iterative", {"depth": 0.0}),
        ("bidirectional-iterative", {"prune_until": 1.0}),
    ],
)
def test_every_strategy_refuses_what_makes_no_sense(name: str, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        make(name, density=0.1, **wrong)


def test_rounds_of_the_paper_have_equal_length_and_rewind() -> None:
    strategy = make("bidirectional-iterative", density=0.512 / 0.8, depth=0.8, steps=2)
    assert [e.density for e in strategy.events[:2]] == pytest.approx([0.8, 0.64])
    fractions = [e.budget_fraction for e in strategy.events[2:]]
    assert fractions == pytest.approx([0.8, 0.9, 1.0])
    times = [event.progress for event in strategy.events]
    assert times == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert strategy.restarts == pytest.approx(times[1:])
    plain = make("bidirectional-iterative", density=0.64, depth=0.8, steps=2, rewind=False)
    assert plain.restarts == ()
    early = make("bidirectional-iterative", density=0.64, depth=0.8, steps=2, prune_until=0.3)
    assert [e.progress for e in early.events] == pytest.approx([0, 0.1, 0.2, 0.3, 0.65])
    shot = make("bidirectional-one-shot", density=0.1, depth=0.4, steps=3)
    assert [e.budget_fraction for e in shot.events] == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert [e.progress for e in shot.events] == pytest.approx([0, 0.25, 0.5, 0.75])


def test_exchange_drops_a_share_that_falls_to_nothing() -> None:
    strategy = make("rigl", density=0.1, updates=3, drop=0.4, until=0.8)
    drops = [1 - e.share for e in strategy.events if e.share is not None]
    assert drops == pytest.approx([cosine(n / 4, 0.4, 0.0) for n in (1, 2, 3)])
    grown = [e for e in strategy.events if e.action == "regrow"]
    assert {(e.score, e.budget_fraction, e.allocation) for e in grown} == {
        ("gradient", 1.0, "proportional")
    }
    noisy = make("set", density=0.1, updates=3)
    assert {e.score for e in noisy.events if e.action == "regrow"} == {"random"}
    with pytest.raises(UsageError, match="'set' has no option 'grow_score'"):
        make("set", density=0.1, grow_score="gradient")


@pytest.mark.parametrize(
    ("name", "options", "instead"),
    [
        *((name, {}, instead) for name, instead in REMOVED.items()),
        ("bidirectional-single", {"per_byte": True}, "leave it out"),
        ("bidirectional", {"regrow_score": "second-order"}, "use gradient, magnitude or random"),
        ("cubic", {"allocation": "uniform"}, "use global or erk"),
    ],
)
def test_what_was_removed_says_so_and_what_to_use(
    name: str, options: dict[str, object], instead: str
) -> None:
    with pytest.raises(UsageError, match="was removed") as caught:
        make(name, density=0.1, **options)
    assert instead in (caught.value.hint or "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"action": "regrow", "share": 0.5},
        {"action": "regrow", "density": 0.5, "score": "gradient", "shrink": 1.0},
        {"action": "prune", "density": 0.5, "shrink": -1.0},
        {"action": "regrow", "density": 0.5, "score": "luck"},
        {"action": "prune", "density": 0.5, "score": "gradient"},
        {"action": "jump", "density": 0.5},
    ],
)
def test_an_event_knows_what_goes_with_its_action(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        MaskEvent(0.5, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("convolutional", [True, False])
def test_auto_takes_more_the_sparser_and_says_why(convolutional: bool) -> None:
    def taken(density: float, steps: int = 0) -> tuple[str, float, str]:
        strategy = make("auto", density=density, steps=steps, convolutional=convolutional)
        return strategy.name, max(e.shrink for e in strategy.events), strategy.notes[0]

    name, shrink, note = taken(0.3)
    assert (name, shrink) == ("cubic", 0.0)
    kind = "convolutional" if convolutional else "fully connected"
    boundary = f"{100 * auto.EXCHANGE_FROM[kind]:g} %"
    assert f"--strategy auto takes cubic pruning (cubic): below {boundary} " in note
    assert taken(0.2)[2] == note  # `plan`, which has one for each type of values, says it once
    assert taken(1 - auto.EXCHANGE_FROM[kind] + 1e-6)[:2] == ("cubic", 0.0)
    assert taken(1 - auto.EXCHANGE_FROM[kind] - 1e-6)[:2] == ("bidirectional", 1.0)
    # No record of so few steps, whatever the sparsity; and no more events than steps.
    name, shrink, note = taken(0.001, auto.LEAST_STEPS - 1)
    assert (name, shrink) == ("cubic", 0.0)
    assert "fewer than any record" in note
    gentle = make("auto", density=0.5, convolutional=convolutional).events
    assert len(gentle) > 20
    assert gentle[0].progress > 0
    for density in (0.1, 0.001):
        short = make("auto", density=density, steps=40, convolutional=convolutional)
        assert len(short.events) <= 0.3 * 40
