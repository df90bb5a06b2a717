"""Small artifacts and records that several rooms' tests share. Nothing here needs torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WriteArtifact = Callable[..., Path]


def build_artifact(
    *,
    form: str = "functions",
    codec: str = "gap8",
    value_type: str = "int8",
    channels: int = 8,
    classes: int = 5,
    batch: int | str = "N",
    seed: int = 0,
) -> Any:
    """A convolution and a linear layer as hwprune writes them: functions, inlined or dense."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from hwprune.encoding import pack, unpack
    from hwprune.export.body import DOMAIN
    from hwprune.export.operators import Operator, expand, function_for

    generator = np.random.default_rng(seed)
    shapes = {"conv.weight": (channels, 3, 3, 3), "fc.weight": (classes, channels * 16)}
    kinds = {"conv.weight": "Conv", "fc.weight": "Gemm"}
    given = {
        "Conv": {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1},
        "Gemm": {"transB": 1},
    }
    tensors, nodes, functions = [], [], {}
    source = "x"
    for key, (name, shape) in enumerate(shapes.items()):
        kind = kinds[name]
        weight = generator.standard_normal(shape).astype(np.float32)
        mask = generator.random(shape) < 0.15
        packed = pack(name, weight, mask, codec=codec, value_type=value_type, channel_axis=0)  # type: ignore[arg-type]
        if kind == "Gemm":
            nodes.append(helper.make_node("Relu", [source], ["r"]))
            nodes.append(helper.make_node("Flatten", ["r"], ["flat"]))
            source = "flat"
        output = f"y{key}"
        if form == "dense":
            tensors.append(numpy_helper.from_array(unpack(packed) + 1.0, f"w{key}"))
            nodes.append(helper.make_node(kind, [source, f"w{key}"], [output], **given[kind]))
        else:
            operator = Operator(kind, codec, value_type, False)  # type: ignore[arg-type]
            for role, array in packed.arrays.items():
                stored = np.ascontiguousarray(array)
                tensors.append(numpy_helper.from_array(stored, f"{key}{role[0]}"))
            inputs = [source, *(f"{key}{role[0]}" for role in operator.input_roles[1:])]
            node = helper.make_node(
                operator.name, inputs, [output], name=name, domain=DOMAIN,
                **given[kind],
                **({} if codec == "dense" else {"shape": list(shape)}),
                **({} if packed.count is None else {"count": packed.count}),
            )  # fmt: skip
            if form == "inlined":
                inner = expand(node, f"{key}_0_", 18)
                dims = "x".join(map(str, shape))
                inner[-1].name = f"{name}|{operator.name}|{dims}|{key}"
                nodes += inner
            else:
                nodes.append(node)
                functions |= {each: function_for(each, 18) for each in operator.functions}
        source = output
    imports = [helper.make_opsetid("", 18)]
    if form == "functions":
        imports.append(helper.make_opsetid(DOMAIN, 1))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 4, 4])],
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, [batch, classes])],
        tensors,
    )
    model = helper.make_model(
        graph, functions=list(functions.values()), opset_imports=imports, ir_version=8,
        producer_name="hwprune",
    )  # fmt: skip
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(autouse=True)
def nothing_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No session decides by a clock, on whatever machine, unless it is asked to."""
    monkeypatch.setattr("hwprune.kernels.timed_choice.needed", lambda: False)


@pytest.fixture
def no_memory_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whole runs measure no memory: each measurement is a Python of its own."""
    from hwprune.verify import memory

    nothing = memory.MemoryResult(1, 0)
    monkeypatch.setattr(memory, "resident", lambda path, *, kernels=False: nothing)


@pytest.fixture
def write_artifact(tmp_path: Path) -> WriteArtifact:
    """Return a function that writes an artifact and returns its path; options of build_artifact."""

    def write(name: str = "model.onnx", *, model: Any = None, **options: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made = build_artifact(**options) if model is None else model
        path.write_bytes(made.SerializeToString(deterministic=True))
        return path

    return write


@pytest.fixture
def make_artifact() -> Callable[..., Any]:
    """Return the function that builds an artifact in memory."""
    return build_artifact


@pytest.fixture
def sample_record() -> dict[str, Any]:
    """A complete report, with a name that would break a page that does not escape."""
    return {
        "schema_version": 2,
        "verdict": {
            "fits": True,
            "verified": True,
            "scope": "onnx file, on this host",
            "limits": [
                {"field": "size", "op": "<=", "limit": 65536, "value": 65100, "met": True},
                {"field": "accuracy", "op": ">=", "limit": 0.9, "value": 0.9025, "met": True},
            ],
            "exit_code": 0,
        },
        "model": "resnet20",
        "target": "raspberry-pi-zero-2w",
        "strategy": "bidirectional",
        "epochs": 4,
        "artifact": {
            "path": "model.onnx",
            "bytes": 65100,
            "sha256": "ab" * 32,
            "form": "functions",
        },
        "budget": {
            "bytes": 65536,
            "floor_bytes": 9000,
            "max_nonzeros": 26000,
            "used_bytes": 65100,
            "slack_bytes": 436,
        },
        "result": {
            "nonzeros": 25_900,
            "weights": 270_000,
            "sparsity": 0.904,
            "artifact_bytes": 65100,
            "layers": [
                {
                    "name": f"layer{number}.<b>conv</b>.weight",
                    "shape": [16 * number, 16, 3, 3],
                    "nonzeros": 100 * number,
                    "codec": "gap8",
                    "value_type": "int8",
                    "bytes": 230 * number,
                }
                for number in range(1, 9)
            ],
        },
        "metric": {
            "name": "accuracy", "higher_is_better": True, "split": "test", "samples": 10_000,
            "dense": 0.9173, "extreme": 0.61, "final": 0.9025,
            "trajectory": [
                {"epoch": 0, "nonzeros": 270_000, "value": 0.92, "action": None},
                {"epoch": 1, "nonzeros": 22_000, "value": 0.61, "action": "prune"},
                {"epoch": 2, "nonzeros": 24_000, "value": None, "action": "regrow"},
                {"epoch": 3, "nonzeros": 25_900, "value": 0.89, "action": "regrow"},
                {"epoch": 4, "nonzeros": 25_900, "value": 0.905, "action": "train"},
            ],
        },
        "accuracy": {
            "dense": 0.9173,
            "extreme": 0.61,
            "final": 0.9025,
            "metric": "top-1 accuracy",
            "split": "test",
            "samples": 10_000,
            "trajectory": [
                {"epoch": 0, "nonzeros": 270_000, "accuracy": 0.92, "action": None},
                {"epoch": 1, "nonzeros": 22_000, "accuracy": 0.61, "action": "prune"},
                {"epoch": 2, "nonzeros": 24_000, "accuracy": None, "action": "regrow"},
                {"epoch": 3, "nonzeros": 25_900, "accuracy": 0.89, "action": "regrow"},
                {"epoch": 4, "nonzeros": 25_900, "accuracy": 0.905, "action": "train"},
            ],
        },
        "latency": {
            "dense": {
                "p50_ms": 2.1, "p90_ms": 2.4, "runs": 100, "threads": 1, "batch": 1,
                "load_ms": 9.0, "resident_bytes": 61_000_000, "added_bytes": 11_000_000,
            },
            "stock": {
                "p50_ms": 2.2, "p90_ms": 2.5, "runs": 100, "threads": 1, "batch": 1,
                "load_ms": 21.0, "resident_bytes": 60_000_000, "added_bytes": 10_000_000,
            },
            "kernels": None,
            "host": "this host: Some CPU, 2 cores, x86_64",
            "onnxruntime": "1.31.1",
        },
        "parity": {"relative_error": 3e-7, "top1_agreement": 1.0},
        "environment": {"python": "3.11.2", "torch": None, "cpu_cores": 2},
        "command": "hwprune compile resnet20.pt --target raspberry-pi-zero-2w --budget 64KiB",
        "seed": 0,
        "seconds": 73.5,
        "notes": [
            "latency.kernels: this installation has no native kernels",
            "latency.dense.weight_bytes: not counted", "latency.stock.weight_bytes: not counted",
            "a <script> & a | pipe",
        ],
    }  # fmt: skip


@pytest.fixture
def put_report(sample_record: dict[str, Any]) -> Callable[..., Path]:
    """Return a function that writes a report.json beside an artifact, true to it if unchanged."""

    def put(artifact: Path, **changes: Any) -> Path:
        data = artifact.read_bytes()
        record = {
            **sample_record,
            "artifact": {
                "path": artifact.name,
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            },
            **changes,
        }
        path = artifact.parent / "report.json"
        path.write_text(json.dumps(record))
        return path

    return put
