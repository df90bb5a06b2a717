"""Files that torch.save wrote: pickles, so programs, of which only a harmless part is run.

``torch.load(weights_only=True)`` rebuilds tensors and plain containers and refuses every other name
that a pickle asks for. What it refuses is read only where the user said ``--unsafe-load``.
"""

from __future__ import annotations

import argparse
import codecs
import pickle
import pickletools
import zipfile
from typing import Any

import numpy as np
import torch

from hwprune.errors import ModelError, UnsafeModelError
from hwprune.frontend.archive import SAVE_AGAIN, IdentifiedFile
from hwprune.frontend.user_code import first_line

# What rebuilds a NumPy number: NumPy 2 moved it, so checkpoints name it in two ways.
_SCALAR: Any = np.float64(0).__reduce__()[0]

# Containers that training scripts put beside the weights (an accuracy, parsed arguments).
# Rebuilding them sets values and calls nothing else.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    codecs.encode,
    np.dtype,
    np.ndarray,
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(type(np.dtype(code)) for code in "?bBhHiIqQlLefd"),
]
_STORAGES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
_EXPECTED = (
    "torch._utils.", "torch._tensor.", "torch.storage.", "torch.nn.parameter.", "torch.Size",
    "torch.Tensor", "torch.device", "collections.OrderedDict", "numpy.", "_codecs.",
    "argparse.Namespace", *(f"torch.{name}Storage" for name in _STORAGES),
)  # fmt: skip


def read(
    file: IdentifiedFile, *, unsafe: bool, mapped: bool = False
) -> tuple[Any, tuple[str, ...]]:
    """Read what torch.save wrote: the safe way first, always.

    Args:
        file: of kind torch-zip or torch-legacy.
        unsafe: whether the user allowed the file to run code.
        mapped: whether tensors may stay in the file until they are used; it must not change then.

    Returns:
        The object, and notes for the report.

    Raises:
        UnsafeModelError: it needs code to be run, and ``unsafe`` is not given.
        ModelError: truncated or damaged.
    """
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            # The older format cannot be mapped.
            mmap = mapped and file.kind == "torch-zip"
            return torch.load(file.path, map_location="cpu", weights_only=True, mmap=mmap), ()
    except pickle.UnpicklingError as error:
        foreign = foreign_names(file)
        if not foreign:
            raise _damaged(file, error) from error
        if not unsafe:
            raise _unsafe(file, foreign) from None
    except Exception as error:  # torch raises whatever its readers meet in a damaged file
        raise _damaged(file, error) from error
    try:
        payload = torch.load(file.path, map_location="cpu", weights_only=False)
    except Exception as error:  # the pickle's own code may raise anything
        raise ModelError(
            f"{file.path} cannot be unpickled: {first_line(error)}",
            hint="its classes must be importable here; or, where it was made, " + SAVE_AGAIN,
        ) from error
    return payload, (f"{file.path} was unpickled with --unsafe-load: its code ran on this machine",)


def foreign_names(file: IdentifiedFile) -> list[str]:
    """List the names that the pickle asks for beyond tensors and containers; nothing is run."""
    try:
        if file.kind == "torch-zip":
            with zipfile.ZipFile(file.path) as archive:
                member = next(n for n in archive.namelist() if n.split("/")[-1] == "data.pkl")
                found = _globals(archive.read(member))
        else:
            with open(file.path, "rb") as stream:
                found = _globals(stream.read())
    except (OSError, StopIteration, zipfile.BadZipFile, NotImplementedError):
        return []
    foreign = [name for name in found if not name.startswith(_EXPECTED)]
    # Built-in containers that a module holds tell people less than its own classes do.
    return sorted(foreign, key=lambda name: name.startswith(("__builtin__.", "builtins.")))


def _globals(pickled: bytes) -> list[str]:
    """Walk the opcodes of one pickle after another, without running them."""
    found: dict[str, None] = {}
    position = 0
    while pickled[position : position + 1] == b"\x80":
        strings: list[str] = []
        try:
            for opcode, argument, at in pickletools.genops(pickled[position:]):
                if opcode.name == "GLOBAL":
                    found[str(argument).replace(" ", ".")] = None
                elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
                    found[".".join(strings[-2:])] = None
                elif isinstance(argument, str):
                    strings.append(argument)
                end = at or 0
        except (ValueError, UnicodeDecodeError, IndexError):
            break
        position += end + 1
    return list(found)


def _unsafe(file: IdentifiedFile, foreign: list[str]) -> UnsafeModelError:
    names = ", ".join(foreign[:4]) + (f" and {len(foreign) - 4} more" if len(foreign) > 4 else "")
    return UnsafeModelError(
        f"{file.path} is a whole pickled object, not only weights: reading it would run code "
        f"that it names ({names})",
        hint=f"where it was made, {SAVE_AGAIN} and give that with --arch. "
        "Only if you trust who made the file: --unsafe-load",
    )


def _damaged(file: IdentifiedFile, error: Exception) -> ModelError:
    return ModelError(
        f"{file.path} cannot be read, it is truncated or damaged: {first_line(error)}",
        hint="copy it again, or save the model again",
    )
