"""How good is it now: accuracy against labels, or agreement with a teacher where there are none."""

from __future__ import annotations

import torch
from torch import nn

from hwprune.errors import DataError
from hwprune.ir import Split
from hwprune.training.batches import Batches
from hwprune.training.modes import logits_of, set_mode


def predictions(module: nn.Module, batches: Batches, rows: slice = slice(None)) -> torch.Tensor:
    """Return the (n,) top class of every sample in ``rows``, with the module in eval mode."""
    set_mode(module, training=False)
    with torch.inference_mode():
        found = [logits_of(module, b.inputs).argmax(dim=1) for b in batches.in_order(rows)]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def share_of(module: nn.Module, batches: Batches, targets: torch.Tensor) -> float:
    """Return the fraction of samples whose top class is the target."""
    return int((predictions(module, batches) == targets).sum()) / batches.size


def accuracy(
    module: nn.Module, split: Split, *, device: str = "cpu", channels_last: bool = True
) -> float:
    """Return the fraction of a split that a module classifies correctly, in eval mode.

    Args:
        module: a classifier; left in eval mode.
        split: the data.
        device: where the module is.
        channels_last: hand 4-D inputs over in NHWC memory order.

    Raises:
        DataError: the split is empty or has no labels.
    """
    batches = Batches(split, device=device, resident_bytes=0, channels_last=channels_last)
    if batches.labels is None:
        raise DataError(
            "accuracy cannot be measured: the data have no labels",
            hint="compare with the dense model instead",
        )
    return share_of(module, batches, batches.labels)
