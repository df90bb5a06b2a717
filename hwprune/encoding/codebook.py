"""A few values that stand for all of a tensor's: k-means on a line, the same one every time.

Lloyd's algorithm on sorted values with running sums: an iteration costs one binary search a cell,
however many values there are. It starts from the density of cells that is best where there are
many of them, the cube root of the values' own density (P. F. Panter and W. Dite, "Quantization
distortion in pulse-count modulation", 1951). Negative and positive values get cells of their own,
so that no cell stands for zero: a connection that is kept is never stored as zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 100
# What the starting density is read off.
_SAMPLES = 4096
FP16_MAX = float(np.finfo(np.float16).max)
FP16_MIN = float(np.finfo(np.float16).smallest_subnormal)


def centroids(values: NDArray[np.float32], count: int) -> NDArray[np.float16]:
    """Return at most ``count`` (two or more) values in ascending order, none of them zero.

    Args:
        values: any shape; zeros, and what float16 would make zero, are left out.
        count: of what may stand for them.
    """
    chosen = values[np.abs(values) >= FP16_MIN]
    ordered = np.sort(np.clip(chosen, -FP16_MAX, FP16_MAX), axis=None)
    halves = np.unique(ordered.astype(np.float16)) if ordered.size else np.zeros(0, np.float16)
    if halves.size <= count:
        return halves
    split = int(np.searchsorted(ordered, 0))
    parts = [part.astype(np.float64) for part in (ordered[:split], ordered[split:]) if part.size]
    starts = [_start(part, ordered.size) for part in parts]
    weights = [float(start[-1]) for start in starts]
    found = []
    left = count
    for part, start, weight in zip(parts, starts, weights, strict=True):
        cells = left
        if part is not parts[-1]:
            cells = min(count - 1, max(1, round(count * weight / sum(weights))))
        left -= cells
        found.append(_lloyd(part, start, cells))
    return np.unique(np.concatenate(found).astype(np.float16))


def nearest(values: NDArray[np.float32], entries: NDArray[np.float16]) -> NDArray[np.int64]:
    """Return the number of the nearest of ascending ``entries`` for each value."""
    wide = entries.astype(np.float32)
    return np.searchsorted((wide[1:] + wide[:-1]) / 2, values)


def _sampled(part: NDArray[np.float64]) -> NDArray[np.float64]:
    places = np.linspace(0, part.size - 1, min(part.size, _SAMPLES)).round().astype(np.int64)
    sampled: NDArray[np.float64] = part[places]
    return sampled


def _start(part: NDArray[np.float64], total: int) -> NDArray[np.float64]:
    """Return the running sum of the cube root of the density at sorted samples of a part."""
    steps = np.diff(_sampled(part))
    share = (part.size / total) ** (1 / 3)
    # At n equally likely samples the density is 1 / (n step): its cube root times the step.
    scale = share * max(1, steps.size) ** (-1 / 3)
    sums = np.concatenate([[0.0], np.cumsum(steps ** (2 / 3))]) * scale
    return sums if sums[-1] > 0 else np.linspace(0, 1e-30, sums.size)


def _lloyd(
    part: NDArray[np.float64], start: NDArray[np.float64], cells: int
) -> NDArray[np.float64]:
    marks = (np.arange(cells) + 0.5) / cells * start[-1]
    centres: NDArray[np.float64] = np.interp(marks, start, _sampled(part))
    sums = np.concatenate([[0.0], np.cumsum(part)])
    for _ in range(_ROUNDS):
        bounds = np.searchsorted(part, (centres[1:] + centres[:-1]) / 2)
        edges = np.concatenate([[0], bounds, [part.size]])
        sizes = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(sizes, 1)
        moved = np.where(sizes > 0, means, centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres
