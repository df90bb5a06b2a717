"""Growth scores: what each one says, and what it needs."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.errors import UsageError
from hwprune.sparsity import GROWTH_SCORES, NEEDS_GRADIENT, NEEDS_MOMENTS, Evidence


def evidence(seed: int = 0, shape: tuple[int, ...] = (6, 5, 3)) -> Evidence:
    generator = np.random.default_rng(seed)
    w0, g, m, v = (generator.standard_normal(shape).astype(np.float32) for _ in range(4))
    return Evidence(w0, g, m, m**2 + v**2, seed)


def test_each_score_is_its_formula() -> None:
    seen = evidence()
    assert seen.gradient is not None
    assert seen.mean is not None
    assert seen.square is not None
    expected = {
        "gradient": np.abs(seen.gradient),
        "signal-to-noise": seen.mean**2 / (seen.square + 1e-7),
        "magnitude": np.abs(seen.pretrained),
    }
    assert set(expected) == set(GROWTH_SCORES) - {"random"}
    for name, score in expected.items():
        found = GROWTH_SCORES[name](seen)
        assert found.dtype == np.float32
        assert np.allclose(found, score, rtol=1e-6), name


def test_batches_that_agree_come_before_large_gradients_that_do_not() -> None:
    batches = np.array([[0.1, 5.0], [0.1, -4.9], [0.1, 5.0], [0.1, -4.8]], np.float32)
    mean, square = batches.mean(0), (batches**2).mean(0)
    zero = np.zeros(2, np.float32)
    agreement, noise = GROWTH_SCORES["signal-to-noise"](Evidence(zero, None, mean, square))
    assert agreement > 0.99
    assert noise < 0.01


def test_noise_is_noise_and_depends_on_the_seed_alone() -> None:
    random = GROWTH_SCORES["random"]
    first, again, other = (random(evidence(seed, (400, 50))) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert abs(float(np.corrcoef(first.reshape(-1), other.reshape(-1))[0, 1])) < 0.03
    assert float(first.min()) >= 0
    assert float(first.max()) < 1


@pytest.mark.parametrize("name", sorted(NEEDS_GRADIENT | NEEDS_MOMENTS))
def test_what_is_missing_is_named(name: str) -> None:
    weight = np.ones(3, np.float32)
    with pytest.raises(UsageError, match="needs"):
        GROWTH_SCORES[name](Evidence(weight))
    with pytest.raises(UsageError, match="different shapes"):
        Evidence(weight, np.ones(4, np.float32))
