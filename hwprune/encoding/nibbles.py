"""Two numbers of four bits in one byte, the first in its low half."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_nibbles(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    """Return numbers 0..15 two to a byte; the last half byte of an odd number of them is 0."""
    padded = np.zeros(numbers.size + numbers.size % 2, np.uint8)
    padded[: numbers.size] = numbers.reshape(-1)
    packed: NDArray[np.uint8] = padded[::2] | padded[1::2] << np.uint8(4)
    return packed


def from_nibbles(packed: NDArray[Any], count: int) -> NDArray[np.uint8]:
    """Return the first ``count`` numbers."""
    numbers = np.empty(2 * packed.size, np.uint8)
    numbers[::2] = packed & np.uint8(15)
    numbers[1::2] = packed >> np.uint8(4)
    return numbers[:count]
