"""What `compile` and `plan` share: the options that say what MODEL is, and loading it."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hwprune.cli.options import SIZE, TARGET
from hwprune.errors import UsageError

if TYPE_CHECKING:
    from hwprune.ir import Data, Model
    from hwprune.tasks import Task

_F = TypeVar("_F", bound=Callable[..., Any])
_OF_MODEL = ("arch", "inputs", "entry", "fixed_batch", "unsafe_load")


def model_options(function: _F) -> _F:
    """Add the options that say what MODEL is, which device it is for, and what it may weigh."""
    for option in reversed(
        (
            click.option(
                "--target", type=TARGET, required=True, metavar="NAME|FILE.toml",
                help="The device; see `hwprune targets`.",
            ),
            click.option(
                "--arch", metavar="SPEC",
                help="A built-in architecture, torchvision:NAME, timm:NAME or path/to/file.py:"
                "callable, with keyword arguments as NAME(num_classes=10). Not needed where the "
                "state dict fits exactly one built-in architecture.",
            ),
            click.option(
                "--input", "inputs", multiple=True, metavar="NAME:SHAPE:DTYPE",
                help="An input that cannot be inferred, such as x:Nx3x224x224:float32. Repeatable.",
            ),
            click.option(
                "--entry", metavar="NAME",
                help="Which entry of a training checkpoint holds the weights, such as state_dict. "
                "Without it a moving average (ema) is taken first.",
            ),
            click.option("--fixed-batch", is_flag=True, help="Keep a first dimension of 1 fixed."),
            click.option(
                "--unsafe-load", is_flag=True,
                help="Also read a pickled module, which runs whatever code is in the file.",
            ),
            click.option(
                "--budget", "budget_bytes", type=SIZE, metavar="SIZE",
                help="What the file may weigh, such as 64KiB; the target's default without it.",
            ),
            click.option(
                "--share-weights", "share_weights", multiple=True, metavar="auto|NAME,NAME,...",
                help="Let layers share weights, each with a scalar of its own: auto finds residual "
                "stages, whose blocks from the third on use the second's convolutions (stages: an "
                "error where there are none); or parameters by name, repeatable; off: not even "
                "where the strategy does, as east.",
            ),
            click.option(
                "--form", type=click.Choice(["functions", "inlined"]), metavar="functions|inlined",
                help="How packed layers are written (the target's form without it): as "
                "functions, which native kernels run; or inlined, as standard operators alone, for "
                "programs that do not read functions.",
            ),
        )
    ):  # fmt: skip
        function = option(function)
    return function


def require_torch() -> None:
    """Raise UsageError where the packages that compile are not installed."""
    missing = [
        name
        for name in ("torch", "onnxscript", "safetensors")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise UsageError(
            f"this command needs {', '.join(missing)}",
            hint="pip install '.[compile]' in the checkout of hwprune",
        )


@contextmanager
def collector_paused() -> Iterator[None]:
    """Do not look for garbage: importing torch and tracing make millions of objects that stay."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def load(
    path: str | None,
    asked: dict[str, Any],
    *,
    data: str | None = None,
    task: Task | None = None,
    seed: int = 0,
    mapped: bool = False,
) -> tuple[Model, Data | None]:
    """Load the data (first: it is quick, and says the input's shape) and the model.

    Args:
        path: the model; None for the architecture with random weights.
        asked: the command's options; those that only say what the model is are taken out.
        data: the data's specification.
        task: what their labels are for; classes without.
        seed: of the data's split and of random weights.
        mapped: leave tensors in the file until they are used.
    """
    require_torch()
    from hwprune.frontend import load_data, load_model
    from hwprune.sampling import sample_shapes
    from hwprune.tasks import CLASSIFICATION

    options = {name: asked.pop(name) for name in _OF_MODEL}
    source = None
    if data is not None:
        source = load_data(data, seed=seed, task=CLASSIFICATION if task is None else task)
    shapes = None if source is None else sample_shapes(source.train)
    return load_model(path, sample_shapes=shapes, mapped=mapped, seed=seed, **options), source
