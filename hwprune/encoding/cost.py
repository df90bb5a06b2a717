"""The exact size of an artifact as a function of which connections live.

The exporter measures everything that does not depend on the mask once (``FileCost``); what is left
is arithmetic on the lengths of the packed arrays, so a solver can ask for thousands of sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwprune.encoding.choice import Chooser
from hwprune.encoding.codecs import CODECS, spacing
from hwprune.encoding.values import codebook_entries, values_size
from hwprune.encoding.wire import field_bytes, tensor_field_bytes, varint_bytes
from hwprune.ir import CodecName, ValueType


@dataclass(frozen=True, slots=True)
class Form:
    """What one (codec, value type) costs a tensor beside its values and index.

    Attributes:
        fixed_bytes: nodes, bias, scale and a codebook of fixed length, with their headers.
        functions: the model-local functions that its nodes need.
        counted: further nodes, which carry the number of values: what they take without tag and
            length while that number takes one byte.
    """

    fixed_bytes: int
    functions: tuple[str, ...]
    counted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorCost:
    """The cost of one prunable tensor in each form that it may take."""

    name: str
    shape: tuple[int, ...]
    values_name: str
    index_name: str
    forms: Mapping[tuple[CodecName, ValueType], Form]
    codebook_name: str = "c"

    @property
    def weights(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    def codecs(self, value_type: ValueType) -> tuple[CodecName, ...]:
        """Return the codecs that this tensor may take with ``value_type``."""
        return tuple(codec for codec, kind in self.forms if kind == value_type)

    def bytes(
        self, codec: CodecName, value_type: ValueType, nonzeros: int, index_entries: int
    ) -> int:
        """Return what the tensor adds to the graph: nodes, bias, scale, values and index."""
        form = self.forms[codec, value_type]
        count = self.weights if codec == "dense" else nonzeros
        elements, size = values_size(value_type, count)
        dims = self.shape if codec == "dense" else (elements,)
        total = form.fixed_bytes + tensor_field_bytes(self.values_name, dims, size)
        longer = varint_bytes(count) - 1
        total += sum(field_bytes(payload + longer) for payload in form.counted)
        if value_type == "codebook256":
            entries = codebook_entries(value_type, count)
            total += tensor_field_bytes(self.codebook_name, (entries,), 2 * entries)
        dtype = CODECS[codec].index_dtype
        if dtype is not None:
            width = index_entries * dtype.itemsize
            total += tensor_field_bytes(self.index_name, (index_entries,), width)
        return total


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
    _choosers: dict[ValueType, Chooser] = field(default_factory=dict, compare=False, repr=False)

    def encoding(
        self, positions: Mapping[str, NDArray[np.int64]], value_type: ValueType
    ) -> Encoding:
        """Choose the cheapest codec for each tensor, function bodies included; return the sizes.

        A body is paid once however many tensors use it, so the choice is not separate per tensor.
        It is the best of all choices; therefore a further nonzero never makes the file smaller.
        """
        costs = [self._costs(tensor, positions[tensor.name], value_type) for tensor in self.tensors]
        chosen = self._chooser(value_type).choose(costs)
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

    def _chooser(self, value_type: ValueType) -> Chooser:
        if value_type not in self._choosers:
            needs = [
                {c: frozenset(t.forms[c, value_type].functions) for c in t.codecs(value_type)}
                for t in self.tensors
            ]
            self._choosers[value_type] = Chooser(needs, self.functions)
        return self._choosers[value_type]

    def _costs(
        self, tensor: TensorCost, positions: NDArray[np.int64], value_type: ValueType
    ) -> dict[CodecName, int]:
        spaced = spacing(positions)
        return {
            codec: tensor.bytes(
                codec,
                value_type,
                spaced.nonzeros,
                CODECS[codec].index_entries(spaced, tensor.shape),
            )
            for codec in tensor.codecs(value_type)
        }
