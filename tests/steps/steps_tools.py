"""What the steps' tests share: a prepared network through one stage, at a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.ir import Data, Masks, ValueType
from hwprune.job import Job, resolve
from hwprune.steps.packing import PackedModel, pack_model
from hwprune.steps.planning import Candidate, Prepared, module_weights
from hwprune.steps.verifying import verify_file
from hwprune.targets import load
from hwprune.verify import CheckResult

At = Callable[..., Prepared]
Weights = Mapping[str, NDArray[np.float32]]


def job_of(prepared: Prepared, data: Data | None = None, **asked: Any) -> Job:
    """Return a job for a network; nothing is written."""
    asked = {"device": "cpu", **asked}
    return resolve(prepared.model, load("raspberry-pi-5"), data, Path("nowhere"), **asked)


def weights_in(prepared: Prepared) -> dict[str, NDArray[np.float32]]:
    """Return a copy of the prunable weights."""
    weights = module_weights(prepared.model.module, prepared.template)
    return {name: weight.copy() for name, weight in weights.items()}


def pack(
    prepared: Prepared,
    masks: Masks,
    kind: ValueType,
    pretrained: Weights,
    budget: int,
    candidate: Candidate | None = None,
) -> PackedModel:
    """Pack as the compiler does, at the prices of a candidate."""
    priced: Any = {} if candidate is None else {"time": candidate.time, "prices": candidate.prices}
    return pack_model(
        prepared.model.module, prepared.template, masks, kind, pretrained,
        budget_bytes=budget, revive=not prepared.has_to_train, **priced,
    )  # fmt: skip


def verify(
    path: Path, packed: PackedModel, prepared: Prepared, budget: int, target: str = "raspberry-pi-5"
) -> CheckResult:
    """Verify as the compiler does, without data."""
    return verify_file(
        path, packed.written, packed.masks, prepared.model, prepared.template,
        target=load(target), budget_bytes=budget, data=None,
    )  # fmt: skip
