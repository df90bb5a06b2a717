"""The normal equations: both ways of solving them, and what they do with nothing to solve."""

from __future__ import annotations

import torch

from hwprune.least_squares.ridge_solver import ColumnStream, GramSums, factor, solve


def test_iterating_and_factorising_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(2, 20, 400, generator=generator)
    columns += columns.mean(1, keepdim=True)
    lacking = torch.randn(2, 5, 400, generator=generator) + 0.5 + columns[:, :5]
    alive = torch.rand(2, 5, 20, generator=generator) < 0.5
    alive[0, 0], alive[1, 1] = True, False
    sums = GramSums()
    for part in range(0, 400, 100):
        sums.add(columns[:, :, part : part + 100], lacking[:, :, part : part + 100])
    streamed = ColumnStream(
        lambda: iter(
            [(columns[..., :150], lacking[..., :150]), (columns[..., 150:], lacking[..., 150:])]
        )
    )
    for offset in (True, False):
        one = solve(sums, alive, (1e-2,), offset=offset)[0]
        two = solve(streamed, alive, (1e-2,), offset=offset)[0]
        assert torch.allclose(one[0], two[0], atol=1e-5)
        assert torch.allclose(one[1], two[1], atol=1e-5)
        assert bool(one[1].any()) == offset
        assert not torch.any(one[0][~alive])


def test_moments_that_are_rounding_are_factorised_in_the_end() -> None:
    # Behind constant inputs: no diagonal to speak of, and not positive definite.
    rounding = torch.tensor([[0.0, 1e-5], [1e-5, 0.0]], dtype=torch.float64)
    factors = factor(torch.stack([rounding, torch.eye(2, dtype=torch.float64)]))
    assert bool(torch.isfinite(factors).all())
    assert torch.equal(factors[1], torch.eye(2, dtype=torch.float64))
