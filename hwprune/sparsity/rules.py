"""Which dead connections come back: one function per rule, one signature.

A rule is ``Evidence -> gain``, float32 in the weight's own shape; higher means grow. Rules look at
each connection alone, so that they can be worked out piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import UsageError
from hwprune.sparsity import scores, topk

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a rule may know of one tensor, or of a flat piece of one.

    Attributes:
        weight: the present values, zero where dead.
        pretrained: the values before anything was pruned.
        gradient: of the loss with respect to the weight, at the masked weights; dead ones included.
        seed: of what is random; differs between tensors and events.
        start: where the piece starts in the flattened tensor.

    Raises:
        UsageError: arrays of different shapes.
    """

    weight: Array
    pretrained: Array
    gradient: Array | None = None
    seed: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        shapes = {self.weight.shape, self.pretrained.shape}
        shapes |= set() if self.gradient is None else {self.gradient.shape}
        if len(shapes) > 1:
            raise UsageError(
                f"evidence of different shapes: {', '.join(map(str, sorted(shapes)))}",
                hint="weight and gradient are of the same parameter",
            )

    def piece(self, start: int, stop: int) -> Evidence:
        """Return the evidence of a flat piece, without a copy."""
        gradient = self.gradient
        return replace(
            self,
            weight=self.weight.reshape(-1)[start:stop],
            pretrained=self.pretrained.reshape(-1)[start:stop],
            gradient=None if gradient is None else gradient.reshape(-1)[start:stop],
            start=self.start + start,
        )


Rule = Callable[[Evidence], Array]


def gradient(seen: Evidence) -> Array:
    """Return |g|: where the loss is steepest (RigL, arXiv 1911.11134, section 3)."""
    if seen.gradient is None:
        raise UsageError(
            "the rule 'gradient' needs what was not measured",
            hint="give data to measure gradients on, or choose magnitude or random",
        )
    return np.asarray(np.abs(seen.gradient), np.float32)


def magnitude(seen: Evidence) -> Array:
    """Return |w0|."""
    return scores.magnitude(seen.pretrained)


def random(seen: Evidence) -> Array:
    """Return noise in [0, 1): SET's rule (arXiv 1707.04780). The same seed gives the same noise.

    A number depends on seed and place alone (the mixing function of SplitMix64, S. Vigna), so that
    pieces are the pieces of the whole.
    """
    place = np.arange(seen.start, seen.start + seen.weight.size, dtype=np.uint64)
    state = (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(
        (seen.seed * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    )
    state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    noise = (state >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return np.asarray(noise.reshape(seen.weight.shape), np.float32)


RULES: dict[str, Rule] = {"gradient": gradient, "magnitude": magnitude, "random": random}

# Those that cannot do without a gradient.
NEEDS_GRADIENT = frozenset({"gradient"})


def pieces(name: str, seen: Evidence) -> Iterator[tuple[int, Array]]:
    """Yield (offset, flat piece) of a rule's gain: new arrays, one at a time.

    Raises:
        UsageError: something that the rule needs was not given.
    """
    for start in range(0, seen.weight.size, topk.CHUNK):
        yield start, RULES[name](seen.piece(start, min(start + topk.CHUNK, seen.weight.size)))


def evaluate(name: str, seen: Evidence) -> Array:
    """Return a rule's gain for a whole tensor, in its shape."""
    gain = np.empty(seen.weight.size, np.float32)
    for start, part in pieces(name, seen):
        gain[start : start + part.size] = part
    return gain.reshape(seen.weight.shape)
