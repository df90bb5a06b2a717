"""The shapes of a graph's activations, by ONNX shape inference, without its weights' values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from hwprune.export.graph import Graph, message_of

# Sizes, or names of sizes that are only known to be equal where the names are.
Shape = tuple[int | str, ...]
# Shapes, axes and slices are computed with; weights only have shapes.
_MOST_VALUES = 64


def activation_shapes(graph: Graph) -> Mapping[str, Shape]:
    """Return the shape of every activation whose every size is known or has a name.

    Two sizes of one name are equal in every run: the batch, or what inference derived from it.
    """
    weights, constants = [], []
    for name, array in graph.tensors.items():
        if array.size <= _MOST_VALUES and array.dtype.kind == "i":
            constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            weights.append(helper.make_tensor_value_info(name, kind, array.shape))
    inputs = [ir.to_proto(value) for value in graph.structure.inputs]
    outputs = [ir.to_proto(value) for value in graph.structure.outputs]
    nodes = [message_of(node) for node in graph.nodes]
    inner = helper.make_graph(nodes, "g", [*inputs, *weights], outputs, constants)
    domains = {node.domain for node in nodes if node.domain}
    imports = [helper.make_opsetid("", graph.opset), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(inner, opset_imports=imports, ir_version=8)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return {}
    entries = [*inputs, *inferred.graph.value_info, *inferred.graph.output]
    shapes = {entry.name: _shape(entry) for entry in entries}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def _shape(entry: onnx.ValueInfoProto) -> Shape | None:
    tensor = entry.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    sizes: list[int | str] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value"):
            sizes.append(dim.dim_value)
        elif dim.dim_param:
            sizes.append(dim.dim_param)
        else:
            return None
    return tuple(sizes)
