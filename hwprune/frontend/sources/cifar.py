"""CIFAR-10 and CIFAR-100 from the folders of their authors' Python archives.

The files are pickles, and reading a pickle can run code. So each file is read once, its MD5 is
compared with the published one, and only those bytes are unpickled, by a reader that knows nothing
but arrays.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import DataError
from hwprune.files import read_ordinary
from hwprune.frontend.sources.parts import (
    ArrayPart,
    DataSource,
    PartName,
    StoredPart,
    lfs_pointer,
)

CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_TRAIN_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
CIFAR10_TEST_MD5 = {"test_batch": "40351d587109b95175f43aff81a1287e"}
CIFAR100_FOLDER = "cifar-100-python"
CIFAR100_TRAIN_MD5 = {"train": "16019d7e3df5f24257cddd939b257f8d"}
CIFAR10_NAMES_MD5 = {"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"}
CIFAR100_TEST_MD5 = {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}
CIFAR100_NAMES_MD5 = {"meta": "7973b15100ade9c7d40fb424638fde48"}


def read_cifar10(folder: Path) -> DataSource:
    """Read CIFAR-10: 50,000 and 10,000 images (3, 32, 32), 10 classes.

    Args:
        folder: ``cifar-10-batches-py`` or the folder that holds it.

    Raises:
        DataError: a file is missing or is not the official one.
    """
    folder = _find(folder, CIFAR10_FOLDER, "data_batch_1")
    train, test = (_read(folder, md5, "labels") for md5 in (CIFAR10_TRAIN_MD5, CIFAR10_TEST_MD5))
    parts: dict[PartName, StoredPart] = {"train": train, "test": test}
    return DataSource(
        "cifar10", parts, 10, default_normalize="cifar10", augment="crop-flip",
        class_names=_names(folder, CIFAR10_NAMES_MD5, "label_names"),
    )  # fmt: skip


def read_cifar100(folder: Path) -> DataSource:
    """Read CIFAR-100 with its fine labels, 100 classes; all else is as in `read_cifar10`."""
    folder = _find(folder, CIFAR100_FOLDER, "train")
    both = (CIFAR100_TRAIN_MD5, CIFAR100_TEST_MD5)
    train, test = (_read(folder, md5, "fine_labels") for md5 in both)
    return DataSource(
        "cifar100", {"train": train, "test": test}, 100, augment="crop-flip",
        class_names=_names(folder, CIFAR100_NAMES_MD5, "fine_label_names"),
    )  # fmt: skip


def _names(folder: Path, files: dict[str, str], key: str) -> tuple[str, ...]:
    """Return the names of the classes, none where the archive's file of them is not there."""
    ((name, md5),) = files.items()
    if not (folder / name).is_file():
        return ()
    return tuple(map(str, unpickle_verified(folder / name, md5=md5)[key]))


def _find(folder: Path, name: str, member: str) -> Path:
    for candidate in (folder, folder / name):
        if (candidate / member).is_file():
            return candidate
    raise DataError(
        f"{folder}: there is no {name} folder with a file {member} here",
        hint=f"unpack the official Python archive, and name its folder {name} or the one around it",
    )


def _read(folder: Path, files: dict[str, str], label_key: str) -> ArrayPart:
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    for name, md5 in files.items():
        content = unpickle_verified(folder / name, md5=md5)
        images.append(content["data"].reshape(-1, 3, 32, 32))
        labels.append(np.asarray(content[label_key], dtype=np.int64))
    return ArrayPart(np.concatenate(images), np.concatenate(labels))


def unpickle_verified(path: Path, *, md5: str) -> dict[str, Any]:
    """Unpickle a file whose bytes have the given MD5.

    Raises:
        DataError: the file cannot be read, or is another one; then nothing of it was unpickled.
    """
    try:
        content = read_ordinary(path, most=2**30)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}",
            hint="unpack the official archive again",
        ) from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        reason = lfs_pointer(path) or (
            f"this is not the official file (MD5 {found}, expected {md5}); "
            "it was not opened, since reading a pickle can run code"
        )
        raise DataError(
            f"{path}: {reason}",
            hint="unpack the official archive again, or store your own images as npz:FILE",
        )
    result: dict[str, Any] = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    return result


class _ArraysOnly(pickle.Unpickler):
    """Knows what the official files need, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            # How Python 3 writes bytes for Python 2.
            ("_codecs", "encode"): codecs.encode,
        }
        try:
            return known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in this file") from None
