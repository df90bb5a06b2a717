"""Numbers at the edges, through `hwprune.compile`: a right file, or an error in a sentence."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import DataError, HwpruneError, InfeasibleError

VALUES = ["fp32", "fp16", "int8", "int4", "codebook16"]


def linear(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(layers or (nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 8))))


def compiled(
    model: nn.Module, folder: Path, budget: int | str | None = "8KiB", **more: object
) -> hwprune.Artifact:
    first = next(each for each in model.modules() if isinstance(each, (nn.Linear, nn.Conv2d)))
    shape = (1, first.in_features) if isinstance(first, nn.Linear) else (1, first.in_channels, 6, 6)
    return hwprune.compile(
        model.eval(), target="raspberry-pi-5", epochs=0, budget=budget,
        example_input=torch.zeros(shape), output=folder, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def answer(path: str, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    return y


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float, tmp_path: Path) -> None:
    model = linear()
    with torch.no_grad():
        model[2].weight[3, 5] = value
    with pytest.raises(HwpruneError, match=r"2\.weight"):
        compiled(model, tmp_path / "out")


@pytest.mark.parametrize("values", VALUES)
def test_weights_too_small_to_be_normal(values: str, tmp_path: Path) -> None:
    model = linear()
    with torch.no_grad():
        model[0].weight.mul_(1e-40)
        model[2].weight[0].mul_(1e-40)
    found = compiled(model, tmp_path / "out", values=values)
    assert np.isfinite(answer(found.path, np.ones((2, 24), np.float32))).all()


@pytest.mark.parametrize("values", VALUES)
def test_rows_of_zeros_and_networks_of_one_number(values: str, tmp_path: Path) -> None:
    model = linear()
    with torch.no_grad():
        model[0].weight.fill_(0.5)
        model[2].weight[:4] = 0
    found = compiled(model, tmp_path / "out", values=values)
    y = answer(found.path, np.ones((2, 24), np.float32))
    assert np.isfinite(y).all()
    assert np.abs(y[:, :4] - model[2].bias[:4].detach().numpy()).max() < 1e-3


def test_a_network_of_nothing_but_zeros(tmp_path: Path) -> None:
    model = linear()
    with torch.no_grad():
        for each in model.parameters():
            each.zero_()
    found = compiled(model, tmp_path / "out")
    assert not answer(found.path, np.ones((2, 24), np.float32)).any()


@pytest.mark.parametrize("variance", [0.0, 1e-40])
def test_channels_without_variance(variance: float, tmp_path: Path) -> None:
    model = linear(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )
    with torch.no_grad():
        model[1].running_var[::2] = variance
    found = compiled(model, tmp_path / "out", budget="16KiB", values="fp32")
    x = np.random.default_rng(0).random((2, 3, 6, 6), np.float32)
    y = answer(found.path, x)
    assert np.isfinite(y).all()


def test_layers_of_one_weight(tmp_path: Path) -> None:
    found = compiled(linear(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)), tmp_path / "out", None)
    assert answer(found.path, np.ones((3, 1), np.float32)).shape == (3, 1)


@pytest.mark.parametrize("batch", [1, 0, 7])
def test_batches(batch: int, tmp_path: Path) -> None:
    found = compiled(linear(), tmp_path / "out")
    x = np.ones((batch, 24), np.float32)
    assert answer(found.path, x).shape == (batch, 8)
    session = hwprune.session(found.path)
    (ours,) = session.run(None, {session.get_inputs()[0].name: x})
    assert ours.shape == (batch, 8)


def test_budgets_next_to_the_floor_and_next_to_dense(tmp_path: Path) -> None:
    """Below the floor an error that says the floor, and a budget that is enough, which it is."""
    model, x = linear(), np.ones((1, 24), np.float32)
    with pytest.raises(InfeasibleError) as refused:
        compiled(model, tmp_path / "none", 100, values="int8")
    floor = int(re.findall(r"takes ([\d,]+) B", refused.value.message)[0].replace(",", ""))
    enough = int(re.findall(r"\d{4,}", refused.value.hint or "")[0])
    assert floor <= enough <= 1.02 * floor
    with pytest.raises(InfeasibleError):
        compiled(model, tmp_path / "less", floor - 1, values="int8")
    for budget in (enough, enough + 1):  # every prunable weight gone, or nearly
        found = compiled(model, tmp_path / str(budget), budget, values="int8")
        assert Path(found.path).stat().st_size <= budget
        assert np.isfinite(answer(found.path, x)).all()
    dense = compiled(model, tmp_path / "dense", "1MiB", values="fp32")
    size = Path(dense.path).stat().st_size
    expected = model(torch.from_numpy(x)).detach().numpy()
    assert np.abs(answer(dense.path, x) - expected).max() < 1e-5  # nothing was removed
    for budget in (size - 1, size):
        found = compiled(model, tmp_path / str(budget), budget, values="fp32")
        assert Path(found.path).stat().st_size <= budget


def test_labels_out_of_range(tmp_path: Path) -> None:
    x = np.zeros((40, 24), np.float32)
    for bad in (-1, 8, 2**40):
        y = np.arange(40) % 8
        y[17] = bad
        np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=np.arange(40) % 8)
        with pytest.raises(HwpruneError) as refused:
            compiled(linear(), tmp_path / "out", data=f"npz:{tmp_path / 'd.npz'}")
        assert len(refused.value.message) < 400


def test_an_image_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    """A PNG of 50,000 by 50,000 pixels in a few kilobytes is refused before it is unpacked."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
            + chunk(b"IDAT", zlib.compress(bytes(1_000_000))) + chunk(b"IEND", b""))  # fmt: skip
    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "images" / part / label).mkdir(parents=True)
            (tmp_path / "images" / part / label / "bomb.png").write_bytes(bomb)
    model = linear(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(DataError, match=r"bomb\.png"):
        compiled(model, tmp_path / "out", data=f"imagefolder:{tmp_path / 'images'}?size=6")
