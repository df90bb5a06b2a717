"""State dicts in every form that training scripts leave them in, and what is wrong with some."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from hwprune.errors import ModelError, UnsafeModelError, UsageError
from hwprune.frontend import load_model
from hwprune.frontend.zoo import ARCHITECTURES
from hwprune.ir import Model, TensorSpec

Save = Callable[..., str]


def assert_same(model: Model, module: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model.module(images), module(images), rtol=0, atol=0)


def test_a_state_dict_is_recognised(digits: nn.Module, save: Save, images: Tensor) -> None:
    path = save(digits.state_dict(), "my-digits.pt")
    model = load_model(path)
    assert (model.name, model.source, model.kind) == ("my-digits", path, "state-dict")
    assert model.arch == "digits-cnn"
    assert model.inputs == (TensorSpec("input", (None, 1, 8, 8), "float32"),)
    assert model.trainable
    assert not model.batchnorm_frozen
    assert not any(module.training for module in model.module.modules())
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    assert any("recognised as digits-cnn" in note for note in model.notes)
    assert_same(model, digits, images)


def test_the_name_of_the_file_does_not_matter(digits: nn.Module, save: Save) -> None:
    assert load_model(save(digits.state_dict(), "weights.onnx")).kind == "state-dict"


def test_the_old_file_format_is_read(digits: nn.Module, save: Save, images: Tensor) -> None:
    path = save(digits.state_dict(), _use_new_zipfile_serialization=False)
    assert_same(load_model(path), digits, images)


def test_safetensors_are_read(digits: nn.Module, tmp_path: Path, images: Tensor) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.bin"
    safetensors.save_file(digits.state_dict(), path)
    assert_same(load_model(str(path)), digits, images)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net"])
def test_a_training_checkpoint_is_unwrapped(
    digits: nn.Module, save: Save, images: Tensor, key: str
) -> None:
    checkpoint = {
        "epoch": 3,
        "accuracy": np.float64(0.9),
        "args": argparse.Namespace(lr=0.1),
        "optimizer": {"state": {}, "param_groups": []},
        key: digits.state_dict(),
    }
    model = load_model(save(checkpoint))
    assert any(repr(key) in note for note in model.notes)
    assert_same(model, digits, images)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_removed(
    digits: nn.Module, save: Save, images: Tensor, prefix: str
) -> None:
    state = {prefix + key: value for key, value in digits.state_dict().items()}
    model = load_model(save({"state_dict": state}))
    assert any("prefix" in note for note in model.notes)
    assert_same(model, digits, images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(digits: nn.Module, save: Save, dtype: torch.dtype) -> None:
    model = load_model(save(digits.to(dtype).state_dict()))
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    assert any("converted to float32" in note for note in model.notes)


def test_masks_of_torchs_own_pruning_are_applied(
    digits: nn.Module, save: Save, images: Tensor
) -> None:
    layer = digits.get_submodule("features.1.0")
    prune.l1_unstructured(layer, "weight", amount=0.5)
    model = load_model(save(digits.state_dict()))
    weight = model.module.get_parameter("features.1.0.weight")
    assert int((weight == 0).sum()) == weight.numel() // 2
    assert_same(model, digits, images)


def test_counts_of_batches_may_be_missing(digits: nn.Module, save: Save, images: Tensor) -> None:
    state = {k: v for k, v in digits.state_dict().items() if "num_batches" not in k}
    model = load_model(save(state))
    assert not any(buffer.is_meta for buffer in model.module.buffers())
    assert_same(model, digits, images)


@pytest.mark.parametrize(
    ("name", "kwargs", "arch"),
    [
        ("cifar-resnet20", {"num_classes": 100}, "cifar-resnet20(num_classes=100)"),
        ("cifar-densenet121", {"growth_rate": 12}, "cifar-densenet121(growth_rate=12)"),
        ("mlperf-dscnn", {}, "mlperf-dscnn"),
    ],
)
def test_variants_are_recognised(save: Save, name: str, kwargs: dict[str, Any], arch: str) -> None:
    model = load_model(save(ARCHITECTURES[name].build(**kwargs).state_dict()))
    assert model.arch == arch


def test_a_given_architecture_follows_the_files_classes(save: Save) -> None:
    state = ARCHITECTURES["cifar-resnet20"].build(num_classes=100).state_dict()
    model = load_model(save(state), arch="cifar-resnet20")
    assert model.arch == "cifar-resnet20(num_classes=100)"
    assert any("100 classes" in note for note in model.notes)


def test_classes_that_were_asked_for_are_not_changed(save: Save) -> None:
    state = ARCHITECTURES["cifar-resnet20"].build(num_classes=100).state_dict()
    with pytest.raises(ModelError, match=r"linear\.weight: the file has 100x64.*10x64"):
        load_model(save(state), arch="cifar-resnet20(num_classes=10)")


def test_the_wrong_architecture_names_keys_and_shapes(save: Save) -> None:
    path = save(ARCHITECTURES["cifar-resnet32"].build().state_dict())
    with pytest.raises(ModelError) as caught:
        load_model(path, arch="mlperf-resnet8")
    message = caught.value.message
    assert "conv1.weight: not in the architecture" in message
    assert "stem.0.weight: missing from the file" in message
    assert message.count("\n") < 24
    assert "cifar-resnet32" in (caught.value.hint or "")


def test_a_state_dict_that_nothing_fits_names_the_nearest(save: Save) -> None:
    state = ARCHITECTURES["cifar-resnet20"].build().state_dict()
    del state["conv1.weight"]
    with pytest.raises(ModelError, match="nearest: cifar-resnet20") as caught:
        load_model(save(state))
    assert "--arch" in (caught.value.hint or "")


def test_tensors_that_nobody_knows_are_not_guessed(save: Save) -> None:
    with pytest.raises(ModelError, match="fits no built-in architecture"):
        load_model(save({"a": torch.zeros(3)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named_and_counted(
    digits: nn.Module, save: Save, value: float
) -> None:
    state = digits.state_dict()
    state["classifier.weight"][0, :3] = value
    with pytest.raises(ModelError, match=r"classifier\.weight \(3 of 960\)"):
        load_model(save(state))


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        ({}, "nothing"),
        ({"epoch": 3}, "'epoch'"),
        ([torch.zeros(3)], "type list"),
        (torch.zeros(3), "type Tensor"),
        ({"w": torch.zeros(3).to_sparse()}, "sparse"),
    ],
)
def test_what_is_not_a_state_dict_is_described(save: Save, payload: Any, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        load_model(save(payload), arch="digits-cnn")


def test_other_entries_beside_the_tensors_are_left_out_and_said(
    digits: nn.Module, save: Save
) -> None:
    model = load_model(save(OrderedDict(digits.state_dict(), version=3)))
    assert any("version" in note for note in model.notes)


def test_a_forward_pass_that_fails_names_the_shapes(digits: nn.Module, save: Save) -> None:
    path = save(digits.state_dict())
    with pytest.raises(ModelError, match=r"does not take x:Nx3x8x8:float32: .*channels") as caught:
        load_model(path, inputs=["x:1x3x8x8:float32"])
    assert "\n" not in caught.value.message


def test_a_wrong_input_specification_is_a_usage_error(digits: nn.Module, save: Save) -> None:
    with pytest.raises(UsageError, match="not a size"):
        load_model(save(digits.state_dict()), inputs=["x:Nx?"])


def test_data_of_another_shape_is_refused(digits: nn.Module, save: Save) -> None:
    path = save(digits.state_dict())
    assert load_model(path, sample_shapes=[(1, 8, 8)]).inputs[0].shape == (None, 1, 8, 8)
    with pytest.raises(ModelError, match="samples have shape 3x32x32"):
        load_model(path, sample_shapes=[(3, 32, 32)])


@pytest.fixture
def two_inputs(tmp_path: Path) -> str:
    path = tmp_path / "two.py"
    path.write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Two(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.words = nn.Embedding(5, 4)\n"
        "        self.left = nn.Linear(4, 4)\n"
        "        self.right = nn.Linear(4, 4)\n"
        "        self.right.weight = self.left.weight\n"
        "    def forward(self, image, token):\n"
        "        return self.left(image) + self.right(self.words(token))\n"
    )
    return f"{path}:Two"


def test_several_inputs_and_tied_weights(two_inputs: str, save: Save) -> None:
    torch.manual_seed(0)
    left = torch.randn(4, 4)
    state = {
        "words.weight": torch.randn(5, 4),
        "left.weight": left,
        "left.bias": torch.zeros(4),
        "right.weight": left,
        "right.bias": torch.zeros(4),
    }
    model = load_model(save(state), arch=two_inputs, inputs=["token:N:int64", "image:Nx4:float32"])
    assert [spec.name for spec in model.inputs] == ["image", "token"]
    assert model.module.left.weight is model.module.right.weight


def test_a_file_architecture_without_an_input_asks_for_one(two_inputs: str, save: Save) -> None:
    state = {
        "words.weight": torch.zeros(5, 4),
        "left.weight": torch.zeros(4, 4),
        "left.bias": torch.zeros(4),
        "right.weight": torch.zeros(4, 4),
        "right.bias": torch.zeros(4),
    }
    with pytest.raises(ModelError, match="not known"):
        load_model(save(state), arch=two_inputs)


def test_a_fixed_batch_is_one(digits: nn.Module, save: Save) -> None:
    model = load_model(save(digits.state_dict()), fixed_batch=True)
    assert model.inputs[0].shape == (1, 1, 8, 8)


def test_a_torchvision_network_reads_224_by_default(save: Save) -> None:
    from hwprune.frontend.torchvision_shim import import_torchvision

    module = import_torchvision().models.squeezenet1_1(weights=None, num_classes=3)
    model = load_model(save(module.state_dict()), arch="torchvision:squeezenet1_1(num_classes=3)")
    assert model.inputs[0].shape == (None, 3, 224, 224)
    assert any("assumed" in note for note in model.notes)


def test_the_pretrained_resnet20_is_recognised(weights_folder: Path) -> None:
    model = load_model(str(weights_folder / "cifar10_resnet20.pth"))
    assert (model.arch, model.name) == ("cifar-resnet20", "cifar10_resnet20")


def test_a_whole_module_needs_the_users_word(digits: nn.Module, save: Save, images: Tensor) -> None:
    path = save(digits)
    with pytest.raises(UnsafeModelError, match="DigitsCnn") as caught:
        load_model(path)
    assert "state_dict()" in (caught.value.hint or "")
    assert "--unsafe-load" in (caught.value.hint or "")
    model = load_model(path, unsafe_load=True, inputs=["x:1x1x8x8:float32"])
    assert (model.kind, model.arch, model.trainable) == ("pickled-module", None, True)
    assert any("--unsafe-load" in note for note in model.notes)
    assert_same(model, digits, images)


def test_a_module_inside_a_checkpoint_is_found(digits: nn.Module, save: Save) -> None:
    path = save({"epoch": 1, "model": digits})
    model = load_model(path, unsafe_load=True, sample_shapes=[(1, 8, 8)])
    assert model.kind == "pickled-module"
    assert model.inputs == (TensorSpec("x", (None, 1, 8, 8), "float32"),)


def test_a_state_dict_is_read_safely_even_where_unsafe_is_allowed(
    digits: nn.Module, save: Save
) -> None:
    model = load_model(save(digits.state_dict()), unsafe_load=True)
    assert model.kind == "state-dict"
    assert not any("--unsafe-load" in note for note in model.notes)
