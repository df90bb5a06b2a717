"""CSR and its compressed forms: exact sizes, encoding, decoding, quantisation. NumPy and SciPy."""

from hwprune.encoding.codecs import CODECS, Codec, MalformedIndexError
from hwprune.encoding.cost import Encoding, FileCost, Form, TensorCost
from hwprune.encoding.pack import pack, packed_positions, to_csr, unpack
from hwprune.encoding.values import VALUE_DTYPES, compact_floats, quantise

__all__ = [
    "CODECS",
    "VALUE_DTYPES",
    "Codec",
    "Encoding",
    "FileCost",
    "Form",
    "MalformedIndexError",
    "TensorCost",
    "compact_floats",
    "pack",
    "packed_positions",
    "quantise",
    "to_csr",
    "unpack",
]
