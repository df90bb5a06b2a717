"""A network without some of its channels: smaller tensors, the same nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hwprune.export.graph import Graph, input_names, output_name

# Per tensor that loses something, per axis along which it does: the indices that stay.
Kept = Mapping[str, Mapping[int, NDArray[np.int64]]]
_Array = TypeVar("_Array", bound=np.generic)


@dataclass(frozen=True, slots=True)
class NodeChange:
    """What a node says when it has fewer channels, where its tensors do not say it.

    Attributes:
        groups: of a convolution.
        numbers: what its second input holds.
    """

    groups: int | None = None
    numbers: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Removal:
    """What is left of a network's tensors, and the nodes that have to say something else then.

    Attributes:
        kept: the indices that stay.
        changes: by the name of a node's output.
    """

    kept: Kept = field(default_factory=dict)
    changes: Mapping[str, NodeChange] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Return whether anything goes."""
        return bool(self.kept)


def gather_channels(name: str, array: NDArray[_Array], kept: Kept) -> NDArray[_Array]:
    """Return what is left of an array that has the shape of a network's tensor."""
    for axis, index in kept.get(name, {}).items():
        array = np.take(array, index, axis=axis)
    return array


def scatter_channels(
    name: str, array: NDArray[_Array], kept: Kept, whole: NDArray[_Array]
) -> NDArray[_Array]:
    """Put back what was left of an array.

    Args:
        name: the tensor's name.
        array: what ``gather_channels`` returned.
        kept: as for ``gather_channels``.
        whole: what stands elsewhere.

    Returns:
        an array of the shape of ``whole``.
    """
    axes = kept.get(name)
    if not axes:
        return array
    every = [axes.get(axis, np.arange(size)) for axis, size in enumerate(whole.shape)]
    result: NDArray[_Array] = whole.copy()
    result[np.ix_(*every)] = array
    return result


def without(graph: Graph, removal: Removal) -> Graph:
    """Return the network without some channels; its folds stay those of the whole one."""
    small = graph.copy()
    for name, array in graph.tensors.items():
        small.tensors[name] = gather_channels(name, array, removal.kept)
    for node in small.nodes:
        change = removal.changes.get(output_name(node), NodeChange())
        if change.groups == 1:  # the default, which is not written
            del node.attributes["group"]
        elif change.groups is not None:
            node.attributes["group"] = ir.AttrInt64("group", change.groups)
        if change.numbers is not None:
            name = f"{output_name(node)}//{input_names(node)[1]}"
            numbers = small.add_tensor(name, np.array(change.numbers, np.int64))
            node.replace_input_with(1, numbers)
    small.drop_unread()
    return small
