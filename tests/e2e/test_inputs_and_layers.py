"""Networks of many kinds, from the command to a file that onnxruntime runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import e2e_nets
import numpy as np
import onnxruntime
import pytest
import torch
from e2e_tools import Runner, masks_of, state_of
from torch import nn

from hwprune.frontend import load_model

pytestmark = pytest.mark.slow

IMAGE = ("x:Nx3x8x8:float32",)
CASES: dict[str, tuple[tuple[str, ...], int]] = {
    # the inputs, and how many weights are prunable
    "Functional": (IMAGE, 16 * 27 + 40 * 16 + 16 * 16 * 9),
    "Tied": (("x:Nx64:float32",), 64 * 64 + 640),
    "Shared": (IMAGE, 48 + 16 * 16 * 9 + 160),
    "Up": (IMAGE, 32 * 27 + 32 * 16 * 16 + 16 * 2 * 4),
    "Line": (("x:Nx4x20:float32",), 32 * 20 + 32 * 24 + 320),
    "Volume": (("x:Nx2x4x4x4:float32",), 32 * 27 + 256 * 27 + 1280),
    "Depthwise": (IMAGE, 32 * 27 + 32 * 9 + 64 * 16 + 640),
    "Tokens": (("x:Nx5x16:float32",), 1024 + 640),
    "Two": (("left:Nx16:float32", "right:Nx8:float32"), 1024 + 512 + 640),
    "Attention": (("x:Nx6x32:float32",), -1),
    "Recurrent": (("x:Nx6:int64",), 200 * 16 + 128 * 16 + 128 * 32 + 320),
    "LooseNorm": (IMAGE, 32 * 27 + 32 * 32 * 9 + 320),
    "Named": (("x:Nx64:float32",), 64 * 64 + 192),
}


@pytest.fixture
def nets() -> Path:
    """The file that --arch names."""
    return Path(e2e_nets.__file__)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = getattr(e2e_nets, name)()
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # statistics that fold to something
            nn.init.uniform_(layer.running_mean, -0.3, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    return network.eval()


def tensors(outputs: Any) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for value in values for tensor in tensors(value)]


@pytest.mark.parametrize("name", CASES)
def test_each_kind_of_layer(hwprune: Runner, nets: Path, tmp_path: Path, name: str) -> None:
    inputs, weights = CASES[name]
    network = build(name)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    words: list[object] = [tmp_path / "net.pt", "--arch", f"{nets}:{name}", "--values", "fp32"]
    words += [word for text in inputs for word in ("--input", text)]
    dense = 4 * sum(p.numel() for p in set(network.parameters()))
    words += ["--target", "nrf52840", "--budget", 3000 + dense // 3, "--json"]
    ran = hwprune("compile", *words, "-o", tmp_path / "o")
    assert ran.code == 0, ran.err
    record = ran.document
    if weights >= 0:
        assert record["result"]["weights"] == weights
    assert 0.2 < record["result"]["sparsity"] < 1
    assert record["budget"]["slack_bytes"] < 0.005 * record["budget"]["bytes"]
    path = tmp_path / "o" / "model.onnx"
    assert hwprune("check", path).code == 0
    # The file computes what torch computes with the weights that were kept: fp32 loses nothing.
    state, masks = state_of(tmp_path / "o"), masks_of(tmp_path / "o")
    with torch.no_grad():
        for key, value in state.items():
            network.state_dict()[key].copy_(torch.from_numpy(value))
    for key, mask in masks.items():
        assert not state[key][mask == 0].any()
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    for batch in (1, 3):
        feeds = {}
        for text in inputs:
            key, shape, dtype = text.split(":")
            sizes = [batch if size == "N" else int(size) for size in shape.split("x")]
            numbers = generator.standard_normal(sizes)
            feeds[key] = (np.abs(40 * numbers) if dtype == "int64" else numbers).astype(dtype)
        with torch.no_grad():
            expected = tensors(network(*map(torch.from_numpy, feeds.values())))
        found = session.run(None, feeds)
        for one, other in zip(found, expected, strict=True):
            assert one.shape == tuple(other.shape)
            span = float(other.max() - other.min())
            assert np.abs(one - other.numpy()).max() <= 1e-4 * span


SCALED = ("image:Nx3x8x8:float32", "scale:Nx32:float32")
ODD: dict[str, tuple[tuple[str, ...], int]] = {
    # the inputs, and how many weights are prunable
    "Remembers": (IMAGE, 32 * 27 + 16 * 32 * 9),
    "BareNorm": (IMAGE, 32 * 27 + 64 * 32 + 640),
    "Filter": (IMAGE, 32 * 32 * 9 + 320),
    "Normed": (IMAGE, 32 * 27 + 32 * 32 * 9 + 320),
    "Lazy": (IMAGE, 32 * 27 + 32 * 32 * 9 + 320),
    "Keyword": (SCALED, 32 * 27 + 32 * 32 * 9 + 320),
    "Dictionary": (SCALED, 32 * 27 + 32 * 32 * 9 + 320),
    "Skips": (SCALED, -1),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_networks_compile_and_their_checkpoints_read_back(
    hwprune: Runner, nets: Path, tmp_path: Path, name: str
) -> None:
    inputs, weights = ODD[name]
    torch.manual_seed(0)
    network = getattr(e2e_nets, name)().eval()
    feeds = {
        text.split(":")[0]: torch.randn([4, *map(int, text.split(":")[1].split("x")[1:])])
        for text in inputs
    }
    if name == "Lazy":
        network(*feeds.values())
    torch.save(network.state_dict(), tmp_path / "net.pt")
    arch, given = f"{nets}:{name}", [word for text in inputs for word in ("--input", text)]
    ran = hwprune(
        "compile", tmp_path / "net.pt", "--arch", arch, *given, "--values", "fp32", "--epochs", 0,
        "--target", "nrf52840", "--budget", "16KiB", "-o", tmp_path / "o", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    if weights >= 0:
        assert ran.document["result"]["weights"] == weights
    model = load_model(str(tmp_path / "o" / "checkpoint"), arch=arch, inputs=inputs)
    session = onnxruntime.InferenceSession(str(tmp_path / "o" / "model.onnx"))
    for batch in (1, 2, 4):
        few = {key: value[:batch] for key, value in feeds.items()}
        with torch.no_grad():
            expected = tensors(model.module(*few.values()))
        found = session.run(None, {key: value.numpy() for key, value in few.items()})
        for one, other in zip(found, expected, strict=True):
            assert one.shape == tuple(other.shape)
            assert np.abs(one - other.numpy()).max() <= 1e-4 * float(other.max() - other.min())


def test_height_and_width_stay_dynamic(hwprune: Runner, nets: Path, tmp_path: Path) -> None:
    network = build("Up")
    torch.save(network.state_dict(), tmp_path / "net.pt")
    words = ("--arch", f"{nets}:Up", "--target", "nrf52840", "--budget", "8KiB", "--epochs", 0)
    ran = hwprune(
        "compile", tmp_path / "net.pt", *words, "--input", "x:Nx3xHxW=32", "-o", tmp_path / "o"
    )
    assert ran.code == 0, ran.err
    assert hwprune("check", tmp_path / "o" / "model.onnx").code == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "o" / "model.onnx"))
    assert session.get_inputs()[0].shape == ["N", 3, "H", "W"]
    for height, width in ((8, 24), (40, 16)):
        x = torch.zeros(2, 3, height, width)
        (found,) = session.run(None, {"x": x.numpy()})
        assert found.shape == tuple(network(x).shape)


def test_two_inputs_are_trained_on_data(hwprune: Runner, nets: Path, tmp_path: Path) -> None:
    source = tmp_path / "pairs.py"
    source.write_text(
        "import numpy as np\n"
        "def split(name):\n"
        "    draw = np.random.default_rng(len(name))\n"
        "    left = draw.standard_normal((200, 16)).astype('float32')\n"
        "    right = draw.standard_normal((200, 8)).astype('float32')\n"
        "    return [((a, b), int(a[0] > 0)) for a, b in zip(left, right)]\n"
    )
    torch.save(build("Two").state_dict(), tmp_path / "net.pt")
    ran = hwprune(
        "compile", tmp_path / "net.pt", "--arch", f"{nets}:Two", "--target", "nrf52840",
        "--budget", "2900", "--data", f"{source}:split?normalize=none", "--epochs", 1,
        "-o", tmp_path / "o", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.document["epochs"] == 1
    assert ran.document["accuracy"]["final"] is not None


@pytest.mark.parametrize(
    ("name", "given", "target", "complaint"),
    [
        ("Shrunk", "x:Nx3xHxW:float32", "jetson-nano", "Resize"),
        ("Two", CASES["Two"][0][0], "raspberry-pi-5", "one --input for each"),
    ],
)
def test_what_cannot_be_expressed_is_refused_with_its_name(
    hwprune: Runner, nets: Path, tmp_path: Path, name: str, given: str, target: str, complaint: str
) -> None:
    torch.save(build(name).state_dict(), tmp_path / "net.pt")
    words = (tmp_path / "net.pt", "--arch", f"{nets}:{name}", "--target", target)
    ran = hwprune.refused(
        "compile", *words, "--input", given, "-o", tmp_path / "o", says=[complaint]
    )
    assert "train" not in ran.err.split("error")[0]
    assert not (tmp_path / "o").exists()


# -- forms of MODEL -----------------------------------------------------------------------------


def export(network: nn.Module, path: Path, *, dynamic: bool) -> None:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(
        network, (torch.zeros(4, 1, 8, 8),), dynamic_shapes=shapes, strict=False
    )
    torch.export.save(program, path)


def test_an_exported_program_is_retrained_with_frozen_bn(
    hwprune: Runner, digits_net: nn.Module, tmp_path: Path
) -> None:
    export(digits_net, tmp_path / "net.pt2", dynamic=True)
    ran = hwprune(
        "compile", tmp_path / "net.pt2", "--target", "nrf52840", "--budget", "12KiB",
        "--data", "digits", "--epochs", 1, "--max-drop", "off", "-o", tmp_path / "o", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert any("frozen" in note for note in ran.document["notes"])
    assert "Warning" not in ran.err
    assert ran.document["result"]["weights"] == 74_976


def test_a_program_with_a_fixed_batch_is_not_trained(
    hwprune: Runner, digits_net: nn.Module, tmp_path: Path
) -> None:
    export(digits_net, tmp_path / "net.pt2", dynamic=False)
    words = ("compile", tmp_path / "net.pt2", "--target", "nrf52840", "--budget", "12KiB")
    hwprune.refused(
        *words, "--data", "digits", "-o", tmp_path / "o", says=["batches of 4 only", "dynamic"]
    )
    ran = hwprune(*words, "-o", tmp_path / "o", "--json")
    assert ran.code == 0, ran.err
    session = onnxruntime.InferenceSession(str(tmp_path / "o" / "model.onnx"))
    assert session.get_inputs()[0].shape == [4, 1, 8, 8]


def test_a_fixed_batch_on_demand(hwprune: Runner, digits_pt: Path, tmp_path: Path) -> None:
    ran = hwprune(
        "compile", digits_pt, "--target", "nrf52840", "--budget", "24KiB", "--fixed-batch",
        "--data", "digits", "--epochs", 0, "-o", tmp_path / "o",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    session = onnxruntime.InferenceSession(str(tmp_path / "o" / "model.onnx"))
    assert session.get_inputs()[0].shape == [1, 1, 8, 8]


def test_a_pickled_module_needs_permission(
    hwprune: Runner, digits_net: nn.Module, tmp_path: Path
) -> None:
    torch.save(digits_net, tmp_path / "whole.pt")
    words = ("compile", tmp_path / "whole.pt", "--target", "nrf52840", "--budget", "12KiB",
             "--input", "x:Nx1x8x8:float32", "-o", tmp_path / "o")  # fmt: skip
    hwprune.refused(*words, says=["would run code", "--unsafe-load"])
    assert hwprune(*words, "--unsafe-load").code == 0
    record = json.loads((tmp_path / "o" / "report.json").read_text())
    assert record["model"] == "whole"
