"""The compiler as one Python call, for those who have a network in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwprune import notebook
from hwprune.compiler import compile_model
from hwprune.errors import UsageError
from hwprune.frontend.task_file import load_task
from hwprune.ir import Artifact, Data, Model, Say, TensorSpec
from hwprune.job import check_seed, resolve
from hwprune.preprocessing import InputLayout
from hwprune.sampling import sample_shapes
from hwprune.steps.fitting import Fitting, plan_model
from hwprune.targets import Target
from hwprune.targets import load as load_target
from hwprune.tasks import CLASSIFICATION, Task
from hwprune.units import parse_bytes

if TYPE_CHECKING:
    import torch


def compile(
    model: torch.nn.Module | str | os.PathLike[str] | None,
    *,
    target: str | Target,
    data: str | Data | None = None,
    task: str | Task | None = None,
    example_input: torch.Tensor | Sequence[torch.Tensor] | None = None,
    arch: str | None = None,
    unsafe_load: bool = False,
    entry: str | None = None,
    budget: int | str | None = None,
    strategy: str | None = None,
    share_weights: str | Sequence[str | Sequence[str]] = (),
    values: str = "auto",
    form: str | None = None,
    epochs: int | None = None,
    seed: int = 0,
    require: Sequence[str] = (),
    max_drop: float | str | None = None,
    output: str | os.PathLike[str] | None = None,
    recipe: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    device: str = "auto",
    resume: bool = False,
    restart: bool = False,
    embed_preprocessing: InputLayout | None = None,
    progress: Say | None = None,
) -> Artifact:
    """Compile a network into a sparse ONNX file that fits a device's byte budget.

    Args:
        model: a module (it is copied, not changed), or a path as the command line takes it; None
            trains ``arch`` from random weights.
        target: a profile's name, its file, or the profile.
        data: a specification such as ``cifar10:DIR``, a ``hwprune.ir.Data``, or None: then nothing
            is trained or measured.
        task: what the network is for, as ``--task`` spells it, or a ``hwprune.tasks.Task``;
            classification without, where the data have labels.
        example_input: one tensor per input of the module; the first axis is the dynamic batch.
        arch: what a state dict was saved from, where it is not recognised.
        unsafe_load: read a pickled module, which runs code that the file holds.
        entry: which entry of a training checkpoint holds the weights, where there are several.
        budget: bytes, or a size such as ``"64KiB"``; the target's default without.
        strategy: how to prune; the recipe's, else ``auto``.
        share_weights: ``"auto"`` lets blocks of residual stages share weights (``"stages"``: an
            error where there are none); or groups of parameters by name; or ``"off"``. The
            strategy's without.
        values: the type of the stored values, or ``auto``.
        form: ``"inlined"`` for a file of standard operators alone, or ``"functions"``, which native
            kernels run; the target's without.
        epochs: passes over the training data; the recipe's, else 12.
        seed: of everything that is random.
        require: limits such as ``"accuracy>=0.91"``.
        max_drop: what the metric may lose, such as ``0.02`` or ``"2%"``, or ``"off"``; without,
            two points of accuracy, or a tenth of what there was where that is less.
        output: the folder to write; a new temporary one without.
        recipe: a recipe file, the name of a built-in one, or what such a file holds: fields of
            ``hwprune.training.Recipe`` that differ from their defaults.
        device: where to train: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        resume: continue the run that was interrupted in ``output``, bit for bit as it would have
            gone on; start where there is none.
        restart: start anew in a folder that holds an interrupted run, which is refused without.
        embed_preprocessing: ``"nchw"`` or ``"nhwc"`` lets the file normalise: it reads images as
            uint8 in that layout.
        progress: called with each ``hwprune.ir.Status``; at the end of an epoch its ``values``
            hold numbers to plot. In a notebook without one there is a bar.

    Returns:
        the artifact; ``artifact.verdict.exit_code`` is 0 where it fits and is verified.

    Raises:
        HwpruneError: the run could not reach a file; its class says why.
    """
    check_seed(seed)
    if resume and output is None:
        raise UsageError(
            "resume without an output folder: a new temporary one holds nothing to continue",
            hint="give output= the folder of the interrupted run",
        )
    profile = target if isinstance(target, Target) else load_target(target)
    if isinstance(task, str):
        task = load_task(task)
    source = data_of(data, task, seed=seed)
    loaded = model_of(
        model, example_input, source, arch=arch, unsafe_load=unsafe_load, entry=entry, seed=seed
    )
    folder = Path(output) if output is not None else Path(tempfile.mkdtemp(prefix="hwprune-"))
    try:
        job = resolve(
            loaded,
            profile,
            source,
            folder,
            task=task,
            budget_bytes=parse_bytes(budget) if isinstance(budget, str) else budget,
            strategy=strategy,
            share_weights=_sharing(share_weights),
            values=values,
            form=form,
            recipe=recipe,
            epochs=epochs,
            seed=seed,
            limits=(require,) if isinstance(require, str) else tuple(require),
            max_drop=max_drop,
            device=device,
            resume=resume,
            restart=restart,
            command=("hwprune.compile",),
            embed_preprocessing=embed_preprocessing,
        )
        say = progress or notebook.bar()
        return compile_model(job) if say is None else compile_model(job, say)
    except BaseException:
        if output is None:
            with suppress(OSError):
                folder.rmdir()
        raise


def plan(
    model: torch.nn.Module | str | os.PathLike[str],
    *,
    target: str | Target,
    data: str | Data | None = None,
    task: str | Task | None = None,
    example_input: torch.Tensor | Sequence[torch.Tensor] | None = None,
    arch: str | None = None,
    unsafe_load: bool = False,
    entry: str | None = None,
    budget: int | str | None = None,
    share_weights: str | Sequence[str | Sequence[str]] = (),
    values: str = "auto",
    form: str | None = None,
    require: str | Sequence[str] = (),
) -> Fitting:
    """Return what fits a target before any training, as ``hwprune plan`` says it.

    The arguments are those of ``compile``. The result's ``plans`` hold, by value type, the exact
    bytes and the number of weights that are kept; with ``require="latency.p50<=0.3x"`` they keep to
    that time as well, and ``frontier`` says what more and less of both would give.

    Raises:
        HwpruneError: it cannot be loaded, or not even the empty network fits.
    """
    source = data_of(data, task, seed=0)
    loaded = model_of(model, example_input, source, arch=arch, unsafe_load=unsafe_load, entry=entry)
    return plan_model(
        loaded,
        target if isinstance(target, Target) else load_target(target),
        budget_bytes=parse_bytes(budget) if isinstance(budget, str) else budget,
        values=values,
        share_weights=_sharing(share_weights),
        form=form,
        data=source,
        limits=(require,) if isinstance(require, str) else tuple(require),
    )


def data_of(data: str | Data | None, task: str | Task | None, *, seed: int) -> Data | None:
    """Return what ``compile`` is given as data."""
    from hwprune.frontend import load_data

    if not isinstance(data, str):
        return data
    known = load_task(task) if isinstance(task, str) else task
    return load_data(data, seed=seed, task=known or CLASSIFICATION)


def _sharing(share_weights: str | Sequence[str | Sequence[str]]) -> tuple[str, ...]:
    """Return what is to share weights, as the command line spells it."""
    given = [share_weights] if isinstance(share_weights, str) else share_weights
    return tuple(each if isinstance(each, str) else ",".join(each) for each in given)


def model_of(
    model: Any,
    example_input: Any,
    data: Data | None,
    *,
    arch: str | None = None,
    unsafe_load: bool = False,
    entry: str | None = None,
    seed: int = 0,
) -> Model:
    """Return what ``compile`` is given as a model: of a module a copy on the CPU, in eval mode."""
    import torch

    from hwprune.frontend import load_model
    from hwprune.frontend.probe import forward_names

    if not (model is None or isinstance(model, (str, os.PathLike, torch.nn.Module))):
        raise UsageError(
            f"model is a {type(model).__name__}", hint="give a torch.nn.Module, or a file's path"
        )
    names = forward_names(model) if isinstance(model, torch.nn.Module) else None
    if names is not None and example_input is None and data is None:
        raise UsageError(
            "the shape of the network's input is not known",
            hint="give example_input=torch.zeros(1, 3, 32, 32), or data",
        )
    given = [] if example_input is None else _specs(example_tensors(example_input), names or ())
    return load_model(
        os.fspath(model) if isinstance(model, os.PathLike) else model,
        arch=arch,
        inputs=given,
        unsafe_load=unsafe_load,
        entry=entry,
        sample_shapes=None if data is None or given else sample_shapes(data.train),
        seed=seed,
    )


def example_tensors(example_input: Any) -> list[torch.Tensor]:
    """Return the examples of a network's inputs as tensors, one for each.

    Raises:
        UsageError: they are no tensors, or one has no batch axis.
    """
    import torch

    several = isinstance(example_input, (tuple, list))
    try:
        tensors = [
            torch.as_tensor(each) for each in (example_input if several else [example_input])
        ]
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(
            f"example_input is no tensor or array, but a {type(example_input).__name__}",
            hint="give one tensor, or a tuple with one for each input, in the order of forward",
        ) from None
    if any(not tensor.ndim for tensor in tensors):
        raise UsageError("example_input has no batch axis", hint="give one tensor per input")
    return tensors


def _specs(tensors: Sequence[torch.Tensor], names: Sequence[str]) -> list[TensorSpec]:
    """Return the inputs that the examples show; of floats any, since the network is in float32."""
    if len(names) < len(tensors):
        names = [f"input{number}" for number in range(len(tensors))]
    return [
        TensorSpec(
            name,
            (None, *tensor.shape[1:]),
            "float32" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch."),
        )
        for name, tensor in zip(names, tensors, strict=False)
    ]
