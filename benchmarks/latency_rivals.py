"""Writes the file that a rival of benchmarks/latency.py runs, by the rival's own tools.

    python latency_rivals.py KIND FOLDER NETWORK

FOLDER holds ``dense.onnx``, its weights as ``weights.pt`` and ``samples.npy``, the inputs to
calibrate with. KIND is ``int8-qdq`` (onnxruntime's static quantization: QDQ form, int8 weights per
channel, uint8 activations), ``openvino-int8`` (NNCF's post-training quantization), ``xnnpack`` and
``xnnpack-int8`` (litert-torch, and AI Edge Quantizer: int8 weights per channel, int8 activations).
Each needs what it is called after, and may have an environment of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def int8_qdq(folder: Path, network: str) -> None:
    """Write ``int8-qdq.onnx``."""
    from onnxruntime import quantization

    class Samples(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(samples(folder))

        def get_next(self) -> Any:
            x = next(self.left, None)
            return None if x is None else {"input": x}

    prepared = folder / "prepared.onnx"
    quantization.quant_pre_process(folder / "dense.onnx", prepared)
    quantization.quantize_static(
        prepared,
        folder / "int8-qdq.onnx",
        Samples(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def openvino_int8(folder: Path, network: str) -> None:
    """Write ``openvino-int8.xml``."""
    import nncf
    import openvino

    given = samples(folder)
    model = openvino.Core().read_model(folder / "dense.onnx")
    quantized = nncf.quantize(model, nncf.Dataset(given), subset_size=len(given))
    openvino.save_model(quantized, folder / "openvino-int8.xml")


def xnnpack(folder: Path, network: str) -> None:
    """Write ``xnnpack.tflite``."""
    import litert_torch
    import torch
    from sparse_networks import untrained

    module = untrained(network, 0).module
    module.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    x = torch.from_numpy(samples(folder)[0])
    litert_torch.convert(module.eval(), (x,)).export(str(folder / "xnnpack.tflite"))


def xnnpack_int8(folder: Path, network: str) -> None:
    """Write ``xnnpack-int8.tflite`` after ``xnnpack``."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    source = str(folder / "xnnpack.tflite")
    runner = Interpreter(source).get_signature_list()
    (signature,) = runner
    (name,) = runner[signature]["inputs"]
    made = quantizer.Quantizer(source)
    made.load_quantization_recipe(recipe.static_wi8_ai8())
    seen = made.calibrate({signature: [{name: x} for x in samples(folder)]})
    made.quantize(seen).export_model(str(folder / "xnnpack-int8.tflite"), overwrite=True)


def samples(folder: Path) -> list[Any]:
    """Return the inputs to calibrate with, of one sample each."""
    return [x[None] for x in np.load(folder / "samples.npy")]


KINDS: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "int8-qdq": (int8_qdq, "int8-qdq.onnx"),
    "openvino-int8": (openvino_int8, "openvino-int8.xml"),
    "xnnpack": (xnnpack, "xnnpack.tflite"),
    "xnnpack-int8": (xnnpack_int8, "xnnpack-int8.tflite"),
}

if __name__ == "__main__":
    KINDS[sys.argv[1]][0](Path(sys.argv[2]), sys.argv[3])
