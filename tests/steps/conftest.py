"""Prepared networks for the steps' tests."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn

from hwprune.ir import Model, TensorSpec
from hwprune.steps.planning import Prepared, prepare
from hwprune.targets import load


@cache
def _traced() -> Prepared:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 40),
        nn.ReLU(),
        nn.Linear(40, 10),
    ).eval()
    spec = TensorSpec("x", (None, 1, 8, 8), "float32")
    model = Model("net", "net.pt", "state-dict", net, None, (spec,))
    return prepare(model, load("raspberry-pi-5"), None)


@pytest.fixture
def prepared() -> Callable[[int], Prepared]:
    """Return a function that gives the network, its weights its own, at a budget."""

    def at(budget_bytes: int) -> Prepared:
        whole = _traced()
        model = dataclasses.replace(whole.model, module=copy.deepcopy(whole.model.module))
        return dataclasses.replace(whole, model=model, budget_bytes=budget_bytes)

    return at
