"""What a user hands in (checkpoints, programs, architectures, data) becomes a Model and its Data.

The names are handed on lazily: reading an input specification or a data set needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwprune.frontend.data import load_data
    from hwprune.frontend.inputs import parse_input
    from hwprune.frontend.models import load_model

__all__ = ["load_data", "load_model", "parse_input"]

_HOME = {"load_data": "data", "load_model": "models", "parse_input": "inputs"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
