"""Fashion-MNIST (and MNIST, which has the same form) from its idx files, packed or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import DataError
from hwprune.files import read_ordinary
from hwprune.frontend.sources.parts import ArrayPart, DataSource, as_labels, lfs_pointer

_FOLDERS = ("", "raw", "FashionMNIST/raw")
_MOST = 2**28  # five times the official images
_HINT = (
    "name the folder that holds train-images-idx3-ubyte, train-labels-idx1-ubyte, "
    "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (or the same as .gz)"
)


def read_fashion_mnist(folder: Path) -> DataSource:
    """Read Fashion-MNIST: 60,000 and 10,000 images (1, 28, 28), 10 classes.

    Args:
        folder: the idx files' folder, or the one that holds ``raw`` or ``FashionMNIST/raw``.

    Raises:
        DataError: a file is missing, cut short, or not an idx file.
    """
    found = next((path for sub in _FOLDERS if _has(path := folder / sub, "train-images")), None)
    if found is None:
        raise DataError(f"{folder}: there is no Fashion-MNIST here", hint=_HINT)
    train = _part(found, "train")
    return DataSource(
        "fashion-mnist", {"train": train, "test": _part(found, "t10k")}, 10, augment="shift"
    )


def _has(folder: Path, stem: str) -> bool:
    return any((folder / f"{stem}-idx3-ubyte{end}").is_file() for end in ("", ".gz"))


def _part(folder: Path, name: str) -> ArrayPart:
    images = _read_idx(folder / f"{name}-images-idx3-ubyte", axes=3)
    labels = _read_idx(folder / f"{name}-labels-idx1-ubyte", axes=1)
    checked = as_labels(labels, samples=len(images), where=f"{folder}: {name}")
    if checked.size and checked.max() > 9:
        raise DataError(
            f"{folder}: {name}: label {checked.max()} is out of range; expected 0 to 9", hint=_HINT
        )
    return ArrayPart(images[:, np.newaxis], checked)


def _read_idx(path: Path, *, axes: int) -> NDArray[np.uint8]:
    """Read an idx file: 0, 0, 8 (bytes), number of axes; sizes as big-endian u4; values."""
    packed = path.with_name(path.name + ".gz")
    try:
        if path.is_file():
            content = read_ordinary(path, most=_MOST)
        else:
            with gzip.open(packed) as stream:
                content = stream.read(_MOST + 1)
            if len(content) > _MOST:
                raise OSError(f"it unpacks to more than {_MOST >> 20} MiB")
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such file, and no {packed.name}", hint=_HINT
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}", hint=_HINT) from error
    header = 4 + 4 * axes
    if len(content) < header or content[:4] != bytes((0, 0, 8, axes)):
        reason = lfs_pointer(path) or f"this is not an idx file of bytes with {axes} axes"
        raise DataError(f"{path}: {reason}", hint=_HINT)
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], dtype=">u4"))
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path}: {len(content)} bytes; its header {shape} asks for {expected}",
            hint="the file was cut short or changed: fetch it again",
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
