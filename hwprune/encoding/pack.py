"""A whole tensor, packed and unpacked: positions by a codec, values by a value type."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from hwprune.encoding.codecs import CODECS, MAX_WEIGHTS, MalformedIndexError, matrix_shape
from hwprune.encoding.values import VALUE_DTYPES, dequantise, quantise
from hwprune.errors import VerificationError
from hwprune.ir import CodecName, Packed, ValueType


def pack(
    name: str,
    weight: NDArray[np.float32],
    mask: NDArray[np.bool_],
    *,
    codec: CodecName,
    value_type: ValueType,
    channel_axis: int,
) -> Packed:
    """Pack a tensor. Every position of ``mask`` is stored, also where the value rounds to zero.

    Args:
        name: the tensor's name.
        weight: any shape; elements outside the mask are ignored.
        mask: same shape; what lives.
        codec: how positions are stored.
        value_type: how values are stored.
        channel_axis: the axis that counts output channels.
    """
    masked = np.where(mask, weight, np.float32(0)).astype(np.float32)
    stored, scales = quantise(masked, value_type, channel_axis)
    arrays: dict[str, NDArray[Any]] = {}
    if codec == "dense":
        arrays["values"] = stored
    else:
        positions = np.flatnonzero(mask)
        arrays["values"] = stored.reshape(-1)[positions]
        arrays["index"] = CODECS[codec].encode(positions, weight.shape)
    if scales is not None:
        arrays["scale"] = scales
    return Packed(name, weight.shape, codec, value_type, arrays)


def packed_positions(packed: Packed) -> NDArray[np.int64]:
    """Return the stored positions.

    Raises:
        VerificationError: the index does not belong to this tensor.
    """
    codec = CODECS[packed.codec]
    values = packed.arrays["values"]
    # math.prod, since a hostile shape may be beyond any fixed-size integer.
    weights = math.prod(packed.shape)
    if min(packed.shape, default=0) < 1 or weights > MAX_WEIGHTS:
        raise VerificationError(f"{packed.name}: {packed.shape} is not the shape of a weight")
    if values.dtype != VALUE_DTYPES[packed.value_type]:
        raise VerificationError(
            f"{packed.name}: its values are {values.dtype}, expected {packed.value_type}"
        )
    if packed.codec == "dense":
        if values.size != weights:
            raise VerificationError(f"{packed.name}: {values.size} values for {weights} weights")
        return np.arange(weights, dtype=np.int64)
    index = packed.arrays["index"]
    if index.ndim != 1 or index.dtype != codec.index_dtype:
        raise VerificationError(
            f"{packed.name}: its index is {index.dtype} of shape {index.shape}, "
            f"expected one axis of {codec.index_dtype}"
        )
    if not codec.accepts(packed.shape):
        raise VerificationError(f"{packed.name}: {packed.codec} cannot store {packed.shape}")
    try:
        positions = codec.decode(index, packed.shape)
    except MalformedIndexError as error:
        raise VerificationError(
            f"{packed.name}: {packed.codec} index is malformed: {error}"
        ) from None
    if positions.size != values.size:
        raise VerificationError(
            f"{packed.name}: {values.size} values for {positions.size} positions of its index"
        )
    return positions


def unpack(packed: Packed) -> NDArray[np.float32]:
    """Return the dense float32 tensor that the packed arrays stand for.

    Raises:
        VerificationError: the arrays do not fit each other or the shape.
    """
    positions = packed_positions(packed)
    stored = packed.arrays["values"].reshape(-1)
    flat = np.zeros(int(np.prod(packed.shape, dtype=np.int64)), dtype=stored.dtype)
    flat[positions] = stored
    scale = packed.arrays.get("scale")
    try:
        return dequantise(flat.reshape(packed.shape), scale).reshape(packed.shape)
    except ValueError:
        raise VerificationError(
            f"{packed.name}: scales of shape {getattr(scale, 'shape', None)} do not fit "
            f"{packed.shape}"
        ) from None


def to_csr(packed: Packed) -> scipy.sparse.csr_array:
    """Return the tensor as a float32 ``csr_array``: its first axis by everything else."""
    positions = packed_positions(packed)
    rows, columns = matrix_shape(packed.shape)
    values = unpack(packed).reshape(-1)[positions]
    coordinates = np.divmod(positions, columns)
    array = scipy.sparse.csr_array((values, coordinates), shape=(rows, columns))
    array.eliminate_zeros()
    return array
