"""Ridge-regularised least squares for many rows, each with a support of its own.

For one group of a layer: columns x (K,) come in, r (R,) is what the outputs lack, and every row i
wants the correction d_i on its surviving columns S_i, and an offset b_i, of

    min  mean (r_i - d_i x - b_i)^2 + ridge * v * |d_i|^2        d_i zero outside S_i

with v the mean variance of the columns: so the ridge has no unit, and it pulls towards the weights
as they are, not towards zero. Sums of products are kept, whatever the number of columns seen, or
the columns where they are few. Then small systems of equations are factorised, or conjugate
gradients run on all rows where that takes less time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

# Bytes of the systems of equations that are factorised at once.
_BATCH_BYTES = 64 * 1024**2
# More steps fit what was seen better, and what is held out no better or worse; a weaker ridge goes
# on from where the stronger one stopped.
_STEPS, _FURTHER_STEPS = 8, 4
_TOLERANCE = 1e-3
# Factorising is exact, and taken where it costs no more than so many products of all rows; where it
# takes more multiplications than a second has, than so many: these cost as much as iterating does.
_PRODUCTS_WORTH, _LARGE, _PRODUCTS_WORTH_LARGE = 64, 10e9, 4
# From here on systems are factorised in single precision, and the solutions refined in double.
_MIXED_FROM = 256


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


class GramSums:
    """Sums in float64 over all columns; the columns themselves while they are fewer than K."""

    def __init__(self) -> None:
        """Start from nothing."""
        self.count = 0
        self._waiting: list[torch.Tensor] = []
        self._gram: torch.Tensor | None = None
        self._cross = self._squares = self._columns = self._residual = torch.zeros(
            (), dtype=torch.float64
        )

    def add(self, x: torch.Tensor, r: torch.Tensor) -> None:
        """Add columns (g, K, n) and what their outputs lack (g, R, n), both float32."""
        self.count += x.shape[2]
        self._cross = self._cross.to(x.device) + torch.bmm(r, x.transpose(1, 2))
        self._squares = self._squares.to(x.device) + x.square().sum(2, dtype=torch.float64)
        self._columns = self._columns.to(x.device) + x.sum(2, dtype=torch.float64)
        self._residual = self._residual.to(x.device) + r.sum(2, dtype=torch.float64)
        self._waiting.append(x)
        if sum(each.shape[2] for each in self._waiting) >= x.shape[1]:
            self._fold()

    def moments(self, *, offset: bool) -> Moments:
        """Return the means; about them where an offset takes these up."""
        mean, shift = self._columns / self.count * offset, self._residual / self.count * offset
        return Moments(
            self._cross / self.count - shift.unsqueeze(2) * mean.unsqueeze(1),
            (self._squares / self.count - mean.square()).clamp_min(0),
            mean,
            shift,
        )

    def _fold(self) -> torch.Tensor:
        if self._waiting:
            x = torch.cat(self._waiting, 2)
            product = torch.bmm(x, x.transpose(1, 2))
            self._gram = product.double() if self._gram is None else self._gram.add_(product)
            self._waiting = []
        assert self._gram is not None
        return self._gram

    @property
    def few(self) -> bool:
        """Return whether there are fewer columns than their second moments have."""
        return self._gram is None

    def matrix(self, *, offset: bool) -> torch.Tensor:
        """Return (g, K, K) second moments, about the means where there is an offset."""
        matrix = self._fold() / self.count
        if offset:
            mean = self._columns / self.count
            matrix -= mean.unsqueeze(2) * mean.unsqueeze(1)
        return matrix

    def multiplier(self, mean: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return what multiplies rows, float32, by the second moments about ``mean`` (g, K)."""
        if self._gram is not None:
            matrix = self._fold() / self.count - mean.unsqueeze(2) * mean.unsqueeze(1)
            return partial(torch.matmul, other=matrix.float())
        columns = torch.cat(self._waiting, 2) - mean.float().unsqueeze(2)

        def times(rows: torch.Tensor) -> torch.Tensor:
            inner = torch.bmm(rows, columns) / self.count
            return torch.bmm(inner, columns.transpose(1, 2))

        return times

    def inverse_diagonal(self, ridge: float) -> torch.Tensor:
        """Return the diagonal (g, K) of the inverse of the moments about the means, held by ridge.

        Of few columns X it is (1 - x_k (ridge + X^T X)^-1 x_k) / ridge for each of their rows.
        """
        level = self.moments(offset=True).diagonal.mean(1).clamp_min(1e-30)
        held = (ridge * level)[:, None]
        if not self.few:
            matrix = self.matrix(offset=True)
            matrix.diagonal(dim1=1, dim2=2).add_(held)
            return torch.cholesky_inverse(factor(matrix)).diagonal(dim1=1, dim2=2)
        x = torch.cat(self._waiting, 2).double() - (self._columns / self.count).unsqueeze(2)
        turned = x.transpose(1, 2) / self.count**0.5
        small = turned @ turned.transpose(1, 2)
        small.diagonal(dim1=1, dim2=2).add_(held)
        spread = torch.linalg.solve_triangular(factor(small), turned, upper=False)
        found: torch.Tensor = (1 - spread.square().sum(1)) / held
        return found


def solve(
    data: GramSums,
    alive: torch.Tensor,
    ridges: Sequence[float],
    *,
    offset: bool,
    tick: Callable[[], None] = lambda: None,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return for each ridge the corrections (g, R, K) and the offsets (g, R), float64.

    Nothing is returned where what was seen is not finite.

    Args:
        data: what was seen.
        alive: (g, R, K) the supports.
        ridges: how strongly corrections are held back, relative to the columns' mean variance.
        offset: whether there is an offset; without one b is zero.
        tick: called now and then while it lasts.
    """
    at = data.moments(offset=offset)
    if not bool(torch.isfinite(at.cross.sum() + at.diagonal.sum())):
        return []
    level = at.diagonal.mean(1).clamp_min(torch.finfo(torch.float64).tiny)
    held = [ridge * level for ridge in ridges]
    if _factorising_pays(alive, data.count):
        found = _factorised(data.matrix(offset=offset), at.cross, alive, held, tick)
    else:
        found = _iterated(data.multiplier(at.columns), at, alive, held, tick)
    return [(each, at.residual - (each @ at.columns.unsqueeze(2)).squeeze(2)) for each in found]


def _factorising_pays(alive: torch.Tensor, count: int) -> bool:
    """Return whether factorising one system a row takes less time than iterating on all rows."""
    groups, height, width = alive.shape
    sizes = alive.sum(2).double()
    own = torch.where(sizes < width, sizes.pow(3) / 3, sizes.square()).sum() + width**3 / 3
    # Few columns are multiplied with twice, but in single precision.
    worth = _PRODUCTS_WORTH if float(own) <= _LARGE else _PRODUCTS_WORTH_LARGE
    return float(own) <= worth * groups * height * width * min(width, count)


def _factorised(
    matrix: torch.Tensor,
    right: torch.Tensor,
    alive: torch.Tensor,
    held: Sequence[torch.Tensor],
    tick: Callable[[], None],
) -> list[torch.Tensor]:
    """Solve (matrix + held)[S, S] d[S] = right[S] for every row and each held (g,)."""
    found = [torch.zeros_like(right) for _ in held]
    whole = alive.all(dim=2)
    for group in torch.nonzero(whole.any(1)).flatten().tolist():
        eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        wanted = right[group, whole[group]].t()
        for result, each in zip(found, held, strict=True):
            factors = factor(matrix[group] + each[group] * eye)
            result[group, whole[group]] = torch.cholesky_solve(wanted, factors).t()
    for support in supports(alive & ~whole.unsqueeze(2)):
        tick()
        wanted, before = support.take(right).unsqueeze(2), torch.zeros_like(held[0])
        square = support.square(matrix)
        for result, each in zip(found, held, strict=True):
            square.diagonal(dim1=1, dim2=2).add_((each - before)[support.groups] * support.valid)
            support.put(result, _solved(square, wanted).squeeze(2))
            before = each
    return found


def _solved(square: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Solve square (b, s, s) x = wanted (b, s, 1), float64."""
    if square.shape[1] < _MIXED_FROM:
        return torch.cholesky_solve(wanted, factor(square))
    factors, found = factor(square.float()), torch.zeros_like(wanted)
    for _ in range(3):
        lacking = (wanted - square @ found).float()
        found += torch.cholesky_solve(lacking, factors)
    return found


@dataclass(frozen=True, slots=True)
class Supports:
    """The chosen columns of some rows, about as many of each.

    Attributes:
        rows: (b,) which rows, of all groups one after the other.
        groups: (b, 1) whose columns these are.
        index: (b, s) the chosen columns first, in order, then some others as padding.
        valid: (b, s) False for padding.
    """

    rows: torch.Tensor
    groups: torch.Tensor
    index: torch.Tensor
    valid: torch.Tensor

    def square(self, matrix: torch.Tensor, other: Supports | None = None) -> torch.Tensor:
        """Return matrix[S, S] of (g, K, K) as (b, s, s), or matrix[S, T] of the same rows.

        In a square, padding has a one on the diagonal; elsewhere it is zero.
        """
        columns = self if other is None else other
        width = matrix.shape[2]
        # Elements by 32-bit numbers: several times as fast as by row and column.
        starts = ((self.groups * width + self.index) * width).int()
        flat = (starts.unsqueeze(2) + columns.index.int().unsqueeze(1)).flatten()
        found = matrix.reshape(-1).index_select(0, flat)
        found = found.reshape(len(self.rows), self.index.shape[1], columns.index.shape[1])
        if not bool(self.valid.all() and columns.valid.all()):
            found *= self.valid.unsqueeze(2) & columns.valid.unsqueeze(1)
            if other is None:
                found.diagonal(dim1=1, dim2=2).add_(~self.valid)
        return found

    def diagonal(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return the diagonal of (g, K, K) at the columns: (b, s)."""
        return matrix.diagonal(dim1=1, dim2=2)[self.groups, self.index]

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """Return values (g, R, K) at the columns, zero for padding: (b, s)."""
        return torch.gather(values.flatten(0, 1)[self.rows], 1, self.index) * self.valid

    def put(self, into: torch.Tensor, values: torch.Tensor) -> None:
        """Set rows of (g, R, K) to values (b, s) at their columns, zero elsewhere."""
        wide = values.new_zeros(len(self.rows), into.shape[2])
        wide.scatter_(1, self.index, torch.where(self.valid, values, 0.0))
        into.view(-1, into.shape[2])[self.rows] = wide.to(into.dtype)


def supports(alive: torch.Tensor) -> Iterator[Supports]:
    """Yield the supports of all rows (g, R, K) that have any, those of like size together."""
    flat = alive.flatten(0, 1)
    sizes = flat.sum(1)
    order = torch.argsort(sizes, descending=True, stable=True)
    order = order[sizes[order] > 0]
    while len(order):
        longest = int(sizes[order[0]])
        # Few rows at once where they are long, and none much shorter than the longest.
        rows = order[: max(1, _BATCH_BYTES // (8 * longest * longest))]
        rows = rows[4 * sizes[rows] >= 3 * longest]
        order = order[len(rows) :]
        yield support(alive, rows)


def support(alive: torch.Tensor, rows: torch.Tensor) -> Supports:
    """Return the supports of some rows (b,) of (g, R, K)."""
    chosen = alive.flatten(0, 1)[rows]
    index = torch.argsort((~chosen).byte(), dim=1, stable=True)[:, : int(chosen.sum(1).max())]
    groups = (rows // alive.shape[1]).unsqueeze(1)
    return Supports(rows, groups, index, torch.gather(chosen, 1, index))


def factor(matrix: torch.Tensor) -> torch.Tensor:
    """Return Cholesky factors (..., K, K); what rounding made indefinite gets more diagonal."""
    found: torch.Tensor
    found, failed = torch.linalg.cholesky_ex(matrix)
    added = 1e-8
    while bool(failed.any()) and added < 1e3:
        # Not the diagonal's: behind constant inputs that is rounding, and may be zero.
        size = matrix.abs().amax((-2, -1)).clamp_min(1e-30)
        extra = (added * size * (failed > 0))[..., None, None]
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        found, failed = torch.linalg.cholesky_ex(matrix + extra * eye)
        added *= 10
    return found


def _iterated(
    times: Callable[[torch.Tensor], torch.Tensor],
    at: Moments,
    alive: torch.Tensor,
    held: Sequence[torch.Tensor],
    tick: Callable[[], None],
) -> list[torch.Tensor]:
    """Solve all rows by conjugate gradients on their supports, scaled by the diagonal.

    In single precision, in few steps. Each held (g,) goes on from a stronger one's solution.
    """
    cross = at.cross.float() * alive
    enough = _TOLERANCE**2 * cross.square().sum(2)
    result, found = torch.zeros_like(cross), dict[int, torch.Tensor]()
    for number in sorted(range(len(held)), key=lambda n: float(held[n].sum()), reverse=True):
        scale = (at.diagonal + held[number][:, None]).unsqueeze(1).float()
        scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
        ridge = held[number][:, None, None].float()

        def product(rows: torch.Tensor, ridge: torch.Tensor = ridge) -> torch.Tensor:
            return torch.addcmul(times(rows), rows, ridge).mul_(alive)

        residual = cross - product(result)
        direction = residual / scale
        fall = (residual * direction).sum(2)
        for _ in range(_FURTHER_STEPS if found else _STEPS):
            tick()
            ahead = product(direction)
            curve = (direction * ahead).sum(2)
            going = curve > 0
            length = torch.where(going, fall / torch.where(going, curve, 1.0), 0.0).unsqueeze(2)
            result.addcmul_(length, direction)
            residual.addcmul_(length, ahead, value=-1)
            if bool((residual.square().sum(2) <= enough).all()):
                break
            scaled = residual / scale
            before, fall = fall, (residual * scaled).sum(2)
            turn = torch.where(before > 0, fall / torch.where(before > 0, before, 1.0), 0.0)
            direction = scaled.addcmul_(turn.unsqueeze(2), direction)
        found[number] = result.double()
    return [found[number] for number in range(len(held))]
