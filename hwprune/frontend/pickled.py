"""Files that torch.save wrote: pickles, so programs, none of which is run.

``torch.load(weights_only=True)`` rebuilds tensors and plain containers and refuses all else that a
pickle names. Training scripts leave such things beside the weights (arguments, paths, NumPy
numbers). Then the file is read once more with an empty stand-in for every name that is not
tensors' own, so that the weights can be taken and the rest left. Code is run only where the user
said ``--unsafe-load``.
"""

from __future__ import annotations

import collections
import pickle
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hwprune.errors import ModelError, UnsafeModelError
from hwprune.frontend.archive import SAVE_AGAIN, IdentifiedFile
from hwprune.frontend.user_code import FAILURES, first_line

# What rebuilds tensors and containers, and does nothing else with its arguments.
_OWN: dict[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": lambda *_: {},
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch.nn.parameter.Parameter": torch.nn.Parameter,
    **{
        f"torch._utils.{name}": getattr(torch._utils, name)
        for name in (
            "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_sparse_tensor",
            "_rebuild_qtensor",
        )
    },
    **{
        str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)
    },
    **{
        f"{module}.{kind.__name__}": kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, dict, list, tuple, slice)
    },
}  # fmt: skip
# No checkpoint has a use for these: a file that names them is refused whatever else is in it.
_HOSTILE = re.compile(
    r"(?:os|posix|nt|sys|subprocess|shutil|socket|importlib|runpy|pty|ctypes|webbrowser)\b.*|"
    r"(?:builtins|__builtin__)\.(?:eval|exec|compile|open|getattr|__import__|breakpoint|input)"
)
_QUANTISED = ("torchao.", "torch.ao.")


class Inert:
    """Stands for an object of a class that was not imported; takes whatever is done to it."""

    name = ""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Make one, whatever the arguments."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Forget the arguments."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, *_: Any) -> None:
        """Forget the entry."""

    def append(self, *_: Any) -> None:
        """Forget the item."""

    def extend(self, *_: Any) -> None:
        """Forget the items."""

    def __hash__(self) -> int:
        return id(self)


class _Unpickler(pickle._Unpickler):
    """Knows tensors; gives an empty class for every other name, and notes the name.

    The one that is written in Python: of the other a number in the file says how much memory its
    table takes.
    """

    foreign: dict[str, type[Inert]]

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _OWN and full not in self.foreign:
            self.foreign[full] = type(name.rpartition(".")[2], (Inert,), {"name": full})
        return _OWN.get(full) or self.foreign[full]


def read(
    file: IdentifiedFile, *, unsafe: bool, mapped: bool = False
) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """Read what torch.save wrote: the safe way first, always.

    Args:
        file: of kind torch-zip or torch-legacy.
        unsafe: whether the user allowed the file to run code.
        mapped: whether tensors may stay in the file until they are used; it must not change then.

    Returns:
        The object, notes for the report, and the names of what `Inert` objects in it stand for.

    Raises:
        UnsafeModelError: it names code that no checkpoint has a use for, without ``unsafe``.
        ModelError: truncated or damaged.
    """
    mmap = mapped and file.kind == "torch-zip"  # the older format cannot be mapped
    try:
        return torch.load(file.path, map_location="cpu", weights_only=True, mmap=mmap), (), ()
    except pickle.UnpicklingError:
        pass
    except Exception as error:  # torch raises whatever its readers meet in a damaged file
        raise _damaged(file, error) from error
    if unsafe:
        return _run(file)
    foreign: dict[str, type[Inert]] = {}
    unpickler = type("Unpickler", (_Unpickler,), {"foreign": foreign})
    reader = SimpleNamespace(
        Unpickler=unpickler,
        load=lambda stream, **options: unpickler(stream, **options).load(),
        __name__="hwprune.frontend.pickled",
    )
    failed: Exception | None = None
    payload: Any = None
    try:
        payload = torch.load(
            file.path, map_location="cpu", weights_only=False, pickle_module=reader, mmap=mmap
        )
    except Exception as error:  # as above
        failed = error
    names = tuple(foreign)
    if any(map(_HOSTILE.fullmatch, names)):
        raise unsafe_error(file.path, names)
    if failed is not None:
        raise _damaged(file, failed) from failed
    notes = (f"left unread beside the weights: {', '.join(names[:4])}",) if names else ()
    return payload, notes, names


def _run(file: IdentifiedFile) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    try:
        payload = torch.load(file.path, map_location="cpu", weights_only=False)
    except FAILURES as error:  # the pickle's own code may raise anything
        raise ModelError(
            f"{file.path} cannot be unpickled: {first_line(error)}",
            hint="its classes must be importable here; or, where it was made, " + SAVE_AGAIN,
        ) from error
    note = f"{file.path} was unpickled with --unsafe-load: its code ran on this machine"
    return payload, (note,), ()


def module_state(value: object) -> dict[str, Tensor] | None:
    """Return the tensors of a pickled ``nn.Module`` that was not run, by their state-dict keys."""
    state = getattr(value, "state", None)
    if not isinstance(value, Inert) or not isinstance(state, Mapping) or "_modules" not in state:
        return None
    tensors = {
        str(name): tensor
        for group in ("_parameters", "_buffers")
        for name, tensor in dict(state.get(group) or {}).items()
        if isinstance(tensor, Tensor)
        and name not in (state.get("_non_persistent_buffers_set") or ())
    }
    for child, module in dict(state["_modules"] or {}).items():
        tensors |= {f"{child}.{name}": t for name, t in (module_state(module) or {}).items()}
    return tensors


def unsafe_error(path: str, names: tuple[str, ...]) -> ModelError:
    """Return the error for objects that only running the file's code could bring back."""
    quantised = [name for name in names if name.startswith(_QUANTISED)]
    if quantised:
        return ModelError(
            f"{path} holds weights that were quantised already ({quantised[0]})",
            hint="save the float model's state dict; hwprune quantises and packs it itself",
        )
    if any(name.startswith("torch.nn.parameter.Uninitialized") for name in names):
        return ModelError(
            f"{path} holds lazy layers that never got a shape, and so no weights",
            hint="call the network once before its weights are saved",
        )
    if names and all(name.startswith(("numpy.", "_codecs.")) for name in names):
        return ModelError(
            f"{path} holds NumPy arrays where a state dict holds tensors",
            hint="save it as tensors: {name: torch.from_numpy(array) for name, array in ...}",
        )
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return UnsafeModelError(
        f"{path} is a whole pickled object, not only weights: reading it would run code "
        f"that it names ({shown})",
        hint=f"where it was made, {SAVE_AGAIN} and give that with --arch. "
        "Only if you trust who made the file: --unsafe-load",
    )


def _damaged(file: IdentifiedFile, error: Exception) -> ModelError:
    return ModelError(
        f"{file.path} cannot be read, it is truncated or damaged: {first_line(error)}",
        hint="copy it again, or save the model again",
    )
