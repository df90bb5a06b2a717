"""The network as ONNX nodes over named NumPy tensors: what the export passes read and return.

Tensors are NumPy views, so a graph of 138 million parameters costs no second copy of them until a
pass changes a tensor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper


@dataclass(frozen=True, slots=True)
class Fold:
    """A BN that was folded into the layer before it, so that it can be undone for a comparison.

    Attributes:
        weight: the layer's weight.
        bias: the layer's bias in the graph.
        norm: the BN's scale, shift, mean and variance.
        factor: (channels,) what the weight was multiplied by.
        channel_axis: the axis of the weight that ``factor`` lies along.
        shift: (channels,) what the bias is beside the BN's own shift.
        epsilon: what the BN adds to the variance.
    """

    weight: str
    bias: str
    norm: tuple[str, ...]
    factor: NDArray[np.float64]
    channel_axis: int
    shift: NDArray[np.float64]
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class Gain:
    """What one layer does to the channels of a weight that it shares: a factor and a bias each.

    Attributes:
        weight: the shared weight.
        name: the tensor of factors in the graph, (channels, 1, ...).
        bias: the tensor of biases, likewise.
        norm: the BN's scale, shift, mean and variance.
        scalar: the parameter that the layer multiplies the weight by, empty without.
        epsilon: what the BN adds to the variance.
    """

    weight: str
    name: str
    bias: str
    norm: tuple[str, ...]
    scalar: str = ""
    epsilon: float = 1e-5

    def scalar_of(self, tensors: Mapping[str, NDArray[Any]]) -> float:
        """Return what the weight is multiplied by."""
        return float(tensors[self.scalar].reshape(())) if self.scalar else 1.0


@dataclass(frozen=True, slots=True)
class Graph:
    """A network of standard ONNX operators.

    Attributes:
        nodes: in topological order.
        inputs: the graph's inputs, without tensors.
        outputs: the graph's outputs.
        tensors: initializers by name; parameters under their state-dict keys.
        opset: the version of the standard operators.
        folds: the BNs that were folded.
        gains: the BNs behind layers that share their weights; see ``gains.py``.
    """

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[onnx.ValueInfoProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]
    tensors: Mapping[str, NDArray[Any]]
    opset: int
    folds: tuple[Fold, ...] = ()
    gains: tuple[Gain, ...] = ()

    def readers(self) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
        """Return, per value, the nodes that read it and at which input."""
        readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        for node in self.nodes:
            for slot, name in enumerate(node.input):
                if name:
                    readers[name].append((node, slot))
        return readers

    def output_names(self) -> set[str]:
        """Return the names of the graph's outputs."""
        return {output.name for output in self.outputs}

    def interface_names(self) -> set[str]:
        """Return the names of the graph's inputs and outputs."""
        return self.output_names() | {entry.name for entry in self.inputs}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def clone(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a copy of a node that may be changed."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def rename(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """Return a copy of a node whose inputs and outputs go by other names."""
    copy = clone(node)
    for slots in (copy.input, copy.output):
        for slot, name in enumerate(slots):
            slots[slot] = names.get(name, name)
    return copy


def used_tensors(
    nodes: Iterable[onnx.NodeProto], outputs: set[str], tensors: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Return the tensors that a node reads or that are outputs, in order of first use."""
    names = dict.fromkeys(name for node in nodes for name in node.input)
    return {name: tensors[name] for name in [*names, *outputs] if name in tensors}
