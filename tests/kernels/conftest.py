"""Lets the tests share kernel_cases by name under pytest's importlib mode; gives them a rule.

What is asserted of sessions shall not depend on the processor that asserts it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hwprune.kernels import dense_path

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def kernels_up_to_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels for layers that store up to half of their weights."""
    monkeypatch.setattr(dense_path, "density_limit", lambda layer: 0.5)
