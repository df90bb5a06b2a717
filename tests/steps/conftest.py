"""Prepared networks for the steps' tests."""

from __future__ import annotations

import copy
import dataclasses
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))  # for steps_tools

from steps_tools import At

from hwprune.ir import Model, TensorSpec
from hwprune.steps.planning import Prepared, prepare
from hwprune.targets import load


@cache
def _traced(target: str) -> Prepared:
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
    return prepare(model, load(target))


@pytest.fixture
def prepared() -> At:
    """Return a function that gives the network, its weights its own."""

    def at(target: str = "raspberry-pi-5") -> Prepared:
        whole = _traced(target)
        model = dataclasses.replace(whole.model, module=copy.deepcopy(whole.model.module))
        return dataclasses.replace(whole, model=model)

    return at
