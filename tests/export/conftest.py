"""The traced networks as fixtures, shared by name under pytest's importlib mode."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import export_cases


@pytest.fixture(params=export_cases.CASES)
def case(request: pytest.FixtureRequest) -> export_cases.Case:
    """Each network in turn."""
    return export_cases.CASES[request.param]()


@pytest.fixture
def zoo() -> export_cases.Case:
    """The network with every kind of weight."""
    return export_cases.CASES["zoo"]()
