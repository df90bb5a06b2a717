"""Sources that are plain arrays: scikit-learn's digits, and a user's .npz file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.errors import DataError
from hwprune.frontend.sources.parts import (
    ArrayPart,
    DataSource,
    PartName,
    StoredPart,
    all_labelled,
    as_labels,
    as_targets,
    check_finite,
    count_classes,
    lfs_pointer,
)
from hwprune.units import format_bytes

_SUFFIXES: dict[PartName, str] = {"train": "", "validation": "_val", "test": "_test"}
_NPZ_HINT = (
    "write it with numpy.savez(FILE, x=inputs, y=labels); x_val, y_val, x_test, y_test are optional"
)
# Masks pack well; beyond this, and above a gibibyte, an archive was made to fill the memory.
_MOST_PACKED = 64


def read_digits() -> DataSource:
    """Read the 1,797 handwritten digits that scikit-learn ships: (n, 1, 8, 8), values 0..16.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "digits: scikit-learn, which ships these images, is not installed",
            hint="pip install '.[compile]' in the checkout of hwprune",
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    train = ArrayPart(
        pixels.reshape(-1, 1, 8, 8).astype(np.uint8), np.asarray(labels, dtype=np.int64)
    )
    names = tuple("0123456789")
    return DataSource(
        "digits", {"train": train}, 10, full_scale=16.0, augment="shift", class_names=names
    )


def read_npz(path: Path, *, classes: bool = True) -> DataSource:
    """Read a .npz file: x (n, ...), y (n,), and optionally x_val, y_val, x_test, y_test.

    Several inputs are x.NAME each, in the file's order. Without ``classes`` labels are any array,
    or a dictionary of what y.NAME holds.

    Nothing in the file is unpickled. Values stay in their stored type; float64 becomes float32.

    Raises:
        DataError: not a readable .npz file, or its arrays do not fit one another.
    """
    where = path.name
    stored, notes = _load(path)
    parts: dict[PartName, StoredPart] = {}
    for name, suffix in _SUFFIXES.items():
        x_key, y_key = "x" + suffix, "y" + suffix
        xs, ys = _under(stored, x_key), _under(stored, y_key)
        if not xs:
            if ys:
                raise DataError(f"{where}: {y_key} is there, but not {x_key}", hint=_NPZ_HINT)
            continue
        inputs = tuple(_as_inputs(xs[key], where=f"{where}: {key}") for key in xs)
        samples = len(inputs[0])
        for key, array in zip(xs, inputs, strict=True):
            whole = stored.get("x" + key.removeprefix(x_key))
            if whole is None or array.shape[1:] != whole.shape[1:]:
                raise DataError(
                    f"{where}: samples of {key} have the shape {array.shape[1:]}, "
                    f"those of x {'are not there' if whole is None else whole.shape[1:]}",
                    hint="give every part the same shape per sample",
                )
            if len(array) != samples:
                raise DataError(f"{where}: {key} has {len(array)} samples, others {samples}")
        tree: Any = {key.partition(".")[2]: array for key, array in ys.items()}
        labels: Any = ys.get(y_key, tree or None)
        if labels is not None:
            at = f"{where}: {y_key}"
            if classes and isinstance(labels, dict):
                raise DataError(f"{at} has several parts", hint="labels of that kind need --task")
            check = as_labels if classes else as_targets
            labels = check(labels, samples=samples, where=at)
        parts[name] = ArrayPart(inputs[0] if len(inputs) == 1 else inputs, labels)
    count = (count_classes if classes else all_labelled)(parts, where=where)
    return DataSource("npz", parts, count if classes else None, notes=notes)


def _under(stored: dict[str, NDArray[Any]], key: str) -> dict[str, NDArray[Any]]:
    """Return the array of a name, or those of ``name.PART``."""
    return {k: array for k, array in stored.items() if k == key or k.startswith(key + ".")}


def _load(path: Path) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file", hint=_NPZ_HINT)
    known = {letter + suffix for letter in "xy" for suffix in _SUFFIXES.values()}
    try:
        # NumPy would read a lone .npy or a pickle by this name too; only a zip archive is a .npz.
        if not zipfile.is_zipfile(path):
            reason = lfs_pointer(path) or "this is not a .npz file"
            raise DataError(f"{path}: {reason}", hint=_NPZ_HINT)
        with zipfile.ZipFile(path) as members:
            unpacked = sum(member.file_size for member in members.infolist())
        if unpacked > _MOST_PACKED * path.stat().st_size + 2**30:
            raise DataError(
                f"{path}: unpacks to {format_bytes(unpacked)}: no such file is read",
                hint="write it with numpy.savez, which packs nothing",
            )
        with np.load(path, allow_pickle=False) as archive:
            names = {key: key.partition(".")[0] for key in archive.files}
            if "x" not in names.values():
                held = ", ".join(archive.files[:20]) or "nothing"
                raise DataError(
                    f"{path.name}: there is no array x; the file holds {held}", hint=_NPZ_HINT
                )
            ignored = sorted(key for key, name in names.items() if name not in known)
            arrays = {key: archive[key] for key, name in names.items() if name in known}
    except MemoryError:
        raise DataError(
            f"{path}: its arrays do not fit into memory", hint="give fewer samples"
        ) from None
    except (ValueError, OSError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile) as e:
        if "allow_pickle" in str(e):
            raise DataError(
                f"{path}: an array holds Python objects, which only unpickling could read; "
                "that would run code stored in the file",
                hint="store arrays of one number type, all samples of one shape",
            ) from None
        raise DataError(f"{path}: cannot be read: {e}", hint=_NPZ_HINT) from e
    for key, value in arrays.items():
        if not isinstance(value, np.ndarray):
            raise DataError(f"{path}: {key} is not an array", hint=_NPZ_HINT)
    notes = (f"keys that hwprune does not use: {', '.join(ignored)}",) if ignored else ()
    return arrays, notes


def _as_inputs(values: NDArray[Any], *, where: str) -> NDArray[Any]:
    if values.dtype.kind not in "biuf":
        raise DataError(
            f"{where} has the type {values.dtype}; expected numbers",
            hint="store the inputs as uint8 images, floats or integers",
        )
    if values.ndim < 2 or 0 in values.shape:
        raise DataError(
            f"{where} has the shape {values.shape}; expected (samples, ...), none of them zero",
            hint="the first axis counts samples; images are (samples, channels, height, width)",
        )
    check_finite(values, where=where)
    if values.dtype.kind == "f" and values.dtype != np.float32:
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        check_finite(values, where=f"{where} (as float32)")
    return values
