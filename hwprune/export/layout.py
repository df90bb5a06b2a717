"""Where everything in a file goes: which nodes become one, what stays, and what all is called."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
from numpy.typing import NDArray

from hwprune.errors import ExportError
from hwprune.export.fusing import NOTHING, Epilogue, find_epilogues
from hwprune.export.graph import Graph
from hwprune.export.passes import base36, short_names
from hwprune.export.prunable import WeightUse, weight_uses
from hwprune.ir import PrunableTensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything goes that is not packed.

    Attributes:
        uses: the nodes that read each prunable tensor as their weight.
        epilogues: what is fused with each of these nodes, by the node's identity.
        private: biases that only pruned layers read: they are stored with their layer.
        others: the tensors that stay as they are.
        names: the short name of every inner value and remaining tensor.
        keys: what the names of each prunable tensor's packed arrays open with.
    """

    uses: Mapping[str, list[WeightUse]]
    epilogues: Mapping[int, Epilogue]
    private: frozenset[str]
    others: Mapping[str, NDArray[Any]]
    names: Mapping[str, str]
    keys: tuple[str, ...]

    @property
    def replaced(self) -> set[int]:
        """Return the identities of the nodes that give way to nodes of our domain."""
        return {
            id(node) for found in self.uses.values() for use in found for node in self.parts(use)
        }

    def epilogue(self, use: WeightUse) -> Epilogue:
        """Return what is fused with a layer's node."""
        return self.epilogues.get(id(use.node), NOTHING)

    def parts(self, use: WeightUse) -> tuple[onnx.NodeProto, ...]:
        """Return the nodes that become one, in order; the last one's output is theirs."""
        before = () if use.transpose is None else (use.transpose,)
        return (*before, use.node, *self.epilogue(use).nodes)

    def bias(self, use: WeightUse) -> str:
        """Return the name of a layer's bias, empty without."""
        own = use.node.input[2] if len(use.node.input) > 2 else ""
        return self.epilogue(use).bias or own


def layout_of(graph: Graph, prunable: Sequence[PrunableTensor], *, fuse: bool) -> Layout:
    """Return where everything goes.

    Args:
        graph: the network.
        prunable: the tensors that may be pruned.
        fuse: make a layer and what follows it one node.

    Raises:
        ExportError: a tensor is not read as the weight that it was taken for.
    """
    readers = graph.readers()
    uses = {}
    for tensor in prunable:
        found = weight_uses(graph, tensor.name, readers)
        if isinstance(found, str):
            raise ExportError(f"{tensor.name} cannot be followed into the graph: {found}")
        uses[tensor.name] = found
    layers = [use for found in uses.values() for use in found]
    fused = find_epilogues(graph, layers, fuse=fuse) if fuse or graph.gains else {}
    bare = Layout(uses, fused, frozenset(), {}, {}, ())
    gone = bare.replaced
    biases = {bare.bias(use) for use in layers}
    # A bias that another node reads as well is stored as it is.
    private = frozenset(
        name
        for name in biases & graph.tensors.keys()
        if name not in graph.output_names() and all(id(n) in gone for n, _ in readers[name])
    )
    read = {name for node in graph.nodes if id(node) not in gone for name in node.input}
    read |= graph.output_names() | (biases - private)
    others = {name: array for name, array in graph.tensors.items() if name in read}
    inner = {node.output[0] for use in layers for node in bare.parts(use)[:-1]}
    made = tuple(node for node in graph.nodes if node.output[0] not in inner)
    names = short_names(replace(graph, nodes=made, tensors=others), set())
    return Layout(uses, fused, private, others, names, _keys(graph, len(prunable)))


def _keys(graph: Graph, count: int) -> tuple[str, ...]:
    """Return a key per prunable tensor; no input or output is called like anything it opens."""
    taken = graph.interface_names()
    keys = (base36(number) for number in itertools.count())
    free = (key for key in keys if not any(_opens(key, name) for name in taken))
    return tuple(itertools.islice(free, count))


def _opens(key: str, name: str) -> bool:
    """Return whether a name could be one of the tensor with this key."""
    return name.startswith(key) and re.fullmatch(r"[vic]|[bs]\d*|_.*", name[len(key) :]) is not None
