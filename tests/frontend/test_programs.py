"""torch.export programs and TorchScript archives: files that carry their own network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hwprune.errors import ModelError, UnsafeModelError
from hwprune.frontend import load_model
from hwprune.ir import TensorSpec

# torch calls TorchScript deprecated; people still have such files.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

BATCH = torch.export.Dim("N")


def export(module: nn.Module, args: tuple[Any, ...], path: Path, **options: Any) -> str:
    torch.export.save(torch.export.export(module, args, strict=False, **options), path)
    return str(path)


@pytest.mark.parametrize("training", [False, True])
def test_a_program_computes_what_its_network_does(
    digits: nn.Module, images: Tensor, tmp_path: Path, training: bool
) -> None:
    path = export(
        digits.train(training), (images,), tmp_path / "a.pt2", dynamic_shapes=({0: BATCH},)
    )
    model = load_model(path)
    assert model.kind == "exported-program"
    assert model.arch is None
    assert (model.trainable, model.batchnorm_frozen) == (True, True)
    assert model.inputs == (TensorSpec("x", (None, 1, 8, 8), "float32"),)
    assert any("training mode" in note for note in model.notes) == training
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    with torch.no_grad():
        torch.testing.assert_close(model.module(images[:3]), digits.eval()(images[:3]))
    assert all(torch.equal(before[k], v) for k, v in model.module.state_dict().items())
    assert set(before) == set(digits.state_dict())


def test_a_program_can_be_trained_copied_and_exported_again(
    digits: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    path = export(digits, (images,), tmp_path / "a.pt2", dynamic_shapes=({0: BATCH},))
    module = load_model(path).module
    twin = copy.deepcopy(module)
    module.train()
    module(images).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    module.eval()
    assert not module.training
    with torch.no_grad():
        torch.testing.assert_close(twin.eval()(images), digits(images))
    torch.onnx.export(
        module, (images,), dynamo=True, opset_version=18, verbose=False,
        dynamic_shapes=({0: BATCH},),
    )  # fmt: skip


def test_a_program_of_a_fixed_batch_keeps_it(
    digits: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    model = load_model(export(digits, (images,), tmp_path / "a.pt2"))
    assert model.inputs[0].shape == (5, 1, 8, 8)
    assert any("fixes the batch" in note for note in model.notes)


def test_an_input_that_the_program_does_not_take_is_refused(
    digits: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    path = export(digits, (images,), tmp_path / "a.pt2", dynamic_shapes=({0: BATCH},))
    with pytest.raises(ModelError, match="does not take x:Nx1x9x9"):
        load_model(path, inputs=["x:1x1x9x9:float32"])


def test_an_architecture_beside_a_program_is_not_needed_and_said(
    digits: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    path = export(digits, (images,), tmp_path / "a.pt2", dynamic_shapes=({0: BATCH},))
    assert any("not needed" in note for note in load_model(path, arch="digits-cnn").notes)


def test_a_decomposed_training_program_says_how_to_export_again(
    digits: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    program = torch.export.export(
        digits.train(), (images,), dynamic_shapes=({0: BATCH},), strict=False
    )
    torch.export.save(program.run_decompositions(), tmp_path / "a.pt2")
    with pytest.raises(ModelError, match="training mode") as caught:
        load_model(str(tmp_path / "a.pt2"))
    assert "model.eval()" in (caught.value.hint or "")


def test_a_program_with_weights_that_are_not_finite(
    digits: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    with torch.no_grad():
        digits.get_parameter("classifier.bias")[2] = float("nan")
    path = export(digits, (images,), tmp_path / "a.pt2", dynamic_shapes=({0: BATCH},))
    with pytest.raises(ModelError, match=r"classifier\.bias \(1 of 10\)"):
        load_model(path)


def test_a_program_in_half_precision_is_refused(tmp_path: Path) -> None:
    path = export(nn.Linear(4, 2).half(), (torch.zeros(2, 4).half(),), tmp_path / "a.pt2")
    with pytest.raises(ModelError, match="float16"):
        load_model(path)


class Keyword(nn.Module):
    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        return x * scale


def test_a_program_with_inputs_by_keyword_is_refused(tmp_path: Path) -> None:
    path = export(
        Keyword(), (torch.ones(2, 3),), tmp_path / "a.pt2", kwargs={"scale": torch.ones(3)}
    )
    with pytest.raises(ModelError, match="by keyword"):
        load_model(path)


# -- TorchScript --------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path: Path) -> Callable[[nn.Module], str]:
    def save(module: nn.Module) -> str:
        torch.jit.save(torch.jit.script(module), tmp_path / "model.pt")
        return str(tmp_path / "model.pt")

    return save


def test_a_torchscript_archive_is_loaded_but_not_trained(
    digits: nn.Module, images: Tensor, script: Callable[[nn.Module], str]
) -> None:
    model = load_model(script(digits), inputs=["x:1x1x8x8:float32"])
    assert (model.kind, model.trainable) == ("torchscript", False)
    with torch.no_grad():
        torch.testing.assert_close(model.module(images), digits(images))


def test_a_torchscript_archive_asks_for_its_input(
    digits: nn.Module, script: Callable[[nn.Module], str]
) -> None:
    with pytest.raises(ModelError, match="not known"):
        load_model(script(digits))


class WritesFile(nn.Module):
    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.target)
        return x


class ReadsFile(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_file("/dev/zero", False, 4)


def test_a_torchscript_archive_that_writes_files_is_refused(
    tmp_path: Path, script: Callable[[nn.Module], str]
) -> None:
    target = tmp_path / "written"
    with pytest.raises(UnsafeModelError, match="save"):
        load_model(script(WritesFile(str(target))), inputs=["x:1x4:float32"])
    assert not target.exists()


def test_a_torchscript_archive_that_reads_files_is_refused(
    script: Callable[[nn.Module], str],
) -> None:
    with pytest.raises(UnsafeModelError, match="from_file"):
        load_model(script(ReadsFile()), inputs=["x:1x4:float32"])


def test_dropout_is_switched_off_by_keyword_too(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    program = torch.export.export(module, (torch.randn(5, 4),), strict=False)
    for node in program.graph.nodes:
        if "dropout" in str(node.target):
            node.args, node.kwargs = node.args[:2], {"train": True}
    torch.export.save(program, tmp_path / "a.pt2")
    model = load_model(str(tmp_path / "a.pt2"))
    assert any("1 operators were switched" in note for note in model.notes)


def test_bn_without_weights_gets_those_that_do_nothing(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False)).eval()
    x = torch.randn(5, 4)
    path = export(module, (x,), tmp_path / "a.pt2", dynamic_shapes=({0: BATCH},))
    loaded = load_model(path).module
    assert {name.rpartition("_")[2] for name, _ in loaded.named_parameters() if "norm" in name} == {
        "weight",
        "bias",
    }
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)
