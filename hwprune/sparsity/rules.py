"""Which dead connections come back, and from which value: one function per rule, one signature.

A rule is ``Evidence -> gain``, float32 in the weight's own shape; higher means grow. Rules look at
each connection alone, so that they can be worked out piece by piece; ``lamp`` is the exception.
Before, the connection's value is zero; ``w0`` is its pretrained value, ``g`` the gradient of the
loss with respect to it, ``h`` the curvature. Near the present point the loss changes by
``g d + h d^2 / 2`` when the connection moves to ``d``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import UsageError
from hwprune.sparsity import scores, topk

Array = NDArray[np.float32]

# A Fisher diagonal from a few batches is near zero where it was not seen: this part of the tensor's
# mean is added to it.
DAMPING = 0.1


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a rule may know of one tensor, or of a flat piece of one.

    Attributes:
        weight: the present values, zero where dead.
        pretrained: the values before anything was pruned.
        gradient: of the loss with respect to the weight, at the masked weights; dead ones included.
        momentum: a running average of such gradients over the last steps.
        curvature: the diagonal of the Fisher matrix, an estimate of that of the Hessian.
        damping: is added to the curvature; of the whole tensor, so that a piece knows it.
        trust: the largest second-order step: the root mean square of the pretrained tensor.
        seed: of what is random; differs between tensors and events.
        start: where the piece starts in the flattened tensor.
    """

    weight: Array
    pretrained: Array
    gradient: Array | None = None
    momentum: Array | None = None
    curvature: Array | None = None
    damping: float = 0.0
    trust: float = 0.0
    seed: int = 0
    start: int = 0

    @classmethod
    def of(
        cls,
        weight: Array,
        pretrained: Array,
        *,
        gradient: Array | None = None,
        momentum: Array | None = None,
        curvature: Array | None = None,
        seed: int = 0,
    ) -> Evidence:
        """Return the evidence of a whole tensor, with what follows from it worked out.

        Raises:
            UsageError: arrays of different shapes.
        """
        given = (pretrained, gradient, momentum, curvature)
        shapes = {array.shape for array in given if array is not None} | {weight.shape}
        if len(shapes) > 1:
            raise UsageError(
                f"evidence of different shapes: {', '.join(map(str, sorted(shapes)))}",
                hint="weight, gradient, momentum and curvature are of the same parameter",
            )
        damping = trust = 0.0
        if curvature is not None:
            damping = DAMPING * float(np.mean(curvature, dtype=np.float64)) if weight.size else 0.0
            flat = pretrained.reshape(-1)
            trust = float(np.sqrt(np.dot(flat, flat) / max(1, flat.size)))
        return cls(weight, pretrained, gradient, momentum, curvature, damping, trust, seed)

    def piece(self, start: int, stop: int) -> Evidence:
        """Return the evidence of a flat piece, without a copy."""

        def cut(array: Array | None) -> Array | None:
            return None if array is None else array.reshape(-1)[start:stop]

        return replace(
            self,
            weight=self.weight.reshape(-1)[start:stop],
            pretrained=self.pretrained.reshape(-1)[start:stop],
            gradient=cut(self.gradient),
            momentum=cut(self.momentum),
            curvature=cut(self.curvature),
            start=self.start + start,
        )


Rule = Callable[[Evidence], Array]


def gradient(seen: Evidence) -> Array:
    """Return |g|: where the loss is steepest (RigL, arXiv 1911.11134, section 3)."""
    return scores.gradient(seen.weight, seen.gradient)


def taylor(seen: Evidence) -> Array:
    """Return |g w0|: how much the pretrained value would change the loss, up or down."""
    return scores.taylor(seen.pretrained, seen.gradient)


def descent(seen: Evidence) -> Array:
    """Return -g w0: by how much the pretrained value would lower the loss, to first order."""
    return np.asarray(-_needed(seen.gradient, "descent") * seen.pretrained, np.float32)


def momentum(seen: Evidence) -> Array:
    """Return |m|, the running average of the gradient (arXiv 1907.04840, section 3)."""
    return np.asarray(np.abs(_needed(seen.momentum, "momentum")), np.float32)


def second_order(seen: Evidence) -> Array:
    """Return g^2 / 2h: by how much the best value, -g/h, would lower a quadratic loss."""
    slope = _needed(seen.gradient, "second-order")
    return _over(slope * slope, 2.0 * _stiffness(seen))


def magnitude(seen: Evidence) -> Array:
    """Return |w0|."""
    return scores.magnitude(seen.pretrained)


def lamp(seen: Evidence) -> Array:
    """Return the LAMP score of w0 in its dense tensor (arXiv 2010.07611); needs the whole of it."""
    return scores.lamp(seen.pretrained)


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


RULES: dict[str, Rule] = {
    "gradient": gradient,
    "taylor": taylor,
    "descent": descent,
    "momentum": momentum,
    "second-order": second_order,
    "magnitude": magnitude,
    "lamp": lamp,
    "random": random,
}

# What a rule, or an initial value, cannot do without.
NEEDS: dict[str, frozenset[str]] = {
    "gradient": frozenset({"gradient"}),
    "taylor": frozenset({"gradient"}),
    "descent": frozenset({"gradient"}),
    "momentum": frozenset({"momentum"}),
    "second-order": frozenset({"gradient", "curvature"}),
}


def step(seen: Evidence) -> Array:
    """Return -g / h, the best value of a quadratic loss, no larger than the tensor's usual weights.

    A Fisher diagonal is a rough Hessian, and the loss is quadratic near the point only: steps end
    at the root mean square of the pretrained tensor.
    """
    moved = _over(-_needed(seen.gradient, "second-order"), _stiffness(seen))
    return np.asarray(np.clip(moved, -seen.trust, seen.trust), np.float32)


def pieces(name: str, seen: Evidence) -> Iterator[tuple[int, Array]]:
    """Yield (offset, flat piece) of a rule's gain: new arrays, one at a time.

    Raises:
        UsageError: something that the rule needs was not given.
    """
    if name == "lamp":
        yield from topk.chunks(lamp(seen))
        return
    for start in range(0, seen.weight.size, topk.CHUNK):
        yield start, RULES[name](seen.piece(start, min(start + topk.CHUNK, seen.weight.size)))


def evaluate(name: str, seen: Evidence) -> Array:
    """Return a rule's gain for a whole tensor, in its shape."""
    gain = np.empty(seen.weight.size, np.float32)
    for start, part in pieces(name, seen):
        gain[start : start + part.size] = part
    return gain.reshape(seen.weight.shape)


def _stiffness(seen: Evidence) -> Array:
    return np.asarray(_needed(seen.curvature, "second-order") + np.float32(seen.damping))


def _over(above: Array, below: Array) -> Array:
    """Return the quotient; 0 where nothing is known of either."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _needed(array: Array | None, rule: str) -> Array:
    if array is None:
        raise UsageError(
            f"the rule {rule!r} needs what was not measured",
            hint="give data to measure gradients on, or choose magnitude, lamp or random",
        )
    return array
