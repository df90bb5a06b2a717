"""A profile's facts from the device itself: what it is, what its onnxruntime reads and folds."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwprune.encoding import pack
from hwprune.errors import UsageError, VerificationError
from hwprune.export.body import DOMAIN, DOMAIN_VERSION
from hwprune.export.operators import Operator, function_for
from hwprune.remote import Destination, measure_there

# The newest form that it reads is taken: opset and IR version.
_FORMS = ((18, 8), (17, 8), (15, 8), (13, 7))
_SIZE, _KEPT, _RUNS = 512, 0.1, 30
# Functions that are folded at load run as the dense layer; one that decodes in each run is slower.
_FOLDED = 1.5


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a device said and showed.

    Attributes:
        device: its own words: processor, cores, clock, RAM, cache, versions.
        opset: the newest that it was seen to run, of those that are written.
        ir_version: likewise.
        dense_ms: a dense layer's median time.
        packed_ms: that of the same layer in the form with functions; None where it does not run.
    """

    device: Mapping[str, Any]
    opset: int
    ir_version: int
    dense_ms: float
    packed_ms: float | None

    @property
    def folds(self) -> bool:
        """Return whether functions are decoded once, as the file is loaded."""
        return self.packed_ms is not None and self.packed_ms <= _FOLDED * self.dense_ms


def calibrate(where: Destination, *, options: tuple[str, ...] = ()) -> Calibration:
    """Ask a device what it is, and let it run small files.

    Args:
        where: the device.
        options: further ones of ssh.

    Raises:
        UsageError: it cannot be reached, or lacks Python, NumPy or onnxruntime.
        VerificationError: it runs none of the files.
    """
    inputs = io.BytesIO()
    np.savez(inputs, x=np.ones((1, _SIZE), np.float32))

    def run(model: onnx.ModelProto) -> dict[str, Any]:
        return measure_there(
            where, model.SerializeToString(), inputs.getvalue(), runs=_RUNS, threads=1,
            kernels=False, options=options,
        )  # fmt: skip

    refused: VerificationError | None = None
    for opset, ir_version in _FORMS:
        try:
            dense = run(_layer(opset, ir_version, packed=False))
        except VerificationError as error:
            refused = error
            continue
        packed_ms = None
        if ir_version >= 8:
            try:
                packed = run(_layer(opset, ir_version, packed=True))
                packed_ms = packed["results"]["stock"]["p50_ms"]
            except VerificationError:  # a connection that broke for good ends with the next call
                packed_ms = None
        dense_ms = dense["results"]["stock"]["p50_ms"]
        return Calibration(dense["device"], opset, ir_version, dense_ms, packed_ms)
    assert refused is not None
    raise refused


def _layer(opset: int, ir_version: int, *, packed: bool) -> onnx.ModelProto:
    """Return a file of one linear layer, dense or packed as hwprune packs it."""
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((_SIZE, _SIZE)).astype(np.float32)
    imports, functions = [helper.make_opsetid("", opset)], []
    more: dict[str, Any] = {}
    if packed:
        mask = draw.random(weight.shape) < _KEPT
        stored = pack("w", weight, mask, codec="gap8", value_type="int8", channel_axis=0)
        operator = Operator("Gemm", "gap8", "int8", False)
        tensors = {role: stored.arrays[role] for role in operator.input_roles[1:]}
        imports.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
        functions = [function_for(name, opset) for name in operator.functions]
        kind, more = operator.name, {"domain": DOMAIN, "shape": [*weight.shape]}
    else:
        tensors, kind = {"w": weight}, "Gemm"
    node = helper.make_node(kind, ["x", *tensors], ["y"], transB=1, **more)
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", _SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", _SIZE])],
        [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in tensors.items()],
    )  # fmt: skip
    return helper.make_model(
        graph, functions=functions, opset_imports=imports, ir_version=ir_version
    )


def profile(found: Calibration, *, extends: str | None, description: str) -> str:
    """Return a profile as TOML: what was measured, over what another one says.

    Args:
        found: the device.
        extends: the profile that the rest comes from; without, what boards have in common.
        description: a line for people.

    Raises:
        UsageError: the device does not say what a profile needs, and no profile is extended.
    """
    device = found.device
    facts: dict[str, dict[str, Any]] = {
        "cpu": {"cores": device.get("cores"), "clock_hz": device.get("clock_hz")},
        "memory": {key: device.get(key) for key in ("ram_bytes", "last_level_cache_bytes")},
        "runtime": {
            "version": f"=={device['onnxruntime']}", "opset": found.opset,
            "ir_version": found.ir_version, "inline_functions": not found.folds,
        },
    }  # fmt: skip
    if extends is None:
        facts["cpu"] = {"core": device.get("cpu") or device["machine"], **facts["cpu"]}
        missing = [key for table in facts.values() for key, value in table.items() if value is None]
        if missing:
            raise UsageError(
                f"the device does not say {', '.join(missing)}",
                hint="--extends NAME takes them from a profile of a board like it",
            )
    return "\n".join(_toml(found, facts, extends or "_linux-board", description)) + "\n"


def _toml(
    found: Calibration, facts: Mapping[str, Mapping[str, Any]], extends: str, description: str
) -> Iterator[str]:
    sources = {
        "core": "/proc", "cores": "os.cpu_count()", "clock_hz": "/sys and /proc/cpuinfo",
        "ram_bytes": "/proc/meminfo", "last_level_cache_bytes": "/sys/devices/system/cpu",
        "version": "onnxruntime.__version__", "opset": "the newest file that it ran",
        "ir_version": "the newest file that it ran", "inline_functions": _seen(found),
    }  # fmt: skip
    yield f"extends = {json.dumps(extends)}"
    yield f"description = {json.dumps(_line(description), ensure_ascii=False)}"
    for table, values in facts.items():
        yield from ("", f"[{table}]")
        for key, value in values.items():
            if value is not None:
                text = json.dumps(
                    _line(value) if isinstance(value, str) else value, ensure_ascii=False
                )
                source = json.dumps(f"measured on the device by hwprune calibrate: {sources[key]}")
                yield f"{key} = {{ value = {text}, source = {source} }}"


def _seen(found: Calibration) -> str:
    if found.packed_ms is None:
        return "it does not run a file with functions"
    ratio = found.packed_ms / found.dense_ms
    return f"a packed layer took {ratio:.2f} times as long as the dense one"


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", "".join(c for c in text if c.isprintable())).strip()
