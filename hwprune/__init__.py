"""hwprune: a compiler from trained networks to sparse ONNX files that fit a device's byte budget.

    artifact = hwprune.compile(model, target="jetson-nano", data="cifar10:DIR", budget="64KiB")
    hwprune.plan(model, target="jetson-nano", budget="64KiB")  # what fits, before any training
    hwprune.check(artifact.path, require=["size<=64KiB"]).ok
    hwprune.bench(artifact.path)["results"]
    hwprune.report.read("out"), hwprune.targets.load("jetson-nano")
    layers = hwprune.csr_arrays(artifact.path)
    session = hwprune.session(artifact.path)  # onnxruntime, with sparse kernels

Names are imported when they are used: reading an artifact needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwprune import report, targets
    from hwprune.api import compile, plan
    from hwprune.errors import HwpruneError
    from hwprune.export.artifact import csr_arrays, read_artifact
    from hwprune.gate import bench, check
    from hwprune.ir import Artifact, Verdict
    from hwprune.kernels import register_kernels, session
    from hwprune.pruner import Pruner

__all__ = [
    "Artifact", "HwpruneError", "Pruner", "Verdict", "bench", "check", "compile", "csr_arrays",
    "plan", "read_artifact", "register_kernels", "report", "session", "targets",
]  # fmt: skip

_HOME = {
    "Artifact": "hwprune.ir",
    "HwpruneError": "hwprune.errors",
    "Pruner": "hwprune.pruner",
    "Verdict": "hwprune.ir",
    "bench": "hwprune.gate",
    "check": "hwprune.gate",
    "compile": "hwprune.api",
    "csr_arrays": "hwprune.export.artifact",
    "plan": "hwprune.api",
    "read_artifact": "hwprune.export.artifact",
    "register_kernels": "hwprune.kernels",
    "session": "hwprune.kernels",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in ("report", "targets"):
        return importlib.import_module(f"hwprune.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'hwprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
