"""Every built-in architecture: predicted bytes are file bytes; stock onnxruntime runs the file."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from hwprune.export.pipeline import template_of, weights_of
from hwprune.export.trace import Traced, trace
from hwprune.frontend.zoo import ARCHITECTURES
from hwprune.ir import Masks, Model
from hwprune.targets import Target, load

# The oldest runtime there is, which gets the inlined form, and today's.
FORMS = {"inlined": "jetson-nano", "functions": "raspberry-pi-5"}


# Of one family that differs in depth alone, the shallowest.
DEEPER = {"cifar-resnet32", "cifar-resnet44", "cifar-resnet56"}
# torch takes long to trace these.
LARGE = {
    "cifar-densenet121",
    "cifar-efficientnet-b0",
    "cifar-mobilenet-v2",
    "cifar-resnet34",
    "cifar-resnet50",
}
NAMES = [name for name in ARCHITECTURES if name not in DEEPER]
PARAMETERS = [
    pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in NAMES
]


@pytest.fixture(scope="module", params=PARAMETERS, ids=NAMES)
def traced(request: pytest.FixtureRequest) -> tuple[Model, Traced]:
    """Each architecture, traced once for both forms."""
    entry = ARCHITECTURES[request.param]
    torch.manual_seed(0)
    module = entry.build().eval()
    model = Model(entry.name, "untrained", "state-dict", module, entry.name, entry.inputs)
    return model, trace(model)


def _masks(weights: dict[str, np.ndarray], density: float) -> Masks:
    generator = np.random.default_rng(0)
    return Masks({name: generator.random(w.shape) < density for name, w in weights.items()})


@pytest.mark.parametrize("form", FORMS)
def test_predicted_bytes_are_file_bytes_and_the_file_runs(
    traced: tuple[Model, Traced], form: str
) -> None:
    model, structure = traced
    target: Target = load(FORMS[form])
    template, _ = template_of(
        structure,
        model.module,
        opset=target.runtime.opset,
        ir_version=target.runtime.ir_version,
        inline=target.runtime.inline_functions,
        codecs=target.codecs,
    )
    assert target.runtime.inline_functions is (form == "inlined")
    assert not structure.notes  # the batch stayed dynamic
    masks = _masks(dict(weights_of(template)), 0.05)
    cost = template.cost("int8")
    written = template.write_sparse(masks, "int8")
    predicted = cost.encoding(masks.positions(), "int8")
    assert written.encoding is not None
    assert len(written.data) == written.encoding.file_bytes
    # Measured on the unmasked weights too: only the type of int8 scales could differ.
    assert predicted.file_bytes == len(written.data)

    onnx.checker.check_model(written.data, full_check=True)
    read = onnx.load_from_string(written.data)
    versions = {entry.domain: entry.version for entry in read.opset_import}
    assert versions[""] == target.runtime.opset == (15 if form == "inlined" else 18)
    assert read.ir_version == target.runtime.ir_version
    assert bool(read.functions) is (form == "functions")

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        written.data, options, providers=["CPUExecutionProvider"]
    )
    generator = np.random.default_rng(1)
    feeds = {
        spec.name: generator.standard_normal(spec.with_batch(2)).astype(spec.dtype)
        for spec in model.inputs
    }
    (output,) = session.run(None, feeds)
    assert output.shape[0] == 2
    assert np.all(np.isfinite(output))
