"""From a slim graph to files: the exact size of any file, and the file itself.

A ``Template`` is everything about an artifact but its masks and weights. Sparse encoding is the
last rewrite of the graph: an optimiser that ran after it would fold the encoded form back to dense.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from hwprune.encoding import CODECS, Encoding, FileCost, Form, TensorCost, compact_floats, pack
from hwprune.encoding.values import (
    INT8_LEVELS,
    LEVELS,
    NIBBLE_TYPES,
    channel_scales,
    codebook_entries,
)
from hwprune.encoding.wire import field_bytes, tensor_field_bytes
from hwprune.errors import ExportError, HwpruneError
from hwprune.export.body import DOMAIN, DOMAIN_VERSION
from hwprune.export.deployment import NOTHING_TO_SAY, Deployment
from hwprune.export.graph import Graph, input_names, message_of
from hwprune.export.layout import Layout, layout_of
from hwprune.export.operators import (
    OPERATORS,
    Operator,
    count_name,
    default_of,
    expand,
    known_function,
)
from hwprune.export.passes import short_names
from hwprune.export.per_use_scale import nodes_behind, own_scale, stored_gain
from hwprune.export.prunable import WeightUse, weight_uses
from hwprune.export.removal import Kept, Removal, without
from hwprune.export.trace import Traced
from hwprune.ir import CodecName, Masks, Packed, PrunableTensor, ValueType

PRODUCER = "hwprune"
# Protocol buffers cannot hold more in one message, and external data are never written.
MAX_FILE_BYTES = 2**31 - 1
# Of a tensor that stays dense and is stored as int8: elements, and elements for each scale.
_LEAST_NARROW, _FEW_SCALES = 1024, 32
_FUNCTION_TAG_BYTES = 2  # ModelProto.functions is field 25


# The operators, the nodes per use, and tensors by their names in the file.
Made: TypeAlias = tuple[list[Operator], list[list[onnx.NodeProto]], dict[str, NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class StoredForm:
    """The form in which a tensor is stored.

    Attributes:
        codec: how positions are stored.
        value_type: how values are stored.
        scale: the tensor's, where its values have one.
        count: the number of its stored values, which only some value types write down.
    """

    codec: CodecName
    value_type: ValueType
    scale: NDArray[Any] | None
    count: int = 0


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


@dataclass(frozen=True)
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
        deployment: what the file holds beside the network.
    """

    graph: Graph
    prunable: tuple[PrunableTensor, ...]
    ir_version: int
    inline: bool
    codecs: tuple[CodecName, ...]
    fuse: bool = True
    kept: Kept = field(default_factory=dict)
    traced: Traced | None = None
    deployment: Deployment = NOTHING_TO_SAY

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

    def cost(self, value_type: ValueType) -> FileCost:
        """Measure everything about the file's size that masks do not change."""
        functions: dict[str, int] = {}
        tensors = []
        for tensor in self.prunable:
            forms: dict[tuple[CodecName, ValueType], Form] = {}
            scale = _scale(self.graph.tensors[tensor.name], tensor, value_type)
            table = self._table_bytes(tensor, value_type, scale)
            for codec in self._codecs_for(tensor, value_type):
                form = StoredForm(codec, value_type, scale)
                operators, nodes, biases = self._nodes(tensor, form)
                every = [node for group in nodes for node in group]
                counted = [node.ByteSize() for node in every if _carries_count(node)]
                fixed = sum(field_bytes(n.ByteSize()) for n in every if not _carries_count(n))
                lookups = (use.node for use in self._uses(tensor, codec) if use.kind == "Gather")
                stock = (message_of(node, self.layout.names) for node in lookups)
                fixed -= sum(field_bytes(node.ByteSize()) for node in stock)
                fixed += sum(_tensor_bytes(name, array) for name, array in biases.items())
                needed = () if self.inline else tuple(
                    dict.fromkeys(name for op in operators for name in op.functions)
                )  # fmt: skip
                for name in needed:
                    size = self._function(name).ByteSize()
                    functions[name] = field_bytes(size, _FUNCTION_TAG_BYTES)
                forms[codec, value_type] = Form(fixed + table, needed, tuple(counted))
            key = self.layout.keys[tensor.name]
            tensors.append(
                TensorCost(tensor.name, tensor.shape, f"{key}v", f"{key}i", forms, f"{key}c")
            )
        names, gone = self.layout.names, self.layout.replaced
        skeleton = self._model([message_of(n, names) for n in self.graph.nodes if n not in gone])
        frame = skeleton.ByteSize() - field_bytes(skeleton.graph.ByteSize())
        about = sum(field_bytes(entry.ByteSize()) for entry in skeleton.metadata_props)
        dense = sum(self.dense_tensors(value_type).values())
        graph_bytes = skeleton.graph.ByteSize() + dense
        parts = (
            ("nodes, inputs and outputs that are not pruned", skeleton.graph.ByteSize()),
            ("tensors kept dense", dense),
            ("metadata", about),
            ("file header", frame - about),
        )
        return FileCost(frame, graph_bytes, tuple(tensors), functions, parts)

    def dense_tensors(self, value_type: ValueType) -> dict[str, int]:
        """Return the bytes of each tensor that stays dense, beside values of a type."""
        stored = {name: self._stored_dense(name, value_type) for name in self.layout.others}
        return {
            name: sum(_tensor_bytes(key, array) for key, array in arrays.items())
            + sum(field_bytes(node.ByteSize()) for node in nodes)
            for name, (arrays, nodes, _) in stored.items()
        }

    def dense_bytes(self) -> int:
        """Return the size of the dense fp32 file, without writing it."""
        model, names = self._dense_model()
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
        model, names = self._dense_model()
        model.graph.initializer.extend(_messages(self.graph.tensors, names))
        return Written(model.SerializeToString(deterministic=True), None, {}, {})

    def write_sparse(self, masks: Masks, value_type: ValueType) -> Written:
        """Return the sparse file for these masks over the template's weights.

        Args:
            masks: what is kept, in the shapes of the template's tensors.
            value_type: of the stored values.

        Ensures: the file's length is the one that ``cost`` predicts for the same masked weights.
        """
        layout, weights = self.layout, self.graph.tensors
        # int8 scales, and so their type, are those of what is kept.
        encoding = self._masked(masks).cost(value_type).encoding(masks.positions(), value_type)
        packed = {
            tensor.name: pack(
                tensor.name,
                weights[tensor.name],
                masks[tensor.name],
                codec=encoding.codecs[tensor.name],
                value_type=value_type,
                channel_axis=tensor.channel_axis,
            )
            for tensor in self.prunable
        }
        groups: dict[ir.Node, list[onnx.NodeProto]] = {}
        decoded: list[onnx.NodeProto] = []
        tensors: dict[str, NDArray[Any]] = {}
        stored_biases: dict[str, NDArray[np.float32]] = {}
        gains: dict[str, NDArray[np.float32]] = {}
        needed: dict[str, None] = {}
        for tensor in self.prunable:
            stored, key = packed[tensor.name], layout.keys[tensor.name]
            scale = stored.arrays.get("scale")
            form = StoredForm(stored.codec, value_type, scale, stored.nonzeros)
            operators, nodes, own = self._nodes(tensor, form)
            uses = self._uses(tensor, stored.codec)
            for place, (use, group) in enumerate(zip(uses, nodes, strict=True)):
                if use.kind == "Weight":
                    decoded += group
                    continue
                # What it adds was made before its last part, not always before its first.
                groups[layout.parts(use)[-1]] = group
                name, gain = layout.bias(use), layout.epilogue(use).gain
                if gain and scale is not None:
                    stored_scale = own[numbered(key, "s", place)]
                    gains[gain] = stored_gain(stored_scale, scale, weights[gain])
                if name in weights and bool(gain) == (gain in gains):
                    kind = value_type if name in layout.private else "fp32"
                    stored_biases[name] = compact_floats(weights[name], kind).astype(np.float32)
            # Where uses have scales of their own, these are among what they own.
            tensors |= {f"{key}{role[0]}": array for role, array in stored.arrays.items()} | own
            if not self.inline:
                needed |= dict.fromkeys(name for op in operators for name in op.functions)
        for name in layout.others:
            arrays, nodes_before, rounded = self._stored_dense(name, value_type)
            tensors |= arrays
            decoded += nodes_before
            if nodes_before:
                stored_biases[name] = rounded
        written = decoded + [
            final
            for node in self.graph.nodes
            if node in groups or node not in layout.replaced
            for final in groups.get(node) or [message_of(node, layout.names)]
        ]
        # A function stands behind those that it calls: onnx's own evaluator reads them in order.
        names = sorted(needed, key=lambda name: name in OPERATORS)
        bodies = [self._function(name) for name in names]
        model = self._model(written, bodies, nonzeros=masks.nonzeros)
        model.graph.initializer.extend(_messages(tensors, {}))
        data = model.SerializeToString(deterministic=True)
        if len(data) != encoding.file_bytes:
            raise HwpruneError(
                f"the file has {len(data)} bytes where {encoding.file_bytes} were predicted",
                hint="this is a defect of hwprune: please report it with the command",
            )
        return Written(data, encoding, packed, stored_biases, self.kept, gains)

    # -- pieces -----------------------------------------------------------------------------------

    @cached_property
    def layout(self) -> Layout:
        """Return where everything goes; it is the same for all weights of a structure."""
        return layout_of(self.graph, self.prunable, fuse=self.fuse and not self.inline)

    @cached_property
    def _narrow(self) -> Mapping[str, int]:
        """Return the parameters that stay dense and can be int8, and the axis of their scales.

        Weights of layers, small tensors and what stays as it is (filters, frozen) are none.
        """
        traced, found = self.traced, {}
        own = () if traced is None else [n for n in traced.parameters if n not in traced.fixed]
        for name in {*own} & {*self.layout.others} - self.graph.fixed_names():
            shape, size = self.graph.tensors[name].shape, self.graph.tensors[name].size
            axes = [axis for axis, n in enumerate(shape) if n > 1 and n * _FEW_SCALES <= size]
            floats = self.graph.tensors[name].dtype == np.float32
            if size < _LEAST_NARROW or not axes or not floats or len(shape) < 2:
                continue
            if isinstance(weight_uses(self.graph, name), str):
                found[name] = min(axes, key=shape.__getitem__)
        return found

    def _stored_dense(
        self, name: str, value_type: ValueType
    ) -> tuple[dict[str, NDArray[Any]], list[onnx.NodeProto], NDArray[Any]]:
        """Return the arrays that store a tensor that stays dense, by their names, and its decoding.

        Beside integer values a large parameter is int8, with a scale along one axis.

        Returns:
            the arrays, the nodes that make it of them, and what they make.
        """
        array, written = self.graph.tensors[name], self.layout.names.get(name, name)
        axis = self._narrow.get(name)
        if axis is None or value_type in ("fp32", "fp16"):
            return {written: array}, [], array
        scales = channel_scales(array, axis).astype(np.float32)
        levels = np.rint(array / scales).clip(-INT8_LEVELS, INT8_LEVELS).astype(np.int8)
        # No short name has a capital at its end.
        arrays: dict[str, NDArray[Any]] = {f"{written}Q": levels, f"{written}S": scales.reshape(-1)}
        node = helper.make_node("DequantizeLinear", [*arrays], [written], axis=axis)
        return arrays, [node], levels * scales

    def _masked(self, masks: Masks) -> Template:
        tensors = self.graph.tensors
        kept = {name: np.where(masks[name], tensors[name], np.float32(0)) for name in masks}
        masked = replace(self, graph=replace(self.graph, tensors={**tensors, **kept}))
        vars(masked)["layout"] = self.layout
        return masked

    def _codecs_for(self, tensor: PrunableTensor, value_type: ValueType) -> list[CodecName]:
        return [
            codec
            for codec in self.codecs
            if CODECS[codec].accepts(tensor.shape)
            and not (codec == "dense" and value_type in NIBBLE_TYPES)
        ]

    def _uses(self, tensor: PrunableTensor, codec: CodecName) -> list[WeightUse]:
        """Return what reads a tensor: where it is stored dense, lookups one by one."""
        return [
            each
            for use in self.layout.uses[tensor.name]
            for each in (
                [WeightUse(node, "Gather", use.channel_axis) for node in use.lookups]
                if use.lookups and codec == "dense"
                else [use]
            )
        ]

    def _nodes(self, tensor: PrunableTensor, form: StoredForm) -> Made:
        """Return the operators and nodes of one packed tensor, and what its uses own.

        That is biases, and where it is shared, gains: in scales of their own, or as nodes behind
        the layer where values have no scale.
        """
        graph, layout = self.graph, self.layout
        names, key = layout.names, layout.keys[tensor.name]
        codec, value_type, scale = form.codec, form.value_type, form.scale
        operators: list[Operator] = []
        nodes: list[list[onnx.NodeProto]] = []
        biases: dict[str, NDArray[Any]] = {}
        for place, use in enumerate(self._uses(tensor, codec)):
            bias, after = layout.bias(use), layout.epilogue(use)
            gain = after.gain
            apart = bool(gain) and scale is None  # no scale to put the gain into
            operator = layout.operator(use, codec, value_type)
            scale_name, bias_name = f"{key}s", names.get(bias, bias)
            if bias in layout.private:
                bias_name = numbered(key, "b", place)
                value = graph.tensors[bias]
                biases[bias_name] = (
                    value if apart else compact_floats(value.reshape(-1), value_type)
                )
            if gain:
                scale_name = numbered(key, "s", place)
                value = graph.tensors[gain]
                biases[scale_name] = value if scale is None else own_scale(scale, value)
            stored = {
                "values": f"{key}v",
                "index": f"{key}i",
                "scale": scale_name,
                "codebook": f"{key}c",
                "bias": bias_name,
                "residual": names.get(after.residual, after.residual),
            }
            source = input_names(use.node)[use.kind == "Gather"]
            stored["input"] = names.get(source, source)
            inputs = [stored[role] for role in operator.input_roles]
            last = tensor.name if use.kind == "Weight" else layout.output(use)
            output = f"{key}_{place}p" if apart else names.get(last, last)
            kept = layout.given(use, operator)
            if not self.inline:  # whoever runs a function may ask for all that it declares
                axes = len(tensor.shape) - 2
                kept = {name: default_of(name, axes) for name in layout.declared(operator)} | kept
            if codec != "dense":
                kept["shape"] = list(tensor.shape)
            if value_type in NIBBLE_TYPES:
                kept["count"] = form.count
            # onnxruntime wants node names unique: further readers of a shared tensor are numbered.
            label = tensor.name if place == 0 else f"{tensor.name}#{place}"
            node = helper.make_node(
                operator.name, inputs, [output],
                name=label, domain=DOMAIN, **kept,
            )  # fmt: skip
            operators.append(operator)
            if self.inline:
                inner = expand(node, f"{key}_{place}_", graph.opset)
                dims = "x".join(map(str, tensor.shape))
                inner[-1].name = f"{label}|{operator.name}|{dims}|{key}"
                nodes.append(inner)
            else:
                nodes.append([node])
            if apart:
                known = {**names, gain: scale_name, bias: bias_name}
                rest, more = nodes_behind(
                    after.nodes, output, known, f"{key}_{place}", graph.tensors
                )
                nodes[-1] += rest
                biases |= more
        return operators, nodes, biases

    def _function(self, name: str) -> onnx.FunctionProto:
        """Return a function as this file has it; not to be changed."""
        operator = OPERATORS.get(name)
        declared = () if operator is None else self.layout.declared(operator)
        return known_function(name, self.graph.opset, declared)

    def _table_bytes(
        self, tensor: PrunableTensor, value_type: ValueType, scale: NDArray[Any] | None
    ) -> int:
        """Return the bytes of scales or of a codebook of fixed length; others count later."""
        key = self.layout.keys[tensor.name]
        if scale is not None:
            own = any(self.layout.epilogue(use).gain for use in self.layout.uses[tensor.name])
            return 0 if own else _tensor_bytes(f"{key}s", scale)
        if value_type != "codebook16":
            return 0
        entries = codebook_entries(value_type, 0)
        return tensor_field_bytes(f"{key}c", (entries,), 2 * entries)

    def _dense_model(self) -> tuple[onnx.ModelProto, dict[str, str]]:
        """Return the dense file without tensors, and the names in it."""
        graph = self.graph
        names = short_names(graph.nodes, graph.tensors, graph.fixed_names())
        return self._model([message_of(node, names) for node in graph.nodes], dense=True), names

    def _model(
        self,
        nodes: list[onnx.NodeProto],
        functions: Sequence[Any] = (),
        *,
        dense: bool = False,
        nonzeros: int = 0,
    ) -> onnx.ModelProto:
        imports = [helper.make_opsetid("", self.graph.opset)]
        domains = {node.domain for node in nodes if node.domain and node.domain != DOMAIN}
        imports += [helper.make_opsetid(domain, 1) for domain in sorted(domains)]
        if not dense and not self.inline:
            imports.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
        structure = self.graph.structure
        inputs, outputs = (
            [ir.to_proto(v) for v in vs] for vs in (structure.inputs, structure.outputs)
        )
        model = helper.make_model(
            helper.make_graph(nodes, "g", inputs, outputs),
            functions=functions,
            opset_imports=imports,
            ir_version=self.ir_version,
            producer_name=PRODUCER,
        )
        self.deployment.put_into(model, self.weights if dense else nonzeros, self.weights)
        return model


def _messages(
    tensors: Mapping[str, NDArray[Any]], names: Mapping[str, str]
) -> list[onnx.TensorProto]:
    return [
        numpy_helper.from_array(np.asarray(array, order="C"), names.get(name, name))
        for name, array in tensors.items()
    ]


def _tensor_bytes(name: str, array: NDArray[Any]) -> int:
    return tensor_field_bytes(name, array.shape, array.nbytes)


def _scale(
    weight: NDArray[np.float32], tensor: PrunableTensor, value_type: ValueType
) -> NDArray[Any] | None:
    if value_type not in LEVELS:
        return None
    return channel_scales(weight, tensor.channel_axis, value_type)


def _carries_count(node: onnx.NodeProto) -> bool:
    """Return whether a node, of our domain or expanded, says the number of stored values."""
    if node.domain == DOMAIN:
        return any(entry.name == "count" for entry in node.attribute)
    return node.op_type == "Constant" and node.output[0].endswith(count_name("_"))


def numbered(key: str, suffix: str, place: int) -> str:
    """Return the name of a tensor that each use of a weight has of its own."""
    return f"{key}{suffix}{place or ''}"
