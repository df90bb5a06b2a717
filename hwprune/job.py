"""What one compilation is asked to do: resolved and checked once, at the door, before any work."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hwprune.errors import ModelError, UsageError
from hwprune.export.deployment import Deployment
from hwprune.ir import Data, Model, ValueType
from hwprune.preprocessing import InputLayout
from hwprune.sparsity import check_options
from hwprune.steps.deployment import deployment_of, metadata_of
from hwprune.steps.planning import check_budget, value_types
from hwprune.steps.sharing import resolve_sharing
from hwprune.targets import Target
from hwprune.tasks import CLASSIFICATION, IMITATION, Task
from hwprune.training import SINGLE_PROCESS, Recipe, World, devices, recipe_file
from hwprune.training.recipe_file import RecipeFile
from hwprune.units import parse_fraction
from hwprune.verify import kernels_unavailable_reason
from hwprune.verify import limits as limit_rules
from hwprune.verify.fields import FIELDS, spelled

DEFAULT_EPOCHS = 12
# What the records have ahead, by sparsity, steps and network (hwprune/sparsity/auto.py).
DEFAULT_STRATEGY = "auto"
# How an ONNX file is trained: on from least squares (docs/tasks.md).
_OF_ONNX = ("auto", "one-shot", "dense")
# What every generator that is seeded takes, torch's and NumPy's.
MAX_SEED = 2**32 - 1
# Those that ``auto`` takes only after trying them in training: a codebook of 256 is as wide as
# int8, and its table larger.
TRIED_VALUE_TYPES: tuple[ValueType, ...] = ("int4", "codebook16")


@dataclass(frozen=True, slots=True)
class Job:
    """A compilation as it was asked for. Made by ``resolve``: all of it is there and allowed.

    Attributes:
        model: the network; its module is trained in place.
        target: the device, as it takes a file of the form that was asked for.
        data: what it is trained and measured on; None for neither.
        task: what the network is for.
        output: the folder to write.
        budget_bytes: what the file may weigh.
        strategy: a key of ``hwprune.sparsity.STRATEGIES``.
        strategy_options: keyword arguments of that strategy.
        sharing: which layers share their weights, as ``--share-weights`` spells it; none where
            none do.
        sharing_asked: whether the user wished that; else the strategy does.
        value_types: the types of stored values to choose from.
        firmware: whether a microcontroller's C is made; None for where it can be.
        recipe: how to train, and how long.
        seed: of everything that is random.
        limits: what the result must meet.
        max_drop: what the metric may lose, in its own unit: None for what ``limits.guard`` says,
            infinity for anything.
        device: where to train: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        world: the processes that compile together, each of which does the same job.
        resume: continue the run that was interrupted in the output folder; start where there is
            none.
        restart: start anew where there is one; without either, that is refused.
        checkpoint_seconds: the least time between two checkpoints of the training.
        threads: of onnxruntime while measuring latency.
        command: the command line, for the record.
        metadata: what is to be known of the file; see ``steps/deployment.py``.
        deployment: what of that the file holds, and whether it does its preprocessing itself.
    """

    model: Model
    target: Target
    data: Data | None
    task: Task
    output: Path
    budget_bytes: int
    strategy: str
    strategy_options: Mapping[str, Any]
    sharing: tuple[str, ...]
    sharing_asked: bool
    value_types: tuple[ValueType, ...]
    firmware: bool | None
    recipe: Recipe
    seed: int
    limits: tuple[limit_rules.Limit, ...]
    max_drop: float | None
    device: str
    world: World
    resume: bool
    restart: bool
    checkpoint_seconds: float
    threads: int
    command: tuple[str, ...]
    metadata: Mapping[str, str]
    deployment: Deployment

    @property
    def runs_here(self) -> bool:
        """Return whether a latency on this host says anything about the target's runtime."""
        return self.target.runtime.kind == "onnxruntime"


def resolve(
    model: Model,
    target: Target,
    data: Data | None,
    output: Path,
    *,
    task: Task | None = None,
    budget_bytes: int | None = None,
    strategy: str | None = None,
    strategy_options: Mapping[str, Any] | None = None,
    share_weights: Sequence[str] = (),
    values: str = "auto",
    form: str | None = None,
    firmware: bool | None = None,
    recipe: RecipeFile | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    seed: int = 0,
    limits: Sequence[str] = (),
    max_drop: float | str | None = None,
    metric: str | None = None,
    device: str = "auto",
    world: World | None = None,
    resume: bool = False,
    restart: bool = False,
    checkpoint_seconds: float = 30.0,
    threads: int = 1,
    command: Sequence[str] = (),
    embed_preprocessing: InputLayout | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Job:
    """Return the job that is asked for in the words of the command line.

    What is given here comes before what a recipe file says, and that before the defaults:
    ``strategy``, ``epochs`` and ``share_weights``. A file's options go with the strategy that it
    names. ``recipe`` is such a file, the name of a built-in one, or what a file would hold.
    ``values`` is a value type or ``auto``; ``form`` is ``functions`` or ``inlined``, the target's
    without; ``firmware`` says whether a microcontroller's C is made (None: where int8 can be;
    without data True makes it with fp32 activations); ``metric`` names what the caller's own
    function measures; ``device`` may be ``auto``
    (CUDA, else MPS, else the CPU), and with a ``world``, of ``hwprune.training.joined``, is the one
    that it was joined with. ``embed_preprocessing`` lets the file read uint8 in that layout.
    ``max_drop`` is what the metric may lose, or ``off``. ``metadata`` is what the file is to say,
    where that does not follow from ``data``.

    Raises:
        UsageError: something that there is not, or that cannot be done with this model, target and
            data.
        ModelError: a model that cannot be trained.
    """
    target = target.in_form(form)
    asked = recipe
    if not isinstance(asked, RecipeFile):
        asked = recipe_file.load({} if asked is None else asked)
    if task is None:
        labelled = data is not None and data.train.labels is not None
        task = CLASSIFICATION if labelled else IMITATION
    elif metric is None:
        metric = task.metric.name
    if spelled(metric or "") in set(FIELDS) - {"metric", "accuracy"}:
        raise UsageError(
            f"a metric cannot be called {metric}: that is another number of the report",
            hint="give it a name of its own",
        )
    wanted = [limit_rules.parse_limit(text, metric) for text in limits]
    name = (asked.strategy or DEFAULT_STRATEGY) if strategy is None else strategy
    if strategy_options is None:
        strategy_options = asked.options if name == asked.strategy else {}
    check_options(name, strategy_options)
    asked_epochs = epochs
    if epochs is None:
        usual = 0 if model.kind == "onnx" or not model.trainable else DEFAULT_EPOCHS
        epochs = usual if asked.epochs is None else asked.epochs
    if not isinstance(epochs, int) or epochs < 0:
        raise UsageError(f"epochs is {epochs!r}", hint="expected a whole number, 0 or more")
    if asked_epochs and data is None:
        raise UsageError(
            f"--epochs {asked_epochs} without data: there is nothing to train on",
            hint="give --data, or --epochs 0, which fits what survives to what BN layers remember",
        )
    check_seed(seed)
    if resume and restart:
        raise UsageError(
            "--resume goes on where a run was interrupted, --restart starts anew",
            hint="give one of them",
        )
    trains = data is not None and epochs > 0
    _check_model(model, name, trains=trains)
    budget = check_budget(target, budget_bytes)
    if firmware and target.kind != "microcontroller":
        raise UsageError(
            f"{target.name} runs onnxruntime: firmware is for microcontrollers",
            hint="leave --firmware out; `hwprune targets` lists the microcontrollers",
        )
    if data is not None:
        metric = task.metric.name if task.measurable(data.test) and len(data.test) else None
    made = bool(firmware) if data is None else firmware is not False
    _check_limits(wanted, target, metric, firmware=made)
    target = target.within_ram(_ram_limit(wanted))
    if data is None and firmware:  # nothing calibrates int8 activations
        target = target.computing_in("fp32")
    where = devices.resolve(device) if world is None else device
    how = Recipe(epochs=epochs, **asked.recipe)
    if model.kind == "onnx":  # trials do not start from least squares
        how = replace(how, race=0.0)
    shared = tuple(share_weights) or asked.share_weights
    sharing = resolve_sharing(shared, name, trains=trains)
    if metadata is None:
        metadata = metadata_of(target, budget, data)
    tried = TRIED_VALUE_TYPES if may_try(data, task, how) else ()
    return Job(
        model=model,
        target=target,
        data=data,
        task=task,
        output=output,
        budget_bytes=budget,
        strategy=name,
        strategy_options=strategy_options,
        sharing=sharing,
        sharing_asked=bool(shared),
        value_types=value_types(target, values, also=tried),
        firmware=firmware,
        recipe=how,
        seed=seed,
        limits=tuple(wanted),
        max_drop=parse_max_drop(max_drop),
        device=where,
        world=SINGLE_PROCESS if world is None else world,
        resume=resume,
        restart=restart,
        checkpoint_seconds=checkpoint_seconds,
        threads=threads,
        command=tuple(command),
        metadata=metadata,
        deployment=deployment_of(
            metadata, budget, model=model, target=target, data=data, embed=embed_preprocessing
        ),
    )


def parse_max_drop(given: float | str | None) -> float | None:
    """Return what the metric may lose: ``2%``, ``0.02``, ``off`` for anything, None as it is.

    Raises:
        UsageError: none of these, or less than nothing.
    """
    if given is None or given == "auto":
        return None
    if given == "off":
        return math.inf
    found = parse_fraction(given) if isinstance(given, str) else float(given)
    if not found >= 0:
        raise UsageError(
            f"{given!r} is no drop of a metric", hint="give 2%, 0.02, or off; 0 allows none"
        )
    return found


def check_seed(seed: int) -> None:
    """Raise UsageError for a seed that not every random generator takes."""
    if not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed is {seed!r}", hint=f"expected a whole number from 0 to {MAX_SEED}")


def may_try(data: Data | None, task: Task, recipe: Recipe) -> bool:
    """Return whether value types may be compared by training: then the four-bit ones join."""
    measurable = data is not None and task.measurable(data.validation)
    return measurable and recipe.epochs > 0 and recipe.race > 0 and recipe.quantise_from < 1


def _check_model(model: Model, strategy: str, *, trains: bool) -> None:
    if not model.trained and not trains:
        raise UsageError(
            f"{model.source} has random weights, and there is nothing to train it with",
            hint="give --data and --epochs above 0, or a trained MODEL",
        )
    if model.kind == "torchscript":
        raise ModelError(
            f"{model.source} is a TorchScript archive: it can be planned, not compiled",
            hint="save the state dict: torch.save(model.state_dict(), 'model.pt')",
        )
    if trains and not model.trainable:
        raise ModelError(
            f"{model.source} is an ONNX file that cannot be trained: {'; '.join(model.notes)}",
            hint="give --epochs 0, or the PyTorch model that it was exported from",
        )
    if trains and model.kind == "onnx" and strategy not in _OF_ONNX:
        raise UsageError(
            f"an ONNX file is trained by {' or '.join(_OF_ONNX)}, not by {strategy}: its BN is "
            "folded or frozen, and a network that was pruned gradually does not recover",
            hint="leave --strategy out, give --epochs 0, or the PyTorch model",
        )


def _ram_limit(limits: Sequence[limit_rules.Limit]) -> int | None:
    """Return the least of the limits on RAM: what firmware is laid out for."""
    rams = [each for each in limits if each.field == "ram" and each.op in ("<", "<=")]
    return min((int(each.value) - (each.op == "<") for each in rams), default=None)


def _check_limits(
    limits: Sequence[limit_rules.Limit], target: Target, metric: str | None, *, firmware: bool
) -> None:
    context = limit_rules.Context(
        kind=target.kind,
        labels=metric == "accuracy",
        metric=metric,
        latency=target.runtime.kind == "onnxruntime",
        no_kernels=kernels_unavailable_reason(target=target),
        firmware=firmware,
    )
    limit_rules.require_measurable(limits, context)
