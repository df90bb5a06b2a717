"""From a slim graph to files: the exact size of any file, and the file itself.

A ``Template`` is everything about an artifact but its masks and weights. Sparse encoding is the
last rewrite of the graph: an optimiser that ran after it would fold the encoded form back to dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from hwprune.encoding import CODECS, Encoding, FileCost, Form, TensorCost, compact_floats, pack
from hwprune.encoding.values import LEVELS, NIBBLE_TYPES, channel_scales, codebook_entries
from hwprune.encoding.wire import field_bytes, tensor_field_bytes
from hwprune.errors import ExportError, HwpruneError
from hwprune.export.body import DOMAIN, DOMAIN_VERSION
from hwprune.export.gains import stored_gain
from hwprune.export.graph import Graph, rename
from hwprune.export.layout import Layout, layout_of
from hwprune.export.nodes import Made, Stored, nodes_of, numbered
from hwprune.export.operators import count_name, function_for
from hwprune.export.passes import short_names
from hwprune.export.shrink import Kept, Removal, without
from hwprune.export.trace import Traced
from hwprune.ir import CodecName, Masks, Packed, PrunableTensor, ValueType

PRODUCER = "hwprune"
# Protocol buffers cannot hold more in one message, and external data are never written.
MAX_FILE_BYTES = 2**31 - 1
_FUNCTION_TAG_BYTES = 2  # ModelProto.functions is field 25


@dataclass(frozen=True, slots=True)
class Written:
    """A file's content and what it stands for.

    Attributes:
        data: the bytes.
        encoding: how each tensor is stored (None for a dense file).
        packed: the packed tensors by name.
        biases: the biases of the pruned layers as stored, by their name in the graph.
        kept: what is left of the tensors that lost channels.
        gains: the gains of layers that share their weights as stored, likewise, where they are in
            the layers' scales.
    """

    data: bytes
    encoding: Encoding | None
    packed: Mapping[str, Packed]
    biases: Mapping[str, NDArray[np.float32]]
    kept: Kept = field(default_factory=dict)
    gains: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Template:
    """An artifact without its masks.

    Attributes:
        graph: slimmed, lowered, with BN folded; its tensors hold the weights.
        prunable: the tensors that may be pruned.
        ir_version: of the file.
        inline: write standard operators instead of functions, for runtimes that cannot fold those.
        codecs: what the target can decode.
        fuse: make a layer and what follows it one node. Worthwhile only where native kernels may
            run it, so never in the inlined form.
        kept: what is left of tensors, where channels were removed; ``graph`` and ``prunable`` are
            without them.
        traced: the structure that it was made of; None where a graph is all there is.
    """

    graph: Graph
    prunable: tuple[PrunableTensor, ...]
    ir_version: int
    inline: bool
    codecs: tuple[CodecName, ...]
    fuse: bool = True
    kept: Kept = field(default_factory=dict)
    traced: Traced | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the prunable tensors."""
        return tuple(tensor.name for tensor in self.prunable)

    @property
    def weights(self) -> int:
        """Return the number of prunable weights."""
        return sum(tensor.weights for tensor in self.prunable)

    @property
    def channel_axes(self) -> dict[str, int]:
        """Return the axis of output channels of each prunable tensor."""
        return {tensor.name: tensor.channel_axis for tensor in self.prunable}

    def without(self, removal: Removal) -> Template:
        """Return the artifact without some channels."""
        if not removal:
            return self
        graph = without(self.graph, removal)
        smaller = tuple(
            replace(tensor, shape=graph.tensors[tensor.name].shape) for tensor in self.prunable
        )
        return replace(self, graph=graph, prunable=smaller, kept=removal.kept)

    # -- sizes ------------------------------------------------------------------------------------

    def cost(self, value_types: tuple[ValueType, ...]) -> FileCost:
        """Measure everything about the file's size that masks do not change."""
        layout = self._layout()
        functions: dict[str, int] = {}
        tensors = []
        for number, tensor in enumerate(self.prunable):
            forms: dict[tuple[CodecName, ValueType], Form] = {}
            weight = self.graph.tensors[tensor.name]
            for value_type in value_types:
                scale = _scale(weight, tensor, value_type)
                table = _table_bytes(layout, number, tensor, value_type, scale)
                for codec in self._codecs_for(tensor, value_type):
                    operators, nodes, biases = self._nodes(layout, number, codec, value_type, scale)
                    every = [node for group in nodes for node in group]
                    counted = [node.ByteSize() for node in every if _carries_count(node)]
                    fixed = sum(field_bytes(n.ByteSize()) for n in every if not _carries_count(n))
                    fixed += sum(_tensor_bytes(name, array) for name, array in biases.items())
                    needed = () if self.inline else tuple(
                        dict.fromkeys(name for op in operators for name in op.functions)
                    )  # fmt: skip
                    for name in needed:
                        if name not in functions:
                            function = function_for(name, self.graph.opset)
                            assert function is not None
                            size = field_bytes(function.ByteSize(), _FUNCTION_TAG_BYTES)
                            functions[name] = size
                    forms[codec, value_type] = Form(fixed + table, needed, tuple(counted))
            key = layout.keys[number]
            tensors.append(
                TensorCost(tensor.name, tensor.shape, f"{key}v", f"{key}i", forms, f"{key}c")
            )
        skeleton = self._model(self._other_nodes(layout), [], [])
        frame = skeleton.ByteSize() - field_bytes(skeleton.graph.ByteSize())
        dense = sum(_tensor_bytes(layout.names.get(n, n), a) for n, a in layout.others.items())
        graph_bytes = skeleton.graph.ByteSize() + dense
        parts = (
            ("nodes, inputs and outputs that are not pruned", skeleton.graph.ByteSize()),
            ("tensors kept dense", dense),
            ("file header", frame),
        )
        return FileCost(frame, graph_bytes, tuple(tensors), functions, parts)

    def dense_bytes(self) -> int:
        """Return the size of the dense fp32 file, without writing it."""
        names = short_names(self.graph, set())
        model = self._model([rename(node, names) for node in self.graph.nodes], [], [], dense=True)
        frame = int(model.ByteSize()) - field_bytes(model.graph.ByteSize())
        tensors = sum(_tensor_bytes(names.get(n, n), a) for n, a in self.graph.tensors.items())
        return frame + field_bytes(int(model.graph.ByteSize()) + tensors)

    # -- files ------------------------------------------------------------------------------------

    def write_dense(self) -> Written:
        """Return the dense fp32 file.

        Raises:
            ExportError: it would be larger than an ONNX file can be.
        """
        size = self.dense_bytes()
        if size > MAX_FILE_BYTES:
            raise ExportError(
                f"the dense file would take {size:,} bytes; an ONNX file ends at 2 GiB"
            )
        names = short_names(self.graph, set())
        nodes = [rename(node, names) for node in self.graph.nodes]
        tensors = [
            numpy_helper.from_array(np.asarray(array, order="C"), names.get(name, name))
            for name, array in self.graph.tensors.items()
        ]
        model = self._model(nodes, tensors, [], dense=True)
        return Written(model.SerializeToString(deterministic=True), None, {}, {})

    def write_sparse(self, masks: Masks, value_type: ValueType) -> Written:
        """Return the sparse file for these masks over the template's weights.

        Args:
            masks: what lives, in the shapes of the template's tensors.
            value_type: of the stored values.

        Ensures: the file's length is the one that ``cost`` predicts for the same masked weights.
        """
        layout = self._layout()
        # int8 scales, and so their type, are those of what lives.
        cost = self._masked(masks).cost((value_type,))
        encoding = cost.encoding(masks.positions(), value_type)
        packed = {
            tensor.name: pack(
                tensor.name,
                self.graph.tensors[tensor.name],
                masks[tensor.name],
                codec=encoding.codecs[tensor.name],
                value_type=value_type,
                channel_axis=tensor.channel_axis,
            )
            for tensor in self.prunable
        }
        replaced: dict[int, list[onnx.NodeProto]] = {}
        tensors: list[onnx.TensorProto] = []
        stored_biases: dict[str, NDArray[np.float32]] = {}
        gains: dict[str, NDArray[np.float32]] = {}
        needed: dict[str, None] = {}
        for number, tensor in enumerate(self.prunable):
            operators, nodes, biases = self._nodes(
                layout,
                number,
                encoding.codecs[tensor.name],
                value_type,
                packed[tensor.name].arrays.get("scale"),
                packed[tensor.name].nonzeros,
            )
            uses = layout.uses[tensor.name]
            arrays = packed[tensor.name].arrays
            for place, (use, group) in enumerate(zip(uses, nodes, strict=True)):
                # What it adds was made before its last part, not always before its first.
                replaced |= {id(node): [] for node in layout.parts(use)}
                replaced[id(layout.parts(use)[-1])] = group
                name = layout.bias(use)
                gain = layout.epilogue(use).gain
                if gain and value_type in LEVELS:
                    scale = biases[numbered(layout.keys[number], "s", place)]
                    gains[gain] = stored_gain(scale, arrays["scale"], self.graph.tensors[gain])
                if name in self.graph.tensors and bool(gain) == (gain in gains):
                    bias = self.graph.tensors[name]
                    stored_biases[name] = compact_floats(bias, value_type).astype(np.float32)
            key = layout.keys[number]
            # Where uses have scales of their own, these are among the biases.
            stored = {f"{key}{role[0]}": array for role, array in arrays.items()} | biases
            tensors += [numpy_helper.from_array(array, name) for name, array in stored.items()]
            if not self.inline:
                needed |= dict.fromkeys(name for op in operators for name in op.functions)
        kept = [
            final
            for node in self.graph.nodes
            for final in replaced.get(id(node), [rename(node, layout.names)])
        ]
        tensors += [
            numpy_helper.from_array(np.asarray(array, order="C"), layout.names.get(name, name))
            for name, array in layout.others.items()
        ]
        functions = [function_for(name, self.graph.opset) for name in needed]
        data = self._model(kept, tensors, functions).SerializeToString(deterministic=True)
        if len(data) != encoding.file_bytes:
            raise HwpruneError(
                f"the file has {len(data)} bytes where {encoding.file_bytes} were predicted",
                hint="this is a defect of hwprune: please report it with the command",
            )
        return Written(data, encoding, packed, stored_biases, self.kept, gains)

    # -- pieces -----------------------------------------------------------------------------------

    def _layout(self) -> Layout:
        return layout_of(self.graph, self.prunable, fuse=self.fuse and not self.inline)

    def _masked(self, masks: Masks) -> Template:
        living = {
            tensor.name: np.where(
                masks[tensor.name], self.graph.tensors[tensor.name], np.float32(0)
            )
            for tensor in self.prunable
        }
        return replace(self, graph=replace(self.graph, tensors={**self.graph.tensors, **living}))

    def _codecs_for(self, tensor: PrunableTensor, value_type: ValueType) -> list[CodecName]:
        return [
            codec
            for codec in self.codecs
            if CODECS[codec].accepts(tensor.shape)
            and not (codec == "dense" and value_type in NIBBLE_TYPES)
        ]

    def _other_nodes(self, layout: Layout) -> list[onnx.NodeProto]:
        gone = layout.replaced
        return [rename(node, layout.names) for node in self.graph.nodes if id(node) not in gone]

    def _nodes(
        self,
        layout: Layout,
        number: int,
        codec: CodecName,
        value_type: ValueType,
        scale: NDArray[Any] | None,
        count: int = 0,
    ) -> Made:
        tensor, form = self.prunable[number], Stored(codec, value_type, scale, count)
        return nodes_of(self.graph, layout, tensor, layout.keys[number], form, inline=self.inline)

    def _model(
        self,
        nodes: list[onnx.NodeProto],
        tensors: list[onnx.TensorProto],
        functions: list[Any],
        *,
        dense: bool = False,
    ) -> onnx.ModelProto:
        imports = [helper.make_opsetid("", self.graph.opset)]
        domains = {node.domain for node in nodes if node.domain and node.domain != DOMAIN}
        imports += [helper.make_opsetid(domain, 1) for domain in sorted(domains)]
        if not dense and not self.inline:
            imports.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
        graph = helper.make_graph(
            nodes, "g", list(self.graph.inputs), list(self.graph.outputs), tensors
        )
        return helper.make_model(
            graph,
            functions=functions,
            opset_imports=imports,
            ir_version=self.ir_version,
            producer_name=PRODUCER,
        )


def _tensor_bytes(name: str, array: NDArray[Any]) -> int:
    return tensor_field_bytes(name, array.shape, array.nbytes)


def _scale(
    weight: NDArray[np.float32], tensor: PrunableTensor, value_type: ValueType
) -> NDArray[Any] | None:
    if value_type not in LEVELS:
        return None
    return channel_scales(weight, tensor.channel_axis, value_type)


def _table_bytes(
    layout: Layout,
    number: int,
    tensor: PrunableTensor,
    value_type: ValueType,
    scale: NDArray[Any] | None,
) -> int:
    """Return what scales or a codebook of fixed length take; one that grows is counted later."""
    key = layout.keys[number]
    if scale is not None:
        own = any(layout.epilogue(use).gain for use in layout.uses[tensor.name])
        return 0 if own else _tensor_bytes(f"{key}s", scale)
    if value_type != "codebook16":
        return 0
    entries = codebook_entries(value_type, 0)
    return tensor_field_bytes(f"{key}c", (entries,), 2 * entries)


def _carries_count(node: onnx.NodeProto) -> bool:
    """Return whether a node, of our domain or expanded, says the number of stored values."""
    if node.domain == DOMAIN:
        return any(entry.name == "count" for entry in node.attribute)
    return node.op_type == "Constant" and node.output[0].endswith(count_name("_"))
