"""A network without some of its channels: smaller tensors, the same nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from hwprune.export.graph import Graph, used_tensors

# Per tensor that loses something, per axis along which it does: the indices that stay.
Kept = Mapping[str, Mapping[int, NDArray[np.int64]]]
_Array = TypeVar("_Array", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Removal:
    """What is left of a network's tensors, and the nodes that have to say something else then.

    Attributes:
        kept: the indices that stay.
        nodes: by their place in the graph, nodes in their new form and tensors that only they read.
    """

    kept: Kept = field(default_factory=dict)
    nodes: Mapping[int, tuple[onnx.NodeProto, Mapping[str, NDArray[Any]]]] = field(
        default_factory=dict
    )

    def __bool__(self) -> bool:
        """Return whether anything goes."""
        return bool(self.kept)


def cut(name: str, array: NDArray[_Array], kept: Kept) -> NDArray[_Array]:
    """Return what is left of an array that has the shape of a network's tensor."""
    for axis, index in kept.get(name, {}).items():
        array = np.take(array, index, axis=axis)
    return array


def spread(
    name: str, array: NDArray[_Array], kept: Kept, whole: NDArray[_Array]
) -> NDArray[_Array]:
    """Put back what was left of an array.

    Args:
        name: the tensor's name.
        array: what ``cut`` returned.
        kept: as for ``cut``.
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
    tensors = {name: cut(name, array, removal.kept) for name, array in graph.tensors.items()}
    nodes = list(graph.nodes)
    for place, (node, own) in removal.nodes.items():
        nodes[place] = node
        tensors |= own
    kept = used_tensors(nodes, graph.output_names(), tensors)
    return replace(graph, nodes=tuple(nodes), tensors=kept)
