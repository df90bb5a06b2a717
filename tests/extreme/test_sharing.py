"""Shared weights: what shares with what, and that it stays so whatever is done to the network."""

from __future__ import annotations

import copy
from pathlib import Path

import distributed_worker as worker
import numpy as np
import pytest
import torch
from safetensors.torch import load_model, save_model
from test_distributed import launch
from torch import nn

from hwprune.errors import UsageError
from hwprune.extreme.sharing import share, stages
from hwprune.frontend.torchvision_shim import import_torchvision
from hwprune.frontend.zoo import ARCHITECTURES
from hwprune.training import SINGLE_PROCESS, Checkpoint
from hwprune.training.statefile import read_state

SCALE = "7.parametrizations.weight.0.scale"


def unshared() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    )


# -- what shares ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "groups", "largest"),
    [("resnet18", 0, 0), ("resnet34", 8, 5), ("resnet50", 12, 5), ("vgg16_bn", 0, 0),
     ("densenet121", 0, 0)],
)  # fmt: skip
def test_residual_stages_are_found_by_their_structure(name: str, groups: int, largest: int) -> None:
    with torch.device("meta"):
        found = stages(getattr(import_torchvision().models, name)())
    assert len(found) == groups
    assert max((len(group) for group in found), default=0) == largest
    for group in found:
        assert ".1.conv" in group[0]
        assert [name.split(".")[1] for name in group] == [str(1 + i) for i in range(len(group))]


def test_a_cifar_resnet_shares_from_the_third_block_on() -> None:
    module = ARCHITECTURES["cifar-resnet20"].build()
    weights = sum(p.numel() for p in module.parameters() if p.ndim > 1)
    sharing = share(module, pretrained=False)
    assert [shared.weight for shared in sharing.tensors] == [
        f"layer{stage}.1.conv{conv}.weight" for stage in (1, 2, 3) for conv in (1, 2)
    ]
    assert all(len(shared.users) == 1 for shared in sharing.tensors)
    left = sum(p.numel() for p in module.parameters() if p.ndim > 1)
    assert weights - left == sharing.saved == 2 * 9 * (16**2 + 32**2 + 64**2)
    scalars = dict(module.named_parameters())
    assert all(scalars[n].item() == 1 for shared in sharing.tensors for n in shared.scalars)


def test_blocks_of_a_flat_network_are_told_from_stages() -> None:
    """The names of classes say nothing; where block 0 has the stage's shape it owns its weights."""

    class Odd(nn.Module):
        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            self.a = nn.Conv2d(before, after, 1)
            self.b = nn.Conv2d(after, after, 3, padding=1)

    flat = nn.Module()
    flat.stem = nn.Conv2d(3, 8, 3)
    for number in range(4):
        flat.add_module(f"first{number}", Odd(8, 8))
    flat.add_module("wide", Odd(8, 16))
    for number in range(3):
        flat.add_module(f"second{number}", Odd(16, 16))
    assert stages(flat) == (
        ("first1.a.weight", "first2.a.weight", "first3.a.weight"),
        ("first1.b.weight", "first2.b.weight", "first3.b.weight"),
        ("second0.a.weight", "second1.a.weight", "second2.a.weight"),
        ("second0.b.weight", "second1.b.weight", "second2.b.weight"),
    )


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([("1.weight", "9.weight")], "'9.weight' is not a parameter"),
        ([("0.weight", "1.weight")], "0.weight is 4x1x3x3 float32 and 1.weight is 4x4x3x3 float32"),
        ([("1.weight",)], "not a group"),
        ([("1.weight", "1.weight")], "not a group"),
        (["1.weight"], "not a group"),
        ([("1.weight", "2.weight"), ("2.weight", "3.weight")], "2.weight is in two groups"),
    ],
)
def test_groups_that_cannot_share_are_refused(groups: object, message: str) -> None:
    module = unshared()
    with pytest.raises(UsageError, match=message):
        share(module, groups=groups)  # type: ignore[arg-type]
    assert [name for name, _ in module.named_parameters()] == [
        name for name, _ in unshared().named_parameters()
    ]


def test_what_shares_already_is_refused() -> None:
    module = unshared()
    share(module, groups=[("1.weight", "2.weight")])
    with pytest.raises(UsageError, match=r"1\.weight is shared already"):
        share(module, groups=[("1.weight", "3.weight")])


def test_a_trained_network_starts_with_weights_of_its_own_sizes() -> None:
    module = unshared()
    with torch.no_grad():
        module[3].weight.mul_(5)
        module[2].weight.zero_()
    before = copy.deepcopy(module).requires_grad_(False)
    sharing = share(module, groups=[("3.weight", "1.weight", "2.weight")])
    assert sharing.tensors[0].weight == "1.weight"  # the first one in the network
    module.requires_grad_(False)
    assert torch.equal(module[1].weight, before[1].weight)
    assert module[3].weight.norm() == pytest.approx(float(before[3].weight.norm()), rel=1e-5)
    assert torch.equal(module[2].weight, module[1].weight)  # zeros say no size: the scalar is 1


# -- that it stays so -----------------------------------------------------------------------------


def is_shared(module: nn.Module) -> bool:
    original = module[7].parametrizations.weight.original  # type: ignore[index]
    return original is module[4].weight  # type: ignore[index]


def test_gradients_of_all_uses_are_summed() -> None:
    module = worker.with_shared_weights()
    plain = copy.deepcopy(module)
    plain[7] = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    plain[7].weight.data.copy_(module[7].weight.detach())
    images = torch.randn(6, 1, 8, 8)
    for each in (module, plain):
        each(images).square().sum().backward()
    scale = dict(module.named_parameters())[SCALE]
    two = plain[4].weight.grad + scale.item() * plain[7].weight.grad
    assert torch.allclose(module[4].weight.grad, two, rtol=1e-4, atol=1e-5)
    product = (plain[7].weight.grad * module[4].weight).sum()
    assert torch.allclose(scale.grad, product, rtol=1e-3, atol=1e-5)
    assert plain[7].weight.grad.abs().sum() > 0


def test_a_state_comes_back_shared(tmp_path: Path) -> None:
    module, other = worker.with_shared_weights(), worker.with_shared_weights()
    with torch.no_grad():
        module[4].weight.normal_()
        dict(module.named_parameters())[SCALE].fill_(0.5)
    other.load_state_dict(module.state_dict())
    third = worker.with_shared_weights()
    save_model(module, str(tmp_path / "net.safetensors"))
    load_model(third, tmp_path / "net.safetensors")
    for each in (other, third, copy.deepcopy(module)):
        assert is_shared(each)
        assert torch.equal(each[7].weight, 0.5 * module[4].weight)
    # The file holds the tensor once.
    held = sum(p.numel() for p in {id(p): p for p in module.parameters()}.values())
    assert (tmp_path / "net.safetensors").stat().st_size < 4 * held + 4000


def test_training_and_resuming_keep_it_shared(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    seen: list[bool] = []
    modules: list[nn.Module] = []
    build = worker.MODULES["shared"]

    def noted() -> nn.Module:
        modules.append(build())
        return modules[-1]

    worker.MODULES["shared"] = noted
    try:
        found = worker.resumed(SINGLE_PROCESS, tmp_path, "shared")
    finally:
        worker.MODULES["shared"] = build
    assert found["whole"] == found["again"]
    assert "continued after epoch 1 of 2, from a checkpoint" in found["notes"]
    seen += [is_shared(module) for module in modules]
    assert seen == [True, True]
    for module in modules:
        dead = module[4].weight == 0  # type: ignore[index]
        assert dead.any()
        assert torch.equal(module[7].weight == 0, dead)  # type: ignore[index]
    # In what a run continues from as well.
    saved = read_state(Checkpoint(tmp_path / "run").path)["state"]["module"]
    assert torch.equal(saved["7.parametrizations.weight.original"], saved["4.weight"])
    assert saved[SCALE] != worker.with_shared_weights().state_dict()[SCALE]


def test_two_processes_share_what_one_does(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    codes, saw = launch("shared", tmp_path)
    assert codes == [0, 0]
    first, second = (each["shared"] for each in saw)
    assert first["digest"] == second["digest"]
    assert first["masks"] == second["masks"]
    alone = worker.train("shared", SINGLE_PROCESS)
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-4)
    for each in saw:
        weights = each["shared"]["weights"]
        assert weights["7.parametrizations.weight.original"] == weights["4.weight"]
        assert weights[SCALE] != worker.with_shared_weights().state_dict()[SCALE].tolist()
        assert each["resumed"]["whole"] == each["resumed"]["again"]
