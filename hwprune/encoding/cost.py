"""The exact size of an artifact as a function of which connections live.

The exporter measures everything that does not depend on the mask once (``FileCost``); what is left
is arithmetic on the lengths of the packed arrays, so a solver can ask for thousands of sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from hwprune.encoding.codecs import CODECS
from hwprune.encoding.values import VALUE_DTYPES
from hwprune.encoding.wire import field_bytes, tensor_field_bytes
from hwprune.ir import CodecName, ValueType

Codecs = tuple[CodecName, ...]


@dataclass(frozen=True, slots=True)
class Form:
    """What one (codec, value type) costs a tensor beside its values and index.

    Attributes:
        fixed_bytes: nodes, bias and scale with their headers.
        functions: the model-local functions that its nodes need.
    """

    fixed_bytes: int
    functions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorCost:
    """The cost of one prunable tensor in each form that it may take."""

    name: str
    shape: tuple[int, ...]
    values_name: str
    index_name: str
    forms: Mapping[tuple[CodecName, ValueType], Form]

    @property
    def weights(self) -> int:
        """Return the number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    def codecs(self, value_type: ValueType) -> tuple[CodecName, ...]:
        """Return the codecs that this tensor may take with ``value_type``."""
        return tuple(codec for codec, kind in self.forms if kind == value_type)

    def bytes(
        self, codec: CodecName, value_type: ValueType, nonzeros: int, index_entries: int
    ) -> int:
        """Return what the tensor adds to the graph: nodes, bias, scale, values and index."""
        width = VALUE_DTYPES[value_type].itemsize
        fixed = self.forms[codec, value_type].fixed_bytes
        if codec == "dense":
            return fixed + tensor_field_bytes(self.values_name, self.shape, self.weights * width)
        dtype = CODECS[codec].index_dtype
        assert dtype is not None
        return (
            fixed
            + tensor_field_bytes(self.values_name, (nonzeros,), nonzeros * width)
            + tensor_field_bytes(self.index_name, (index_entries,), index_entries * dtype.itemsize)
        )


@dataclass(frozen=True, slots=True)
class Encoding:
    """How every tensor is stored, and what the file weighs.

    Attributes:
        codecs: the codec of each tensor.
        tensor_bytes: what each tensor adds to the graph.
        function_bytes: the function bodies, once each.
        file_bytes: the whole file.
    """

    codecs: Mapping[str, CodecName]
    tensor_bytes: Mapping[str, int]
    function_bytes: int
    file_bytes: int


@dataclass(frozen=True, slots=True)
class _Kind:
    """The tensors whose nodes need the same functions, whatever the codec.

    Attributes:
        tensors: (number of the tensor, its bytes by codec).
        functions: the functions by codec that not every kind needs.
    """

    tensors: list[tuple[int, dict[CodecName, int]]]
    functions: Mapping[CodecName, frozenset[str]]

    def bytes(self, codecs: Codecs) -> int | None:
        """Return what the tensors take in their cheapest codec; None where one has none."""
        try:
            return sum(min(c[k] for k in codecs if k in c) for _, c in self.tensors)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class FileCost:
    """Everything that decides a file's size but the masks.

    Attributes:
        frame_bytes: the model without its graph and functions.
        graph_bytes: the graph's own payload without the prunable tensors.
        tensors: the prunable tensors, in graph order.
        functions: the size of each function body as a field of the model.
        parts: what the fixed bytes are made of, for people: (what, bytes).
    """

    frame_bytes: int
    graph_bytes: int
    tensors: tuple[TensorCost, ...]
    functions: Mapping[str, int]
    parts: tuple[tuple[str, int], ...]

    def encoding(
        self, positions: Mapping[str, NDArray[np.int64]], value_type: ValueType
    ) -> Encoding:
        """Choose the cheapest codec for each tensor, function bodies included; return the sizes.

        A body is paid once however many tensors use it, so the choice is not separate per tensor.
        It is the best of all choices; therefore a further nonzero never makes the file smaller.
        """
        costs = [self._costs(tensor, positions[tensor.name], value_type) for tensor in self.tensors]
        chosen = self._choose(costs, value_type)
        tensor_bytes = {
            tensor.name: cost[codec]
            for tensor, cost, codec in zip(self.tensors, costs, chosen, strict=True)
        }
        needed = {
            name
            for tensor, codec in zip(self.tensors, chosen, strict=True)
            for name in tensor.forms[codec, value_type].functions
        }
        function_bytes = sum(self.functions[name] for name in needed)
        graph = self.graph_bytes + sum(tensor_bytes.values())
        return Encoding(
            {tensor.name: codec for tensor, codec in zip(self.tensors, chosen, strict=True)},
            tensor_bytes,
            function_bytes,
            self.frame_bytes + field_bytes(graph) + function_bytes,
        )

    def _choose(self, costs: list[dict[CodecName, int]], value_type: ValueType) -> list[CodecName]:
        """Return the codec of each tensor that makes tensors and functions together smallest.

        Functions that every kind of tensor needs for a codec (its decoder) tie the kinds together:
        for every set of codecs whose decoders are paid for, each kind takes its own best subset.
        Equal totals go to the smaller graph, whose length may take a byte less.
        """
        groups, shared = self._groups(costs, value_type)
        used = tuple(sorted({codec for cost in costs for codec in cost}))
        subsets = [s for size in range(1, len(used) + 1) for s in combinations(used, size)]
        options = [self._options(group, subsets) for group in groups]
        best: tuple[int, int, list[tuple[Codecs, ...]]] | None = None
        for paid in subsets:
            total, graph = sum(shared[codec] for codec in paid), 0
            picked: list[tuple[Codecs, ...]] = []
            for choices in options:
                possible = [choice for choice in choices if choice[2] <= set(paid)]
                if not possible:
                    break
                size, tensors, _, kinds = min(possible, key=lambda choice: choice[:2])
                total, graph = total + size, graph + tensors
                picked.append(kinds)
            if len(picked) == len(options) and (best is None or (total, graph) < best[:2]):
                best = (total, graph, picked)
        assert best is not None, "every tensor has at least one codec"
        chosen: dict[int, CodecName] = {}
        for group, kinds in zip(groups, best[2], strict=True):
            for kind, codecs in zip(group, kinds, strict=True):
                for number, cost in kind.tensors:
                    chosen[number] = min((c for c in codecs if c in cost), key=cost.__getitem__)
        return [chosen[number] for number in range(len(costs))]

    def _options(
        self, group: list[_Kind], subsets: list[Codecs]
    ) -> list[tuple[int, int, frozenset[CodecName], tuple[Codecs, ...]]]:
        """Return (bytes, those in the graph, codecs, codecs by kind) for all choices of a group.

        A group of several kinds comes from a tensor that several layers share; there a kind gets
        few codecs, so that the product stays small.
        """
        widest = {1: len(subsets), 2: 2}.get(len(group), 1)
        options = []
        for kinds in product(*([s for s in subsets if len(s) <= widest] for _ in group)):
            sizes = [kind.bytes(codecs) for kind, codecs in zip(group, kinds, strict=True)]
            tensors = sum(size for size in sizes if size is not None)
            if None in sizes:
                continue
            needed = {
                name
                for kind, codecs in zip(group, kinds, strict=True)
                for codec in codecs
                for name in kind.functions[codec]
            }
            total = tensors + sum(self.functions[name] for name in needed)
            options.append((total, tensors, frozenset().union(*kinds), kinds))
        return options

    def _groups(
        self, costs: list[dict[CodecName, int]], value_type: ValueType
    ) -> tuple[list[list[_Kind]], dict[CodecName, int]]:
        """Split the tensors into groups that share no function but those that all of them need.

        Returns:
            the groups, and by codec the bytes of the functions that every kind needs.
        """
        codecs = {codec for cost in costs for codec in cost}
        needs = [
            {c: frozenset(tensor.forms[c, value_type].functions) for c in cost}
            for tensor, cost in zip(self.tensors, costs, strict=True)
        ]
        common = {c: frozenset.intersection(*(n[c] for n in needs if c in n)) for c in codecs}
        kinds: dict[frozenset[tuple[CodecName, frozenset[str]]], _Kind] = {}
        for number, (cost, need) in enumerate(zip(costs, needs, strict=True)):
            own = {c: need[c] - common[c] for c in need}
            kind = kinds.setdefault(
                frozenset(own.items()), _Kind([], dict.fromkeys(codecs, frozenset()) | own)
            )
            kind.tensors.append((number, cost))
        groups: list[tuple[set[str], list[_Kind]]] = []
        for kind in kinds.values():
            names = set[str]().union(*kind.functions.values())
            met = [group for group in groups if group[0] & names]
            groups = [group for group in groups if not group[0] & names]
            merged = [member for group in met for member in group[1]]
            groups.append((names.union(*(group[0] for group in met)), [*merged, kind]))
        shared = {c: sum(self.functions[name] for name in common[c]) for c in codecs}
        return [group for _, group in groups], shared

    def _costs(
        self, tensor: TensorCost, positions: NDArray[np.int64], value_type: ValueType
    ) -> dict[CodecName, int]:
        return {
            codec: tensor.bytes(
                codec,
                value_type,
                int(positions.size),
                CODECS[codec].index_entries(positions, tensor.shape),
            )
            for codec in tensor.codecs(value_type)
        }
