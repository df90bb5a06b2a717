"""A user's own data set: ``path/to/file.py:callable``, called once per part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import DataError
from hwprune.frontend.sources.parts import (
    PART_NAMES,
    DataSource,
    PartName,
    StoredPart,
    all_labelled,
    as_labels,
    as_targets,
    count_classes,
)
from hwprune.frontend.user_code import first_line, import_file, running
from hwprune.trees import tree_map

_HINT = (
    "the callable gets 'train', 'validation' or 'test' and returns an object with len() and "
    "[index], whose items are (input or tuple of inputs, label or None); for a part that does not "
    "exist it returns None"
)


def read_python_file(path: Path, attribute: str, *, classes: bool = True) -> DataSource:
    """Run a Python file of the user's and call one of its functions once per part.

    An item is ``(inputs, label)``: inputs is an array (or tensor) without the batch axis, or a
    tuple of them; label is a class index or None, and without ``classes`` any number, array, or
    dictionary or tuple of arrays. Labels are collected by walking through each part
    once; a data set with an attribute ``labels`` (one per sample, or None) is not walked through.
    Inputs are passed on as the callable gives them, except that uint8 becomes 0..1.

    Raises:
        DataError: the file or the callable fails, or what it returns is not a data set.
    """
    where = f"{path.name}:{attribute}"
    named = import_file(path, option="--data", error=DataError)
    if attribute not in named:
        raise DataError(
            f"{path}: there is no callable {attribute!r}; it has "
            f"{', '.join(sorted(named)) or 'none'}",
            hint="write --data path/to/file.py:callable",
        )
    parts: dict[PartName, StoredPart] = {}
    for name in PART_NAMES:
        with running(f"{where}({name!r}) failed", DataError, _HINT):
            dataset = named[attribute](name)
        if dataset is not None:
            with running(f"{where}({name!r}) gave a data set that fails", DataError, _HINT):
                parts[name] = _read_part(dataset, where=f"{where}({name!r})", classes=classes)
    if "train" not in parts:
        raise DataError(f"{where}('train') returned None", hint=_HINT)
    count = (count_classes if classes else all_labelled)(parts, where=where)
    return DataSource(
        where, parts, count if classes else None, default_normalize="none",
        class_names=_class_names(parts["train"], count) if classes else (),
    )  # fmt: skip


def _class_names(part: StoredPart, count: int | None) -> tuple[str, ...]:
    """Return what a data set says of its classes, as torchvision's do."""
    named: Any = getattr(part.dataset, "classes", None) if isinstance(part, DatasetPart) else None
    listed = isinstance(named, list | tuple) and len(named) == count
    return tuple(map(str, named)) if listed else ()


@dataclass(frozen=True, slots=True)
class DatasetPart:
    """Samples that a user's object gives one by one."""

    dataset: Any
    labels: Any
    where: str
    lazy: bool = True

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return one array per network input: (b, ...).

        Raises:
            DataError: an item fails, is not a pair, or its shapes differ from the others'.
        """
        rows = [_item(self.dataset, int(index), where=self.where)[0] for index in indices]
        try:
            return tuple(np.stack(column) for column in zip(*rows, strict=True))
        except ValueError as error:
            raise DataError(
                f"{self.where}: samples {indices.min()} to {indices.max()} differ in shape or in "
                f"their number of inputs: {error}",
                hint="resize or pad inside the data set, so that samples can be stacked",
            ) from error


def _read_part(dataset: Any, *, where: str, classes: bool) -> DatasetPart:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{where} returned {type(dataset).__name__}, which has no len() or no [index]",
            hint=_HINT,
        )
    if len(dataset) == 0:
        raise DataError(f"{where} has no samples", hint=_HINT)
    given = getattr(dataset, "labels", dataset)
    if given is not dataset:
        found = None if given is None else tree_map(_array, given) if not classes else _array(given)
        _item(dataset, 0, where=where)
    else:
        collected = [_item(dataset, index, where=where)[1] for index in range(len(dataset))]
        absent = sum(label is None for label in collected)
        if absent not in (0, len(collected)):
            raise DataError(
                f"{where}: {absent} of {len(collected)} samples have no label",
                hint="give every sample a label, or none",
            )
        found = None if absent else np.asarray(collected) if classes else _stacked(collected, where)
    labels = found
    if found is not None:
        check = as_labels if classes else as_targets
        labels = check(found, samples=len(dataset), where=where)
    return DatasetPart(dataset, labels, where)


def _stacked(collected: list[Any], where: str) -> Any:
    """Return labels of all samples as one tree of arrays."""
    try:
        return tree_map(lambda *each: np.stack([_array(one) for one in each]), *collected)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{where}: labels differ in shape or in their parts: {first_line(error)}",
            hint="pad them inside the data set to one shape, such as with -1",
        ) from error


def _item(dataset: Any, index: int, *, where: str) -> tuple[tuple[NDArray[Any], ...], Any]:
    with running(f"{where}: sample {index} failed", DataError, _HINT):
        item = dataset[index]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise DataError(
            f"{where}: sample {index} is {type(item).__name__}; expected a pair (input, label)",
            hint=_HINT,
        )
    inputs, label = item
    with running(f"{where}: sample {index} cannot be turned into arrays", DataError, _HINT):
        columns = tuple(map(_array, inputs if isinstance(inputs, (tuple, list)) else (inputs,)))
        if getattr(label, "ndim", None) == 0 and hasattr(label, "item"):
            label = label.item()  # of a tensor or array; the rest is for `as_labels` to judge
    for column in columns:
        if column.dtype.kind not in "biuf":
            raise DataError(
                f"{where}: sample {index} has an input of type {column.dtype}; expected numbers",
                hint="turn images and texts into arrays or tensors inside the data set",
            )
    return columns, label


def _array(value: Any) -> NDArray[Any]:
    """Return the values as NumPy holds them: tensors leave their graph, device and bfloat16."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if "float" in str(value.dtype):
            value = value.float()
    return np.asarray(value)
