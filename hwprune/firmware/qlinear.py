"""The same network as an ONNX file of QLinear operators, which onnxruntime computes in integers.

``to_onnx`` writes it, ``from_onnx`` reads it back: the file beside a firmware folder says all that
the folder is made of.

Not QDQ: of a quantised operator between DequantizeLinear and QuantizeLinear onnxruntime makes float
operators on x86, unless ``session.qdqisint8allowed`` is set.

Where activations are fp32, the operators are ONNX's own, with weights behind DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hwprune.errors import ArtifactError, HwpruneError
from hwprune.firmware.network import (
    ADD_DENOMINATOR,
    FULL_RANGE,
    UNCLAMPED,
    Add,
    AveragePool,
    Clamp,
    Concat,
    Conv2d,
    GlobalAveragePool,
    IntegerLayer,
    IntegerNetwork,
    Linear,
    MaxPool,
    Pair,
    Quad,
    QuantizedTensor,
    Reshape,
    Softmax,
)

OPSET = 17
IR_VERSION = 8
CONTRIB = "com.microsoft"
BATCH = "N"
_QUANTIZED = "_int8"


def to_onnx(network: IntegerNetwork, *, real: bool = True) -> onnx.ModelProto:
    """Return a network as QLinear operators; the values between them have the tensors' names.

    Args:
        network: a valid one.
        real: take the input, under its name, and give the outputs as float32, quantised at the
            door; else int8, and every tensor is an output.
    """
    if network.activations == "fp32":
        return _float_onnx(network, every=not real)
    writer = _Writer(network, network.input + _QUANTIZED * real)
    if real:
        writer.node(
            "QuantizeLinear", [network.input, *writer.scale_of(network.input)], writer.input
        )
    for layer in network.layers:
        writer.layer(layer)
    wanted = network.outputs if real else [layer.output for layer in network.layers]
    outputs = [f"output{place}" for place in range(len(wanted))] if real else list(wanted)
    kind = TensorProto.FLOAT if real else TensorProto.INT8
    if real:
        for name, output in zip(wanted, outputs, strict=True):
            writer.node("DequantizeLinear", [name, *writer.scale_of(name)], output)
    return _model(
        writer,
        [_value(network, network.input, network.input, kind)],
        [_value(network, *named, kind) for named in zip(wanted, outputs, strict=True)],
        [
            _value(network, layer.output, layer.output, TensorProto.INT8)
            for layer in network.layers
            if layer.output not in outputs
        ],
    )


def _float_onnx(network: IntegerNetwork, *, every: bool) -> onnx.ModelProto:
    """Return a network whose activations are fp32; ``every`` tensor may be an output."""
    writer = _FloatWriter(network, network.input)
    for layer in network.layers:
        writer.layer(layer)
    made = [layer.output for layer in network.layers]
    outputs = made if every else list(network.outputs)

    def values(names: Iterable[str]) -> list[onnx.ValueInfoProto]:
        return [_value(network, name, name, TensorProto.FLOAT) for name in names]

    inner = values(name for name in made if name not in outputs)
    return _model(writer, values([network.input]), values(outputs), inner)


def _model(
    writer: _Writer, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto],
    inner: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:  # fmt: skip
    held = list(writer.initializers.values())
    graph = helper.make_graph(
        writer.nodes, writer.network.name, inputs, outputs, held, value_info=inner
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(
        graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="hwprune"
    )


def _value(
    network: IntegerNetwork, tensor: str, name: str, kind: TensorProto.DataType
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [BATCH, *network.tensors[tensor].shape])


class _Writer:
    """Nodes and initializers of one file, in which the int8 input has a name of its own."""

    def __init__(self, network: IntegerNetwork, given: str) -> None:
        """Start with none."""
        self.network, self.input = network, given
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def hold(self, name: str, array: NDArray[Any]) -> str:
        """Return the name of an initializer."""
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def scale_of(self, tensor: str) -> list[str]:
        """Return the names of a tensor's scale and zero point."""
        known = self.network.tensors[tensor]
        return [
            self.hold(f"{tensor}_scale", np.asarray(known.scale)),
            self.hold(f"{tensor}_zero_point", np.asarray(known.zero_point, np.int8)),
        ]

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Add a node; what ONNX does not know is onnxruntime's own."""
        own = operator.startswith("Q") and not onnx.defs.has(operator)
        domain = CONTRIB if own else ""
        self.nodes.append(
            helper.make_node(operator, list(inputs), [output], domain=domain, **attributes)
        )

    def layer(self, layer: IntegerLayer) -> None:
        """Add the nodes of a layer."""
        clamp: Clamp = FULL_RANGE
        made = layer.output
        values = [self.input if name == self.network.input else name for name in layer.inputs]
        if isinstance(layer, (Conv2d, Linear, Add)) and layer.clamp != clamp:
            made, clamp = f"{layer.output}_unclamped", layer.clamp
        x, rank = values[0], len(self.network.tensors[layer.inputs[0]].shape)
        given = [x, *self.scale_of(layer.inputs[0])]
        scale = self.scale_of(layer.output)
        if isinstance(layer, Conv2d):
            weight = self._weight(layer, layer.weight if rank == 3 else layer.weight[:, :, 0])
            window = _window(layer, rank) | {"dilations": _of_axes(layer.dilations, rank)}
            bias = self.hold(f"{layer.output}_bias", layer.bias)
            self.node(
                "QLinearConv", [*given, *weight, *scale, bias], made, group=layer.groups, **window
            )
        elif isinstance(layer, Linear):
            bias = self.hold(f"{layer.output}_bias", layer.bias)
            weight = self._weight(layer, layer.weight)
            self.node("QGemm", [*given, *weight, bias, *scale], made, transB=1)
        elif isinstance(layer, Add):
            other = [values[1], *self.scale_of(layer.inputs[1])]
            self.node("QLinearAdd", [*given, *other, *scale], made)
        elif isinstance(layer, MaxPool):
            kernel = _of_axes(layer.kernel, rank)
            self.node("MaxPool", [x], made, kernel_shape=kernel, **_window(layer, rank))
        elif isinstance(layer, AveragePool):
            window = _window(layer, rank) | {"kernel_shape": _of_axes(layer.kernel, rank)}
            count = int(layer.count_pads)
            self.node(
                "QLinearAveragePool", [*given, *scale], made, count_include_pad=count, **window
            )
        elif isinstance(layer, GlobalAveragePool):
            self.node("QLinearGlobalAveragePool", [*given, *scale], made, channels_last=0)
        elif isinstance(layer, Softmax):
            self.node("QLinearSoftmax", [*given, *scale], made, axis=-1, opset=13)
        elif isinstance(layer, Concat):
            self.node("Concat", values, made, axis=1)
        elif isinstance(layer, Reshape):
            sizes = np.asarray([0, *self.network.tensors[layer.output].shape], np.int64)
            self.node("Reshape", [x, self.hold(f"{layer.output}_shape", sizes)], made)
        if made != layer.output:
            bounds = [
                self.hold(f"{layer.output}_{name}", np.asarray(bound, np.int8))
                for name, bound in zip(("least", "largest"), clamp, strict=True)
            ]
            self.node("Clip", [made, *bounds], layer.output)

    def _weight(self, layer: Conv2d | Linear, weight: NDArray[np.int8]) -> list[str]:
        name, scale = layer.output, layer.weight_scale
        return [
            self.hold(f"{name}_weight", weight),
            self.hold(f"{name}_weight_scale", scale),
            self.hold(f"{name}_weight_zero_point", np.zeros(len(scale), np.int8)),
        ]


class _FloatWriter(_Writer):
    """The same for activations of fp32."""

    def layer(self, layer: IntegerLayer) -> None:
        made, rank = layer.output, len(self.network.tensors[layer.inputs[0]].shape)
        clamps = isinstance(layer, (Conv2d, Linear, Add)) and layer.clamp != UNCLAMPED
        made = f"{layer.output}_unclamped" if clamps else layer.output
        inputs = list(layer.inputs)
        if isinstance(layer, (Conv2d, Linear)):
            narrow = isinstance(layer, Conv2d) and rank < 3
            weight = self._weight(layer, layer.weight[:, :, 0] if narrow else layer.weight)
            self.node("DequantizeLinear", weight, f"{layer.output}_weight_real", axis=0)
            bias = self.hold(f"{layer.output}_bias", layer.bias)
            inputs += [f"{layer.output}_weight_real", bias]
        if isinstance(layer, Conv2d):
            window = _window(layer, rank) | {"dilations": _of_axes(layer.dilations, rank)}
            self.node("Conv", inputs, made, group=layer.groups, **window)
        elif isinstance(layer, Linear):
            self.node("Gemm", inputs, made, transB=1)
        elif isinstance(layer, (MaxPool, AveragePool)):
            window = _window(layer, rank) | {"kernel_shape": _of_axes(layer.kernel, rank)}
            if isinstance(layer, AveragePool):
                self.node(
                    "AveragePool", inputs, made, count_include_pad=int(layer.count_pads), **window
                )
            else:
                self.node("MaxPool", inputs, made, **window)
        elif isinstance(layer, Softmax):
            self.node("Softmax", inputs, made, axis=-1)
        elif isinstance(layer, (Concat, Reshape)):
            super().layer(layer)
        else:
            self.node(type(layer).__name__, inputs, made)
        if clamps:
            assert isinstance(layer, (Conv2d, Linear, Add))
            bounds = [
                self.hold(f"{layer.output}_{name}", np.asarray(bound, np.float32))
                for name, bound in zip(("least", "largest"), layer.clamp, strict=True)
            ]
            self.node("Clip", [made, *bounds], layer.output)

    def scale_of(self, tensor: str) -> list[str]:
        return []


def _of_axes(pair: Sequence[int], rank: int) -> list[int]:
    """Return a pair as the operator on (C, H, W) has it; on (C, L) the second alone."""
    return list(pair) if rank == 3 else [pair[1]]


def _window(layer: Conv2d | MaxPool | AveragePool, rank: int) -> dict[str, list[int]]:
    pads = layer.pads if rank == 3 else layer.pads[1::2]
    return {"strides": _of_axes(layer.strides, rank), "pads": list(pads)}


# -- the way back ---------------------------------------------------------------------------------


def from_onnx(model: onnx.ModelProto) -> IntegerNetwork:
    """Return the network that ``to_onnx`` wrote with real inputs and outputs.

    Raises:
        ArtifactError: it is not such a file.
    """
    try:
        network = _Parser(model).network()
        network.validate()
    except (HwpruneError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"this is no integer network of hwprune: {error}",
            hint="give the folder that `hwprune compile` wrote",
        ) from None
    return network


class _Parser:
    """Reads one file, node by node."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.held = {each.name: numpy_helper.to_array(each) for each in self.graph.initializer}
        self.shapes = {
            info.name: tuple(size.dim_value for size in info.type.tensor_type.shape.dim)[1:]
            for info in (*self.graph.input, *self.graph.value_info)
        }
        given = self.graph.input[0].name
        self.renamed = {given + _QUANTIZED: given}
        self.is_float = self.graph.node[0].op_type != "QuantizeLinear"
        number: type[Any] = float if self.is_float else int
        self.clamps = {
            node.input[0]: (
                node.output[0],
                (number(self.held[node.input[1]]), number(self.held[node.input[2]])),
            )
            for node in self.graph.node
            if node.op_type == "Clip"
        }

    def network(self) -> IntegerNetwork:
        if self.is_float:
            return self._float_network()
        _, *nodes = self.graph.node
        given = self.graph.input[0].name
        layers, outputs = [], []
        for node in nodes:
            if node.op_type == "DequantizeLinear":
                outputs.append(node.input[0])
            elif node.op_type != "Clip":
                layers.append(self.layer(node))
        tensors = {
            name: QuantizedTensor(
                name, self.shapes[name], np.float32(self.held[f"{name}_scale"]),
                int(self.held[f"{name}_zero_point"]),
            )
            for name in (given, *(layer.output for layer in layers))
        }  # fmt: skip
        return IntegerNetwork(self.graph.name, tensors, given, tuple(outputs), tuple(layers))

    def _float_network(self) -> IntegerNetwork:
        self.weights = {
            node.output[0]: [self.held[name] for name in node.input[:2]]
            for node in self.graph.node
            if node.op_type == "DequantizeLinear"
        }
        nodes = [n for n in self.graph.node if n.op_type not in ("Clip", "DequantizeLinear")]
        layers = tuple(self.layer(node) for node in nodes)
        given, outputs = self.graph.input[0].name, tuple(each.name for each in self.graph.output)
        for info in self.graph.output:
            shape = tuple(size.dim_value for size in info.type.tensor_type.shape.dim)[1:]
            self.shapes[info.name] = shape
        tensors = {
            name: QuantizedTensor(name, self.shapes[name], np.float32(1), 0)
            for name in (given, *(layer.output for layer in layers))
        }
        return IntegerNetwork(self.graph.name, tensors, given, outputs, layers, "fp32")

    def layer(self, node: onnx.NodeProto) -> IntegerLayer:
        unclamped = UNCLAMPED if self.is_float else FULL_RANGE
        output, clamp = self.clamps.get(node.output[0], (node.output[0], unclamped))
        found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        inputs = [self.renamed.get(name, name) for name in node.input]
        named: dict[str, Any] = {"name": output, "inputs": (inputs[0],), "output": output}
        window: dict[str, Any] = {
            key: _two(found[key]) for key in ("strides", "dilations") if key in found
        }
        if "pads" in found:
            window["pads"] = _four(found["pads"])
        held = [self.held.get(name, np.zeros(0)) for name in node.input]
        if node.op_type in ("Conv", "Gemm"):
            (weight, scale), bias = self.weights[node.input[1]], held[2]
            named |= {"weight": weight, "weight_scale": scale, "bias": bias, "clamp": clamp}
            if node.op_type == "Gemm":
                return Linear(**named)
            named["weight"] = weight if weight.ndim == 4 else weight[:, :, None]
            return Conv2d(**named, groups=found["group"], **window)
        if node.op_type == "Add":
            named["inputs"] = (inputs[0], inputs[1])
            return Add(**named, ratios=(ADD_DENOMINATOR, ADD_DENOMINATOR), clamp=clamp)
        if node.op_type == "QLinearConv":
            weight = held[3] if held[3].ndim == 4 else held[3][:, :, None]
            return Conv2d(
                **named, weight=weight, weight_scale=held[4], bias=held[8], groups=found["group"],
                clamp=clamp, **window,
            )  # fmt: skip
        if node.op_type == "QGemm":
            return Linear(**named, weight=held[3], weight_scale=held[4], bias=held[6], clamp=clamp)
        if node.op_type == "QLinearAdd":
            ratios = [round(float(held[at] / held[6]) * ADD_DENOMINATOR) for at in (1, 4)]
            named["inputs"] = (inputs[0], inputs[3])
            return Add(**named, ratios=(ratios[0], ratios[1]), clamp=clamp)
        if node.op_type == "MaxPool":
            return MaxPool(**named, kernel=_two(found["kernel_shape"]), **window)
        if node.op_type in ("QLinearAveragePool", "AveragePool"):
            kernel, counts = _two(found["kernel_shape"]), bool(found["count_include_pad"])
            return AveragePool(**named, kernel=kernel, count_pads=counts, **window)
        if node.op_type == "Concat":
            return Concat(output, tuple(inputs), output)
        kinds: dict[str, type[Any]] = {
            "QLinearGlobalAveragePool": GlobalAveragePool,
            "QLinearSoftmax": Softmax,
            "GlobalAveragePool": GlobalAveragePool,
            "Softmax": Softmax,
            "Reshape": Reshape,
        }
        made: IntegerLayer = kinds[node.op_type](**named)
        return made


def _two(sizes: Sequence[int]) -> Pair:
    rows, columns = sizes if len(sizes) == 2 else (1, *sizes)
    return rows, columns


def _four(pads: Sequence[int]) -> Quad:
    top, left, bottom, right = pads if len(pads) == 4 else (0, pads[0], 0, pads[1])
    return top, left, bottom, right
