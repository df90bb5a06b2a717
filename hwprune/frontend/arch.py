"""``--arch SPEC``: a built-in name, torchvision:NAME, timm:NAME or path/to/file.py:callable."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from hwprune.errors import ModelError
from hwprune.frontend.folders import build_transformers
from hwprune.frontend.torchvision_shim import import_torchvision
from hwprune.frontend.user_code import FAILURES, first_line, import_file, importable
from hwprune.frontend.zoo import ARCHITECTURES
from hwprune.ir import TensorSpec

_IMAGENET = (TensorSpec("input", (None, 3, 224, 224), "float32"),)


@dataclass(frozen=True, slots=True)
class Arch:
    """An architecture that was asked for and found, not yet built.

    Attributes:
        name: the specification without its keyword arguments.
        builder: makes the module from keyword arguments.
        kwargs: the user's keyword arguments.
        inputs: what the architecture reads, where it fixes that.
        default_inputs: what such a network usually reads, asked after it was built.
        meta: whether it may be built without memory and then given the checkpoint's own tensors
            (never where modules may share a parameter: that would part them).
    """

    name: str
    builder: Callable[..., nn.Module]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[TensorSpec, ...] = ()
    default_inputs: Callable[[nn.Module], tuple[TensorSpec, ...]] = lambda _: ()
    meta: bool = False

    @property
    def spec(self) -> str:
        """Return the specification as ``--arch`` takes it."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.kwargs.items())
        return f"{self.name}({arguments})" if arguments else self.name

    def with_kwargs(self, **more: Any) -> Arch:
        """Return the same architecture with further keyword arguments."""
        return replace(self, kwargs={**self.kwargs, **more})

    def takes_num_classes(self) -> bool:
        """Return whether the size of the output can be asked for, and was not yet."""
        return "num_classes" not in self.kwargs and not self.name.rpartition(":")[0].endswith(".py")

    def build(self) -> nn.Module:
        """Build the untrained module.

        Raises:
            ModelError: the builder raised, or returned something else.
        """
        try:
            with warnings.catch_warnings():
                # Collections warn about their random start, which the file's weights replace.
                warnings.simplefilter("ignore")
                module = self.builder(**self.kwargs)
        except ModelError:
            raise
        except FAILURES as error:
            hint = None
            if isinstance(error, TypeError) and self.kwargs:
                hint = f"it takes {_parameters(self.builder)}"
            raise ModelError(
                f"--arch {self.spec} could not be built: {first_line(error)}", hint=hint
            ) from error
        if not isinstance(module, nn.Module):
            raise ModelError(
                f"--arch {self.spec} returned {type(module).__name__}, expected a torch.nn.Module",
                hint="name a function or class that returns the untrained network",
            )
        return module


def find_arch(spec: str, *, folder: Path | None = None) -> Arch:
    """Find the architecture that ``spec`` names; nothing is built yet.

    Args:
        spec: as ``--arch`` takes it; also ``transformers:CLASS`` with a folder.
        folder: what holds the configuration of a network of transformers.

    Raises:
        ModelError: unknown, not installed, or its file cannot be imported.
    """
    name, kwargs = parse_spec(spec)
    prefix, colon, rest = name.partition(":")
    if colon and prefix == "torchvision":
        return _torchvision(rest, kwargs)
    if colon and prefix == "timm":
        return _timm(rest, kwargs)
    if colon and prefix == "transformers" and folder is not None:
        return Arch(name, partial(build_transformers, rest, folder), kwargs)
    if colon and name.rpartition(":")[0].endswith(".py"):
        return _file(name, kwargs)
    if name not in ARCHITECTURES:
        raise _unknown(name, "a built-in architecture", ARCHITECTURES)
    entry = ARCHITECTURES[name]
    return Arch(name, entry.build, kwargs, inputs=entry.inputs, meta=True)


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Split ``NAME(num_classes=10)`` into name and literal arguments; nothing is evaluated.

    Raises:
        ModelError: the arguments are not keyword arguments with literal values.
    """
    spec = spec.strip()
    # A folder may have parentheses in its name: the arguments' come after the callable's colon.
    start = spec.find("(", spec.find(".py:") + 1 if ".py:" in spec else 0)
    if start < 0:
        return spec, {}
    name, arguments = spec[:start].strip(), spec[start:]
    try:
        call = ast.parse(f"f{arguments}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        kwargs = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        kwargs = {None: None}
    if None in kwargs:
        raise ModelError(
            f"--arch {spec!r}: the arguments cannot be read; expected keywords with literal values",
            hint="write them like cifar-resnet20(num_classes=10), in quotes for the shell",
        )
    return name, {word: value for word, value in kwargs.items() if word is not None}


def _torchvision(name: str, kwargs: dict[str, Any]) -> Arch:
    models = import_torchvision().models
    if name not in models.list_models():
        raise _unknown(name, "a torchvision model", models.list_models(), prefix="torchvision:")
    builder = models.get_model_builder(name)
    # Downloads are never asked for: the weights come from the model file.
    fixed = {
        word: None
        for word in inspect.signature(builder).parameters
        if word in ("weights", "weights_backbone")
    }
    _without(fixed, kwargs, f"torchvision:{name}")
    made = partial(builder, **fixed)
    return Arch(f"torchvision:{name}", made, kwargs, default_inputs=lambda _: _IMAGENET, meta=True)


def _timm(name: str, kwargs: dict[str, Any]) -> Arch:
    if importlib.util.find_spec("timm") is None:
        raise ModelError(
            f"--arch timm:{name} needs timm, which is not installed", hint="pip install timm"
        )
    import_torchvision()  # timm imports it
    timm = importlib.import_module("timm")
    if name.partition(".")[0] not in timm.list_models():
        raise _unknown(name, "a timm model", timm.list_models(), prefix="timm:")
    _without(("pretrained",), kwargs, f"timm:{name}")

    def inputs(module: nn.Module) -> tuple[TensorSpec, ...]:
        size = getattr(module, "default_cfg", {}).get("input_size", (3, 224, 224))
        return (TensorSpec("input", (None, *size), "float32"),)

    made = partial(timm.create_model, name, pretrained=False)
    return Arch(f"timm:{name}", made, kwargs, default_inputs=inputs)


def _without(downloads: Iterable[str], kwargs: Mapping[str, Any], spec: str) -> None:
    """Refuse the arguments that would download weights."""
    for word in downloads:
        if word in kwargs:
            raise ModelError(
                f"--arch {spec}: weights are not downloaded, they come from the model file",
                hint=f"leave the {word} argument out",
            )


def _file(name: str, kwargs: dict[str, Any]) -> Arch:
    file_name, _, callable_name = name.rpartition(":")
    path = Path(file_name)
    # The user names this file to be run; torch.load's concern is code that nobody named.
    named = import_file(path, option="--arch", error=ModelError)
    if callable_name not in named:
        raise _unknown(callable_name, f"a callable of {file_name}", named, prefix=f"{file_name}:")
    builder = named[callable_name]

    def build(**given: Any) -> nn.Module:
        with importable(path.resolve().parent):
            made: nn.Module = builder(**given)
        return made

    build.__signature__ = _signature(builder)  # type: ignore[attr-defined]
    return Arch(name, build, kwargs)


def _signature(builder: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(builder)
    except (TypeError, ValueError):
        return inspect.Signature()


def _parameters(builder: Callable[..., Any]) -> str:
    return ", ".join(map(str, _signature(builder).parameters.values())) or "no arguments"


def _unknown(name: str, what: str, names: Iterable[str], *, prefix: str = "") -> ModelError:
    names = sorted(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        hint = "did you mean " + " or ".join(prefix + match for match in near) + "?"
    elif len(names) <= 20:
        hint = "known: " + ", ".join(names)
    else:
        hint = f"there are {len(names)}, such as {', '.join(names[:5])}"
    if not prefix:
        hint += " Also torchvision:NAME, timm:NAME or path/to/file.py:callable."
    return ModelError(f"{name!r} is not {what}", hint=hint)
