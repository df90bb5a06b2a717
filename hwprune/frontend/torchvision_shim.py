"""Import torchvision even where its compiled operators do not match torch.

A CPU-only torch beside a CUDA build of torchvision (what pip can leave behind) cannot load
torchvision's `_C` library. torchvision survives that but for two places: importing it registers
shape functions for ``torchvision::nms`` and ``qnms``, which torch refuses for an operator without a
schema. The networks call neither, so bare schemas are enough, where the real ones do not load.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from hwprune.errors import ModelError

# The schemas of torchvision/csrc/ops/nms.cpp and quantized/cpu/qnms_kernel.cpp.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# A library's definitions vanish with the object that made them.
_libraries: list[Any] = []


@lru_cache(maxsize=1)
def import_torchvision() -> Any:
    """Return the torchvision module.

    Raises:
        ModelError: torchvision is not installed, or cannot be imported for another reason.
    """
    if not make_importable():
        raise ModelError(
            "this architecture needs torchvision, which is not installed",
            hint="pip install torchvision",
        )
    try:
        torchvision = importlib.import_module("torchvision")
        importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError) as error:
        raise ModelError(
            f"torchvision cannot be imported: {str(error).splitlines()[0]}",
            hint="install the torchvision that belongs to this torch "
            f"(torch {torch.__version__}): pip install torch torchvision --force-reinstall",
        ) from error
    return torchvision


def make_importable() -> bool:
    """Let whoever imports torchvision next do so; return False where it is not installed."""
    if "torchvision.models" in sys.modules:
        return True
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    _load_operators(Path(spec.origin).parent)
    _define_missing()
    return True


def _load_operators(folder: Path) -> None:
    """Load the compiled operators as torchvision would: what is then missing is known."""
    for library in sorted(folder.glob("_C*")):
        if library.suffix in (".so", ".pyd", ".dll"):
            with contextlib.suppress(OSError, RuntimeError):
                load: Any = torch.ops.load_library  # untyped in torch
                load(str(library))


def _define_missing() -> None:
    missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        make: Any = torch.library.Library  # untyped in torch
        library = make("torchvision", "FRAGMENT")
        for name in missing:
            library.define(_SCHEMAS[name])
        _libraries.append(library)
