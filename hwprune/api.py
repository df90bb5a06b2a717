"""The compiler as one Python call, for those who have a network in memory."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwprune.compiler import DEFAULT_EPOCHS, DEFAULT_STRATEGY, Options, compile_model
from hwprune.errors import UsageError
from hwprune.ir import Artifact, Data, Model, TensorSpec
from hwprune.targets import Target
from hwprune.targets import load as load_target
from hwprune.units import parse_bytes

if TYPE_CHECKING:
    import os

    import torch


def compile(
    model: torch.nn.Module | str | os.PathLike[str],
    *,
    target: str | Target,
    data: str | Data | None = None,
    example_input: torch.Tensor | Sequence[torch.Tensor] | None = None,
    budget: int | str | None = None,
    strategy: str = DEFAULT_STRATEGY,
    values: str = "auto",
    epochs: int = DEFAULT_EPOCHS,
    seed: int = 0,
    require: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Artifact:
    """Compile a network into a sparse ONNX file that fits a device's byte budget.

    Args:
        model: a module (it is copied, not changed), or a path as the command line takes it.
        target: a profile's name, its file, or the profile.
        data: a specification such as ``cifar10:DIR``, a ``hwprune.ir.Data``, or None: then nothing
            is trained or measured.
        example_input: one tensor per input of the module; the first axis is the dynamic batch.
        budget: bytes, or a size such as ``"64KiB"``; the target's default without.
        strategy: how to prune.
        values: the type of the stored values, or ``auto``.
        epochs: passes over the training data.
        seed: of everything that is random.
        require: limits such as ``"accuracy>=0.91"``.
        output: the folder to write; a new temporary one without.
        recipe: fields of ``hwprune.training.Recipe`` that differ from their defaults.

    Returns:
        the artifact; ``artifact.verdict.exit_code`` is 0 where it fits and is verified.

    Raises:
        HwpruneError: the run could not reach a file; its class says why.
    """
    profile = target if isinstance(target, Target) else load_target(target)
    source = _data(data, seed)
    loaded = _model(model, example_input, source)
    folder = Path(output) if output is not None else Path(tempfile.mkdtemp(prefix="hwprune-"))
    options = Options(
        budget_bytes=parse_bytes(budget) if isinstance(budget, str) else budget,
        strategy=strategy,
        values=values,
        epochs=epochs,
        seed=seed,
        limits=tuple(require),
        recipe=recipe,
        command=("hwprune.compile",),
    )
    return compile_model(loaded, profile, source, folder, options)


def _data(data: str | Data | None, seed: int) -> Data | None:
    if not isinstance(data, str):
        return data
    from hwprune.frontend import load_data

    return load_data(data, seed=seed)


def _model(
    model: Any,
    example_input: torch.Tensor | Sequence[torch.Tensor] | None,
    data: Data | None,
) -> Model:
    import numpy as np
    import torch

    shapes = None
    if data is not None:
        shapes = [array.shape[1:] for array in data.train.batch(np.zeros(1, dtype=np.int64))]
    if not isinstance(model, torch.nn.Module):
        from hwprune.frontend import load_model

        return load_model(str(model), sample_shapes=shapes)
    if example_input is not None:
        tensors = [example_input] if isinstance(example_input, torch.Tensor) else example_input
        names = _forward_names(model, len(tensors))
        inputs = tuple(
            TensorSpec(name, (None, *tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in zip(names, tensors, strict=True)
        )
    elif shapes is not None:
        names = _forward_names(model, len(shapes))
        inputs = tuple(
            TensorSpec(name, (None, *shape), "float32")
            for name, shape in zip(names, shapes, strict=True)
        )
    else:
        raise UsageError(
            "the shape of the network's input is not known",
            hint="give example_input=torch.zeros(1, 3, 32, 32), or data",
        )
    name = type(model).__name__.lower()
    return Model(name, name, "pickled-module", copy.deepcopy(model).eval(), None, inputs)


def _forward_names(module: Any, count: int) -> list[str]:
    from hwprune.frontend.probe import forward_names

    names = list(forward_names(module))[:count]
    return names if len(names) == count else [f"input{number}" for number in range(count)]
