"""CSR and its compressed forms: exact sizes, encoding, decoding, quantisation. NumPy and SciPy."""

from hwprune.encoding.bound import Bound, bound_of, index_bound
from hwprune.encoding.codecs import CODECS, Codec, MalformedIndexError, spacing
from hwprune.encoding.cost import Encoding, FileCost, Form, TensorCost
from hwprune.encoding.pack import check, pack, packed_positions, stored_nonzeros, to_csr, unpack
from hwprune.encoding.values import VALUE_BITS, VALUE_DTYPES, compact_floats, quantise

__all__ = [
    "CODECS",
    "VALUE_BITS",
    "VALUE_DTYPES",
    "Bound",
    "Codec",
    "Encoding",
    "FileCost",
    "Form",
    "MalformedIndexError",
    "TensorCost",
    "bound_of",
    "check",
    "compact_floats",
    "index_bound",
    "pack",
    "packed_positions",
    "quantise",
    "spacing",
    "stored_nonzeros",
    "to_csr",
    "unpack",
]
