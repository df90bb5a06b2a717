"""TorchScript archives. Their code is TorchScript, not Python, but it can still write files."""

from __future__ import annotations

import re
import warnings
import zipfile
from typing import Any

import torch
from torch import nn

from hwprune.errors import ModelError, UnsafeModelError
from hwprune.frontend.archive import SAVE_AGAIN, IdentifiedFile
from hwprune.frontend.user_code import first_line

# TorchScript has no import and no eval. These operators of torch are what reaches the file system;
# the bare words are looked for, since the language lets a call be spelled over several lines.
_FILE_OPERATORS = re.compile(r"\b(?:save|from_file|load_tensor)\b")


def read(file: IdentifiedFile) -> nn.Module:
    """Load a TorchScript archive on the CPU, in eval mode.

    Raises:
        UnsafeModelError: its code names an operator that reads or writes files.
        ModelError: truncated, damaged, or made for something that is not here.
    """
    _check_code(file)
    load: Any = torch.jit.load  # untyped in torch
    try:
        with warnings.catch_warnings():
            # torch calls TorchScript deprecated; the user hands in what there is.
            warnings.simplefilter("ignore")
            module: nn.Module = load(file.path, map_location="cpu")
    except Exception as error:  # torch's reader raises whatever it meets
        raise ModelError(
            f"{file.path} is a TorchScript archive that cannot be loaded: {first_line(error)}",
            hint=f"save it again; or, where it was made, {SAVE_AGAIN} and give that with --arch",
        ) from error
    return module.eval()


def _check_code(file: IdentifiedFile) -> None:
    # Attributes' __setstate__ runs while torch.jit.load loads, so this looks before.
    try:
        with zipfile.ZipFile(file.path) as archive:
            # By entry, not by name: torch's reader ignores case and two entries may share a name.
            for entry in archive.infolist():
                if entry.filename.lower().endswith(".py"):
                    match = _FILE_OPERATORS.search(archive.read(entry).decode("utf-8", "replace"))
                    if match:
                        raise UnsafeModelError(
                            f"{file.path} is a TorchScript archive whose code names {match[0]!r}: "
                            "running it could read or write files",
                            hint=f"where it was made, {SAVE_AGAIN} and give that with --arch",
                        )
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError) as error:
        raise ModelError(
            f"{file.path} is a TorchScript archive that is truncated or damaged: {error}",
            hint="copy it again, or save the model again",
        ) from error
