"""Networks and files that the tests of the frontend share."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hwprune.frontend.zoo import ARCHITECTURES

ROOT = Path(__file__).parents[2]
sys.path.append(str(Path(__file__).parent))  # for onnx_nets


@pytest.fixture(scope="session")
def weights_folder() -> Path:
    """The folder of pretrained weights: HWPRUNE_DATA's, or the one beside the repository."""
    data = Path(os.environ.get("HWPRUNE_DATA") or ROOT.parent / "shared" / "data")
    folder = data / "weights"
    if not folder.is_dir():
        pytest.skip(f"no pretrained weights in {folder} (HWPRUNE_DATA names another data folder)")
    return folder


@pytest.fixture
def digits() -> nn.Module:
    """The smallest built-in network, at a seeded random start."""
    torch.manual_seed(0)
    return ARCHITECTURES["digits-cnn"].build().eval()


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Write an object as torch.save does; return the path."""

    def write(value: Any, name: str = "model.pt", **kwargs: Any) -> str:
        path = tmp_path / name
        torch.save(value, path, **kwargs)
        return str(path)

    return write


class Trap:
    """An object that leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"echo ran > '{self.marker}'",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What a hostile file would create."""
    return tmp_path / "marker"


@pytest.fixture
def trap(marker: Path) -> Trap:
    """A hostile object, known to work: a test that finds no marker means something."""
    pickle.loads(pickle.dumps(Trap(marker)))
    assert marker.exists()
    marker.unlink()
    return Trap(marker)


@pytest.fixture
def images() -> Tensor:
    """Five 8x8 images, as digits-cnn reads them."""
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
