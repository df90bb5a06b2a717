"""What onnxruntime keeps of a decoder: nothing, in either form, for every layout.

The optimised copy that onnxruntime can write holds what it will run. Decoding must be gone from it:
what it leaves would be run at every inference.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from hwprune.encoding.values import NIBBLE_TYPES
from hwprune.export.decoders import DECODERS, VALUE_LABELS

LAYOUTS = [
    (codec, value_type)
    for codec in (*DECODERS.values(), "dense")
    for value_type in VALUE_LABELS
    if codec != "dense" or value_type not in NIBBLE_TYPES
]
# The network itself, and the layouts and fusions that onnxruntime makes of it.
KEPT = {
    "Conv",
    "FusedConv",
    "Relu",
    "Flatten",
    "Gemm",
    "FusedGemm",
    "ReorderInput",
    "ReorderOutput",
}


def _optimised(model: onnx.ModelProto, path: Path, *, level: Any = None) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(path)
    if level is not None:
        options.graph_optimization_level = level
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return onnx.load(str(path))


@pytest.mark.parametrize("form", ["functions", "inlined"])
@pytest.mark.parametrize(("codec", "value_type"), LAYOUTS)
def test_nothing_of_the_decoding_is_left_at_run_time(
    make_artifact: Callable[..., Any], codec: str, value_type: str, form: str, tmp_path: Path
) -> None:
    model = make_artifact(form=form, codec=codec, value_type=value_type, channels=8)
    found = _optimised(model, tmp_path / "optimised.onnx")
    assert {node.op_type for node in found.graph.node} <= KEPT
    # Nor do the packed arrays stay in memory beside the dense weights.
    if codec == "dense":
        return
    names = {tensor.name for tensor in found.graph.initializer}
    assert names.isdisjoint({"0v", "0i", "1v", "1i"})


@pytest.mark.parametrize(("codec", "value_type"), LAYOUTS)
def test_unfolded_and_folded_agree(
    make_artifact: Callable[..., Any], codec: str, value_type: str
) -> None:
    """With graph optimisation off every decoder runs at every inference."""
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    model = make_artifact(codec=codec, value_type=value_type).SerializeToString()
    outputs = []
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {"x": x})[0])
    assert np.allclose(*outputs, rtol=1e-5, atol=1e-5)
