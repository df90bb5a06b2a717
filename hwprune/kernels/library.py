"""The library file and its few functions.

It is loaded from the installed package and from nowhere else: not from a path in an artifact, in a
profile or in the environment, and not from the working folder.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from hwprune.errors import KernelsError

FILE_NAME = "libhwprune_kernels.so"
# The version of onnxruntime's C API that the library asks for; see src/ort_abi.h.
API_VERSION = 17
BUILD_HINT = (
    "With CMake and a C++17 compiler installed: in a checkout `make kernels`, else install hwprune "
    "from its source again. Without the library every file runs as it is, at dense speed."
)


def path() -> Path | None:
    """Return where the library lies, or None where this installation has none."""
    file = Path(__file__).resolve().parent / FILE_NAME
    return file if file.is_file() else None


def status() -> str:
    """Return in one line whether there are kernels and for which instruction set, or why not."""
    try:
        library = loaded()
    except KernelsError as error:
        return f"no kernels: {error.message}"
    return f"kernels: {library.hwprune_simd().decode()}"


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
