"""What a model file is, by its bytes; its name and ending are never asked."""

from __future__ import annotations

import json
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hwprune.errors import ModelError, UnsafeModelError
from hwprune.units import format_bytes

FileKind = Literal[
    "torch-zip", "torch-legacy", "safetensors", "exported-program", "torchscript", "onnx"
]

_ZIP = b"PK\x03\x04"
# torch.save before 1.6 begins with this number, pickled (torch/serialization.py, MAGIC_NUMBER).
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_SAFETENSORS_HEADER_LIMIT = 100_000_000

SAVE_AGAIN = 'save its weights: torch.save(model.state_dict(), "model.pt")'


@dataclass(frozen=True, slots=True)
class IdentifiedFile:
    """A model file that exists and whose kind is known."""

    path: str
    kind: FileKind


def identify(path: str) -> IdentifiedFile:
    """Tell what kind of model file ``path`` is.

    Raises:
        ModelError: missing, not a file, empty, truncated, or of a kind that hwprune does not read.
        UnsafeModelError: a bare Python pickle.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
            raise ModelError(f"{path} is not an ordinary file", hint="give the path of a file")
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise ModelError(f"there is no file {path}", hint="check the path of MODEL") from None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not head:
        raise ModelError(f"{path} is empty", hint="copy it again, or save the model again")
    if head.startswith(_ZIP):
        return IdentifiedFile(path, _zip_kind(path))
    if head.startswith(_LEGACY):
        return IdentifiedFile(path, "torch-legacy")
    if _is_safetensors(path, head):
        return IdentifiedFile(path, "safetensors")
    # ir_version, then another field of ModelProto
    if head[0] == 0x08 and len(head) > 2 and head[1] < 0x20 and head[2] & 7 in (0, 2):
        return IdentifiedFile(path, "onnx")
    raise _not_a_model(path, head)


def _zip_kind(path: str) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise ModelError(
            f"{path} begins as a zip archive but is truncated or damaged: {error}",
            hint="copy it again, or save the model again",
        ) from error
    packed = Path(path).stat().st_size
    if unpacked > 16 * packed + 16 * 1024**2:  # torch itself packs nothing
        raise ModelError(
            f"{path} takes {format_bytes(packed)} and unpacks to {format_bytes(unpacked)}: no such "
            "file is read",
            hint=SAVE_AGAIN,
        )
    # torch puts everything into one folder, whatever its name; old TorchScript archives have none.
    inner = {name.partition("/")[2] if "/" in name else name for name in names} | set(names)
    if "archive_format" in inner:
        return "exported-program"
    if "serialized_exported_program.json" in inner:
        raise ModelError(
            f"{path} is a torch.export program in the form that torch wrote before 2.8",
            hint="load it with that torch and save its weights, or export it again with this one",
        )
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "torchscript"
    if "data.pkl" in inner:
        return "torch-zip"
    if any(name.endswith(".npy") for name in names):
        raise ModelError(
            f"{path} is a NumPy archive (.npz), expected a PyTorch model", hint=SAVE_AGAIN
        )
    raise ModelError(
        f"{path} is a zip archive without a PyTorch model in it (it holds "
        f"{', '.join(names[:3]) or 'nothing'})",
        hint=SAVE_AGAIN,
    )


def _is_safetensors(path: str, head: bytes) -> bool:
    """The format is a little-endian length, then that many bytes of JSON, then the tensors."""
    if len(head) < 10 or head[8:9] != b"{":
        return False
    (length,) = struct.unpack("<Q", head[:8])
    if length > _SAFETENSORS_HEADER_LIMIT:
        return False
    with open(path, "rb") as file:
        file.seek(8)
        header = file.read(length)
    try:
        complete = len(header) == length and isinstance(json.loads(header), dict)
    except (ValueError, RecursionError):
        complete = False
    if not complete:
        raise ModelError(
            f"{path} begins as a safetensors file but its header is truncated or damaged",
            hint="copy it again, or save the model again",
        )
    return True


def _not_a_model(path: str, head: bytes) -> ModelError:
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return UnsafeModelError(
            f"{path} is a bare Python pickle: reading it could run any code, and it is not what "
            "torch.save writes",
            hint=SAVE_AGAIN,
        )
    for magic, what in (
        (b"\x89HDF", "an HDF5 file (Keras)"),
        (b"\x1f\x8b", "a gzip file: unpack it first"),
        (b"#!", "a script"),
        (b"version https://git-lfs", "a Git LFS pointer: run git lfs pull"),
        (b"{", "JSON: of an index or a configuration give the folder that it lies in"),
    ):
        if head.startswith(magic):
            return ModelError(f"{path} is {what}; expected a PyTorch model", hint=SAVE_AGAIN)
    if head[4:8] == b"TFL3":
        return ModelError(
            f"{path} is a TensorFlow Lite file; expected a PyTorch model", hint=SAVE_AGAIN
        )
    return ModelError(
        f"{path} is not a model file: its first bytes are {head[:8].hex(' ')}",
        hint="expected a state dict (.pt .pth .safetensors), a torch.export program (.pt2), "
        "TorchScript or ONNX",
    )
