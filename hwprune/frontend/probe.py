"""One forward pass before anything else is done, so that what does not work is found at once.

A wrong shape, a forward method that draws random numbers, inputs by keyword, outputs that are no
tuple of tensors: each is found here, refused or adapted, and not after the whole work.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import re
import traceback
import warnings
from collections import namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hwprune.errors import ModelError
from hwprune.frontend.inputs import describe
from hwprune.frontend.user_code import FAILURES, first_line
from hwprune.ir import TensorSpec

# One sample would pass where a forward method bakes a batch of one in; two find it.
_BATCH = 2
# From this many weights on, a forward pass may take longer than all that plan does besides.
_LARGE = 20_000_000
_LARGEST = 1e18
# A dynamic size is tried once more, larger by what the strides of most networks divide.
_FURTHER = 32
# Two runs of one network differ by less than this share of the largest output.
_SAME = 1e-4
# What errors call the types that weights are converted from.
_OTHER_FLOATS = re.compile(r"\b(double|half|bfloat16|float64|float16)\b", re.IGNORECASE)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return every parameter and buffer under each of its names."""
    return [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]


def fresh_copy(module: nn.Module) -> nn.Module:
    """Return a copy that shares the parameters, for a call that leaves ``module`` as it is.

    A forward method may keep what it computed (a table for the shape that it saw last) or count.
    Buffers are copied, since it may write to them. A graph, which keeps nothing, and a module that
    cannot be copied are returned themselves.
    """
    if isinstance(module, (torch.fx.GraphModule, torch.jit.ScriptModule)):
        return module
    memo: dict[int, Any] = {id(tensor): tensor for tensor in module.parameters()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return copy.deepcopy(module, memo)
    except Exception:  # a tensor with a history, a handle of the system: whatever it holds
        return module


def forward_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the forward method's positional parameters, where Python knows them."""
    return tuple(p.name for p in _parameters(module) if p.kind in _POSITIONAL)


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def example_inputs(
    inputs: tuple[TensorSpec, ...], *, batch: int, whole: bool = False
) -> tuple[Tensor, ...]:
    """Return one tensor per input: seeded noise for floats, ones for masks, zeros for indices.

    Floats are zeros, too, where they are to be ``whole`` numbers: those of rows in a table.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for spec in inputs:
        dtype = getattr(torch, spec.dtype)
        shape = spec.with_batch(batch)
        if dtype.is_floating_point and not whole:
            tensors.append(torch.randn(shape, generator=generator, dtype=dtype))
        elif dtype == torch.bool or ("mask" in spec.name and not dtype.is_floating_point):
            tensors.append(torch.ones(shape, dtype=dtype))
        else:
            tensors.append(torch.zeros(shape, dtype=dtype))
    return tuple(tensors)


def probe(module: nn.Module, inputs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    """Run the network on made-up inputs, and let it take and return tensors one after the other.

    Each run has a copy. A large network runs on shapes alone, where that is as strict. Inputs that
    the forward method takes by keyword or as one dictionary, and outputs that are a dictionary, a
    dataclass or nested, are adapted: ``module.forward`` then takes the inputs in their order and
    returns one tensor, or a tuple of tensors.

    Returns:
        Notes for the report.

    Raises:
        ModelError: the network does not take these inputs, gives no tensor back, draws random
            numbers in eval mode, or has weights whose squares are infinite.
    """
    _check_range(module)
    ways = _ways(module, inputs)
    called = _runs_on_shapes(module, inputs, ways)
    if called is None:
        called = _runs(module, inputs, ways)
    way, output, whole, writes = called
    if not any(True for _ in _tensors(output)):
        raise ModelError(
            f"the network returns {type(output).__name__}, expected a tensor or several",
            hint="wrap it in a module whose forward method returns tensors",
        )
    looked_up = "random numbers are out of range for what looks rows up by floats: 0 was tried"
    return (looked_up,) * whole + _adapt(module, inputs, way, output, writes=writes)


def _check_range(module: nn.Module) -> None:
    """Refuse weights that no norm can be taken of. Buffers may be so large: masks of attention."""
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and parameter.numel() and not parameter.is_meta:
            largest = max(map(abs, map(float, torch.aminmax(parameter.detach()))))
            if largest > _LARGEST:
                raise ModelError(
                    f"{name} holds a weight of {largest:.1e}, whose square is infinite in float32",
                    hint="the training diverged before it was saved; give an earlier checkpoint",
                )


def _ways(module: nn.Module, inputs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    """Return how the forward method may take its inputs, the likeliest way first."""
    parameters = _parameters(module)
    names = [spec.name for spec in inputs]
    positional = [p.name for p in parameters if p.kind in _POSITIONAL]
    by_name = {p.name for p in parameters if p.kind != inspect.Parameter.POSITIONAL_ONLY}
    takes_all = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters)
    if positional[: len(names)] == names:
        return ("positional",)
    if set(names) <= by_name:
        return ("keyword",)
    if any(p.kind == inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return ("positional",)
    if takes_all and len(positional) < len(names):
        return ("keyword",)
    return ("positional", "dictionary") if parameters else ("positional",)


def _call(module: nn.Module, inputs: tuple[TensorSpec, ...], way: str, tensors: Any) -> Any:
    named = {spec.name: tensor for spec, tensor in zip(inputs, tensors, strict=True)}
    if way == "keyword":
        return module(**named)
    return module(named) if way == "dictionary" else module(*tensors)


def call_once(module: nn.Module, inputs: tuple[TensorSpec, ...]) -> None:
    """Call the forward method itself, in whichever way it takes its inputs.

    Raises:
        The first way's failure, whatever that is.
    """
    refused: BaseException | None = None
    for whole, way in itertools.product((False, True), _ways(module, inputs)):
        try:
            _call(module, inputs, way, example_inputs(inputs, batch=_BATCH, whole=whole))
            return
        except FAILURES as error:  # noqa: PERF203 - of two ways one may fail
            refused = refused or error
    assert refused is not None  # there is at least one way
    raise refused


def _runs(
    module: nn.Module, inputs: tuple[TensorSpec, ...], ways: tuple[str, ...]
) -> tuple[str, Any, bool, bool]:
    """Return the way that works, what it gives, whether it takes whole numbers alone, and writes.

    It writes where it changes an input.
    """
    refused: BaseException | None = None
    for whole, way in itertools.product((False, True), ways):
        if whole and not isinstance(refused, IndexError):
            break
        tensors, drawing = example_inputs(inputs, batch=_BATCH, whole=whole), _Drawing()
        given = tuple(tensor.clone() for tensor in tensors)
        try:
            with torch.no_grad(), drawing:
                output = _call(fresh_copy(module), inputs, way, given)
        except ModelError:
            raise
        except FAILURES as error:  # whatever a stranger's forward method raises
            refused = refused or error
            continue
        _check_is_steady(module, inputs, way, output, drawing.found, tensors)
        _check_other_sizes(module, inputs, way, whole=whole)
        return way, output, whole, not all(map(torch.equal, given, tensors))
    assert refused is not None  # there is at least one way
    said = first_line(refused)
    if isinstance(refused, IndexError):
        hint = "random numbers were tried, and zeros; where it looks rows up, give NAME:SHAPE:int64"
    elif _OTHER_FLOATS.search(said) and not _OTHER_FLOATS.search(describe(inputs)):
        hint = (
            "hwprune runs a network in float32: its forward method is to cast to what its weights "
            "are (x.to(self.weight.dtype)), not to another type"
        )
    else:
        hint = (
            "give the shapes and types that its forward method takes, one --input for each, in "
            "order or by their names"
        )
    raise ModelError(
        f"the network does not take {describe(inputs)}: {said}", hint=hint
    ) from refused


class _Drawing(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Notes which operators drew random numbers, and from where."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.found = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # the operator's own result
        if not self.found and torch.Tag.nondeterministic_seeded in func.tags:
            place = next(
                (
                    f" ({frame.filename.rpartition('/')[2]}, line {frame.lineno}: {frame.line})"
                    for frame in reversed(traceback.extract_stack())
                    if "/torch/" not in frame.filename and frame.filename != __file__
                ),
                "",
            )
            self.found = f"{func.__name__.partition('.')[0]}{place}"
        return func(*args, **(kwargs or {}))


def _check_is_steady(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    way: str,
    output: Any,
    drawn: str,
    tensors: tuple[Tensor, ...],
) -> None:
    """Refuse a network whose outputs differ from run to run: no file could be compared with it."""
    if not drawn and sum(tensor.numel() for _, tensor in named_tensors(module)) >= _LARGE:
        return
    try:
        with torch.no_grad():
            again = _call(fresh_copy(module), inputs, way, [each.clone() for each in tensors])
    except FAILURES:  # one that runs once only: no copy could be made
        return
    for (_, one), (_, other) in zip(_tensors(output), _tensors(again), strict=False):
        size = one.abs().nan_to_num(0, 0, 0) if one.is_floating_point() and one.numel() else None
        limit = 0.0 if size is None else _SAME * float(size.max())
        if one.shape == other.shape and not torch.allclose(
            one, other, rtol=0, atol=limit, equal_nan=True
        ):
            raise ModelError(
                "the network is random in eval mode: two runs on the same input differ"
                + (f", by {drawn}" if drawn else ""),
                hint="dropout as a function needs training=self.training; noise is to be an input",
            )


def _check_other_sizes(
    module: nn.Module, inputs: tuple[TensorSpec, ...], way: str, *, whole: bool
) -> None:
    """Try sizes that are to be dynamic at a second value."""
    larger = tuple(
        replace(spec, shape=tuple(
            size + _FURTHER if size is not None and axis in dict(spec.free) else size
            for axis, size in enumerate(spec.shape)
        ))
        for spec in inputs
    )  # fmt: skip
    if larger == inputs:
        return
    try:
        with torch.no_grad():
            tensors = example_inputs(larger, batch=_BATCH, whole=whole)
            _call(fresh_copy(module), inputs, way, tensors)
    except FAILURES as error:
        raise ModelError(
            f"the network takes {describe(inputs)}, but not {describe(larger)}: "
            f"{first_line(error)}",
            hint="give the sizes as numbers in --input: they are fixed in this network",
        ) from error


def _runs_on_shapes(
    module: nn.Module, inputs: tuple[TensorSpec, ...], ways: tuple[str, ...]
) -> tuple[str, Any, bool, bool] | None:
    """Run a large network on tensors without memory; None where that fails or is less strict.

    Such a run is a second faster than a real one. It finds every wrong shape but one of a
    transposed convolution, and not every wrong type, so these are left to the real one. What it
    refuses may still run: a forward method may make tensors of its own.
    """
    named = named_tensors(module)
    if (
        sum(tensor.numel() for _, tensor in named) < _LARGE
        or any(spec.free for spec in inputs)
        or any(spec.dtype != "float32" for spec in inputs)
        or any("ConvTranspose" in type(part).__name__ for part in module.modules())
    ):
        return None
    drawing = _Drawing()
    try:
        memo: dict[int, Any] = {}
        for _, tensor in named:
            empty = torch.empty_like(tensor, device="meta")
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(empty, False) if is_parameter else empty
        shapes = copy.deepcopy(module, memo)
        arguments = [torch.empty(spec.with_batch(_BATCH), device="meta") for spec in inputs]
        with torch.no_grad(), drawing:
            output = _call(shapes, inputs, ways[0], arguments)
    except Exception:  # whatever a stranger's forward method raises
        return None
    # Whether it writes to its inputs, shapes do not show.
    return None if drawing.found else (ways[0], output, False, False)


def _adapt(
    module: nn.Module, inputs: tuple[TensorSpec, ...], way: str, output: Any, *, writes: bool
) -> tuple[str, ...]:
    flat = isinstance(output, Tensor) or (
        isinstance(output, (tuple, list)) and all(isinstance(item, Tensor) for item in output)
    )
    unnamed = any(p.kind == inspect.Parameter.VAR_POSITIONAL for p in _parameters(module))
    as_it_is = way == "positional" and flat and not writes and not unnamed
    if as_it_is or "forward" in vars(module):
        return ()

    def forward(self: nn.Module, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        if writes:
            tensors = tuple(tensor.clone() for tensor in tensors)
        named = {spec.name: tensor for spec, tensor in zip(inputs, tensors, strict=True)}
        original: Any = type(self).forward
        if way == "keyword":
            found = original(self, **named)
        else:
            found = original(self, named) if way == "dictionary" else original(self, *tensors)
        several = tuple(tensor for _, tensor in _tensors(found))
        return made(several) if len(several) > 1 else several[0]

    # A tuple whose parts have names: torch.export passes these on, and the file has them.
    paths = [path for path, _ in _tensors(output)]
    made: Any = tuple
    if any(not path.replace(".", "").isdigit() for path in paths):
        fields = [re.sub(r"\W", "_", path) for path in paths]
        parts: Any = namedtuple("Outputs", fields, rename=True)  # type: ignore[misc]  # read above
        made = parts._make

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = ("self", *(spec.name for spec in inputs))
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in names]
    )
    module.forward = MethodType(forward, module)
    notes = []
    if way != "positional":
        how = "by keyword" if way == "keyword" else "as one dictionary"
        notes.append(f"the network takes its inputs {how}; the file takes them one by one")
    if not flat:
        notes.append(
            f"the network returns {type(output).__name__}; the file returns its tensors in order"
        )
    return tuple(notes)


def _tensors(output: object) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested tuples, dictionaries and dataclasses, each with its path."""
    if dataclasses.is_dataclass(output) and not isinstance(output, (Mapping, type)):
        output = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(output, (Mapping, list, tuple)):
        inner = output.items() if isinstance(output, Mapping) else enumerate(output)
        for key, item in inner:
            for path, tensor in _tensors(item):
                yield f"{key}.{path}" if path else str(key), tensor
    elif isinstance(output, Tensor):
        yield "", output
