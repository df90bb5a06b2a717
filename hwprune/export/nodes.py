"""The nodes of a packed layer in a file, one group per use, and what each use has of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx
from numpy.typing import NDArray
from onnx import helper

from hwprune.encoding import compact_floats
from hwprune.encoding.values import NIBBLE_TYPES
from hwprune.export.body import DOMAIN
from hwprune.export.graph import Graph, attributes, input_names
from hwprune.export.layout import Layout
from hwprune.export.operators import OPERATOR_ATTRIBUTES, Operator, expand
from hwprune.export.per_use_scale import nodes_behind, own_scale
from hwprune.ir import CodecName, PrunableTensor, ValueType

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


def nodes_of(
    graph: Graph, layout: Layout, tensor: PrunableTensor, form: StoredForm, *, inline: bool
) -> Made:
    """Return the operators and nodes of one packed tensor, and what its uses own.

    That is biases, and where it is shared, gains: in scales of their own, or as nodes behind the
    layer where values have no scale.

    Args:
        graph: the network.
        layout: where everything goes.
        tensor: the tensor.
        form: in which it is stored.
        inline: write standard operators instead of functions.
    """
    names, key = layout.names, layout.keys[tensor.name]
    codec, value_type, scale = form.codec, form.value_type, form.scale
    operators: list[Operator] = []
    nodes: list[list[onnx.NodeProto]] = []
    biases: dict[str, NDArray[Any]] = {}
    for place, use in enumerate(layout.uses[tensor.name]):
        bias, after = layout.bias(use), layout.epilogue(use)
        gain = after.gain
        apart = bool(gain) and scale is None  # no scale to put the gain into
        operator = Operator(
            use.kind, codec, value_type, bool(bias), bool(after.residual), after.activation
        )
        if apart:
            operator = Operator(use.kind, codec, value_type, bias=False)
        scale_name, bias_name = f"{key}s", names.get(bias, bias)
        if bias in layout.private:
            bias_name = numbered(key, "b", place)
            value = graph.tensors[bias]
            biases[bias_name] = value if apart else compact_floats(value.reshape(-1), value_type)
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
        source = input_names(use.node)[0]
        inputs = [names.get(source, source)]
        inputs += [stored[role] for role in operator.input_roles[1:]]
        last = layout.output(use)
        output = f"{key}_{place}p" if apart else names.get(last, last)
        given = attributes(use.node)
        kept = {k: given[k] for k in OPERATOR_ATTRIBUTES[use.kind] if k in given}
        if after.alpha is not None and not apart:
            kept["alpha"] = after.alpha
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
        if inline:
            inner = expand(node, f"{key}_{place}_", graph.opset)
            dims = "x".join(map(str, tensor.shape))
            inner[-1].name = f"{label}|{operator.name}|{dims}|{key}"
            nodes.append(inner)
        else:
            nodes.append([node])
        if apart:
            known = {**names, gain: scale_name, bias: bias_name}
            rest, more = nodes_behind(after.nodes, output, known, f"{key}_{place}", graph.tensors)
            nodes[-1] += rest
            biases |= more
    return operators, nodes, biases


def numbered(key: str, suffix: str, place: int) -> str:
    """Return the name of a tensor that each use of a weight has of its own."""
    return f"{key}{suffix}{place or ''}"
