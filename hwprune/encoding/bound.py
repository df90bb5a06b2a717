"""What no encoding gets below: the entropy of where the nonzeros lie and of what they are.

Positions: log2 of the number of masks with as many nonzeros, binom(n, k). Values: for those that
are stored as small whole numbers, the empirical entropy of these; floats count in full, since every
one is its own symbol and a table of them would be no smaller. Tables (scales, codebooks) are not
counted. A mask with structure can have less entropy than this; the encoders here assume none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hwprune.encoding.values import VALUE_BITS, levels_of
from hwprune.ir import Packed


@dataclass(frozen=True, slots=True)
class Bound:
    """The least bytes that a tensor's arrays could take.

    Attributes:
        index: for the positions.
        values: for the values.
    """

    index: float
    values: float

    @property
    def total(self) -> float:
        """Return both."""
        return self.index + self.values


def index_bound(weights: int, nonzeros: int) -> float:
    """Return log2 binom(weights, nonzeros) in bytes."""
    parts = (math.lgamma(count + 1) for count in (weights, nonzeros, weights - nonzeros))
    whole, chosen, left = parts
    return max(0.0, (whole - chosen - left) / math.log(2) / 8)


def bound_of(packed: Packed) -> Bound:
    """Return the bound of a tensor as it is stored; where it is stored dense, of all elements."""
    stored = packed.nonzeros
    index = 0.0
    if packed.codec != "dense":
        index = index_bound(math.prod(packed.shape), stored)
    if packed.value_type in ("fp32", "fp16"):
        return Bound(index, stored * VALUE_BITS[packed.value_type] / 8)
    symbols = levels_of(packed.arrays["values"].reshape(-1), packed.value_type, stored)
    _, counts = np.unique(symbols, return_counts=True)
    bits = -float((counts * np.log2(counts / max(1, stored))).sum())
    return Bound(index, max(0.0, bits / 8))
