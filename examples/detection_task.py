"""Detection as a task file: one object an image, by a map of scores and a map of boxes.

    hwprune compile net.pt --arch net.py:Net --target raspberry-pi-5 --budget 64KiB \
        --data npz:boxes.npz --task examples/detection_task.py --require 'mean_iou>=0.97x'

The network returns {"scores": (n, 1, h, w), "boxes": (n, 4, h, w)}: how sure it is of each cell,
and the box it would have there: left, top, right, bottom, as parts of the image. The data hold
``y.cell`` (n,), the index of the cell with the object's centre, row by row, and ``y.box`` (n, 4).
"""

import numpy as np
from torch.nn.functional import cross_entropy, smooth_l1_loss


def loss(outputs, batch):
    """Return the loss of a batch: which cell it is, and how the box is there."""
    cell = batch.labels["cell"].long()
    boxes = outputs["boxes"].flatten(2)
    here = boxes.gather(2, cell[:, None, None].expand(-1, 4, 1))[:, :, 0]
    return cross_entropy(outputs["scores"].flatten(1), cell) + smooth_l1_loss(
        here, batch.labels["box"]
    )


def mean_iou(outputs, labels):
    """Return by how much the box of the surest cell overlaps the true one, on average."""
    count = len(labels["box"])
    surest = outputs["scores"].reshape(count, -1).argmax(1)
    found = outputs["boxes"].reshape(count, 4, -1)[np.arange(count), :, surest]
    true = labels["box"]
    sides = np.minimum(found[:, 2:], true[:, 2:]) - np.maximum(found[:, :2], true[:, :2])
    common = sides.clip(0).prod(1)
    areas = [(box[:, 2:] - box[:, :2]).clip(0).prod(1) for box in (found, true)]
    return float((common / (sum(areas) - common).clip(1e-9)).mean())


metric = mean_iou
higher_is_better = True
