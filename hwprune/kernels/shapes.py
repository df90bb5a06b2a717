"""The shapes of a file's activations, for the estimate of which layers gain from a kernel.

Only what trained networks are made of is followed; behind other operators shapes are unknown, and
layers there run their kernels. A wrong shape costs time, never correctness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from hwprune.kernels.model_file import DOMAIN, ModelFile, Node, Tensor

Shape = tuple[int, ...]
# Given the shapes of a node's inputs, None where one is unknown or absent, and what is stored.
_Rule = Callable[[Node, Sequence[Shape | None], Mapping[str, Tensor]], Shape | None]


def activation_shapes(model: ModelFile, inputs: Mapping[str, Sequence[int]]) -> Mapping[str, Shape]:
    """Return the shapes that are known.

    Args:
        model: of the file.
        inputs: shapes of its inputs, in place of those it states. A first axis that is free
            counts as 1.
    """
    shapes: dict[str, Shape] = {name: tensor.dims for name, tensor in model.tensors.items()}
    for name, stated in model.inputs.items():
        sizes = [1 if i == 0 and size is None else size for i, size in enumerate(stated)]
        for i, size in enumerate(inputs.get(name, ())[: len(sizes)]):
            sizes[i] = size
        known = tuple(size for size in sizes if size is not None)
        if len(known) == len(sizes):
            shapes[name] = known
    for node in model.nodes:
        operator = packed_kind(node) if node.domain == DOMAIN else node.operator
        rule = _RULES.get(operator)
        if rule is None:
            continue
        found = rule(node, [shapes.get(name) for name in node.inputs], model.tensors)
        if found is not None and min(found, default=0) >= 0:
            shapes[node.outputs[0]] = found
    return shapes


_KINDS = ("ConvTranspose", "Conv", "Depthwise", "Gemm", "MatMul", "Linear")


def packed_kind(node: Node) -> str:
    """Return what a packed node computes: what its name has after Csr or Dense."""
    name = node.operator.removeprefix("Csr").removeprefix("Dense")
    return next((kind for kind in _KINDS if name.startswith(kind)), "")


def weight_shape(node: Node, tensors: Mapping[str, Tensor]) -> Shape | None:
    """Return the shape of a node's weight, its second input, packed or stored in full."""
    if node.domain == DOMAIN and "shape" in node.attributes:
        return node.ints("shape")
    stored = tensors.get(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if stored is None else stored.dims


def _same(node: Node, shapes: Sequence[Shape | None], _: Mapping[str, Tensor]) -> Shape | None:
    return shapes[0] if shapes else None


def _broadcast(node: Node, shapes: Sequence[Shape | None], _: Mapping[str, Tensor]) -> Shape | None:
    # An unknown one is most likely the other end of a residual connection.
    known = [shape for shape in shapes if shape is not None]
    if not known:
        return None
    rank = max(len(shape) for shape in known)
    padded = [(1,) * (rank - len(shape)) + shape for shape in known]
    return tuple(0 if 0 in sizes else max(sizes) for sizes in zip(*padded, strict=True))


def _windows(node: Node, shape: Shape, kernel: Shape) -> Shape | None:
    """Return the spatial sizes that a sliding window leaves."""
    axes = len(kernel)
    spatial, ones = shape[2:], (1,) * axes
    strides = node.ints("strides", ones)
    dilations = node.ints("dilations", ones)
    pads = node.ints("pads", (0,) * 2 * axes)
    if not len(spatial) == len(strides) == len(dilations) == len(pads) / 2 == axes:
        return None
    if "auto_pad" in node.attributes or min(strides) < 1:
        return None
    up = node.number("ceil_mode", 0)
    return tuple(
        -(-moves // strides[i]) + 1 if up else moves // strides[i] + 1
        for i in range(axes)
        for moves in [spatial[i] + pads[i] + pads[i + axes] - (kernel[i] - 1) * dilations[i] - 1]
    )


def _conv(
    node: Node, shapes: Sequence[Shape | None], tensors: Mapping[str, Tensor]
) -> Shape | None:
    weight = weight_shape(node, tensors)
    if shapes[0] is None or weight is None or len(weight) < 3:
        return None
    spatial = _windows(node, shapes[0], weight[2:])
    return None if spatial is None else (shapes[0][0], weight[0], *spatial)


def _pool(node: Node, shapes: Sequence[Shape | None], _: Mapping[str, Tensor]) -> Shape | None:
    if shapes[0] is None:
        return None
    spatial = _windows(node, shapes[0], node.ints("kernel_shape"))
    return None if spatial is None else (*shapes[0][:2], *spatial)


def _global(node: Node, shapes: Sequence[Shape | None], _: Mapping[str, Tensor]) -> Shape | None:
    return None if shapes[0] is None else (*shapes[0][:2], *(1 for _ in shapes[0][2:]))


def _product(
    node: Node, shapes: Sequence[Shape | None], tensors: Mapping[str, Tensor]
) -> Shape | None:
    """Return what Gemm, Linear and MatMul make, with a stored weight or with another activation."""
    packed = node.domain == DOMAIN
    kind = packed_kind(node) if packed else node.operator
    weight = weight_shape(node, tensors) if packed else shapes[1]
    if shapes[0] is None or weight is None or len(weight) < 2:
        return None
    rows = kind == "Linear" or (kind == "Gemm" and node.number("transB", 0))
    return (*shapes[0][:-1], weight[-2] if rows else weight[-1])


def _flatten(node: Node, shapes: Sequence[Shape | None], _: Mapping[str, Tensor]) -> Shape | None:
    if shapes[0] is None:
        return None
    axis = node.number("axis", 1)
    return math.prod(shapes[0][:axis]), math.prod(shapes[0][axis:])


def _reshape(
    node: Node, shapes: Sequence[Shape | None], tensors: Mapping[str, Tensor]
) -> Shape | None:
    wanted = _stored(tensors, node.inputs[1])
    if wanted is None:
        return None
    given = shapes[0]
    if given is None:
        return wanted if min(wanted, default=1) > 0 else None
    sizes = [given[i] if n == 0 and i < len(given) else n for i, n in enumerate(wanted)]
    rest = math.prod(n for n in sizes if n > 0)
    return tuple(math.prod(given) // rest if n == -1 else n for n in sizes)


def _transpose(node: Node, shapes: Sequence[Shape | None], _: Mapping[str, Tensor]) -> Shape | None:
    if shapes[0] is None:
        return None
    order = node.ints("perm", tuple(reversed(range(len(shapes[0])))))
    return tuple(shapes[0][axis] for axis in order) if len(order) == len(shapes[0]) else None


def _concat(node: Node, shapes: Sequence[Shape | None], _: Mapping[str, Tensor]) -> Shape | None:
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or not known:
        return None
    axis = node.number("axis", 0) % len(known[0])
    return tuple(sum(s[i] for s in known) if i == axis else n for i, n in enumerate(known[0]))


def _reduce(
    node: Node, shapes: Sequence[Shape | None], tensors: Mapping[str, Tensor]
) -> Shape | None:
    if shapes[0] is None:
        return None
    rank = len(shapes[0])
    axes = node.ints("axes")
    if len(node.inputs) > 1:
        axes = _stored(tensors, node.inputs[1]) or ()
    gone = {axis % rank for axis in axes} or set(range(rank))
    if node.number("keepdims", 1):
        return tuple(1 if i in gone else n for i, n in enumerate(shapes[0]))
    return tuple(n for i, n in enumerate(shapes[0]) if i not in gone)


def _stored(tensors: Mapping[str, Tensor], name: str) -> Shape | None:
    """Return a stored list of numbers."""
    if name not in tensors or len(tensors[name].dims) > 1:
        return None
    try:
        return tuple(int(n) for n in tensors[name].array().reshape(-1))
    except ValueError:
        return None


_UNARY = (
    "BatchNormalization", "Cast", "Clip", "Dropout", "Elu", "Erf", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "InstanceNormalization", "LRN", "LayerNormalization", "LeakyRelu",
    "LogSoftmax", "Mish", "Neg", "PRelu", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Sqrt",
    "Tanh",
)  # fmt: skip
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_UNARY, _same),
    **dict.fromkeys(("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Sum"), _broadcast),
    **dict.fromkeys(("Conv", "Depthwise"), _conv),
    **dict.fromkeys(("Gemm", "Linear", "MatMul"), _product),
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global),
    "ReduceMean": _reduce,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
}
