"""For a microcontroller: a C library, a linked image, and a run of it that is right to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from e2e_tools import Runner
from torch import nn

from hwprune.firmware.qlinear import from_onnx

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="no gcc-arm-none-eabi"),
    pytest.mark.skipif(shutil.which("qemu-system-arm") is None, reason="no qemu-system-arm"),
]

BUDGET = 24 * 1024


@pytest.fixture(scope="module")
def made(hwprune: Runner, digits_pt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for a board with Bluetooth, 24 KiB of flash, four epochs."""
    out = tmp_path_factory.mktemp("firmware") / "out"
    ran = hwprune(
        "compile", digits_pt, "--target", "nrf52840", "--data", "digits", "--budget", BUDGET,
        "--epochs", 4, "--require", "flash<=24KiB", "--require", "ram<=16KiB", "-o", out,
    )  # fmt: skip
    assert ran.code == 0, (ran.out, ran.err)
    assert "linked, run on QEMU mps2-an386, bit-equal" in " ".join(ran.out.split())
    return out


def test_the_image_fills_its_budget(made: Path) -> None:
    record = json.loads((made / "report.json").read_text())
    firmware = record["firmware"]
    assert record["verdict"]["fits"]
    assert record["verdict"]["scope"] == "linked, run on QEMU mps2-an386, bit-equal"
    assert 0.97 * BUDGET <= firmware["flash_bytes"] <= BUDGET
    assert record["budget"]["used_bytes"] == firmware["flash_bytes"]
    assert 0 < firmware["planned_ram_bytes"] < firmware["ram_bytes"] <= 16 * 1024
    assert firmware["stack_bytes"] < 1024
    assert firmware["inputs"] == 4
    assert {limit["field"] for limit in record["verdict"]["limits"]} >= {"flash", "ram"}
    layers = record["result"]["layers"]
    assert {layer["value_type"] for layer in layers} == {"int8"}
    assert any("activations were int8 in training" in note for note in record["notes"])
    assert set(firmware["formats"]) == {layer["name"].removesuffix(".weight") for layer in layers}


def test_the_network_beside_it_is_the_one_that_was_measured(made: Path) -> None:
    import onnx
    from e2e_tools import accuracy_of

    record = json.loads((made / "report.json").read_text())
    path = made / "firmware" / "model.qlinear.onnx"
    assert record["accuracy"]["final"] == accuracy_of(path)
    network = from_onnx(onnx.load(str(path)))
    stored = sum(
        int(np.count_nonzero(layer.weight)) for layer in network.layers if hasattr(layer, "weight")
    )
    assert 0.95 * record["result"]["nonzeros"] <= stored <= record["result"]["nonzeros"]


def test_a_folder_is_linked_and_run_again(hwprune: Runner, made: Path) -> None:
    ran = hwprune("check", made / "firmware", "--require", "ram<=16KiB", "--json")
    assert ran.code == 0, ran.out
    (result,) = ran.document["artifacts"]
    assert result["scope"] == "linked, run on QEMU mps2-an386, bit-equal"
    assert {step["outcome"] for step in result["steps"]} == {"passed"}
    both = hwprune("check", made, "--json")
    assert [Path(one["path"]).name for one in both.document["artifacts"]] == [
        "model.onnx", "firmware",
    ]  # fmt: skip
    over = hwprune("check", made / "firmware", "--require", "flash<=10KiB")
    assert over.code == 3
    small = hwprune("check", made / "firmware", "--target", "nrf51822")
    assert small.code in (0, 4)


def test_an_edited_byte_is_found(hwprune: Runner, made: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(made, tmp_path / "out") / "firmware"
    source = copy / "src" / "model.c"
    text = source.read_text()
    start = text.index("{", text.index("_weights")) if "_weights" in text else text.rindex("{")
    digit = next(at for at in range(start, len(text)) if text[at].isdigit())
    other = "2" if text[digit] == "1" else "1"
    source.write_text(text[:digit] + other + text[digit + 1 :])
    ran = hwprune("check", copy)
    assert ran.code == 5
    assert "src/model.c is not what model.qlinear.onnx makes" in " ".join(ran.out.split())
    source.write_text(text)
    (copy / "src" / "extra.c").write_text("int extra;\n")
    assert "extra.c is no file of hwprune's" in " ".join(hwprune("check", copy).out.split())
    (copy / "src" / "extra.c").unlink()
    network = copy / "model.qlinear.onnx"
    data = bytearray(network.read_bytes())
    data[data.index(b"_weight") - 200] ^= 1
    network.write_bytes(bytes(data))
    assert hwprune("check", copy).code in (2, 5)
    (copy / "src" / "model.h").unlink()
    assert hwprune("check", copy).code in (2, 5)


def test_without_a_compiler_the_scope_says_what_to_install(
    hwprune: Runner, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwprune.firmware import emulate, link

    found = shutil.which
    monkeypatch.setattr(
        emulate.shutil, "which", lambda name: None if "qemu" in name else found(name)
    )
    ran = hwprune("check", made / "firmware", "--json")
    (result,) = ran.document["artifacts"]
    assert result["scope"] == "linked, not run"
    assert "apt-get install qemu-system-arm" in json.dumps(result)
    monkeypatch.setattr(link.shutil, "which", lambda name: None)
    ran = hwprune("check", made / "firmware", "--json")
    (result,) = ran.document["artifacts"]
    assert (ran.code, result["scope"]) == (0, "not linked, not run")
    assert "apt-get install gcc-arm-none-eabi" in json.dumps(result)


def test_what_is_stored_depends_on_no_compiler(
    hwprune: Runner, digits_pt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwprune.firmware import link

    words = (
        "compile", digits_pt, "--target", "nrf52840", "--data", "digits", "--epochs", 0,
        "--max-drop", "off", "--budget", "20KiB", "--json", "-o",
    )  # fmt: skip
    linked = hwprune(*words, tmp_path / "linked")
    monkeypatch.setattr(link.shutil, "which", lambda name: None)
    alone = hwprune(*words, tmp_path / "alone")
    assert (linked.code, alone.code) == (0, 0), (linked.out, alone.out)
    assert "bit-equal" in linked.document["verdict"]["scope"]
    assert alone.document["verdict"]["scope"] == "not linked, not run"
    files = [f.relative_to(tmp_path / "alone") for f in (tmp_path / "alone").rglob("*")]
    for file in [f for f in files if f.name not in ("report.json", "report.html", "README.md")]:
        if (tmp_path / "alone" / file).is_file():
            both = [(tmp_path / room / file).read_bytes() for room in ("linked", "alone")]
            assert both[0] == both[1], file


class Swish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(nn.functional.hardswish(self.stem(x)).mean((2, 3)))


@pytest.fixture
def swish(tmp_path: Path) -> tuple[object, ...]:
    nets = tmp_path / "nets.py"
    nets.write_text(
        "import torch\nfrom torch import nn\n\n\nclass Swish(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.stem = nn.Conv2d(1, 8, 3, padding=1)\n        self.fc = nn.Linear(8, 10)\n\n"
        "    def forward(self, x):\n"
        "        return self.fc(nn.functional.hardswish(self.stem(x)).mean((2, 3)))\n"
    )
    torch.save(Swish().state_dict(), tmp_path / "swish.pt")
    return (
        "compile", tmp_path / "swish.pt", "--arch", f"{nets}:Swish",
        "--input", "x:Nx1x8x8:float32", "--target", "nrf52840", "-o", tmp_path / "o",
    )  # fmt: skip


def test_what_has_no_integer_form_is_refused_or_said(
    hwprune: Runner, swish: tuple[object, ...]
) -> None:
    says = ["HardSwish behind 'stem'", "use Relu or Relu6 instead"]
    hwprune.refused(*swish, "--data", "digits", "--firmware", says=says)
    hwprune.refused(*swish, "--data", "digits", "--require", "ram<=1KiB", says=says[:1])
    ran = hwprune(*swish, "--data", "digits", "--epochs", 0, "--json")
    assert ran.code == 0, ran.err
    assert ran.document["verdict"]["scope"] == "onnx-size-only, not linked"
    assert says[0] in json.dumps(ran.document["notes"])
    assert ran.document["firmware"] is None


def test_firmware_is_for_microcontrollers(hwprune: Runner, digits_pt: Path, tmp_path: Path) -> None:
    words = ("compile", digits_pt, "-o", tmp_path / "o", "--firmware", "--target")
    hwprune.refused(*words, "raspberry-pi-5", says=["runs onnxruntime"])


def test_without_data_firmware_computes_in_fp32(
    hwprune: Runner, digits_pt: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    ran = hwprune(
        "compile", digits_pt, "--target", "nrf52840", "--firmware", "--budget", "20KiB",
        "--require", "ram<=32KiB", "--json", "-o", out,
    )  # fmt: skip
    assert ran.code == 0, (ran.out, ran.err)
    assert ran.document["verdict"]["scope"] == "linked, run on QEMU mps2-an386, within 1e-05"
    firmware = ran.document["firmware"]
    assert firmware["activations"] == "fp32"
    assert 0.9 * 20 * 1024 < firmware["flash_bytes"] <= 20 * 1024
    assert firmware["ram_bytes"] <= 32 * 1024
    assert firmware["instructions"] > 0
    check = hwprune("check", out / "firmware", "--json")
    assert check.code == 0, check.out
    source = out / "firmware" / "src" / "model.c"
    source.write_text(source.read_text().replace("0x1.", "0x1.1", 1))
    assert hwprune("check", out / "firmware").code == 5
    says = ["int8 activations are calibrated with --data", "--firmware alone"]
    words = ("compile", digits_pt, "--target", "nrf52840", "--budget", "20KiB", "--json", "-o")
    plain = hwprune(*words, tmp_path / "plain")
    assert plain.document["verdict"]["scope"] == "onnx-size-only, not linked"
    assert all(part in json.dumps(plain.document["notes"]) for part in says)


@pytest.mark.parametrize("data", [(), ("--data", "digits")])
def test_ram_is_checked_before_training(
    hwprune: Runner, digits_pt: Path, tmp_path: Path, data: tuple[str, ...]
) -> None:
    profile = tmp_path / "tiny.toml"
    profile.write_text(
        'extends = "nrf52840"\n[memory]\n'
        'ram_bytes = { value = 2_304, source = "a test of what does not fit" }\n'
    )
    hwprune.refused(
        "compile", digits_pt, "--target", profile, *data, "-o", tmp_path / "o", code=4,
        says=["of RAM at '", "B are left for it"],
    )  # fmt: skip
    assert not (tmp_path / "o").exists()
