"""Where everything in a file goes: which nodes become one, what stays, and what all is called."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx_ir as ir

from hwprune.encoding.values import LEVELS
from hwprune.errors import ExportError
from hwprune.export.fusing import NOTHING, Epilogue, find_epilogues
from hwprune.export.graph import (
    Graph,
    attributes,
    name_of,
    optional_input,
    output_name,
    read_names,
)
from hwprune.export.operators import Operator
from hwprune.export.passes import base36, short_names
from hwprune.export.prunable import WeightUse, weight_uses
from hwprune.ir import CodecName, PrunableTensor, ValueType


@dataclass(frozen=True)
class Layout:
    """Where everything goes, for any weights of a structure.

    Attributes:
        graph: the network.
        uses: the nodes that read each prunable tensor as their weight.
        epilogues: what is fused with each of these nodes.
    """

    graph: Graph
    uses: Mapping[str, list[WeightUse]]
    epilogues: Mapping[ir.Node, Epilogue]

    @cached_property
    def replaced(self) -> set[ir.Node]:
        """Return the nodes that give way to nodes of our domain."""
        return {node for use in self._layers for node in self.parts(use)}

    @cached_property
    def private(self) -> frozenset[str]:
        """Return the biases that only pruned layers read: they are stored with their layer."""
        values = self.graph.structure.initializers
        return frozenset(
            name
            for name in self._biases & self.graph.tensors.keys()
            if not values[name].is_graph_output()
            and all(node in self.replaced for node, _ in values[name].uses())
        )

    @cached_property
    def others(self) -> tuple[str, ...]:
        """Return the tensors that stay as they are."""
        read = {
            name
            for node in self.graph.nodes
            if node not in self.replaced
            for name in read_names(node)
        }
        read |= self.graph.output_names() | (self._biases - self.private)
        read -= self.uses.keys()  # what reads one of these otherwise reads it decoded
        return tuple(name for name in self.graph.tensors if name in read)

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Return the short name of every inner value, remaining tensor and decoded weight."""
        inner = {node for use in self._layers for node in self.parts(use)[:-1]}
        made = [node for node in self.graph.nodes if node not in inner]
        names = short_names(made, self.others, self.graph.fixed_names())
        decoded = {name for name, found in self.uses.items() if found[0].kind == "Weight"}
        return names | {name: f"{self.keys[name]}w" for name in decoded}

    @cached_property
    def keys(self) -> Mapping[str, str]:
        """Return what the names of each prunable tensor's packed arrays open with.

        No input or output is called like anything that a key opens.
        """
        taken = self.graph.fixed_names()
        keys = (base36(number) for number in itertools.count())
        free = (key for key in keys if not any(_opens(key, name) for name in taken))
        return dict(zip(self.uses, free, strict=False))

    @property
    def _layers(self) -> list[WeightUse]:
        return [use for found in self.uses.values() for use in found]

    @cached_property
    def _biases(self) -> set[str]:
        return {self.bias(use) for use in self._layers}

    def epilogue(self, use: WeightUse) -> Epilogue:
        """Return what is fused with a layer's node."""
        return NOTHING if use.kind == "Weight" else self.epilogues.get(use.node, NOTHING)

    def parts(self, use: WeightUse) -> tuple[ir.Node, ...]:
        """Return the nodes that become one, in order; the last one's output is theirs.

        None give way to a node that only decodes a weight.
        """
        if use.kind == "Weight":
            return ()
        before = () if use.transpose is None else (use.transpose,)
        return (*before, use.node, *self.epilogue(use).nodes)

    def output(self, use: WeightUse) -> str:
        """Return the name of what a layer makes, with all that is fused with it."""
        return output_name(self.parts(use)[-1])

    def bias(self, use: WeightUse) -> str:
        """Return the name of a layer's bias, empty without."""
        if use.kind == "Weight":
            return ""
        own = optional_input(use.node, 2)
        return self.epilogue(use).bias or ("" if own is None else name_of(own))

    def operator(self, use: WeightUse, codec: CodecName, value_type: ValueType) -> Operator:
        """Return the operator of a layer whose weight is stored in this form."""
        after = self.epilogue(use)
        if after.gain and value_type not in LEVELS:  # no scale to put the gain into: nodes behind
            return Operator(use.kind, codec, value_type, bias=False)
        bias, residual = bool(self.bias(use)), bool(after.residual)
        return Operator(use.kind, codec, value_type, bias, residual, after.activation)

    def given(self, use: WeightUse, operator: Operator) -> dict[str, Any]:
        """Return what a layer says of its operator's attributes: none that equal a default."""
        known = attributes(use.node)
        alpha = self.epilogue(use).alpha
        if alpha is not None:
            known["alpha"] = alpha
        return {name: known[name] for name in operator.attributes if name in known}

    def declared(self, operator: Operator) -> tuple[str, ...]:
        """Return the attributes that an operator's function has in a file of this network.

        One that all its layers leave at the default is none: the body leaves it out, too. Any other
        is written for each layer, since programs that run functions may ask for all that there are.
        How the weight is stored makes no difference, so that it can be chosen after this.
        """
        said = self._declared[operator.value_type in LEVELS]
        return tuple(sorted(said.get(operator.signature, ())))

    @cached_property
    def _declared(self) -> Mapping[bool, Mapping[tuple[object, ...], set[str]]]:
        """Return what layers say, by signature, and that by whether values have scales."""
        said: dict[bool, dict[tuple[object, ...], set[str]]] = {True: {}, False: {}}
        for scaled, use in itertools.product(said, self._layers):
            operator = self.operator(use, "dense", "int8" if scaled else "fp32")
            said[scaled].setdefault(operator.signature, set()).update(self.given(use, operator))
        return said


def layout_of(graph: Graph, prunable: Sequence[PrunableTensor], *, fuse: bool) -> Layout:
    """Return where everything goes.

    Args:
        graph: the network.
        prunable: the tensors that may be pruned.
        fuse: make a layer and what follows it one node.

    Raises:
        ExportError: a tensor is not read as the weight that it was taken for.
    """
    uses = {}
    for tensor in prunable:
        found = weight_uses(graph, tensor.name)
        if isinstance(found, str):
            raise ExportError(f"{tensor.name} cannot be followed into the graph: {found}")
        uses[tensor.name] = found
    layers = [use for found in uses.values() for use in found if use.kind != "Weight"]
    fused = find_epilogues(graph, layers, fuse=fuse) if fuse or graph.gains else {}
    return Layout(graph, uses, fused)


def _opens(key: str, name: str) -> bool:
    """Return whether a name could be one of the tensor with this key."""
    return (
        name.startswith(key) and re.fullmatch(r"[vicw]|[bs]\d*|_.*", name[len(key) :]) is not None
    )
