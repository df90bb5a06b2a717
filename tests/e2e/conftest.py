"""What the end-to-end tests share: the command line called in place, and a trained network."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hwprune.frontend.zoo import ARCHITECTURES

sys.path.insert(0, str(Path(__file__).parent))  # for e2e_tools
sys.path.append(str(Path(__file__).parents[1] / "frontend"))  # for onnx_nets

from e2e_tools import Runner

ROOT = Path(__file__).resolve().parents[2]
_TRACED: dict[Any, Any] = {}


@pytest.fixture(scope="session")
def hwprune() -> Runner:
    """The command line."""
    return Runner()


@pytest.fixture(scope="session")
def digits_pt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's network, trained for a few epochs on the digits: a state dict."""
    where = ROOT / "examples" / "train_digits.py"
    spec = importlib.util.spec_from_file_location("train_digits", where)
    assert spec is not None
    assert spec.loader is not None
    trainer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trainer)
    with contextlib.redirect_stdout(io.StringIO()):
        network = trainer.train(epochs=3, seed=0)
    path = tmp_path_factory.mktemp("digits") / "digits.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def digits_net(digits_pt: Path) -> nn.Module:
    """The same network as a module; copy it before changing it."""
    network = ARCHITECTURES["digits-cnn"].build()
    network.load_state_dict(torch.load(digits_pt))
    return network.eval()


@pytest.fixture(autouse=True)
def little_least_squares(monkeypatch: pytest.MonkeyPatch, no_memory_measured: None) -> None:
    """Let whole runs judge connections once and make few inputs: that is most of their time."""
    from hwprune.least_squares import saliency, synthesis

    monkeypatch.setattr(saliency, "_ROUNDS_COST", 0)
    monkeypatch.setattr(synthesis, "MOST_MACS", 1e10)  # for the smallest networks only
    for name, few in (("STEPS", 8), ("_LEAST_STEPS", 8), ("SAMPLES", 64)):
        monkeypatch.setattr(synthesis, name, few)


@pytest.fixture(autouse=True)
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace a built-in network once for all tests: its structure does not depend on its weights.

    Tracing is most of the time that a compilation of a small network takes.
    """
    from hwprune.steps import planning

    real = planning.trace

    def trace(model: Any) -> Any:
        name = "digits-cnn" if type(model.module).__name__ == "DigitsCnn" else model.arch
        # Layers that share weights are another structure, and so are other numbers of classes.
        state = model.module.state_dict().items()
        key = (name, model.inputs, frozenset((key, tuple(each.shape)) for key, each in state))
        if name not in ARCHITECTURES:
            return real(model)
        if key not in _TRACED:
            _TRACED[key] = real(model)
        return _TRACED[key]

    monkeypatch.setattr(planning, "trace", trace)
