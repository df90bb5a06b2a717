from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from hwprune.frontend.zoo import ARCHITECTURES

# Of the literature, where it gives the number (He et al., and the usual CIFAR variants).
PARAMETERS = [
    ("cifar-resnet20", {}, 269_722),
    ("cifar-resnet32", {}, 464_154),
    ("cifar-resnet44", {}, 658_586),
    ("cifar-resnet56", {}, 853_018),
    ("cifar-vgg16-bn", {}, 14_728_266),
    ("cifar-densenet121", {}, 6_956_298),
    ("cifar-densenet121", {"growth_rate": 12}, 1_000_618),
    ("cifar-efficientnet-b0", {}, 3_599_686),
    ("cifar-mobilenet-v2", {}, 2_236_682),
    ("cifar-resnet34", {}, 21_282_122),
    ("cifar-resnet50", {}, 23_520_842),
    ("mlperf-resnet8", {}, 78_186),
    ("mlperf-dscnn", {}, 23_756),
    ("digits-cnn", {}, 75_370),
]


@pytest.mark.parametrize(("name", "kwargs", "parameters"), PARAMETERS)
def test_the_number_of_parameters_is_exact(
    name: str, kwargs: dict[str, Any], parameters: int
) -> None:
    with torch.device("meta"):
        module = ARCHITECTURES[name].build(**kwargs)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


def test_every_architecture_has_its_parameters_tested() -> None:
    assert {name for name, _, _ in PARAMETERS} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_batch_gives_one_row_of_classes_a_sample(name: str) -> None:
    entry = ARCHITECTURES[name]
    with torch.device("meta"):
        module = entry.build(num_classes=7).eval()
        (spec,) = entry.inputs
        output = module(torch.empty(spec.with_batch(5)))
        assert tuple(output.shape) == (5, 7)
        assert module.state_dict()[entry.head].shape[0] == 7


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("cifar10_resnet20", "cifar-resnet20"),
        ("cifar10_resnet32", "cifar-resnet32"),
        ("ic_resnet8", "mlperf-resnet8"),
        ("kws_dscnn", "mlperf-dscnn"),
    ],
)
def test_the_pretrained_weights_load_strictly(weights_folder: Path, file: str, name: str) -> None:
    state = torch.load(weights_folder / f"{file}.pth", weights_only=True)
    ARCHITECTURES[name].build().load_state_dict(state, strict=True)


# torch's exporter meets its own deprecations, some of them from inside the standard library.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["cifar-resnet20", "mlperf-dscnn", "digits-cnn"])
def test_the_export_keeps_the_batch_dynamic(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    entry = ARCHITECTURES[name]
    module = entry.build().eval()
    example = torch.randn(entry.inputs[0].with_batch(2))
    program = torch.export.export(
        module, (example,), dynamic_shapes=({0: torch.export.Dim("N")},), strict=False
    )
    exported = torch.onnx.export(program, dynamo=True, opset_version=18, verbose=False)
    assert exported is not None
    exported.save(str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    batch = torch.randn(entry.inputs[0].with_batch(3))
    (logits,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, module(batch).numpy(), rtol=1e-4, atol=1e-5)
