"""A whole tensor, packed and unpacked: positions by a codec, values by a value type."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwprune.encoding.codecs import CODECS, MAX_WEIGHTS, MalformedIndexError, matrix_shape
from hwprune.encoding.values import (
    CODEBOOK_ENTRIES,
    LEVELS,
    NIBBLE_TYPES,
    VALUE_DTYPES,
    codebook_entries,
    dequantise,
    levels_of,
    quantise,
    value_array,
    values_size,
)
from hwprune.errors import UsageError, VerificationError
from hwprune.ir import CodecName, Packed, ValueType

if TYPE_CHECKING:
    import scipy.sparse


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
        mask: same shape; what is kept.
        codec: how positions are stored.
        value_type: how values are stored.
        channel_axis: the axis that counts output channels.
    """
    masked = np.where(mask, weight, np.float32(0)).astype(np.float32)
    positions = np.flatnonzero(mask)
    levels, table = quantise(masked, value_type, channel_axis)
    if value_type == "codebook16" and not levels.reshape(-1)[positions].all():
        levels, table = quantise(masked, value_type, channel_axis, zero=True)
    arrays: dict[str, NDArray[Any]] = {}
    if codec == "dense":
        if value_type in NIBBLE_TYPES:
            raise ValueError(f"{name}: {value_type} values are not stored dense")
        arrays["values"] = levels
    else:
        arrays["values"] = value_array(levels.reshape(-1)[positions], table, value_type)
        arrays["index"] = CODECS[codec].encode(positions, weight.shape)
    if table is not None and value_type in CODEBOOK_ENTRIES:
        stored = weight.size if codec == "dense" else positions.size
        arrays["codebook"] = np.zeros(codebook_entries(value_type, stored), np.float16)
        arrays["codebook"][: table.size] = table
    elif table is not None:
        arrays["scale"] = table
    count = positions.size if value_type in NIBBLE_TYPES else None
    return Packed(name, weight.shape, codec, value_type, arrays, count)


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
    _check_nibbles(packed)
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
        positions = codec.decode(index, packed.shape, packed.nonzeros)
    except MalformedIndexError as error:
        raise VerificationError(
            f"{packed.name}: {packed.codec} index is malformed: {error}"
        ) from None
    if positions.size != packed.nonzeros:
        raise VerificationError(
            f"{packed.name}: {packed.nonzeros} values for {positions.size} positions of its index"
        )
    return positions


def _check_nibbles(packed: Packed) -> None:
    """Refuse a number of values that is missing, not meant, or not that of the array's bytes."""
    count, values = packed.count, packed.arrays["values"]
    if packed.value_type not in NIBBLE_TYPES:
        if count is not None:
            raise VerificationError(f"{packed.name}: {packed.value_type} values say their number")
        return
    if packed.codec == "dense":
        raise VerificationError(f"{packed.name}: {packed.value_type} values are not stored dense")
    if count is None or count < 0 or values.shape != (values_size(packed.value_type, count)[0],):
        raise VerificationError(
            f"{packed.name}: {count} values of four bits in an array of shape {values.shape}"
        )
    if count % 2 and values[-1] >> 4:
        raise VerificationError(f"{packed.name}: the last half byte is not 0")


def check(packed: Packed) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the stored positions and levels of arrays that fit each other and the shape.

    Raises:
        VerificationError: positions, values or codebook are not what a writer of ours makes.
    """
    positions = packed_positions(packed)
    levels = levels_of(packed.arrays["values"].reshape(-1), packed.value_type, packed.nonzeros)
    for role, users in ("codebook", CODEBOOK_ENTRIES), ("scale", LEVELS):
        if role in packed.arrays and packed.value_type not in users:
            raise VerificationError(f"{packed.name}: {packed.value_type} values have no {role}")
    _check_table(packed, packed.arrays.get("codebook"), levels)
    return positions, levels


def unpack(packed: Packed) -> NDArray[np.float32]:
    """Return the dense float32 tensor that the packed arrays stand for.

    Raises:
        VerificationError: the arrays do not fit each other or the shape.
    """
    positions, levels = check(packed)
    flat = np.zeros(math.prod(packed.shape), dtype=levels.dtype)
    flat[positions] = levels
    table = packed.arrays.get("codebook", packed.arrays.get("scale"))
    try:
        dense = dequantise(flat.reshape(packed.shape), table, packed.value_type)
        return dense.reshape(packed.shape)
    except ValueError:
        raise VerificationError(
            f"{packed.name}: scales of shape {getattr(table, 'shape', None)} do not fit "
            f"{packed.shape}"
        ) from None


def _check_table(packed: Packed, table: NDArray[Any] | None, levels: NDArray[Any]) -> None:
    if packed.value_type not in CODEBOOK_ENTRIES:
        return
    entries = codebook_entries(packed.value_type, packed.nonzeros)
    if table is None or table.dtype != np.float16 or table.shape != (entries,):
        given = "none" if table is None else f"{table.dtype} of shape {table.shape}"
        raise VerificationError(f"{packed.name}: its codebook is {given}, expected {entries} fp16")
    if packed.value_type == "codebook256":
        if levels.size and int(levels.max()) >= entries:
            raise VerificationError(f"{packed.name}: entry {levels.max()} of {entries}")
        if table[0] != 0:
            raise VerificationError(f"{packed.name}: the first entry of its codebook is not 0")


def stored_nonzeros(packed: Packed) -> int:
    """Return how many stored values are not zero."""
    levels = levels_of(packed.arrays["values"].reshape(-1), packed.value_type, packed.nonzeros)
    if packed.value_type == "codebook16":
        return int(np.count_nonzero(packed.arrays["codebook"][levels - 1]))
    return int(np.count_nonzero(levels))


def to_csr(packed: Packed) -> scipy.sparse.csr_array:
    """Return the tensor as a float32 ``csr_array``: its first axis by everything else.

    Raises:
        UsageError: SciPy is not installed: a gate or a board needs it for nothing else.
    """
    try:
        from scipy.sparse import csr_array
    except ImportError:
        raise UsageError("CSR arrays need SciPy", hint="pip install scipy") from None
    positions = packed_positions(packed)
    rows, columns = matrix_shape(packed.shape)
    values = unpack(packed).reshape(-1)[positions]
    coordinates = np.divmod(positions, columns)
    array = csr_array((values, coordinates), shape=(rows, columns))
    array.eliminate_zeros()
    return array
