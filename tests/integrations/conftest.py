"""Other people's trainers, on one CPU, with nothing fetched. ``make integrations`` runs these."""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from hwprune.frontend.torchvision_shim import import_torchvision

# Read when ultralytics is imported: nothing is installed, looked up or drawn.
os.environ.update(YOLO_AUTOINSTALL="false", YOLO_OFFLINE="true", YOLO_VERBOSE="false")
if importlib.util.find_spec("torchmetrics"):
    import_torchvision()  # beside a torch that it was not built for, too


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_memory_measured: None) -> None:
    """Work in a folder of the test's own, on one thread, without the trainers' advice."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (1797, 1, 8, 8) in [-1, 1] and their classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images / 8 - 1, dtype=torch.float32)[:, None]
    return images, torch.tensor(found.target)


@pytest.fixture
def squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """Write data.yaml and images of a square each for ultralytics; return those to validate on.

    Returns:
        images (64, 3, 64, 64) in [0, 1], and a box (64, 4) each: its centre, width and height.
    """
    pytest.importorskip("ultralytics", reason="make integrations installs ultralytics")
    from torchvision import ops
    from ultralytics.utils.nms import TorchNMS

    # torchvision's compiled operator is absent beside a torch that it was not built for.
    monkeypatch.setattr(ops, "nms", TorchNMS.nms)
    draws = np.random.default_rng(0)
    images, boxes = [], []
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / part / kind).mkdir(parents=True)
        for number in range(64):
            side = draws.integers(16, 40)
            left, top = draws.integers(0, 64 - side, 2)
            image = Image.new("RGB", (64, 64), tuple(draws.integers(0, 80, 3)))
            ImageDraw.Draw(image).rectangle([left, top, left + side - 1, top + side - 1], "yellow")
            image.save(tmp_path / part / "images" / f"{number}.png")
            box = np.array([left + side / 2, top + side / 2, side, side])
            line = " ".join(map(str, (0, *(box / 64))))
            (tmp_path / part / "labels" / f"{number}.txt").write_text(line)
            if part == "val":
                images.append(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255)
                boxes.append(box)
    (tmp_path / "data.yaml").write_text(
        f"path: {tmp_path}\ntrain: train/images\nval: val/images\nnames: [square]\n"
    )
    return np.stack(images), np.stack(boxes)
