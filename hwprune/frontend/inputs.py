"""What the network reads: ``--input NAME:SHAPE:DTYPE``, and what is assumed without it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hwprune.errors import ModelError, UsageError
from hwprune.ir import TensorSpec

DTYPES = ("float32", "int64", "int32", "uint8", "int8", "bool")

_EXAMPLE = "write it like x:Nx3x224x224:float32; N is the batch"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# A dynamic size beside the batch, with the size that the network is tried with: H, or H=96.
_DYNAMIC = re.compile(r"(?P<name>(?!N$|N=)[A-Z][A-Z0-9_]*)(?:=(?P<size>\d+))?")
_TRIED = "64"
# A sample of a gibibyte in float32.
_LARGEST = 2**28


def parse_input(text: str) -> TensorSpec:
    """Parse ``x:Nx3x224x224:float32`` or ``x:N,3,H,W=96``; float32 where no type is given.

    Raises:
        UsageError: a part is missing or cannot be used; says which.
    """
    parts = [part.strip() for part in text.split(":")]
    if len(parts) not in (2, 3):
        raise UsageError(f"--input {text!r} is not NAME:SHAPE:DTYPE", hint=_EXAMPLE)
    name, shape_text = parts[:2]
    dtype = parts[2] if len(parts) == 3 else "float32"
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"--input {text!r}: {name!r} is not a name of letters, digits and _", hint=_EXAMPLE
        )
    if dtype not in DTYPES:
        raise UsageError(
            f"--input {text!r}: {dtype!r} is not an input type", hint=f"use {', '.join(DTYPES)}"
        )
    parts = [part.strip() for part in re.split(r"[x,]", shape_text)]
    dynamic = [_DYNAMIC.fullmatch(part) for part in parts]
    free = tuple((axis, match["name"]) for axis, match in enumerate(dynamic) if match)
    shape = tuple(
        _size(text, (match["size"] or _TRIED) if match else part)
        for part, match in zip(parts, dynamic, strict=True)
    )
    if shape.count(None) > 1:
        raise UsageError(
            f"--input {text!r}: N, the batch, can be one dimension only", hint=_EXAMPLE
        )
    return TensorSpec(name, shape, dtype, free)


def _size(text: str, part: str) -> int | None:
    if part in ("N", "n"):
        return None
    if not part.isascii() or not part.isdigit() or int(part) == 0:
        raise UsageError(
            f"--input {text!r}: {part!r} is not a size; expected N or a whole number above 0",
            hint=_EXAMPLE,
        )
    return int(part)


@dataclass(frozen=True, slots=True)
class InputSources:
    """Everything that may say what the network reads, strongest first.

    Attributes:
        given: the user's own --input.
        known: what the architecture or the exported program fixes.
        sample_shapes: what the data set holds, per input and without the batch.
        default: what a collection's networks usually read.
        names: the forward method's parameters, as far as they are known.
    """

    given: tuple[TensorSpec, ...] = ()
    known: tuple[TensorSpec, ...] = ()
    sample_shapes: tuple[tuple[int, ...], ...] = ()
    default: tuple[TensorSpec, ...] = ()
    names: tuple[str, ...] = ()


def choose_inputs(
    sources: InputSources, *, fixed_batch: bool
) -> tuple[tuple[TensorSpec, ...], tuple[str, ...]]:
    """Return the network's inputs and the notes on how they came about.

    Raises:
        UsageError: the same name twice.
        ModelError: nothing says what the network reads, or the data's samples have another shape.
    """
    notes: tuple[str, ...] = ()
    if sources.given:
        inputs = _in_order(sources.given, sources.names)
        if not any(spec.shape and spec.shape[0] is not None for spec in sources.known):
            inputs = tuple(_free_batch(spec) for spec in inputs)
    elif sources.known:
        inputs = sources.known
    elif sources.sample_shapes:
        inputs = tuple(
            TensorSpec(name, (None, *shape), "float32")
            for name, shape in zip(
                _names(sources.names, len(sources.sample_shapes)),
                sources.sample_shapes,
                strict=True,
            )
        )
        notes = (f"input shape taken from the data: {describe(inputs)}",)
    elif sources.default:
        inputs = sources.default
        notes = (f"input shape assumed: {describe(inputs)} (--input gives another)",)
    else:
        raise ModelError(
            "the shape of the network's input is not known: its file and architecture do not say",
            hint="add --input NAME:SHAPE:DTYPE, such as --input x:Nx3x32x32:float32, or --data",
        )
    for spec in inputs:
        if math.prod(size or 1 for size in spec.shape) > _LARGEST:
            raise UsageError(
                f"an input of {describe((spec,))[:200]} is too large to be tried",
                hint=f"give sizes of at most {_LARGEST:,} numbers a sample",
            )
    if len(sources.sample_shapes) == len(inputs):
        inputs = tuple(map(_tried_with, inputs, sources.sample_shapes))
    _compare_with_samples(inputs, sources.sample_shapes)
    if fixed_batch:
        inputs = tuple(replace(spec, shape=spec.with_batch(1)) for spec in inputs)
    return inputs, notes


def describe(inputs: Sequence[TensorSpec]) -> str:
    """Return the inputs as people would write them for --input."""
    texts = []
    for spec in inputs:
        free = dict(spec.free)
        sizes = (
            f"{free[axis]}={size}" if axis in free else "N" if size is None else str(size)
            for axis, size in enumerate(spec.shape)
        )
        texts.append(f"{spec.name}:{'x'.join(sizes)}:{spec.dtype}")
    return ", ".join(texts)


def _tried_with(spec: TensorSpec, sample: tuple[int, ...]) -> TensorSpec:
    """Give the dynamic sizes those of the data's samples (without the batch)."""
    free = {axis for axis, _ in spec.free}
    if not free or len(sample) != len(spec.shape) - 1:
        return spec
    sizes = (None, *sample)
    shape = tuple(sizes[axis] if axis in free else size for axis, size in enumerate(spec.shape))
    return replace(spec, shape=shape)


def _free_batch(spec: TensorSpec) -> TensorSpec:
    if spec.shape[0] == 1 and None not in spec.shape:
        return replace(spec, shape=(None, *spec.shape[1:]))
    return spec


def _in_order(given: tuple[TensorSpec, ...], names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    """Sort the inputs as the forward method takes them, where their names are its parameters."""
    by_name = {spec.name: spec for spec in given}
    if len(by_name) != len(given):
        raise UsageError("--input names the same input twice", hint="give every input its own name")
    if set(by_name) == set(names[: len(given)]):
        return tuple(by_name[name] for name in names[: len(given)])
    return given


def _names(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    if len(names) >= count:
        return names[:count]
    return ("input",) if count == 1 else tuple(f"input_{number}" for number in range(count))


def _compare_with_samples(
    inputs: tuple[TensorSpec, ...], shapes: tuple[tuple[int, ...], ...]
) -> None:
    if not shapes:
        return
    wanted = tuple(spec.shape[1:] for spec in inputs)
    if len(wanted) != len(shapes) or any(
        len(want) != len(shape)
        or any(size is not None and size != given for size, given in zip(want, shape, strict=True))
        for want, shape in zip(wanted, shapes, strict=True)
    ):
        raise ModelError(
            f"the data's samples have shape {_shapes(shapes)}, "
            f"the network reads {describe(inputs)}",
            hint="give the data set that belongs to the network, or --input with the data's shape",
        )


def _shapes(shapes: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join("x".join(map(str, shape)) or "()" for shape in shapes)
