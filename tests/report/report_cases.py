"""Records of runs that differ in what they have."""

from __future__ import annotations

import copy
from typing import Any


def kinds(sample_record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The records of runs that differ in what they have."""
    trained = copy.deepcopy(sample_record)
    trained["result"] |= {"dense_bytes": 1_100_000, "int8_bytes": 290_000}
    trained["result"]["layers"][0]["packed_bytes"] = 200
    trained["latency"]["kernels"] = {**trained["latency"]["stock"], "p50_ms": 0.84}
    trained["metadata"] = {
        "preprocessing": '{"layout":"NCHW","scale":255,"mean":[0.5],"std":[0.25]}',
        "data": "cifar10 0123456789ab", "classes": '["aeroplane","ship"]',
    }  # fmt: skip
    untrained = copy.deepcopy(trained)
    untrained |= {"epochs": 0, "strategy": "one-shot"}
    untrained["metric"] |= {"trajectory": [], "extreme": None, "final": None, "dense": None}
    dense = copy.deepcopy(untrained)
    dense["artifact"]["form"] = "dense"
    dense["result"] |= {"nonzeros": 270_000, "sparsity": 0.0}
    firmware = copy.deepcopy(trained)
    firmware["latency"] = dict.fromkeys(("dense", "stock", "kernels", "host", "onnxruntime"))
    firmware["firmware"] = {
        "flash_bytes": 61_000, "ram_bytes": 20_000, "planned_ram_bytes": 18_000, "stack_bytes": 900,
        "board": "mps2-an386", "inputs": 2, "tensors": 20, "instructions": 1_000_000,
        "instructions_by_layer": {"a": 5}, "constant_bytes": 55_000, "calibration": "percentile",
        "error": 0.01, "formats": {"a": "gap8"}, "sha256": "cd" * 32,
    }  # fmt: skip
    return {"trained": trained, "untrained": untrained, "dense": dense, "firmware": firmware}
