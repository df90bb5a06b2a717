"""A user's own data set: ``path/to/file.py:callable``, called once per part."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import DataError
from hwprune.frontend.sources.parts import (
    PART_NAMES,
    Part,
    PartName,
    Source,
    as_labels,
    count_classes,
)

_HINT = (
    "the callable gets 'train', 'validation' or 'test' and returns an object with len() and "
    "[index], whose items are (input or tuple of inputs, label or None); for a part that does not "
    "exist it returns None"
)


def read_python_file(path: Path, attribute: str) -> Source:
    """Run a Python file of the user's and call one of its functions once per part.

    An item is ``(inputs, label)``: inputs is an array (or tensor) without the batch axis, or a
    tuple of them; label is a class index or None. Labels are collected by walking through each part
    once; a data set with an attribute ``labels`` (one per sample, or None) is not walked through.
    Inputs are passed on as the callable gives them, except that uint8 becomes 0..1.

    Raises:
        DataError: the file or the callable fails, or what it returns is not a data set.
    """
    where = f"{path.name}:{attribute}"
    function = _import(path, attribute)
    parts: dict[PartName, Part] = {}
    for name in PART_NAMES:
        try:
            dataset = function(name)
        except Exception as error:
            raise DataError(
                f"{where}({name!r}) failed: {type(error).__name__}: {error}", hint=_HINT
            ) from error
        if dataset is not None:
            parts[name] = _read_part(dataset, where=f"{where}({name!r})")
    if "train" not in parts:
        raise DataError(f"{where}('train') returned None", hint=_HINT)
    return Source(where, parts, count_classes(parts, where=where), default_normalize="none")


@dataclass(frozen=True, slots=True)
class DatasetPart:
    """Samples that a user's object gives one by one."""

    dataset: Any
    labels: NDArray[np.int64] | None
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


def _import(path: Path, attribute: str) -> Callable[[str], Any]:
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file", hint="write --data path/to/file.py:callable"
        )
    # Under a name of its own, kept in sys.modules: dataclasses and pickling look there.
    name = f"hwprune_user_data_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path}: cannot be imported", hint="its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise DataError(
            f"{path}: running it failed: {type(error).__name__}: {error}",
            hint="run the file by itself with Python to see the whole traceback",
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        offered = sorted(key for key, value in vars(module).items() if callable(value))
        raise DataError(
            f"{path}: there is no callable {attribute!r}; it has {', '.join(offered) or 'none'}",
            hint="write --data path/to/file.py:callable",
        )
    return function  # type: ignore[no-any-return]  # callable() cannot know its signature


def _read_part(dataset: Any, *, where: str) -> DatasetPart:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{where} returned {type(dataset).__name__}, which has no len() or no [index]",
            hint=_HINT,
        )
    if len(dataset) == 0:
        raise DataError(f"{where} has no samples", hint=_HINT)
    given = getattr(dataset, "labels", dataset)
    if given is not dataset:
        found = None if given is None else np.asarray(given)
        _item(dataset, 0, where=where)
    else:
        collected = [_item(dataset, index, where=where)[1] for index in range(len(dataset))]
        absent = sum(label is None for label in collected)
        if absent not in (0, len(collected)):
            raise DataError(
                f"{where}: {absent} of {len(collected)} samples have no label",
                hint="give every sample a label, or none",
            )
        found = None if absent else np.asarray(collected)
    labels = None if found is None else as_labels(found, samples=len(dataset), where=where)
    return DatasetPart(dataset, labels, where)


def _item(dataset: Any, index: int, *, where: str) -> tuple[tuple[NDArray[Any], ...], Any]:
    try:
        item = dataset[index]
    except Exception as error:
        raise DataError(
            f"{where}: sample {index} failed: {type(error).__name__}: {error}", hint=_HINT
        ) from error
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise DataError(
            f"{where}: sample {index} is {type(item).__name__}; expected a pair (input, label)",
            hint=_HINT,
        )
    inputs, label = item
    columns = tuple(
        np.asarray(value) for value in (inputs if isinstance(inputs, (tuple, list)) else (inputs,))
    )
    for column in columns:
        if column.dtype.kind not in "biuf":
            raise DataError(
                f"{where}: sample {index} has an input of type {column.dtype}; expected numbers",
                hint="turn images and texts into arrays or tensors inside the data set",
            )
    return columns, None if label is None else _plain(label)


def _plain(label: Any) -> Any:
    """Return a number for a 0-d tensor or array; the rest as it is, for `as_labels` to judge."""
    return label.item() if getattr(label, "ndim", None) == 0 and hasattr(label, "item") else label
