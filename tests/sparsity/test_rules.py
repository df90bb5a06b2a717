"""Regrowth rules: what each one says, that pieces are pieces of the whole, and what it needs."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.errors import UsageError
from hwprune.sparsity import NEEDS, RULES, Evidence, lamp, rules, topk


def evidence(seed: int = 0, shape: tuple[int, ...] = (6, 5, 3)) -> Evidence:
    generator = np.random.default_rng(seed)
    arrays = [generator.standard_normal(shape).astype(np.float32) for _ in range(4)]
    return Evidence.of(
        np.zeros(shape, np.float32),
        arrays[0],
        gradient=arrays[1],
        momentum=arrays[2],
        curvature=arrays[3] ** 2,
        seed=seed,
    )


def test_each_rule_is_its_formula() -> None:
    seen = evidence()
    w0, g, m, h = seen.pretrained, seen.gradient, seen.momentum, seen.curvature
    assert g is not None
    assert m is not None
    assert h is not None
    stiff = h + np.float32(rules.DAMPING * h.mean())
    expected = {
        "gradient": np.abs(g),
        "taylor": np.abs(g * w0),
        "descent": -g * w0,
        "momentum": np.abs(m),
        "second-order": g**2 / (2 * stiff),
        "magnitude": np.abs(w0),
        "lamp": lamp(w0),
    }
    assert set(expected) == set(RULES) - {"random"}
    for name, gain in expected.items():
        found = rules.evaluate(name, seen)
        assert found.dtype == np.float32
        assert np.allclose(found, gain, rtol=1e-5), name


def test_the_second_order_step_goes_downhill_and_no_further_than_usual_weights() -> None:
    seen = evidence()
    moved = rules.step(seen)
    assert seen.gradient is not None
    assert np.all(moved * seen.gradient <= 0)
    usual = float(np.sqrt(np.mean(seen.pretrained**2)))
    assert float(np.abs(moved).max()) == pytest.approx(usual)
    # Nothing was seen of a connection: it stays.
    nothing = np.zeros((2, 2), np.float32)
    still = Evidence.of(nothing, nothing + 1, gradient=nothing, curvature=nothing)
    assert not rules.step(still).any()
    assert not rules.second_order(still).any()


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_piece_is_a_piece_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = evidence(3)
    whole = RULES[name](seen)
    monkeypatch.setattr(topk, "CHUNK", 7)
    assert np.array_equal(rules.evaluate(name, seen), whole)


def test_noise_is_noise_and_depends_on_the_seed_alone() -> None:
    first, again, other = (rules.random(evidence(seed, (400, 50))) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert abs(float(np.corrcoef(first.reshape(-1), other.reshape(-1))[0, 1])) < 0.03
    assert float(first.min()) >= 0
    assert float(first.max()) < 1
    assert float(first.mean()) == pytest.approx(0.5, abs=0.01)
    assert np.histogram(first, 10)[0].min() > 1800


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_what_is_missing_is_named(name: str) -> None:
    weight = np.ones(3, np.float32)
    with pytest.raises(UsageError, match="needs"):
        RULES[name](Evidence.of(weight, weight))
    with pytest.raises(UsageError, match="different shapes"):
        Evidence.of(weight, weight, gradient=np.ones(4, np.float32))
