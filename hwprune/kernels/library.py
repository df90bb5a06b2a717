"""The library file and its few functions.

It is loaded from the installed package and from nowhere else: not from a path in an artifact, in a
profile or in the environment, and not from the working folder.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import KernelsError

FILE_NAME = "libhwprune_kernels.so"
# Links are followed once: it is asked for each layer of a file.
_FOLDER = Path(__file__).resolve().parent
# The version of onnxruntime's C API that the library asks for; see src/ort_abi.h.
API_VERSION = 17
BUILD_HINT = (
    "With CMake and a C++17 compiler installed: in a checkout `make kernels`, else install hwprune "
    "from its source again. Without the library every file runs as it is, at dense speed."
)
# kMaxWeights of src/decode.h.
MAX_WEIGHTS = 2**31 - 2
_I64 = ctypes.c_int64
_INTS = ctypes.POINTER(_I64)
# ONNX's numbers of the element types that packed arrays have.
_ELEMENTS = {"float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "float16": 10}


class _Array(ctypes.Structure):
    """hwprune_array of src/unpack.cpp."""

    _fields_ = [
        ("element", ctypes.c_int),
        ("rank", ctypes.c_size_t),
        ("dims", _INTS),
        ("data", ctypes.c_void_p),
    ]


def path() -> Path | None:
    """Return where the library lies, or None where this installation has none."""
    file = _FOLDER / FILE_NAME
    return file if file.is_file() else None


def status() -> str:
    """Return in one line whether there are kernels and for which instruction set, or why not."""
    try:
        return f"kernels: {instruction_set()}"
    except KernelsError as error:
        return f"no kernels: {error.message}"


@cache
def _loaded(file: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(file))
        library.hwprune_select.argtypes = [ctypes.c_char_p]
        library.hwprune_select.restype = None
        library.hwprune_threads.argtypes = [ctypes.c_int]
        library.hwprune_threads.restype = None
        library.hwprune_knows.argtypes = [ctypes.c_char_p]
        library.hwprune_knows.restype = ctypes.c_int
        library.hwprune_resident_bytes.argtypes = []
        library.hwprune_resident_bytes.restype = ctypes.c_size_t
        library.hwprune_simd.argtypes = []
        library.hwprune_simd.restype = ctypes.c_char_p
        library.hwprune_unpack.argtypes = [
            ctypes.c_char_p, _INTS, ctypes.c_size_t, _I64, ctypes.POINTER(_Array), ctypes.c_size_t,
            ctypes.c_void_p,
        ]  # fmt: skip
        library.hwprune_unpack.restype = ctypes.c_int
        version = int(library.hwprune_abi_version())
    except (OSError, AttributeError) as error:
        raise KernelsError(f"{file} cannot be loaded: {error}", hint=BUILD_HINT) from None
    if version != API_VERSION:
        raise KernelsError(
            f"{file} was built for C API version {version}, expected {API_VERSION}", hint=BUILD_HINT
        )
    return library


def loaded() -> ctypes.CDLL:
    """Return the library.

    Raises:
        KernelsError: it is absent, or cannot be loaded here.
    """
    file = path()
    if file is None:
        raise KernelsError(f"this installation of hwprune has no {FILE_NAME}", hint=BUILD_HINT)
    return _loaded(file)


def instruction_set() -> str:
    """Return what the kernels run on: avx512, avx2, neon or scalar."""
    return str(loaded().hwprune_simd().decode())


def knows(name: str) -> bool:
    """Return whether there is a kernel for operators of this name."""
    return bool(loaded().hwprune_knows(name.encode()))


def choose(names: Iterable[str] | None, threads: int) -> None:
    """Say what the next registration on this thread registers.

    Args:
        names: operators; None: all that are stored sparse.
        threads: how many threads the session will have; 0 where that is not known.
    """
    library = loaded()
    library.hwprune_select(None if names is None else ",".join(names).encode())
    library.hwprune_threads(threads)


def resident_bytes() -> int:
    """Return what all kernels of this process hold for their weights, in bytes; 0 without any."""
    return int(loaded().hwprune_resident_bytes()) if path() is not None else 0


def unpack(
    operator: str, shape: Sequence[int], count: int | None, arrays: Sequence[NDArray[Any]]
) -> NDArray[np.float32] | None:
    """Return the dense weight that packed arrays stand for; None where they are malformed.

    Args:
        operator: the name of one that reads them.
        shape: of the weight.
        count: stored values, where two share a byte.
        arrays: values, index and table, as far as the operator has them.
    """
    if any(size < 1 for size in shape) or math.prod(shape) > MAX_WEIGHTS:
        return None
    if any(a.dtype.name not in _ELEMENTS for a in arrays):
        return None
    kept = [np.ascontiguousarray(array) for array in arrays]
    given = (_Array * len(kept))(
        *(_Array(_ELEMENTS[a.dtype.name], a.ndim, _ints(a.shape), a.ctypes.data) for a in kept)
    )
    dense = np.empty(tuple(shape), np.float32)
    failed = loaded().hwprune_unpack(
        operator.encode(), _ints(shape), len(shape), -1 if count is None else count, given,
        len(kept), dense.ctypes.data,
    )  # fmt: skip
    return None if failed else dense


def _ints(numbers: Sequence[int]) -> Any:
    return (_I64 * len(numbers))(*numbers)
