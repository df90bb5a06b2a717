"""``--task NAME|FILE.py``: a built-in task, or one that a Python file of the user's describes.

    NAME?metric=mae&output=boxes    another metric; the output that counts
    FILE.py                         loss(outputs, batch), metric, higher_is_better, outputs(raw)

``loss`` gets tensors: outputs, and a batch with ``inputs`` and ``labels``. ``metric`` is a function
of all outputs and labels, as NumPy arrays, or an object with update, compute and reset; one that is
a ``torch.nn.Module``, as those of torchmetrics are, gets tensors.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from hwprune.errors import UsageError
from hwprune.frontend.user_code import run_file, running
from hwprune.tasks import METRICS, TASKS, Metric, Task
from hwprune.tasks.task import Imitation
from hwprune.trees import tree_map

_TASK = re.compile(r"(?P<name>[^?]*)(\?(?P<query>.*))?", re.DOTALL)
_METHODS = ("update", "compute", "reset")


def load_task(text: str) -> Task:
    """Return the task that ``text`` names.

    Raises:
        UsageError: there is no such task, metric or file, or the file lacks a part.
    """
    match = _TASK.fullmatch(text)
    assert match is not None  # it takes any text
    name, query = match["name"], match["query"]
    options = dict(part.partition("=")[::2] for part in query.split("&")) if query else {}
    for key, value in options.items():
        if key not in ("metric", "output") or not value:
            raise UsageError(
                f"{text!r}: {key!r} is not an option of a task",
                hint="write ?metric=NAME or ?output=NAME",
            )
    if name.endswith(".py"):
        task = _of_file(Path(name).expanduser())
    elif name in TASKS:
        task = TASKS[name]
    else:
        close = difflib.get_close_matches(name, TASKS, n=1)
        raise UsageError(
            f"{name!r} is not a task",
            hint=f"did you mean {close[0]}?" if close else f"one of {', '.join(TASKS)}, or FILE.py",
        )
    metric = options.get("metric")
    if metric is not None and metric not in METRICS:
        raise UsageError(f"{metric!r} is not a metric", hint=f"one of {', '.join(METRICS)}")
    if metric is not None:
        task = replace(task, metric=METRICS[metric])
    return replace(task, output=options.get("output"))


def _of_file(path: Path) -> Task:
    found = run_file(path, option="--task", error=UsageError)
    given = found.get("metric")
    if given is None:
        raise UsageError(
            f"{path}: there is no metric; it has {', '.join(sorted(found)) or 'nothing'}",
            hint="metric is a function of outputs and labels, or an object with update, compute"
            " and reset",
        )
    better = found.get("higher_is_better", getattr(given, "higher_is_better", None))
    if not isinstance(better, bool):
        raise UsageError(
            f"{path}: the metric has no direction (higher_is_better is {better!r})",
            hint="write higher_is_better = True, or False where less is better",
        )
    imitation = found.get("imitation", "values")
    if imitation not in get_args(Imitation):
        raise UsageError(
            f"{path}: imitation is {imitation!r}", hint=f"one of {', '.join(get_args(Imitation))}"
        )
    return Task(
        name=path.name,
        metric=_metric(given, better, path),
        imitation=imitation,
        outputs=_guarded(found, "outputs", path),
        loss=_guarded(found, "loss", path),
        whole=True,
        source=hashlib.sha256(path.read_bytes()).hexdigest()[:12],
    )


def _guarded(found: dict[str, Any], name: str, path: Path) -> Callable[..., Any] | None:
    """Return a function of the file whose failures are errors that name it."""
    function = found.get(name)
    if function is not None and not callable(function):
        raise UsageError(f"{path}: {name} is {function!r}, which is no function")

    def call(*arguments: Any) -> Any:
        assert function is not None
        with running(f"{path.name}: {name} failed", UsageError):
            return function(*arguments)

    return None if function is None else call


def _metric(given: Any, better: bool, path: Path) -> Metric:
    is_object = all(callable(getattr(given, name, None)) for name in _METHODS)
    if not is_object and not callable(given):
        raise UsageError(
            f"{path}: metric is {given!r}",
            hint="give a function of outputs and labels, or an object with update, compute, reset",
        )
    called = getattr(given, "__name__", type(given).__name__)
    name = re.sub(r"[^a-z0-9_]+", "_", called.lower()).strip("_") or "metric"

    def number(rows: tuple[Any, Any]) -> Any:
        with running(f"{path.name}: metric failed", UsageError):
            return _of_object(given, *rows) if is_object else given(*rows)

    return Metric(name, better, lambda outputs, labels: (outputs, labels), number)


def _of_object(metric: Any, outputs: Any, labels: Any) -> Any:
    if hasattr(metric, "named_parameters"):  # a torch.nn.Module
        import torch

        outputs, labels = tree_map(torch.as_tensor, outputs), tree_map(torch.as_tensor, labels)
    metric.reset()
    metric.update(outputs, labels)
    return metric.compute()
