"""State dicts in every form that training scripts leave them in, and what is wrong with some."""

from __future__ import annotations

import argparse
import collections
import importlib.machinery
import importlib.util
import json
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from hwprune.errors import ModelError, UnsafeModelError, UsageError
from hwprune.export.trace import trace
from hwprune.frontend import archive, folders, load_model
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


def test_another_shape_is_no_other_number_of_classes(digits: nn.Module, save: Save) -> None:
    state = {**digits.state_dict(), "classifier.weight": torch.zeros(7, 50)}
    with pytest.raises(ModelError, match=r"does not fit --arch digits-cnn:\n"):
        load_model(save(state), arch="digits-cnn")


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
        ({"w": torch.zeros(3, device="meta")}, r"empty: w \(float32"),
    ],
)
def test_what_is_not_a_state_dict_is_described(save: Save, payload: Any, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        load_model(save(payload), arch="digits-cnn")


def test_buffers_of_complex_numbers_are_read(save: Save, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        """
import torch
from torch import nn


class Rotary(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)
        self.register_buffer("turns", torch.polar(torch.ones(4), torch.arange(4.0)))

    def forward(self, x):
        pairs = torch.view_as_complex(x.reshape(-1, 4, 2)) * self.turns
        return self.head(torch.view_as_real(pairs).flatten(1))
"""
    )
    state = {
        "head.weight": torch.eye(8)[:4], "head.bias": torch.zeros(4),
        "turns": torch.full((4,), 2j),
    }  # fmt: skip
    model = load_model(save(state), arch=f"{tmp_path / 'net.py'}:Rotary", inputs=["x:Nx8"])
    assert model.module(torch.tensor([[1.0, 3.0, 0, 0, 0, 0, 0, 0]])).tolist() == [[-6, 2, 0, 0]]
    graph = trace(model).with_values(model.module)  # the exporter has pairs of real numbers
    assert graph.tensors["turns"].tolist() == [[0, 2]] * 4
    assert all(array.dtype.kind != "c" for array in graph.tensors.values())


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


def test_an_entry_that_a_module_does_not_have(digits: nn.Module, save: Save) -> None:
    with pytest.raises(ModelError, match="has no entry 'typo'"):
        load_model(save({"model": digits}), entry="typo", unsafe_load=True)


def test_a_state_dict_is_read_safely_even_where_unsafe_is_allowed(
    digits: nn.Module, save: Save
) -> None:
    model = load_model(save(digits.state_dict()), unsafe_load=True)
    assert model.kind == "state-dict"
    assert not any("--unsafe-load" in note for note in model.notes)


# -- layouts of training scripts and libraries ---------------------------------------------------

NETWORK = """
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)
    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))
class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()
    def forward(self, x):
        return self.net(x)
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.out = nn.Linear(4, 4, bias=False)
        self.out.weight = self.fc.weight
    def forward(self, x):
        return self.out(self.fc(x))
class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.LazyConv2d(4, 3)
        self.fc = nn.LazyLinear(3)
    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))
class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 4).expand(3, 4))
        self.register_buffer("window", torch.ones(9)[:4])
    def forward(self, x):
        return nn.functional.linear(x * self.window, self.weight)
def normed(how):
    net = Net()
    how(net.conv)
    how(net.fc)
    return net
def plain(): return Net()
def old(): return normed(weight_norm)
def new(): return normed(parametrizations.weight_norm)
def spectral(): return normed(parametrizations.spectral_norm)
def old_spectral(): return normed(nn.utils.spectral_norm)
"""
INPUT = ["x:Nx3x8x8"]


@pytest.fixture
def network_file(tmp_path: Path) -> Path:
    path = tmp_path / "networks.py"
    path.write_text(NETWORK)
    return path


@pytest.fixture
def networks(network_file: Path) -> dict[str, Any]:
    scope: dict[str, Any] = {"__name__": "networks"}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(NETWORK, scope)
    return scope


@pytest.fixture
def net(networks: dict[str, Any]) -> nn.Module:
    network: nn.Module = networks["Net"]().eval()
    return network


def below(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


LAYOUTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "lightning": lambda s: {
        "state_dict": below("model.", s),
        "hyper_parameters": {"lr": 1e-3, "weights": torch.ones(3)},
        "callbacks": {"best": {"current_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}],
    },
    "lightning with a loss": lambda s: {
        "state_dict": {**below("net.", s), "criterion.weight": torch.ones(3)},
        "hyper_parameters": argparse.Namespace(lr=0.1),
    },
    "two wrappers": lambda s: below("module.backbone.", s),
    "averaged": lambda s: {"n_averaged": torch.tensor(5), **below("module.", s)},
    "numpy beside": lambda s: {
        "model_state_dict": s, "best": np.float64(0.9), "history": np.arange(3),
        "where": PurePosixPath("/x"), "when": datetime(2026, 1, 1), "kind": HTTPStatus.OK,
    },
    "numbers beside": lambda s: {"state_dict": s, "step": torch.tensor(4), "loss": torch.ones(())},
    "any name": lambda s: {"student": s, "optimizer": {"state": {"a": {"exp": torch.ones(2)}}}},
    "nested": lambda s: {"epoch": 3, "model": {"module": s, "updates": 4}},
    "sparse": lambda s: {**s, "fc.weight": s["fc.weight"].to_sparse()},
    "observed": lambda s: {
        **s, "conv.weight_fake_quant.scale": torch.ones(1),
        "fc.activation_post_process.min_val": torch.tensor(float("inf")),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False])
def test_layouts_of_training_scripts(
    net: nn.Module, network_file: Path, save: Save, name: str, zipped: bool
) -> None:
    path = save(LAYOUTS[name](net.state_dict()), _use_new_zipfile_serialization=zipped)
    model = load_model(path, arch=f"{network_file}:plain", inputs=INPUT)
    assert_same(model, net, torch.randn(2, 3, 8, 8))


def test_what_was_left_out_and_what_was_not_read_is_said(
    net: nn.Module, network_file: Path, save: Save
) -> None:
    path = save(LAYOUTS["lightning with a loss"](net.state_dict()))
    notes = load_model(path, arch=f"{network_file}:plain", inputs=INPUT).notes
    for said in ("argparse.Namespace", "entry 'state_dict'", "prefix 'net.'", "criterion.weight"):
        assert any(said in note for note in notes), said


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [
        ("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema"),
        ("params", "params_ema"), ("net", "swa_state"),
    ],
)  # fmt: skip
def test_a_moving_average_is_taken_unless_the_other_is_asked_for(
    digits: nn.Module, save: Save, raw: str, averaged: str
) -> None:
    other = {k: v + 1 if v.is_floating_point() else v for k, v in digits.state_dict().items()}
    path = save({raw: digits.state_dict(), averaged: other, "epoch": 3})
    for entry, shift, said in ((None, 1, f"--entry {raw} takes the others"), (raw, 0, "(--entry)")):
        model = load_model(path, entry=entry)
        weight = model.module.get_parameter("classifier.weight")
        torch.testing.assert_close(weight, digits.get_parameter("classifier.weight") + shift)
        assert any(said in note for note in model.notes)


def test_several_sets_of_weights_are_not_guessed(digits: nn.Module, save: Save) -> None:
    state = digits.state_dict()
    path = save({"generator": state, "discriminator": {"w": torch.ones(2)}})
    with pytest.raises(ModelError, match="several sets of weights: generator, discriminator"):
        load_model(path)
    assert load_model(path, entry="generator").arch == "digits-cnn"
    with pytest.raises(ModelError, match="no entry 'student'; it holds generator, discriminator"):
        load_model(path, entry="student")
    path = save({**below("query.", state), **below("key.", state)})
    with pytest.raises(ModelError, match=r"2 times: below key\. and query\."):
        load_model(path, arch="digits-cnn")
    assert load_model(path, entry="key").arch == "digits-cnn"
    path = save({"epoch": 3, "state_dict": {**below("query.", state), **below("key.", state)}})
    assert load_model(path, entry="key").arch == "digits-cnn"
    with pytest.raises(ModelError, match="no entry 'value'; it holds query"):
        load_model(path, entry="value")


def test_a_network_inside_what_was_saved_is_recognised(digits: nn.Module, save: Save) -> None:
    state = {**below("model.", digits.state_dict()), "loss.weight": torch.ones(10)}
    assert load_model(save({"state_dict": state})).arch == "digits-cnn"


def test_a_prefix_that_only_the_architecture_has(
    net: nn.Module, network_file: Path, save: Save
) -> None:
    model = load_model(save(net.state_dict()), arch=f"{network_file}:Wrapped", inputs=INPUT)
    assert_same(model, net, torch.randn(2, 3, 8, 8))


def test_a_pickled_module_gives_its_weights_and_is_not_run(
    digits: nn.Module, save: Save, images: Tensor
) -> None:
    for payload in (digits, {"epoch": 1, "model": digits, "ema": None}):
        model = load_model(save(payload), arch="digits-cnn")
        assert any("none of its code was run" in note for note in model.notes)
        assert_same(model, digits, images)


@pytest.mark.parametrize("name", ["old", "new", "spectral", "old_spectral"])
def test_computed_weights_become_plain_ones_and_read_back(
    networks: dict[str, Any], network_file: Path, save: Save, name: str, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = networks[name]().eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(torch.rand_like(parameter) + 0.5)
        path = save(network.state_dict())
        model = load_model(path, arch=f"{network_file}:{name}", inputs=INPUT)
        x = torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(model.module(x), network(x), rtol=1e-5, atol=1e-6)
        assert {name for name, _ in model.module.named_parameters()} == {
            "conv.weight", "conv.bias", "bn.weight", "bn.bias", "fc.weight", "fc.bias",
        }  # fmt: skip
        assert any("are now plain ones: conv.weight, fc.weight" in note for note in model.notes)
        # What a run writes is the folded network: the same --arch reads it.
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_model(model.module, str(tmp_path / "weights.safetensors"))
        again = load_model(str(tmp_path), arch=f"{network_file}:{name}", inputs=INPUT)
    assert_same(again, model.module, x)


@pytest.mark.parametrize(("saved", "built"), [("old", "new"), ("new", "plain"), ("old", "plain")])
def test_weight_norm_is_read_whatever_form_it_was_saved_in(
    networks: dict[str, Any], network_file: Path, save: Save, saved: str, built: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = networks[saved]().eval()
        path = save(network.state_dict())
        model = load_model(path, arch=f"{network_file}:{built}", inputs=INPUT)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.module(x), network(x), rtol=1e-5, atol=1e-6)


def test_a_tied_weight_that_was_stored_once(
    networks: dict[str, Any], network_file: Path, tmp_path: Path
) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    tied = networks["Tied"]()
    safetensors.save_model(tied, str(tmp_path / "tied.safetensors"))
    path = str(tmp_path / "tied.safetensors")
    model = load_model(path, arch=f"{network_file}:Tied", inputs=["x:Nx4"])
    assert model.module.out.weight is model.module.fc.weight
    assert torch.equal(model.module.out.weight, tied.fc.weight)


def test_lazy_modules_get_the_shapes_of_the_file(
    networks: dict[str, Any], network_file: Path, save: Save
) -> None:
    lazy = networks["Lazy"]()
    x = torch.randn(2, 3, 8, 8)
    lazy(x)
    arch = f"{network_file}:Lazy"
    model = load_model(save(lazy.state_dict()), arch=arch, inputs=INPUT)
    assert_same(model, lazy, x)
    assert type(model.module.conv) is nn.Conv2d
    drawn = [load_model(None, arch=arch, seed=seed, inputs=INPUT).module for seed in (0, 0, 1)]
    assert torch.equal(drawn[0].conv.weight, drawn[1].conv.weight)
    assert not torch.equal(drawn[0].conv.weight, drawn[2].conv.weight)


def test_views_and_expanded_tensors_get_memory_of_their_own(
    networks: dict[str, Any], network_file: Path, save: Save, tmp_path: Path
) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    network = networks["Repeated"]()
    path = save({"weight": torch.arange(12.0).reshape(3, 4), "window": torch.arange(4.0)})
    model = load_model(path, arch=f"{network_file}:Repeated", inputs=["x:Nx4"])
    assert torch.equal(model.module.weight, torch.arange(12.0).reshape(3, 4))
    safetensors.save_model(model.module, str(tmp_path / "again.safetensors"))
    path = save(network.state_dict())
    model = load_model(path, arch=f"{network_file}:Repeated", inputs=["x:Nx4"])
    assert_same(model, network, torch.randn(2, 4))


# -- folders --------------------------------------------------------------------------------------


def test_a_folder_of_shards(digits: nn.Module, tmp_path: Path, images: Tensor) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = digits.state_dict()
    shards: dict[str, dict[str, Tensor]] = {"a.safetensors": {}, "b.safetensors": {}}
    for number, (key, value) in enumerate(state.items()):
        shards[list(shards)[number % 2]][key] = value
    for name, shard in shards.items():
        safetensors.save_file(shard, tmp_path / name)
    index = {"weight_map": {key: name for name, shard in shards.items() for key in shard}}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    (tmp_path / "config.json").write_text("{}")
    assert_same(load_model(str(tmp_path)), digits, images)
    for bad in ("../a.safetensors", "", 3):
        path.write_text(json.dumps({"weight_map": {"x": bad}}))
        with pytest.raises(ModelError, match="files beside it"):
            load_model(str(tmp_path))
    path.write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(str(tmp_path))


def test_a_folder_with_a_pickled_state_dict(digits: nn.Module, tmp_path: Path) -> None:
    torch.save(digits.state_dict(), tmp_path / "pytorch_model.bin")
    assert load_model(str(tmp_path)).name == tmp_path.name


def test_what_a_folders_config_names_is_built(
    digits: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Tensor
) -> None:
    torch.save(digits.state_dict(), tmp_path / "pytorch_model.bin")
    config = tmp_path / "config.json"
    config.write_text('{"architectures": ["DigitsForClassification"]}')
    arch = folders.named_arch(tmp_path)
    assert arch == "transformers:DigitsForClassification"
    if importlib.util.find_spec("transformers") is None:
        with pytest.raises(ModelError, match="of transformers, which is not installed"):
            load_model(str(tmp_path))
    fake: Any = types.ModuleType("transformers")
    fake.__spec__ = importlib.machinery.ModuleSpec("transformers", None)
    fake.__version__ = "0"
    asked = {"local_files_only": True, "trust_remote_code": False}
    fake.AutoConfig = types.SimpleNamespace(from_pretrained=lambda path, **how: (path, how))
    fake.DigitsForClassification = type(
        "DigitsForClassification", (type(digits),),
        {"__init__": lambda self, config: (
            type(digits).__init__(self), setattr(self, "config", config))[0],
         "from_pretrained": lambda path, **how: (digits, {"missing_keys": missing})},
    )  # fmt: skip
    missing: set[str] = set()
    monkeypatch.setitem(sys.modules, "transformers", fake)
    model = load_model(str(tmp_path), inputs=["x:Nx1x8x8"])
    assert model.module.config == (str(tmp_path), asked)
    assert_same(model, digits, images)
    missing.add("classifier.weight")
    with pytest.raises(ModelError, match=r"lacks weights of Digits.*classifier\.weight"):
        load_model(str(tmp_path), inputs=["x:Nx1x8x8"])
    config.write_text('{"architectures": ["Gone"]}')
    with pytest.raises(ModelError, match="transformers 0 has no Gone"):
        load_model(str(tmp_path))
    config.write_text('{"architecture": "resnet18", "num_classes": 7}')
    assert folders.named_arch(tmp_path) == "timm:resnet18(num_classes=7)"


# -- what is quantised, repeated or of an odd type ------------------------------------------------


def test_weights_that_were_quantised_already_are_named(net: nn.Module, save: Save) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheme = torch.per_tensor_affine
        packed = torch._empty_affine_quantized([2, 3], scale=1.0, zero_point=0, dtype=torch.qint8)
        assert packed.qscheme() == scheme
        path = save({"w": packed})
        with pytest.raises(ModelError, match=r"quantised.*w \(qint8"):
            load_model(path)
    path = save({**net.state_dict(), "fc._packed_params._packed_params": (torch.ones(2), None)})
    with pytest.raises(ModelError, match=r"quantised already.*fc\._packed_params"):
        load_model(path)
    foreign: Any = types.ModuleType("torchao.quantization")
    foreign.Int8Tensor = type("Int8Tensor", (), {"__module__": "torchao.quantization"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
        patch.setitem(sys.modules, "torchao.quantization", foreign)
        path = save({**net.state_dict(), "fc.weight": foreign.Int8Tensor()})
    with pytest.raises(ModelError, match=r"quantised already \(torchao\.quantization\.Int8Tensor"):
        load_model(path)


def test_lazy_layers_without_weights_are_named(save: Save) -> None:
    with pytest.raises(ModelError, match="lazy layers that never got a shape"):
        load_model(save(nn.LazyLinear(3).state_dict()))


def test_arrays_in_place_of_tensors_are_named(digits: nn.Module, save: Save) -> None:
    arrays = {name: tensor.numpy() for name, tensor in digits.state_dict().items()}
    with pytest.raises(ModelError, match="holds NumPy arrays where a state dict holds tensors"):
        load_model(save(arrays))


@pytest.mark.parametrize("key", ["classifier.weight", "junk", "w_orig"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_small_file_of_endless_tensors_is_refused(
    digits: nn.Module, save: Save, key: str, dtype: torch.dtype
) -> None:
    endless = torch.ones(1, dtype=dtype).expand(2**20, 2**20)
    state = {**digits.state_dict(), key: endless, key.replace("_orig", "_mask"): endless}
    with pytest.raises(ModelError, match="elements that take no room in the file"):
        load_model(save(state))


def test_types_of_safetensors_that_torch_cannot_convert(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}'
    path = tmp_path / "f4.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ModelError, match=r"w \(float4|cannot be read"):
        load_model(str(path))


def test_headers_that_say_they_are_endless_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "endless.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert archive.identify(str(path)).kind == "safetensors"
    monkeypatch.setattr(archive, "_SAFETENSORS_HEADER_LIMIT", len(header) - 1)
    with pytest.raises(ModelError):
        archive.identify(str(path))


def test_a_dictionary_may_hold_itself(digits: nn.Module, save: Save) -> None:
    state: dict[str, Any] = dict(digits.state_dict())
    around: dict[str, Any] = {}
    around |= {f"part{number}": around for number in range(30)}
    with pytest.raises(ModelError, match="a dictionary with 'part0'"):
        load_model(save(around))
    around["net"] = state
    assert load_model(save({"beside": around, "model": state})).arch == "digits-cnn"
    wrapped: Any = collections.defaultdict(list, state)
    assert load_model(save(wrapped)).arch == "digits-cnn"
    for _ in range(100):
        wrapped = {"model": wrapped}
    assert load_model(save(wrapped)).arch == "digits-cnn"


@pytest.mark.parametrize(
    "change",
    [lambda t: (10 * t).to(torch.int8), lambda t: t.to(torch.complex64), lambda t: t > 0],
)
def test_weights_that_are_no_floats_are_not_taken_for_some(
    digits: nn.Module, save: Save, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    state = digits.state_dict()
    name = next(key for key, tensor in state.items() if tensor.ndim == 4)
    with pytest.raises(ModelError, match="quantised already, or are no floats"):
        load_model(save({**state, name: change(state[name])}))


def test_an_index_without_shards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(ModelError, match="does not map tensors"):
        load_model(str(tmp_path), arch="digits-cnn")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}')
    with pytest.raises(
        ModelError, match=r"names one\.safetensors, which is not beside it"
    ) as raised:
        load_model(str(tmp_path), arch="digits-cnn")
    assert "2 of 2 files are missing" in (raised.value.hint or "")
    with pytest.raises(ModelError, match="give the folder that it lies in"):
        load_model(str(index), arch="digits-cnn")


def test_nested_tensors_are_refused(digits: nn.Module, save: Save) -> None:
    nested = torch.nested.nested_tensor([torch.zeros(3), torch.zeros(4)])
    with pytest.raises(ModelError, match="quantised or empty"):
        load_model(save({**digits.state_dict(), "extra": nested}))
