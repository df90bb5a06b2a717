from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from hwprune.errors import ModelError, UsageError
from hwprune.frontend import load_model
from hwprune.frontend.arch import find_arch, parse_spec
from hwprune.frontend.zoo import ARCHITECTURES


@pytest.mark.parametrize(
    ("spec", "name", "kwargs"),
    [
        ("cifar-resnet20", "cifar-resnet20", {}),
        (" cifar-resnet20( ) ", "cifar-resnet20", {}),
        ("cifar-resnet20(num_classes=100)", "cifar-resnet20", {"num_classes": 100}),
        ("timm:x.y(a='b(c)', d=[1, 2])", "timm:x.y", {"a": "b(c)", "d": [1, 2]}),
        ("dir (1)/net.py:make(n=-1)", "dir (1)/net.py:make", {"n": -1}),
    ],
)
def test_a_specification_is_parsed(spec: str, name: str, kwargs: dict[str, object]) -> None:
    assert parse_spec(spec) == (name, kwargs)


@pytest.mark.parametrize(
    "arguments",
    [
        "(10)",
        "(a=b)",
        "(a=__import__('os'))",
        "(a=open('x'))",
        "(**{'a': 1})",
        "(a=1",
        "(a=1)(b=2)",
    ],
)
def test_arguments_that_are_not_literal_are_refused(arguments: str) -> None:
    with pytest.raises(ModelError, match="literal values"):
        parse_spec("cifar-resnet20" + arguments)


def test_a_wrong_name_gets_a_suggestion() -> None:
    with pytest.raises(ModelError, match="cifar-resnet21") as caught:
        find_arch("cifar-resnet21")
    assert "cifar-resnet20" in (caught.value.hint or "")


@pytest.mark.parametrize("spec", ["torchvision:resnet19", "torchvision:"])
def test_a_wrong_torchvision_name_is_refused(spec: str) -> None:
    with pytest.raises(ModelError, match="not a torchvision model"):
        find_arch(spec)


def test_a_torchvision_network_is_built_without_a_download() -> None:
    module = find_arch("torchvision:squeezenet1_1(num_classes=3)").build()
    assert isinstance(module, nn.Module)


@pytest.mark.parametrize("spec", ["torchvision:resnet18(weights='DEFAULT')"])
def test_asking_for_a_download_is_refused(spec: str) -> None:
    with pytest.raises(ModelError, match="not downloaded"):
        find_arch(spec)


def test_an_unknown_argument_says_which_there_are() -> None:
    with pytest.raises(ModelError, match="colour") as caught:
        find_arch("cifar-densenet121(colour=3)").build()
    assert "growth_rate" in (caught.value.hint or "")


def test_timm_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "timm" else find_spec(name)
    )
    with pytest.raises(ModelError, match="needs timm") as caught:
        find_arch("timm:resnet18")
    assert caught.value.hint == "pip install timm"


def test_a_timm_network_tells_its_input_size() -> None:
    pytest.importorskip("timm")
    arch = find_arch("timm:test_resnet(num_classes=3)")
    (spec,) = arch.default_inputs(arch.build())
    assert spec.shape == (None, 3, 160, 160)


@pytest.fixture
def network_file(tmp_path: Path) -> Path:
    (tmp_path / "hwprune_neighbour.py").write_text("WIDTH = 3\n")
    path = tmp_path / "network.py"
    path.write_text(
        "from torch import nn\n"
        "from hwprune_neighbour import WIDTH\n"
        "def make(outputs=2):\n    return nn.Linear(WIDTH, outputs)\n"
        "def broken():\n    raise RuntimeError('out of cheese')\n"
        "def leaves():\n    raise SystemExit(3)\n"
        "def number():\n    return 3\n"
        "value = 3\n"
    )
    return path


def test_a_callable_of_a_file_builds_the_network(network_file: Path) -> None:
    arch = find_arch(f"{network_file}:make(outputs=5)")
    module = arch.build()
    assert isinstance(module, nn.Linear)
    assert (module.in_features, module.out_features) == (3, 5)
    assert arch.spec == f"{network_file}:make(outputs=5)"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("broken", "could not be built: out of cheese"),
        ("leaves", "could not be built: SystemExit: it called sys.exit\\(3\\)"),
        ("number", "returned int"),
        ("make(inputs=3)", "unexpected keyword argument"),
    ],
)
def test_a_callable_that_fails_is_named(network_file: Path, name: str, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint) as caught:
        find_arch(f"{network_file}:{name}").build()
    assert name.partition("(")[0] in caught.value.message


@pytest.mark.parametrize("name", ["mak", "value"])
def test_a_name_that_the_file_does_not_call_is_refused(network_file: Path, name: str) -> None:
    with pytest.raises(ModelError, match="not a callable"):
        find_arch(f"{network_file}:{name}")


def test_a_file_that_does_not_import_is_named(tmp_path: Path) -> None:
    path = tmp_path / "network.py"
    path.write_text("import hwprune_no_such_module\n")
    with pytest.raises(ModelError, match=r"network\.py: running it failed.*hwprune_no_such_module"):
        find_arch(f"{path}:make")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file"):
        find_arch(f"{tmp_path}/network.py:make")


def test_the_catalogue_is_listed_where_nothing_is_near() -> None:
    with pytest.raises(ModelError) as caught:
        find_arch("zzzzzz")
    assert all(name in (caught.value.hint or "") for name in ARCHITECTURES)


def test_random_weights_follow_the_seed_and_loaded_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "def fresh():\n    return nn.Linear(4, 3)\n"
        "def loaded():\n    layer = nn.Linear(4, 3)\n    layer.load_state_dict(\n"
        "        {'weight': torch.ones(3, 4), 'bias': torch.zeros(3)})\n    return layer\n"
    )
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (
        load_model(None, arch=f"{path}:fresh", seed=seed, inputs=["x:Nx4"]).module.weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(UsageError, match="not random") as caught:
        load_model(None, arch=f"{path}:loaded", inputs=["x:Nx4"])
    assert "give it as MODEL" in str(caught.value.hint)
