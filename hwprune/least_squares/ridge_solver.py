"""Ridge-regularised least squares for many rows, each with a support of its own.

For one group of a layer: columns x (K,) come in, r (R,) is what the outputs lack, and every row i
wants the correction d_i on its surviving columns S_i, and an offset b_i, of

    min  mean (r_i - d_i x - b_i)^2 + ridge * v * |d_i|^2        d_i zero outside S_i

with v the mean variance of the columns: so the ridge has no unit, and it pulls towards the weights
as they are, not towards zero. Two ways lead there. ``Sums`` keeps sums of products, whatever the
number of columns seen, and small systems of equations are factorised, or the product is iterated
on where factorising would take longer. ``Streamed`` is for a width whose product of K x K is too
large: it holds the inputs, and conjugate gradients ask for products with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

# Bytes of the systems of equations that are factorised at once.
_BATCH_BYTES = 64 * 1024**2
_STEPS = 100
_TOLERANCE = 1e-6
# A factorisation runs about so many times faster than iterating over the same number of products.
_FACTOR_GAIN = 4.0
# (columns (g, K, n), residual (g, R, n)), part after part, float32.
Parts = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Moments:
    """Means over all columns, float64: what both ways solve.

    Attributes:
        cross: (g, R, K) of r x^T, about the means where there is an offset.
        diagonal: (g, K) of the columns' second moments, likewise.
        columns: (g, K) of x; zero without an offset.
        residual: (g, R) of r; zero without an offset.
    """

    cross: torch.Tensor
    diagonal: torch.Tensor
    columns: torch.Tensor
    residual: torch.Tensor


class Data(Protocol):
    """What was seen of a layer."""

    def moments(self, *, offset: bool) -> Moments:
        """Return the means."""

    def matrix(self, *, offset: bool) -> torch.Tensor | None:
        """Return (g, K, K) second moments, None where these are too large to hold."""

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows (g, R, K) times the second moments, not about the means."""


class Sums:
    """Sums of products in float64: memory does not grow with the data.

    Args:
        groups: g.
        rows: R.
        width: K.
        device: where they are kept.
    """

    def __init__(self, groups: int, rows: int, width: int, device: torch.device) -> None:
        """Start from nothing."""

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=device)

        self._gram, self._cross = zeros(width, width), zeros(rows, width)
        self._columns, self._residual = zeros(width), zeros(rows)
        self.count = 0

    def add(self, columns: torch.Tensor, residual: torch.Tensor) -> None:
        """Add columns (g, K, n) and what their outputs lack (g, R, n), both float32."""
        turned = columns.transpose(1, 2)
        self._gram += torch.bmm(columns, turned)
        self._cross += torch.bmm(residual, turned)
        self._columns += columns.sum(2, dtype=torch.float64)
        self._residual += residual.sum(2, dtype=torch.float64)
        self.count += columns.shape[2]

    def moments(self, *, offset: bool) -> Moments:
        """Return the means."""
        return _moments(
            self._cross, self._gram.diagonal(dim1=1, dim2=2), self._columns, self._residual,
            self.count, offset,
        )  # fmt: skip

    def matrix(self, *, offset: bool) -> torch.Tensor | None:
        """Return (g, K, K) second moments."""
        matrix = self._gram / self.count
        if offset:
            mean = self._columns / self.count
            matrix -= mean.unsqueeze(2) * mean.unsqueeze(1)
        return matrix

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows times the second moments."""
        return rows @ (self._gram / self.count)


class Streamed:
    """Columns that are made anew whenever they are asked for.

    Args:
        parts: yields all (columns, residual), each time it is called.
    """

    def __init__(self, parts: Callable[[], Parts]) -> None:
        """Keep the source."""
        self._parts = parts
        self.count = sum(columns.shape[2] for columns, _ in parts())

    def moments(self, *, offset: bool) -> Moments:
        """Return the means."""
        cross = diagonal = columns = residual = torch.zeros((), dtype=torch.float64)
        for x, r in self._parts():
            cross = cross.to(x.device) + torch.bmm(r, x.transpose(1, 2))
            diagonal = diagonal.to(x.device) + x.square().sum(2, dtype=torch.float64)
            columns = columns.to(x.device) + x.sum(2, dtype=torch.float64)
            residual = residual.to(x.device) + r.sum(2, dtype=torch.float64)
        return _moments(cross, diagonal, columns, residual, self.count, offset)

    def matrix(self, *, offset: bool) -> torch.Tensor | None:
        """Return None: it is too large."""
        return None

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows times the second moments."""
        single, total = rows.float(), torch.zeros_like(rows)
        for columns, _ in self._parts():
            total += torch.bmm(torch.bmm(single, columns), columns.transpose(1, 2))
        return total / self.count


def solve(
    data: Data, alive: torch.Tensor, ridge: float, *, offset: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the corrections (g, R, K) and the offsets (g, R), float64.

    Args:
        data: what was seen.
        alive: (g, R, K) the supports.
        ridge: how strongly corrections are held back, relative to the columns' mean variance.
        offset: whether there is an offset; without one b is zero.
    """
    at = data.moments(offset=offset)
    levels = at.diagonal.mean(1).clamp_min(torch.finfo(torch.float64).tiny)
    held = ridge * levels
    matrix = data.matrix(offset=offset)
    if matrix is None or not _factorising_pays(alive):
        mean = at.columns.unsqueeze(2)

        def product(rows: torch.Tensor) -> torch.Tensor:
            if matrix is not None:
                plain = rows @ matrix
            else:
                plain = data.times(rows) - (rows @ mean) * mean.transpose(1, 2)
            return plain + held[:, None, None] * rows

        found = _iterated(product, at.cross * alive, alive, at.diagonal + held[:, None])
    else:
        matrix.diagonal(dim1=1, dim2=2).add_(held[:, None])
        found = torch.stack(
            [_factorised(*group) for group in zip(matrix, at.cross, alive, strict=True)]
        )
    return found, at.residual - (found @ at.columns.unsqueeze(2)).squeeze(2)


def _moments(
    cross: torch.Tensor, diagonal: torch.Tensor, columns: torch.Tensor, residual: torch.Tensor,
    count: int, offset: bool,
) -> Moments:  # fmt: skip
    """Divide sums by their number; about the means where an offset takes these up."""
    cross, diagonal = cross / count, diagonal / count
    mean, shift = columns / count * offset, residual / count * offset
    return Moments(
        cross - shift.unsqueeze(2) * mean.unsqueeze(1),
        (diagonal - mean.square()).clamp_min(0),
        mean,
        shift,
    )


def _factorising_pays(alive: torch.Tensor) -> bool:
    """Return whether factorising one system a row takes less time than iterating on all rows."""
    width = alive.shape[2]
    sizes = alive.sum(2).double()
    own = torch.where(sizes < width, sizes.pow(3) / 3, sizes.square()).sum() + width**3 / 3
    return float(own) <= _FACTOR_GAIN * _STEPS * alive.shape[0] * alive.shape[1] * width * width


def _factorised(matrix: torch.Tensor, right: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    """Solve matrix[S, S] d[S] = right[S] for every row of a group."""
    result = torch.zeros_like(right)
    whole = alive.all(dim=1)
    if bool(whole.any()):
        result[whole] = torch.cholesky_solve(right[whole].t(), factor(matrix)).t()
    for system in systems(matrix, alive & ~whole.unsqueeze(1)):
        wanted = torch.gather(right[system.rows], 1, system.index) * system.valid
        found = torch.cholesky_solve(wanted.unsqueeze(2), system.factor).squeeze(2)
        result[system.rows] = system.spread(found, matrix.shape[0])
    return result


@dataclass(frozen=True, slots=True)
class Systems:
    """The equations of some rows, of one size.

    Attributes:
        rows: (b,) which rows.
        index: (b, s) the surviving columns first, in order, then some dead ones as padding.
        valid: (b, s) False for padding.
        factor: (b, s, s) Cholesky factors; padding has a one on the diagonal and nothing else.
    """

    rows: torch.Tensor
    index: torch.Tensor
    valid: torch.Tensor
    factor: torch.Tensor

    def spread(self, values: torch.Tensor, width: int) -> torch.Tensor:
        """Return values (b, s) at their columns, zero elsewhere: (b, width)."""
        wide = values.new_zeros(len(self.rows), width)
        return wide.scatter(1, self.index, values * self.valid)


def systems(matrix: torch.Tensor, alive: torch.Tensor) -> Iterator[Systems]:
    """Yield matrix[S, S] of all rows that have a support S, factorised, rows of like size together.

    Args:
        matrix: (K, K) float64, positive definite.
        alive: (R, K) the supports.
    """
    sizes = alive.sum(1)
    order = torch.argsort(sizes, descending=True, stable=True)
    order = order[sizes[order] > 0]
    while len(order):
        longest = int(sizes[order[0]])
        rows = order[: max(1, _BATCH_BYTES // (8 * longest * longest))]
        order = order[len(rows) :]
        index = torch.argsort((~alive[rows]).byte(), dim=1, stable=True)[:, :longest]
        valid = torch.gather(alive[rows], 1, index)
        square = matrix[index.unsqueeze(2), index.unsqueeze(1)]
        square *= valid.unsqueeze(2) & valid.unsqueeze(1)
        square.diagonal(dim1=1, dim2=2).add_(~valid)
        yield Systems(rows, index, valid, factor(square))


def factor(matrix: torch.Tensor) -> torch.Tensor:
    """Return Cholesky factors (..., K, K); what rounding made indefinite gets more diagonal."""
    found: torch.Tensor
    found, failed = torch.linalg.cholesky_ex(matrix)
    added = 1e-8
    while bool(failed.any()):
        # Not the diagonal's: behind constant inputs that is rounding, and may be zero.
        size = matrix.abs().amax((-2, -1)).clamp_min(1e-30)
        extra = (added * size * (failed > 0))[..., None, None]
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        found, failed = torch.linalg.cholesky_ex(matrix + extra * eye)
        added *= 10
    return found


def _iterated(
    product: Callable[[torch.Tensor], torch.Tensor],
    right: torch.Tensor,
    alive: torch.Tensor,
    diagonal: torch.Tensor,
) -> torch.Tensor:
    """Solve all rows by conjugate gradients on their supports, scaled by the diagonal."""
    result = torch.zeros_like(right)
    residual = right.clone()
    scale = diagonal.unsqueeze(1).clamp_min(torch.finfo(torch.float64).tiny)
    direction = residual / scale
    fall = (residual * direction).sum(2)
    enough = _TOLERANCE**2 * right.square().sum(2)
    for _ in range(_STEPS):
        ahead = product(direction) * alive
        curve = (direction * ahead).sum(2)
        going = curve > 0
        length = torch.where(going, fall / torch.where(going, curve, 1.0), 0.0).unsqueeze(2)
        result += length * direction
        residual -= length * ahead
        if bool((residual.square().sum(2) <= enough).all()):
            break
        scaled = residual / scale
        before, fall = fall, (residual * scaled).sum(2)
        turn = torch.where(before > 0, fall / torch.where(before > 0, before, 1.0), 0.0)
        direction = scaled + turn.unsqueeze(2) * direction
    return result
