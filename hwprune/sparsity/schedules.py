"""When: density as a function of progress. Progress runs from 0 to 1 and is clamped to it."""

from __future__ import annotations

import math

from hwprune.errors import UsageError


def _clamped(progress: float) -> float:
    return min(1.0, max(0.0, progress))


def cubic(progress: float, start: float, end: float) -> float:
    """Return ``end + (start - end) (1 - progress)^3``: fast at first, slow near the end.

    arXiv 1710.01878, equation 1, written for densities (it is affine, so it holds for both).
    """
    return end + (start - end) * (1.0 - _clamped(progress)) ** 3


def cosine(progress: float, start: float, end: float) -> float:
    """Return the half cosine from ``start`` to ``end`` (the annealing of arXiv 1911.11134)."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * _clamped(progress)))


def linear(progress: float, start: float, end: float) -> float:
    """Return the straight line from ``start`` to ``end``."""
    return start + (end - start) * _clamped(progress)


def iterative(density: float, *, removed: float = 0.2) -> tuple[float, ...]:
    """Return the densities of rounds that each remove a fraction of what is left.

    LAMP's and lottery tickets' schedule (arXiv 2010.07611, section 4: 20 % a round). The last
    round ends at ``density`` exactly, and so may remove less.

    Args:
        density: where to end, in (0, 1].
        removed: the fraction of what is kept that one round removes, in (0, 1]; 1 is one round.

    Raises:
        UsageError: an argument outside its range.
    """
    if not 0 < density <= 1 or not 0 < removed <= 1:
        raise UsageError(
            f"rounds that remove {removed} down to a density of {density} do not exist",
            hint="density lies in (0, 1], removed in (0, 1]",
        )
    if removed == 1:
        return (density,)
    # A hair of tolerance: 0.8 ** 3 must be three rounds, not four.
    rounds = max(1, math.ceil(math.log(density) / math.log1p(-removed) - 1e-9))
    return (*((1.0 - removed) ** number for number in range(1, rounds)), density)
