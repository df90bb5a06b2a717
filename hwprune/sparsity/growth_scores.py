"""Which pruned connections come back: one function per criterion, ``Evidence -> score``.

A score is float32 in the weight's own shape; higher means grow. RigL differs from SET, and the
exchange of ``bidirectional`` from both, by this alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import UsageError

Array = NDArray[np.float32]

# What a mean square is at least: where nothing was seen, the score is 0.
_LEAST_SQUARE = np.float32(1e-7)


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a growth score may know of one tensor; arrays of the weight's shape.

    Attributes:
        pretrained: the values before anything was pruned.
        gradient: of the loss with respect to the weight, at the masked weights; pruned included.
        mean: of such gradients over the last batches.
        square: of their squares, likewise.
        seed: of what is random; differs between tensors and events.

    Raises:
        UsageError: arrays of different shapes.
    """

    pretrained: Array
    gradient: Array | None = None
    mean: Array | None = None
    square: Array | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        given = (self.pretrained, self.gradient, self.mean, self.square)
        shapes = {array.shape for array in given if array is not None}
        if len(shapes) > 1:
            raise UsageError(
                f"evidence of different shapes: {', '.join(map(str, sorted(shapes)))}",
                hint="weight and gradients are of the same parameter",
            )


GrowthScore = Callable[[Evidence], Array]


def gradient(seen: Evidence) -> Array:
    """Return |g|: where the loss is steepest (RigL, arXiv 1911.11134, section 3)."""
    return np.abs(_needed(seen.gradient, "gradient"))


def signal_to_noise(seen: Evidence) -> Array:
    """Return the squared mean of the gradient over its mean square: how much batches agree."""
    mean = _needed(seen.mean, "signal-to-noise")
    square = _needed(seen.square, "signal-to-noise")
    return np.asarray(mean * mean / (square + _LEAST_SQUARE), np.float32)


def magnitude(seen: Evidence) -> Array:
    """Return the size of the pretrained value."""
    return np.abs(seen.pretrained)


def random(seen: Evidence) -> Array:
    """Return noise in [0, 1): SET's criterion (arXiv 1707.04780); the same for the same seed."""
    generator = np.random.Generator(np.random.PCG64(seen.seed))
    return generator.random(seen.pretrained.shape, np.float32)


GROWTH_SCORES: dict[str, GrowthScore] = {
    "gradient": gradient,
    "signal-to-noise": signal_to_noise,
    "magnitude": magnitude,
    "random": random,
}

# Those that a gradient is measured for before the event, and those that the steps gather for.
NEEDS_GRADIENT = frozenset({"gradient"})
NEEDS_MOMENTS = frozenset({"signal-to-noise"})


def _needed(array: Array | None, score: str) -> Array:
    if array is None:
        raise UsageError(
            f"the growth score {score!r} needs what was not measured",
            hint="give data to measure gradients on, or choose magnitude or random",
        )
    return array
