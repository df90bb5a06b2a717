"""The normal equations: both ways of solving them, and what they do with nothing to solve."""

from __future__ import annotations

import pytest
import torch

from hwprune.least_squares import ridge_solver
from hwprune.least_squares.ridge_solver import GramSums, factor, solve


def seen(count: int) -> tuple[GramSums, torch.Tensor]:
    """Return sums over columns of two groups, 5 rows, 20 columns, and supports."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(2, 20, count, generator=generator)
    columns += columns.mean(1, keepdim=True)
    lacking = torch.randn(2, 5, count, generator=generator) + 0.5 + columns[:, :5]
    alive = torch.rand(2, 5, 20, generator=generator) < 0.5
    alive[0, 0], alive[1, 1] = True, False
    sums = GramSums()
    for part in torch.arange(count).split(7):
        sums.add(columns[:, :, part], lacking[:, :, part])
    return sums, alive


@pytest.mark.parametrize("count", [400, 14])
@pytest.mark.parametrize("offset", [True, False])
def test_iterating_and_factorising_agree(
    count: int, offset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums, alive = seen(count)
    assert sums.few == (count < 20)
    ridges = (1e-2, 1e-1)
    monkeypatch.setattr(ridge_solver, "_factorising_pays", lambda *what: False)
    early = solve(sums, alive, ridges, offset=offset)
    monkeypatch.setattr(ridge_solver, "_STEPS", 500)
    monkeypatch.setattr(ridge_solver, "_FURTHER_STEPS", 500)
    monkeypatch.setattr(ridge_solver, "_TOLERANCE", 1e-5)
    iterated = solve(sums, alive, ridges, offset=offset)
    monkeypatch.setattr(ridge_solver, "_factorising_pays", lambda *what: True)
    factorised = solve(sums, alive, ridges, offset=offset)
    assert not sums.few
    near = 2e-3  # where iterating stops
    for short, one, two in zip(early, iterated, factorised, strict=True):
        # A few steps leave the rest of the error at hand.
        assert (short[0] - two[0]).square().sum() < 0.15 * two[0].square().sum()
        assert torch.allclose(one[0], two[0], atol=near)
        assert torch.allclose(one[1], two[1], atol=near)
        assert bool(one[1].any()) == offset
        assert not torch.any(one[0][~alive])
    assert not torch.allclose(iterated[0][0], iterated[1][0], atol=1e-3)


def test_single_precision_is_refined(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, alive = seen(400)
    ((exact, _),) = solve(sums, alive, (1e-3,), offset=True)
    monkeypatch.setattr(ridge_solver, "_MIXED_FROM", 1)
    ((refined, _),) = solve(sums, alive, (1e-3,), offset=True)
    assert not torch.equal(exact, refined)
    assert torch.allclose(exact, refined, atol=1e-9)


def test_few_columns_give_the_inverse_that_their_moments_have() -> None:
    few, _ = seen(14)
    from_columns = few.inverse_diagonal(1e-2)
    matrix = few.matrix(offset=True)
    assert not few.few
    assert torch.allclose(from_columns, few.inverse_diagonal(1e-2), rtol=1e-4)
    matrix.diagonal(dim1=1, dim2=2).add_(
        1e-2 * matrix.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    )
    assert torch.allclose(
        from_columns, torch.linalg.inv(matrix).diagonal(dim1=1, dim2=2), rtol=1e-4
    )


def test_moments_that_are_rounding_are_factorised_in_the_end() -> None:
    # Behind constant inputs: no diagonal to speak of, and not positive definite.
    rounding = torch.tensor([[0.0, 1e-5], [1e-5, 0.0]], dtype=torch.float64)
    factors = factor(torch.stack([rounding, torch.eye(2, dtype=torch.float64)]))
    assert bool(torch.isfinite(factors).all())
    assert torch.equal(factors[1], torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize(("width", "density", "pays"), [
    (576, 0.2, True), (576, 0.5, True), (2304, 0.1, True), (2304, 0.4, False),
])  # fmt: skip
def test_large_systems_are_factorised_only_where_that_is_quicker(
    width: int, density: float, pays: bool
) -> None:
    alive = torch.zeros(1, width // 9, width, dtype=torch.bool)
    alive[..., : int(density * width)] = True
    assert ridge_solver._factorising_pays(alive, 1 << 15) == pays
