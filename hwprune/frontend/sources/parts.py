"""What a data source hands to `load_data`: its parts, before splitting and normalising."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import DataError
from hwprune.files import POINTER, is_pointer
from hwprune.trees import leaves, tree_map

PartName = Literal["train", "validation", "test"]
PART_NAMES: tuple[PartName, ...] = ("train", "validation", "test")


class StoredPart(Protocol):
    """Samples of one part, values as stored."""

    @property
    def labels(self) -> Any:
        """(n,) class indices, or any tree of arrays, samples first; or None."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def read(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return one array per network input for these samples: (b, ...), values as stored."""


@dataclass(frozen=True, slots=True)
class ArrayPart:
    """Samples that are in memory.

    Attributes:
        inputs: (n, ...) in the type they were stored in, so that images stay one byte a pixel; or
            several such arrays.
        labels: (n,) class indices, or any tree of arrays, samples first; or None.
    """

    inputs: NDArray[Any] | tuple[NDArray[Any], ...]
    labels: Any

    def __len__(self) -> int:
        return len(self.inputs[0] if isinstance(self.inputs, tuple) else self.inputs)

    def read(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return the samples at ``indices``: (b, ...) each."""
        several = self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)
        return tuple(each[indices] for each in several)


@dataclass(frozen=True, slots=True)
class DataSource:
    """A data source as read.

    Attributes:
        name: its name without a path.
        parts: the parts that it has; ``train`` is always there.
        classes: the number of classes, None without labels.
        default_normalize: what applies without ``?normalize=``: ``own`` (statistics of train),
            or another value of that option.
        full_scale: the stored value that stands for 1.0 (16 for digits); None: 255 for uint8, else
        1.
        augment: what fine-tuning may do to an input.
        notes: sentences for the report.
        class_names: in the order of the labels; empty where the source does not say.
        resize: how images come to their size, in words; empty where they have it.
    """

    name: str
    parts: Mapping[PartName, StoredPart]
    classes: int | None
    default_normalize: str = "own"
    full_scale: float | None = None
    augment: Literal["none", "shift", "crop-flip"] = "none"
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    resize: str = ""


def lfs_pointer(path: Path) -> str | None:
    """Return what to say of a file that only stands for one that Git LFS holds, else None."""
    try:
        with path.open("rb") as file:
            return POINTER if is_pointer(file.read(64)) else None
    except OSError:
        return None


def as_labels(values: NDArray[Any], *, samples: int, where: str) -> NDArray[np.int64]:
    """Check class indices and return them as (n,) int64.

    Args:
        values: what the source holds as labels.
        samples: how many samples they must belong to.
        where: what to call them in an error.

    Raises:
        DataError: not integers, not one per sample, or negative.
    """
    problem = ""
    if values.ndim == 2 and values.shape[1] > 1:
        problem = f"have the shape {values.shape}; expected one class index per sample"
        hint = "turn one-hot or soft labels into class indices with .argmax(axis=1)"
    elif values.ndim != 1:
        problem = f"have the shape {values.shape}; expected ({samples},)"
        hint = "store one class index per sample, as a one-dimensional array"
    elif values.dtype.kind not in "iu":
        problem = f"have the type {values.dtype}; expected integers 0, 1, 2, ..."
        hint = (
            "store class indices, such as y.astype('int64'); labels of another kind need --task,"
            " such as --task regression"
        )
    if problem:
        raise DataError(f"{where}: labels {problem}", hint=hint)
    if len(values) != samples:
        raise DataError(
            f"{where}: {len(values)} labels for {samples} samples",
            hint="store exactly one label per sample",
        )
    if values.size and values.max() > np.iinfo(np.int64).max:
        raise DataError(
            f"{where}: label {values.max()} is out of range", hint="count classes from 0"
        )
    labels = values.astype(np.int64)
    if labels.size and labels.min() < 0:
        first = int(np.flatnonzero(labels < 0)[0])
        raise DataError(
            f"{where}: label {labels[first]} of sample {first} is negative; expected 0, 1, 2, ...",
            hint="count classes from 0, and leave out samples that have no class",
        )
    return labels


def as_targets(values: Any, *, samples: int, where: str) -> Any:
    """Check labels of another kind: arrays of numbers, samples first; floats become float32.

    Raises:
        DataError: not numbers, of another length, or not finite.
    """

    def checked(path: str, array: NDArray[Any]) -> NDArray[Any]:
        at = f"{where}: labels {path}".rstrip()
        if array.dtype.kind not in "biuf":
            raise DataError(f"{at} have the type {array.dtype}; expected numbers")
        if not array.ndim or len(array) != samples:
            size = len(array) if array.ndim else 0
            raise DataError(
                f"{at}: {size} for {samples} samples", hint="store exactly one label per sample"
            )
        check_finite(array, where=at)
        return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)

    found = [checked(path, np.asarray(leaf)) for path, leaf in leaves(values)]
    return tree_map(lambda _: found.pop(0), values)


def count_classes(parts: Mapping[PartName, StoredPart], *, where: str) -> int | None:
    """Return the number of classes that train has, None where no part has labels.

    Raises:
        DataError: only some parts have labels, or one has a class that train does not reach.
    """
    if not all_labelled(parts, where=where):
        return None
    train = parts["train"].labels
    assert train is not None  # it is in `labelled`
    classes = int(train.max()) + 1 if train.size else 0
    for name, part in parts.items():
        labels = part.labels
        if labels is not None and labels.size and labels.max() >= classes:
            sample = int(labels.argmax())
            raise DataError(
                f"{where}: label {labels[sample]} of sample {sample} in {name} is out of range; "
                f"train has the classes 0 to {classes - 1}",
                hint="check that all parts use the same class numbers",
            )
    return classes


def all_labelled(parts: Mapping[PartName, StoredPart], *, where: str) -> bool:
    """Return whether the parts have labels.

    Raises:
        DataError: only some have.
    """
    labelled = {name for name, part in parts.items() if part.labels is not None}
    if labelled and labelled != set(parts):
        missing = ", ".join(sorted(set(parts) - labelled))
        raise DataError(
            f"{where}: {missing} has no labels, but {', '.join(sorted(labelled))} has",
            hint="give labels for every part, or for none",
        )
    return bool(labelled)


def check_finite(values: NDArray[Any], *, where: str) -> None:
    """Refuse NaN and infinite inputs.

    Raises:
        DataError: names the first sample that holds one.
    """
    if values.dtype.kind != "f":
        return
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        raise DataError(
            f"{where}: sample {int(bad.argmax())} holds NaN or infinite values "
            f"({int(bad.sum())} of {len(values)} samples do)",
            hint="clean the inputs; training and verification need finite numbers",
        )
