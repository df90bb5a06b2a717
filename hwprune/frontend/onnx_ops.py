"""ONNX operators as torch computes them, so that a file's layers can be fitted.

Each is written as opset 13 to 18 has it, and not in all of its forms: whether a network comes out
as in onnxruntime is tried when it is loaded, and where it does not, it is pruned by masks alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor
from torch.nn import functional as F


def compute(graph: onnx.GraphProto, values: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Compute a graph's outputs.

    Args:
        graph: of standard operators.
        values: inputs, parameters and constants by name; takes what is computed, too.

    Raises:
        Exception: whatever torch says of an operator, or a form of it, that is not here.
    """
    for node in graph.node:
        given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        inputs = [values[name] if name else None for name in node.input]
        if node.op_type == "Split":
            given.setdefault("num_outputs", len(node.output))
        found = OPERATORS[node.op_type](*inputs, **given)
        several = found if isinstance(found, (tuple, list)) else (found,)
        values.update(zip(node.output, several, strict=False))
    return tuple(values[output.name] for output in graph.output)


def _list(tensor: Tensor) -> list[int]:
    return [int(value) for value in tensor.flatten()]


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0, mode: str = "constant") -> Tensor:
    """Pad the last axes; pads are all that come before, then all that come after."""
    half = len(pads) // 2
    pairs = [(pads[axis], pads[axis + half]) for axis in reversed(range(half))]
    flat = [size for pair in pairs for size in pair]
    while mode != "constant" and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    return F.pad(x, flat, mode, value) if any(flat) else x


def _pads(
    x: Tensor, kernel: Sequence[int], pads: Any, strides: Any, dilations: Any, auto_pad: Any
) -> list[int]:
    """Return what stands before and behind each axis."""
    auto = auto_pad.decode() if isinstance(auto_pad, bytes) else auto_pad
    if auto in ("NOTSET", "VALID"):
        return list(pads or [0] * (2 * len(kernel)))
    sizes = zip(x.shape[2:], kernel, strides, dilations, strict=True)
    total = [max(0, (-(-s // t) - 1) * t + (k - 1) * d + 1 - s) for s, k, t, d in sizes]
    less, more = [size // 2 for size in total], [size - size // 2 for size in total]
    return less + more if auto == "SAME_UPPER" else more + less


def _window(
    x: Tensor, kernel: Sequence[int], given: dict[str, Any]
) -> tuple[list[int], list[int], list[int]]:
    """Return the strides, the dilations and the pads of something that slides over ``x``."""
    ones = [1] * len(kernel)
    strides, dilations = given.get("strides", ones), given.get("dilations", ones)
    auto = given.get("auto_pad", "NOTSET")
    return strides, dilations, _pads(x, kernel, given.get("pads"), strides, dilations, auto)


def _conv(x: Tensor, w: Tensor, b: Tensor | None = None, *, group: int = 1, **given: Any) -> Tensor:
    axes = w.ndim - 2
    strides, dilations, pads = _window(x, w.shape[2:], given)
    if pads[:axes] != pads[axes:]:
        x, pads = _padded(x, pads), [0] * axes
    run: Any = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    made: Tensor = run(x, w, b, strides, pads[:axes], dilations, group)
    return made


def _conv_transpose(
    x: Tensor, w: Tensor, b: Tensor | None = None, *, group: int = 1, **given: Any
) -> Tensor:
    axes = w.ndim - 2
    strides, dilations, pads = _window(x, w.shape[2:], given)
    if pads[:axes] != pads[axes:] or "output_shape" in given or "auto_pad" in given:
        raise NotImplementedError("ConvTranspose with pads of its own")
    run: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    more = given.get("output_padding", [0] * axes)
    made: Tensor = run(x, w, b, strides, pads[:axes], more, group, dilations)
    return made


def _max_pool(x: Tensor, *, kernel_shape: list[int], ceil_mode: int = 0, **given: Any) -> Tensor:
    strides, dilations, pads = _window(x, kernel_shape, given)
    axes = len(kernel_shape)
    if pads[:axes] != pads[axes:]:
        x, pads = _padded(x, pads, -math.inf), [0] * axes
    run: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]
    made: Tensor = run(x, kernel_shape, strides, pads[:axes], dilations, bool(ceil_mode))
    return made


def _average_pool(
    x: Tensor, *, kernel_shape: list[int], ceil_mode: int = 0, count_include_pad: int = 0,
    **given: Any,
) -> Tensor:  # fmt: skip
    strides, _, pads = _window(x, kernel_shape, given)
    axes = len(kernel_shape)
    if pads[:axes] != pads[axes:]:
        if not count_include_pad:
            raise NotImplementedError("AveragePool with uneven pads")
        x, pads = _padded(x, pads), [0] * axes
    run: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
    count = bool(count_include_pad)
    made: Tensor = run(x, kernel_shape, strides, pads[:axes], bool(ceil_mode), count)
    return made


def _over_sizes(reduce: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: reduce(x, dim=tuple(range(2, x.ndim)), keepdim=True)


def _gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0,
    transA: int = 0, transB: int = 0,
) -> Tensor:  # fmt: skip
    a = a.T if transA else a
    if alpha == beta == 1 and (c is None or c.ndim == 1) and transB:
        return F.linear(a, b, c)
    made = a @ (b.T if transB else b)
    made = made if alpha == 1 else alpha * made
    return made if c is None else made + (c if beta == 1 else beta * c)


def _reduce(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduced(
        x: Tensor, axes: Tensor | list[int] | None = None, *, keepdims: int = 1, **given: Any
    ) -> Tensor:
        chosen = _list(axes) if isinstance(axes, Tensor) else axes  # an attribute before 18
        if not chosen:
            if given.get("noop_with_empty_axes"):
                return x
            chosen = list(range(x.ndim))
        return run(x, dim=tuple(chosen), keepdim=bool(keepdims))

    return reduced


def _reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    sizes = _list(shape)
    if not allowzero:
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(tuple(sizes))


def _slice(
    x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    begins = _list(starts)
    along = range(len(begins)) if axes is None else _list(axes)
    strides = [1] * len(begins) if steps is None else _list(steps)
    for axis, begin, end, step in zip(along, begins, _list(ends), strides, strict=True):
        if step < 0:
            kept = list(range(x.shape[axis]))[begin : end if end >= -x.shape[axis] else None : step]
            x = x.index_select(axis, torch.tensor(kept, device=x.device))
        else:
            index: list[Any] = [slice(None)] * x.ndim
            index[axis] = slice(begin, end, step)
            x = x[tuple(index)]
    return x


def _gather(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    axis %= x.ndim
    index = torch.where(index < 0, index + x.shape[axis], index)
    flat = x.index_select(axis, index.flatten().to(x.device))
    return flat.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _split(x: Tensor, sizes: Tensor | None = None, *, axis: int = 0, num_outputs: int = 0) -> Any:
    if sizes is not None:
        return torch.split(x, _list(sizes), axis)
    return torch.split(x, -(-x.shape[axis] // num_outputs), axis)


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_list(axes)))


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    along = _list(axes)
    for axis in sorted(a % (x.ndim + len(along)) for a in along):
        x = x.unsqueeze(axis)
    return x


def _pad(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, *,
    mode: bytes = b"constant",
) -> Tensor:  # fmt: skip
    sizes = _list(pads)
    if axes is not None:
        along, half = [a % x.ndim for a in _list(axes)], len(sizes) // 2
        whole = [0] * (2 * x.ndim)
        for place, axis in enumerate(along):
            whole[axis], whole[axis + x.ndim] = sizes[place], sizes[place + half]
        sizes = whole
    number = 0.0 if value is None else float(value)
    kind = {"edge": "replicate", "wrap": "circular"}.get(mode.decode(), mode.decode())
    return _padded(x, sizes, number, kind)


def _resize(
    x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None,
    *, mode: bytes = b"nearest", coordinate_transformation_mode: bytes = b"half_pixel",
    nearest_mode: bytes = b"round_prefer_floor", **given: Any,
) -> Tensor:  # fmt: skip
    if sizes is not None and sizes.numel():
        size = _list(sizes)[2:]
    else:
        assert scales is not None
        size = [math.floor(s * float(f)) for s, f in zip(x.shape, scales, strict=True)][2:]
    how = mode.decode()
    if how == "nearest":
        return F.interpolate(x, size, mode="nearest")
    way = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)] if how == "linear" else "bicubic"
    corners = coordinate_transformation_mode == b"align_corners"
    return F.interpolate(x, size, mode=way, align_corners=corners)


def _cast(x: Tensor, *, to: int, **_: Any) -> Tensor:
    return x.to(getattr(torch, str(helper.tensor_dtype_to_np_dtype(to))))


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x.clamp(None if low is None else low.item(), None if high is None else high.item())


def _normalised(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5,
    **_: Any,
) -> Tensor:  # fmt: skip
    return F.layer_norm(x, x.shape[axis % x.ndim :], scale, bias, epsilon)


def _batch_norm(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *,
    epsilon: float = 1e-5, **_: Any,
) -> Tensor:  # fmt: skip
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[: axis % (x.ndim + 1)]), -1)


def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end])


def _constant(**given: Any) -> Tensor:
    ((_, value),) = given.items()
    if isinstance(value, onnx.TensorProto):
        return torch.from_numpy(onnx.numpy_helper.to_array(value).copy())
    return torch.tensor(value)


def _filled(shape: Tensor, *, value: onnx.TensorProto | None = None) -> Tensor:
    number = 0.0 if value is None else onnx.numpy_helper.to_array(value).flatten()[0].item()
    return torch.full(_list(shape), number)


def _divided(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _expanded(x: Tensor, shape: Tensor) -> Tensor:
    return x * torch.ones(_list(shape), dtype=x.dtype, device=x.device)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // blocksize, w // blocksize)


def _depth_to_space(x: Tensor, *, blocksize: int, mode: bytes = b"DCR") -> Tensor:
    if mode == b"CRD":
        return F.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    x = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * blocksize, w * blocksize)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    # layers
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": torch.matmul,
    "BatchNormalization": _batch_norm, "LayerNormalization": _normalised,
    "InstanceNormalization": lambda x, s, b, epsilon=1e-5: F.instance_norm(
        x, weight=s, bias=b, eps=epsilon
    ),
    # what an activation does
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Clip": _clip, "Erf": torch.erf,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Elu": lambda x, alpha=1.0: F.elu(x, alpha), "Selu": F.selu, "Softplus": F.softplus,
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
    "HardSwish": F.hardswish, "Mish": F.mish, "PRelu": _prelu,
    "Softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "LogSoftmax": lambda x, axis=-1: torch.log_softmax(x, axis),
    # numbers
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": _divided, "Pow": torch.pow,
    "Sqrt": torch.sqrt, "Exp": torch.exp, "Log": torch.log, "Abs": torch.abs, "Neg": torch.neg,
    "Reciprocal": torch.reciprocal, "Floor": torch.floor, "Ceil": torch.ceil,
    "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin, "Cos": torch.cos,
    "Min": torch.minimum, "Max": torch.maximum, "Sum": lambda *xs: sum(xs), "Equal": torch.eq,
    "Greater": torch.gt, "Less": torch.lt, "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le,
    "Not": torch.logical_not, "And": torch.logical_and, "Or": torch.logical_or,
    "Where": torch.where, 
    "Mod": lambda x, y, fmod=0: (torch.fmod if fmod else torch.remainder)(x, y),
    "Einsum": lambda *xs, equation: torch.einsum(equation.decode(), *xs),
    # over axes
    "GlobalAveragePool": _over_sizes(torch.mean), "GlobalMaxPool": _over_sizes(torch.amax),
    "MaxPool": _max_pool, "AveragePool": _average_pool,
    "ReduceMean": _reduce(torch.mean), "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax), "ReduceMin": _reduce(torch.amin),
    "ReduceL2": _reduce(torch.linalg.vector_norm),
    "ArgMax": lambda x, axis=0, keepdims=1, **_: torch.argmax(x, axis, bool(keepdims)),
    # shapes
    "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Transpose": lambda x, perm=None: x.permute(perm or [*reversed(range(x.ndim))]),
    "Concat": lambda *xs, axis: torch.cat(xs, axis), "Split": _split, "Slice": _slice,
    "Gather": _gather, "Pad": _pad, "Resize": _resize, "Shape": _shape, "Constant": _constant,
    "ConstantOfShape": _filled, "Expand": _expanded,
    "Tile": lambda x, repeats: x.repeat(_list(repeats)),
    "Range": lambda a, b, c: torch.arange(a.item(), b.item(), c.item()),
    "Cast": _cast, "Identity": lambda x: x, "Dropout": lambda x, *_, **__: x,
    "SpaceToDepth": _space_to_depth, "DepthToSpace": _depth_to_space,
}  # fmt: skip
