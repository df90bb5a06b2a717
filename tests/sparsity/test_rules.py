"""Regrowth rules: what each one says, that pieces are pieces of the whole, and what it needs."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.errors import UsageError
from hwprune.sparsity import RULES, Evidence, rules, topk
from hwprune.sparsity.rules import NEEDS_GRADIENT


def evidence(seed: int = 0, shape: tuple[int, ...] = (6, 5, 3)) -> Evidence:
    generator = np.random.default_rng(seed)
    w0, g = (generator.standard_normal(shape).astype(np.float32) for _ in range(2))
    return Evidence(np.zeros(shape, np.float32), w0, g, seed)


def test_each_rule_is_its_formula() -> None:
    seen = evidence()
    assert seen.gradient is not None
    expected = {"gradient": np.abs(seen.gradient), "magnitude": np.abs(seen.pretrained)}
    assert set(expected) == set(RULES) - {"random"}
    for name, gain in expected.items():
        found = rules.evaluate(name, seen)
        assert found.dtype == np.float32
        assert np.array_equal(found, gain), name


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


@pytest.mark.parametrize("name", sorted(NEEDS_GRADIENT))
def test_what_is_missing_is_named(name: str) -> None:
    weight = np.ones(3, np.float32)
    with pytest.raises(UsageError, match="needs"):
        RULES[name](Evidence(weight, weight))
    with pytest.raises(UsageError, match="different shapes"):
        Evidence(weight, weight, np.ones(4, np.float32))
