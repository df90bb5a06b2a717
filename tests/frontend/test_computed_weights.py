"""Layers that compute their weight at each call become plain ones, with the weight that runs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hwprune.frontend import load_model
from hwprune.frontend.prepare import fold_layers, own_memory, prepare
from hwprune.ir import TensorSpec

IMAGE = (TensorSpec("x", (None, 3, 8, 8), "float32"),)
SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F

class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Standardised(3, 8, 3, padding=1), Standardised(8, 8, 3, groups=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "net.py"
    file.write_text(SOURCE)
    return file


def network() -> nn.Module:
    space: dict[str, type[nn.Module]] = {}
    exec(SOURCE, space)
    torch.manual_seed(0)
    return space["Net"]().eval()


def test_a_standardised_convolution_is_folded_to_the_weight_that_runs() -> None:
    module, x = network(), torch.randn(2, 3, 8, 8)
    expected, before = module(x), copy.deepcopy(module)
    notes = prepare(module, IMAGE)
    assert type(module.a) is nn.Conv2d
    assert type(module.b) is nn.Conv2d
    assert torch.allclose(module(x), expected, atol=1e-5)
    assert module.a.weight.mean((1, 2, 3)).abs().max() < 1e-6
    assert any("a.weight, b.weight" in note for note in notes)
    assert not torch.equal(before.a.weight, module.a.weight)


class Mixed(nn.Conv2d):
    """Its weight depends on its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight * x.mean().sigmoid(), self.bias)


class Padding(nn.Conv2d):
    """It does more than torch's layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.weight * 2, self.bias)


class Adapted(nn.Linear):
    """It is two layers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight * 2) + F.linear(x, self.weight)


@pytest.mark.parametrize("part", [Mixed(3, 3, 3), Padding(3, 3, 3), Adapted(8, 8)])
def test_what_does_more_than_compute_a_weight_stays(part: nn.Module) -> None:
    module = nn.Sequential(part).eval()
    state = copy.deepcopy(module.state_dict())
    assert fold_layers(module, IMAGE) == ()
    assert module[0] is part
    assert type(part) in (Mixed, Padding, Adapted)
    assert state.keys() == module.state_dict().keys()
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in state.items())


SAME = """
import torch
from torch import nn
from torch.nn import functional as F

class Same(nn.Conv2d):
    def forward(self, x):
        missing = []
        for size, k, s, d in zip(x.shape[2:], self.kernel_size, self.stride, self.dilation):
            missing.append(max((-(size // -s) - 1) * s + (k - 1) * d + 1 - size, 0))
        (h, w) = missing
        x = F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))
        return F.conv2d(x, self.weight * 2, self.bias, self.stride, 0, self.dilation, self.groups)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Same(3, 8, 3, stride=2), Same(8, 8, (2, 3), dilation=2, groups=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))
"""


def test_a_convolution_that_pads_by_its_inputs_size_is_folded_and_reads_back(
    tmp_path: Path,
) -> None:
    space: dict[str, type[nn.Module]] = {}
    exec(SAME, space)
    torch.manual_seed(0)
    module = space["Net"]().eval()
    (tmp_path / "net.py").write_text(SAME)
    torch.save(module.state_dict(), tmp_path / "model.pt")
    given = {"arch": f"{tmp_path / 'net.py'}:Net", "inputs": ("x:Nx3x12x12",)}
    first = load_model(str(tmp_path / "model.pt"), **given).module
    torch.save(first.state_dict(), tmp_path / "folded.pt")
    again = load_model(str(tmp_path / "folded.pt"), **given).module
    for size in ((12, 12), (12, 13), (17, 9)):
        x = torch.randn(2, 3, *size)
        for folded in (first, again):
            assert torch.allclose(folded(x), module(x), atol=1e-5)
            assert torch.equal(folded.a.weight, 2 * module.a.weight)


def test_a_tied_weight_stays() -> None:
    module = network()
    module.other = nn.Conv2d(3, 8, 3)
    module.other.weight = module.a.weight
    assert fold_layers(module, IMAGE) == ("b.weight",)


def test_a_folded_checkpoint_reads_back_and_fits_no_network_that_computes_anew(
    source: Path, tmp_path: Path
) -> None:
    module, x = network(), torch.randn(2, 3, 8, 8)
    torch.save(module.state_dict(), tmp_path / "model.pt")
    arch = f"{source}:Net"
    first = load_model(str(tmp_path / "model.pt"), arch=arch, inputs=("x:Nx3x8x8",)).module
    with torch.no_grad():
        first.a.weight[:, 0] = 0  # pruned: standardising this again would be another weight
    torch.save(first.state_dict(), tmp_path / "pruned.pt")
    again = load_model(str(tmp_path / "pruned.pt"), arch=arch, inputs=("x:Nx3x8x8",)).module
    assert torch.allclose(again(x), first(x), atol=1e-6)
    with pytest.raises(RuntimeError, match="weight_is_plain"):
        module.load_state_dict(first.state_dict())


class TwoLayouts(nn.Module):
    """An autoencoder whose decoder's weight is a view of its encoder's, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 4, bias=False), nn.Linear(4, 8, bias=False)
        self.decode.weight = nn.Parameter(self.encode.weight.T)
        self.again = nn.Linear(8, 4, bias=False)
        self.again.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.decode(self.encode(x)))


def test_what_is_read_in_two_shapes_gets_memory_of_its_own_and_a_tie_stays() -> None:
    module, x = TwoLayouts(), torch.rand(2, 8)
    expected = module(x)
    own_memory(module)
    assert torch.allclose(module(x), expected)
    assert module.decode.weight.is_contiguous()
    assert module.decode.weight.data_ptr() != module.encode.weight.data_ptr()
    assert module.again.weight is module.encode.weight


OLDER = """
from torch import nn

class Net(nn.Linear):
    _version = 2

    def __init__(self):
        super().__init__(8, 4)

    def load_state_dict(self, state, strict=True):
        return super().load_state_dict(state, strict)

    def _load_from_state_dict(self, state, prefix, metadata, *others):
        if metadata.get("version") != 2:  # as MNASNet
            raise ValueError("which version?")
        super()._load_from_state_dict(state, prefix, metadata, *others)
"""


def test_a_network_that_loads_weights_in_its_own_way_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(OLDER)
    saved = nn.Linear(8, 4).state_dict()
    torch.save(saved, tmp_path / "m.pt")
    model = load_model(str(tmp_path / "m.pt"), arch=f"{tmp_path / 'net.py'}:Net", inputs=["x:Nx8"])
    assert torch.equal(model.module.weight, saved["weight"])
