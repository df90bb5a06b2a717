"""Running a file in onnxruntime on this host: quiet, on the CPU, with a fixed number of threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from hwprune.errors import ArtifactError, HwpruneError, UsageError, VerificationError
from hwprune.kernels import session as native_session
from hwprune.verify.deadline import limited

Arrays = Sequence[NDArray[Any]]

_FATAL_ONLY = 4
_DTYPES: Mapping[str, str] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}


def open_session(path: str, *, threads: int = 1, kernels: bool = False) -> Any:
    """Return an ``onnxruntime.InferenceSession`` on the CPU.

    Args:
        path: the file.
        threads: of the pool within operators.
        kernels: register hwprune's operator library, which must be installed.

    Raises:
        ArtifactError: there is no such file.
        VerificationError: this host's onnxruntime does not load it, or refuses the library.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    try:
        source = loadable(path)
        with limited(path):
            if kernels:
                return _native(path, source, options)
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except HwpruneError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base below Exception
        absent = isinstance(error, FileNotFoundError) or type(error).__name__ == "NoSuchFile"
        if absent or "NO_SUCHFILE" in str(error):
            raise ArtifactError(f"there is no file {path}") from None
        raise VerificationError(
            f"{path} does not load in onnxruntime {ort.__version__}: {first_line(error)}",
            hint="the file may be damaged, or need a newer onnxruntime than this host has",
        ) from None


def loadable(path: str) -> str | bytes:
    """Return what onnxruntime can open: the path, or the file where the path is not UTF-8."""
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        return Path(path).read_bytes()


def _native(path: str, source: str | bytes, options: Any) -> Any:
    session = native_session(source, session_options=options, time_both=False)
    speed = session.hwprune
    if not speed.registered and not speed.dense:
        raise VerificationError(f"{path} does not run with kernels: {speed.reason}")
    return session


def run(session: Any, arrays: Arrays) -> list[NDArray[Any]]:
    """Run once; ``arrays`` are the inputs in the file's order.

    Raises:
        VerificationError: onnxruntime refuses the inputs or fails.
    """
    names = [entry.name for entry in session.get_inputs()]
    if len(names) != len(arrays):
        raise VerificationError(f"the file has {len(names)} inputs, {len(arrays)} were given")
    try:
        with limited("the file", "run"):
            return list(session.run(None, dict(zip(names, arrays, strict=True))))
    except Exception as error:
        raise VerificationError(f"onnxruntime fails to run the file: {first_line(error)}") from None


def _batch_axis(entry: Any) -> int:
    """Return the axis of an input that counts samples: the one called N, else the first."""
    return entry.shape.index("N") if "N" in entry.shape else 0


def batch_of(session: Any, arrays: Arrays) -> int:
    """Return how many samples the inputs hold."""
    if not arrays or not arrays[0].ndim:
        return 1
    return int(arrays[0].shape[_batch_axis(session.get_inputs()[0])])


def fixed_batch(session: Any) -> int | None:
    """Return the batch that the file's inputs are fixed to, None where it is free."""
    sizes = {entry.shape[_batch_axis(entry)] for entry in session.get_inputs() if entry.shape}
    fixed = [size for size in sizes if isinstance(size, int)]
    return fixed[0] if len(fixed) == 1 and len(sizes) == 1 else None


# What a size that is free beside the batch is measured with: height and width, a sequence.
_FREE_SIZE = 64


def random_inputs(session: Any, *, batch: int | None = None, seed: int = 0) -> list[NDArray[Any]]:
    """Return one array per input: standard normal floats, integers 0 and 1.

    Where the file looks rows up by its floats these are 0 and 1, too.

    Args:
        session: the file.
        batch: N; None is the batch that the file is fixed to, else 1.
        seed: of the generator.

    Raises:
        UsageError: the batch is fixed to another one.
        VerificationError: an input is of a type that is not made here, or an output is no tensor.
    """
    for entry in session.get_outputs():
        if not entry.type.startswith("tensor("):
            raise VerificationError(
                f"output {entry.name!r} is a {entry.type}, expected a plain tensor"
            )
    generator = np.random.default_rng(seed)
    fixed = fixed_batch(session)
    if fixed is not None and batch is not None and batch != fixed:
        raise UsageError(f"the file's batch is fixed to {fixed}, {batch} was asked for")
    count = fixed or batch or 1
    arrays = [_random(entry, count, generator) for entry in session.get_inputs()]
    if any(array.dtype.kind == "f" for array in arrays):
        one = [_random(entry, fixed or 1, generator) for entry in session.get_inputs()]
        try:
            # What takes these takes any that are drawn.
            run(session, [array * 1000 if array.dtype.kind == "f" else array for array in one])
        except VerificationError as error:
            if "out of data bounds" in error.message:
                return [(array > 0).astype(array.dtype) for array in arrays]
    return arrays


def _random(entry: Any, batch: int, generator: np.random.Generator) -> NDArray[Any]:
    dtype = _DTYPES.get(entry.type)
    if dtype is None:
        raise VerificationError(f"input {entry.name!r} is a {entry.type}, expected a plain tensor")
    shape = []
    for axis, size in enumerate(entry.shape):
        if isinstance(size, int):
            shape.append(size)
        else:
            shape.append(batch if axis == _batch_axis(entry) else _FREE_SIZE)
    if dtype.startswith("float"):
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def moved_by_ulp(array: NDArray[Any], side: int) -> NDArray[Any]:
    """Return floats moved to their neighbours above or below (``side`` 1 or -1), in turns."""
    if array.dtype.kind != "f":
        return array
    turns = np.where(np.arange(array.size).reshape(array.shape) % 2, side, -side)
    moved: NDArray[Any] = np.nextafter(array, (turns * np.inf).astype(array.dtype))
    return moved


def run_in_batches(session: Any, arrays: Arrays, *, batch: int) -> list[NDArray[Any]]:
    """Run all samples and join the outputs along their first axis.

    Args:
        session: the file; where its batch is fixed, that one is used and the last is filled up.
        arrays: one per input, samples first: (n, ...).
        batch: how many samples at once.

    Returns:
        one array per output; of a scalar, that of the first run.
    """
    step = fixed_batch(session) or batch
    total = len(arrays[0]) if arrays else 1
    parts: list[list[NDArray[Any]]] = []
    for start in range(0, total, step):
        chunk = [array[start : start + step] for array in arrays]
        count = min(step, total - start)
        if fixed_batch(session) and count < step:
            chunk = [np.concatenate([a, np.repeat(a[-1:], step - count, axis=0)]) for a in chunk]
        parts.append([_cut(output, step, count) for output in run(session, chunk)])
    return [
        np.concatenate(outputs) if outputs[0].ndim else outputs[0]
        for outputs in zip(*parts, strict=True)
    ]


def _cut(output: NDArray[Any], step: int, count: int) -> NDArray[Any]:
    return output[:count] if output.ndim and len(output) == step else output


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, at most 400 characters of it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:400]
