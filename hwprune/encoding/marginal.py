"""What one more nonzero would cost: the bytes that each dead position would add, taken by itself.

A position's price depends on what lives around it. In a gap codec it may take the place of a mark
that is there anyway, or need new ones far behind the last nonzero; in Golomb-Rice its quotient may
get shorter by being split. Shares of a byte count as such: two entries of four bits share one, so
each costs half. Only headers whose length has a length, a Rice parameter that would change and a
codec that would be exchanged for another one are left out: a solver counts the real file anyway.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hwprune.encoding.bits import RiceCodec
from hwprune.encoding.codec import Positions, spacing
from hwprune.encoding.codecs import CODECS, ColumnCodec, GapCodec
from hwprune.encoding.values import VALUE_BITS
from hwprune.ir import CodecName, ValueType


def marginal_bytes(
    positions: Positions, shape: tuple[int, ...], codec: CodecName, value_type: ValueType
) -> NDArray[np.float32]:
    """Return what each dead position of a tensor would add to its packed arrays.

    Args:
        positions: (k,) sorted row-major positions of the nonzeros.
        shape: of the tensor.
        codec: how it is stored.
        value_type: how its values are stored.

    Returns:
        float32 bytes in the tensor's shape; 0 where a nonzero is already, and everywhere in a
        tensor that is stored dense.
    """
    weights = math.prod(shape)
    how = CODECS[codec]
    if codec == "dense":
        return np.zeros(shape, np.float32)
    value = VALUE_BITS[value_type] / 8
    added = np.full(weights, value, np.float32)
    if isinstance(how, ColumnCodec):
        added += how.bits / 8
    elif isinstance(how, GapCodec):
        _add_units(added, positions, how.reach, how.bits / 8)
        added += how.bits / 8
    elif isinstance(how, RiceCodec):
        parameter = how.parameter(spacing(positions))
        _add_units(added, positions, 1 << parameter, 1 / 8)
        added += (parameter + 1) / 8
    added[positions] = 0
    return added.reshape(shape)


def _add_units(
    added: NDArray[np.float32], positions: Positions, unit: int, bytes_each: float
) -> None:
    """Add what the units of a gap, each ``unit`` zeros long, cost more or less by being split.

    A run of z zeros has ``z // unit`` of them. A nonzero a places behind the run's start leaves
    ``a // unit`` before and ``(z - 1 - a) // unit`` behind it: as many, or one fewer. Behind the
    last nonzero there are none until one joins.
    """
    starts = np.concatenate([np.zeros(1, np.int64), positions + 1])
    ends = np.concatenate([positions, np.array([added.size], np.int64)])
    whole = (ends - starts) // unit
    whole[-1] = 0
    chunk = 1 << 18
    for first in range(0, added.size, chunk):
        place = np.arange(first, min(first + chunk, added.size), dtype=np.int64)
        run = np.searchsorted(positions, place)  # dead places lie in the run before this nonzero
        units = (place - starts[run]) // unit - whole[run]
        inside = run < positions.size
        units += np.where(inside, np.maximum(ends[run] - 1 - place, 0) // unit, 0)
        added[first : first + place.size] += (units * bytes_each).astype(np.float32)
