"""``add_pruner`` around ``yolo.train``: YOLOv8n, its moving average, a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwprune.errors import UsageError

ultralytics = pytest.importorskip("ultralytics", reason="make integrations installs ultralytics")

BUDGET = 600 * 1024


def mean_iou(outputs: np.ndarray, boxes: np.ndarray) -> float:
    """Return the mean overlap of the best box of each image, (n, 5, anchors), with the truth."""
    best = outputs[np.arange(len(outputs)), :, outputs[:, 4].argmax(1)][:, :4]
    low = np.maximum(best[:, :2] - best[:, 2:] / 2, boxes[:, :2] - boxes[:, 2:] / 2)
    high = np.minimum(best[:, :2] + best[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2)
    both = np.clip(high - low, 0, None).prod(1)
    return float((both / (best[:, 2:].prod(1) + boxes[:, 2:].prod(1) - both)).mean())


@pytest.mark.timeout(900)
def test_a_detector_uses_its_bytes_and_its_average_is_what_is_shipped(
    tmp_path: Path, squares: tuple[np.ndarray, np.ndarray]
) -> None:
    from hwprune.integrations.ultralytics import add_pruner

    images, boxes = squares
    options: dict[str, Any] = {
        "data": "data.yaml", "epochs": 8, "imgsz": 64, "batch": 16, "nbs": 16, "device": "cpu",
        "workers": 0, "amp": False, "plots": False, "val": False, "mosaic": 0.0, "lr0": 2e-3,
        "optimizer": "AdamW", "verbose": False, "project": str(tmp_path / "runs"),
    }  # fmt: skip

    def evaluate(session: Any) -> float:
        return mean_iou(session.run(None, {session.get_inputs()[0].name: images})[0], boxes)

    def interrupt(trainer: Any) -> None:
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    files = []
    for interrupted in (False, True):
        where = {**options, "name": str(interrupted)}
        yolo = ultralytics.YOLO("yolov8n.yaml")
        pruned = add_pruner(yolo, target="raspberry-pi-5", budget=BUDGET, strategy="cubic")
        with pytest.raises(UsageError, match="has not been trained in this process"):
            pruned.export("out")
        if interrupted:
            yolo.add_callback("on_fit_epoch_end", interrupt)
            with pytest.raises(KeyboardInterrupt):
                yolo.train(**where)
            weights = tmp_path / "runs" / "True" / "weights"
            yolo = ultralytics.YOLO(weights / "last.pt")
            pruned = add_pruner(yolo, target="raspberry-pi-5", budget=BUDGET, strategy="cubic")
            yolo.train(resume=True)
        else:
            yolo.train(**where)
        files.append(Path(pruned.export("out").path).read_bytes())
    assert files[0] == files[1]
    artifact = pruned.export("out", evaluate=evaluate, metric="iou", higher_is_better=True)
    assert artifact.verdict.exit_code == 0
    assert 0.995 * BUDGET <= artifact.bytes <= BUDGET
    print(artifact.report["metric"], artifact.report["notes"])
    average = pruned._trainer.ema.ema
    masks = pruned.pruner.masks
    for name, parameter in average.named_parameters():
        if name in masks:
            assert not parameter.detach().numpy()[~masks[name]].any(), name
    with torch.no_grad():
        expected = mean_iou(average.eval()(torch.from_numpy(images))[0].numpy(), boxes)
    assert abs(artifact.report["metric"]["final"] - expected) <= 1e-3
