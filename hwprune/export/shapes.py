"""The shapes of a graph's activations, by ONNX shape inference, without its weights' values."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from hwprune.export.graph import Graph, name_of

# Sizes, or names of sizes that are only known to be equal where the names are.
Shape = tuple[int | str, ...]
# Shapes, axes and slices are computed with; weights only have shapes.
_MOST_VALUES = 64


def activation_shapes(graph: Graph) -> Mapping[str, Shape]:
    """Return the shape of every activation whose every size is known or has a name.

    Two sizes of one name are equal in every run: the batch, or what inference derived from it.
    """
    structure = graph.structure.clone()
    outer, inner = {*structure.inputs, *structure.outputs}, structure.all_nodes()
    made = [value for node in inner for value in node.outputs if value not in outer]
    for value in made:
        value.shape = value.type = None
    for name, value in [*structure.initializers.items()]:
        array = graph.tensors[name]
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        if array.size <= _MOST_VALUES and array.dtype.kind == "i":
            value.const_value = ir.tensor(array)
        else:
            del structure.initializers[name]
            structure.inputs.append(value)
    for domain in {node.domain for node in structure.all_nodes()} - {""}:
        structure.opset_imports.setdefault(domain, 1)
    ShapeInferencePass(check_type=False, strict_mode=False)(ir.Model(structure, ir_version=8))
    shapes: dict[str, Shape] = {}
    for value in (*outer, *made):
        sizes = [size if isinstance(size, int) else size.value for size in value.shape or ()]
        known = [size for size in sizes if size is not None]
        if value.shape is not None and len(known) == len(sizes):
            shapes[name_of(value)] = tuple(known)
    return shapes
