"""onnxruntime sessions that run packed layers with hwprune's kernels.

    session = hwprune.session("model.onnx", threads=1)
    session.run(None, {"x": image})
    session.hwprune.registered       # the operators that run kernels
    session.hwprune.reason           # None, or why none does

The same file runs without the kernels, by the functions that it carries.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hwprune.errors import ArtifactError, KernelsError
from hwprune.kernels import library, timed_choice
from hwprune.kernels.dense_path import dense_fallback
from hwprune.kernels.model_file import ModelFile

CPU = "CPUExecutionProvider"
_NO_LAYER = "the file has no packed layer that a kernel is for"
# A provider is a name, or a name with its options.
Provider = str | tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Speed:
    """Which of its two speeds a session runs a file at.

    Attributes:
        registered: the operators that run kernels.
        reason: why none does, or None.
        dense: names of the nodes that were left to onnxruntime's own operators, being too dense to
            gain from a kernel.
        dense_bytes: what their weights take there, beside what the kernels count.
    """

    registered: tuple[str, ...]
    reason: str | None
    dense: tuple[str, ...] = ()
    dense_bytes: int = 0


# What was registered with which options: the same names twice are an error in onnxruntime.
_registered: weakref.WeakKeyDictionary[Any, frozenset[str] | None] = weakref.WeakKeyDictionary()


def register_kernels(session_options: Any, path_or_bytes: str | Path | bytes | None = None) -> None:
    """Register the kernels with an ``onnxruntime.SessionOptions``, for sessions on the CPU.

    Set ``intra_op_num_threads`` before: the kernels divide their work by it. Options can be used
    for many sessions, and registering twice changes nothing.

    Args:
        session_options: changed.
        path_or_bytes: the artifact for whose operators there shall be kernels. None: for all that
            are stored sparse, thousands, which makes each session half a second later.

    Raises:
        ArtifactError: the file cannot be read.
        KernelsError: this installation has no library, onnxruntime refuses it, or other operators
            were registered with these options before.
    """
    library.loaded()
    _register(session_options, None if path_or_bytes is None else _known(_read(path_or_bytes)))


def _register(options: Any, names: Sequence[str] | None) -> None:
    if names is not None and not names:
        return
    if options in _registered:
        before = _registered[options]
        if before is None or (names is not None and before.issuperset(names)):
            return
        raise KernelsError(
            "these session options have the kernels of another file registered",
            hint="Use other options, or register_kernels(options) without a file before.",
        )
    library.choose(names, int(options.intra_op_num_threads))
    try:
        options.register_custom_ops_library(str(library.path()))
    # onnxruntime's exceptions have no common base that is public.
    except Exception as error:
        raise KernelsError(
            f"onnxruntime refuses hwprune's kernels: {error}",
            hint="hwprune.session(..., kernels=False) runs the file without them, at dense speed.",
        ) from error
    _registered[options] = None if names is None else frozenset(names)


def session(
    path_or_bytes: str | Path | bytes,
    *,
    providers: Sequence[Provider] | None = None,
    session_options: Any = None,
    threads: int | None = None,
    kernels: bool | Literal["all"] = True,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    time_both: bool | None = None,
) -> Any:
    """Return an ``onnxruntime.InferenceSession`` that runs packed layers with kernels.

    Where there is no library, where the first provider is not the CPU, or where the file has no
    packed layer, the session runs the functions of the file; its attribute ``hwprune`` (a
    ``Speed``) says so. Arrays that are malformed are an error and never a reason to do so.

    Args:
        path_or_bytes: the artifact.
        providers: as onnxruntime takes them; the CPU by default.
        session_options: an ``onnxruntime.SessionOptions``; changed.
        threads: onnxruntime's ``intra_op_num_threads``; None leaves the options as they are.
        kernels: False for stock speed. True leaves layers that are too dense to gain from a kernel
            to onnxruntime's own dense operators; "all" does not.
        input_shapes: what inputs will mostly be like: the first axis, the samples of a run, counts
            in that choice; 1 by default.
        time_both: whether the first session of a file on this machine runs it with kernels and
            without, for 0.3 seconds each or three runs, and this and later ones use what was faster
            (``timed_choice.py``). None: where limits were not timed, which is all but x86-64.

    Raises:
        ArtifactError: the file cannot be read.
        KernelsError: onnxruntime refuses the kernels.
    """
    import onnxruntime

    chosen = [CPU] if providers is None else list(providers)
    options = onnxruntime.SessionOptions() if session_options is None else session_options
    if threads is not None:
        options.intra_op_num_threads = threads
    reason = _why_none(kernels, chosen)
    model = None if reason else _read(path_or_bytes)
    names = _known(model)
    speed = Speed(names, reason if names or reason else _NO_LAYER)
    dense = None
    source = str(path_or_bytes) if isinstance(path_or_bytes, Path) else path_or_bytes
    made_of = source
    # Options that have kernels registered have them for every layer.
    if model is not None and kernels is True and options not in _registered:
        # Of its own onnxruntime takes as many threads as there are cores.
        count = int(options.intra_op_num_threads) or os.cpu_count() or 1
        dense = dense_fallback(model, names, input_shapes or {}, count)
        if dense is not None:
            names = tuple(name for name in names if name not in dense.operators)
            reason = None if names else "onnxruntime's dense operators are faster for every layer"
            speed = Speed(names, reason, dense.layers, dense.weight_bytes)
            made_of = dense.model
        if names and (timed_choice.needed() if time_both is None else time_both):
            slower = _slower(source, made_of, names, count, chosen, input_shapes or {})
            if slower is not None:
                names, speed, dense, made_of = (), Speed((), slower), None, source
    _register(options, names)
    made = onnxruntime.InferenceSession(made_of, options, providers=chosen)
    # It keeps the bytes it was made of, for a session with other providers: those of the file
    # serve as well, and hold no dense weights.
    if dense is not None and hasattr(made, "_model_bytes") and hasattr(made, "_model_path"):
        is_file = not isinstance(source, bytes)
        made._model_path, made._model_bytes = (source, None) if is_file else (None, source)
    made.hwprune = speed
    return made


def _slower(
    source: str | bytes,
    with_kernels: str | bytes,
    names: tuple[str, ...],
    threads: int,
    providers: Sequence[Provider],
    shapes: Mapping[str, Sequence[int]],
) -> str | None:
    """Return that kernels are slower than stock onnxruntime for this file here, or None."""
    import onnxruntime

    def make(model: str | bytes, operators: tuple[str, ...]) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        _register(options, operators)
        return onnxruntime.InferenceSession(model, options, providers=providers)

    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    times = timed_choice.times(
        content, threads, shapes, lambda: make(with_kernels, names), lambda: make(source, ())
    )
    if times is None or times.kernels_win:
        return None
    return (
        f"stock onnxruntime was faster when both were timed on this machine: {times.stock_ms:.3g} "
        f"ms a run, with kernels {times.kernels_ms:.3g} ms (time_both=False runs kernels)"
    )


def operator_names(path_or_bytes: str | Path | bytes) -> tuple[str, ...]:
    """Return which operators of a file kernels are for, sorted; none where it is damaged.

    Raises:
        ArtifactError: the file cannot be read.
    """
    model = _read(path_or_bytes)
    return () if model is None else model.operators


def _read(source: str | Path | bytes) -> ModelFile | None:
    """Return a file's model, of which no more is read than is looked at; None if it is damaged."""
    data: bytes | mmap.mmap
    try:
        if isinstance(source, bytes):
            data = source
        else:
            with Path(source).open("rb") as file:
                # An empty file cannot be mapped.
                size = file.seek(0, 2)
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        return ModelFile(data)
    except OSError as error:
        raise ArtifactError(f"{source!s} cannot be read: {error.strerror}") from None
    except ValueError:
        return None


def _known(model: ModelFile | None) -> tuple[str, ...]:
    return () if model is None else tuple(filter(library.knows, model.operators))


def _why_none(kernels: bool | str, providers: Sequence[Provider]) -> str | None:
    """Return why no session can have kernels here, or None."""
    if kernels is False:
        return "kernels=False"
    first = providers[0] if providers else CPU
    if (first if isinstance(first, str) else first[0]) != CPU:
        return f"the first provider is {first}, and the kernels are for {CPU}"
    try:
        library.loaded()
    except KernelsError as error:
        return error.message
    return None
