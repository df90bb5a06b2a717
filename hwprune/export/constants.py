"""What an elementwise operator makes of channels that hold one number each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from hwprune.export.channels import Axis, Source

# Affine in what varies: where two very different numbers make no difference, none does.
_AFFINE = ("Mul", "BatchNormalization")
_FAR = 1e6


def computed(
    node: onnx.NodeProto,
    sources: Sequence[Source],
    axes: Sequence[Axis],
    tensors: Mapping[str, NDArray[Any]],
    known: Sequence[NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Return (channels,) what the output's channels hold; NaN where that varies.

    Args:
        node: an elementwise operator, or BatchNormalization.
        sources: the activations among its inputs.
        axes: where their channels lie.
        tensors: the rest of its inputs.
        known: per source what its channels hold, NaN where that varies.
    """
    varies = np.logical_or.reduce([np.isnan(values) for values in known])
    if varies.all() and node.op_type not in _AFFINE:
        return np.full(varies.shape, np.nan, np.float32)

    def run(filler: float) -> NDArray[np.float32]:
        """Run the node on activations that have channels and no other size."""
        feeds = {name: tensors[name] for name in node.input if name in tensors}
        for source, axis, values in zip(sources, axes, known, strict=True):
            shape = [1] * axis.rank
            shape[axis.at] = values.size
            feeds[source.name] = np.nan_to_num(values, nan=filler).reshape(shape)
        with np.errstate(all="ignore"):
            (found,) = ReferenceEvaluator(node).run(None, feeds)
        found = np.moveaxis(np.asarray(found, np.float32), axes[0].at, 0)
        each = found.reshape(varies.size, -1)
        # A tensor with sizes beside the channels gives a channel several numbers.
        return np.where((each == each[:, :1]).all(axis=1), each[:, 0], np.float32(np.nan))

    first = run(0.0)
    if node.op_type in _AFFINE:
        varies = varies & (first != run(_FAR))
    return np.where(varies, np.float32(np.nan), first)
