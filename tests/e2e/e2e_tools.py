"""The command line called in place, and what a run leaves behind."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from hwprune.cli.main import main
from hwprune.frontend import load_data

WRITTEN = {
    ".hwprune", "model.onnx", "report.json", "report.html", "README.md",
    "checkpoint/weights.safetensors", "checkpoint/masks.safetensors",
}  # fmt: skip
KIB12 = 12 * 1024


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout; fails where there is more or less."""
        document = json.loads(self.out)
        assert next(iter(document)) == "schema_version"
        assert isinstance(document, dict)
        return document


def run(*words: object) -> Ran:
    """Run a command in this process, as its console script does."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Ran(code, out.getvalue(), err.getvalue())


class Runner:
    """``hwprune`` with a few shorthands."""

    def __call__(self, *words: object) -> Ran:
        """Run a command."""
        return run(*words)

    def refused(self, *words: object, code: int = 2, says: Sequence[str] = ()) -> Ran:
        """Run a command that must end with an error that fits one screen."""
        ran = run(*words)
        assert ran.code == code, ran
        lines = [line for line in ran.err.splitlines() if line.strip()]
        assert len(lines) < 25, ran.err
        assert "Traceback" not in ran.err
        assert "internal error" not in ran.err
        assert "hwprune: error: " in ran.err
        for text in says:
            assert text in ran.err, (text, ran.err)
        return ran


def state_of(folder: Path) -> dict[str, NDArray[Any]]:
    """The weights in a run's checkpoint."""
    from safetensors.numpy import load_file

    loaded: dict[str, NDArray[Any]] = load_file(folder / "checkpoint" / "weights.safetensors")
    return loaded


def masks_of(folder: Path) -> dict[str, NDArray[Any]]:
    """The masks in a run's checkpoint."""
    from safetensors.numpy import load_file

    loaded: dict[str, NDArray[Any]] = load_file(folder / "checkpoint" / "masks.safetensors")
    return loaded


def files_in(folder: Path) -> set[str]:
    """Every file below a folder, by its path there."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {name: (folder / name).read_bytes() for name in sorted(files_in(folder))}


def save_npz(path: Path, **arrays: NDArray[Any]) -> str:
    """Write an .npz and return what --data calls it."""
    np.savez(path, **arrays)
    return f"npz:{path}"


def accuracy_of(path: Path) -> float:
    """An evaluation that shares no code with hwprune's own."""
    data = load_data("digits")
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    assert data.test.labels is not None
    (images,) = data.test.batch(np.arange(len(data.test)))
    (scores,) = session.run(None, {session.get_inputs()[0].name: images})
    return float(np.mean(scores.argmax(1) == data.test.labels))
