"""Curves of a compilation in TensorBoard or MLflow: pass one of these as ``progress``.

``hwprune.compile(model, ..., progress=to_tensorboard(SummaryWriter()))``, or within
``mlflow.start_run()``: ``hwprune.compile(model, ..., progress=to_mlflow(mlflow))``.
"""

from __future__ import annotations

from typing import Any

from hwprune.ir import Say, Status


def to_tensorboard(writer: Any) -> Say:
    """Return what writes each epoch's numbers to a ``SummaryWriter``."""

    def log(status: Status) -> None:
        for name, value in status.values.items():
            writer.add_scalar(f"hwprune/{name}", value, global_step=status.done)

    return log


def to_mlflow(mlflow: Any) -> Say:
    """Return what writes each epoch's numbers to the active run."""

    def log(status: Status) -> None:
        if status.values:
            mlflow.log_metrics(dict(status.values), step=status.done)

    return log
