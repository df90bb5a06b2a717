"""ONNX files as MODEL: read without trusting them, and run by onnxruntime as they are.

The network stays the file's own graph. Its tensors of floats become parameters under the
names that they have there, so that the other rooms prune, fit and measure it like any network;
the graph without them is what `hwprune.export.trace` starts from. Nothing is imported or evaluated.
A file may lie about the size of a tensor, or name a file that is not its own: both are refused.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, inliner, numpy_helper
from torch import Tensor, nn

from hwprune.errors import ModelError
from hwprune.frontend.archive import IdentifiedFile
from hwprune.frontend.inputs import DTYPES, describe
from hwprune.frontend.onnx_ops import compute
from hwprune.frontend.user_code import first_line
from hwprune.ir import TensorSpec
from hwprune.onnx_size import MOST_NODES, inlined_nodes, too_large

# What the passes and the operators of `onnx_ops` are written for; other files are converted.
OPSETS = (13, 18)
# torch and onnxruntime differ by less than this share of the largest output.
_SAME = 1e-3
# What hwprune names the last node of a layer in the inlined form.
_PACKED_LAYER = re.compile(r".+\|[A-Z]\w+\|\d+(?:x\d+)*\|\w+")
_AGAIN = "export it again"
# Above it nothing is a weight: masks of attention hold the lowest number that there is.
_LARGEST = 1e18
# Not one number an entry or byte: onnxruntime reads them, hwprune has no use for them.
_PACKED = {
    onnx.TensorProto.INT4, onnx.TensorProto.UINT4, 23,  # FLOAT4E2M1, which onnx has from 1.18 on
    onnx.TensorProto.STRING, onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128,
}  # fmt: skip
# The inputs at which these operators take their weights.
_WEIGHTS = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1),
    "BatchNormalization": (1, 2, 3, 4), "Transpose": (0,),
}  # fmt: skip
# A dynamic size beside the batch is tried with this one, where nothing says a better one.
_TRIED = 64
# How much CPU time one pass of a file with a loop may take: it may ask for 2^62 rounds.
_LOOP_SECONDS = 20.0


class OnnxNetwork(nn.Module):
    """An ONNX file's network over the module's present parameters.

    onnxruntime computes it as the file says it. Where torch can compute it, too (``in_torch``), its
    layers can be fitted and trained.

    Attributes:
        given: the file's graph; its tensors are inputs of it, behind the network's own.
        proto: the same at an opset of `OPSETS`.
        inputs: the names of the network's own.
        in_torch: whether ``forward`` computes by torch's operators.
    """

    def __init__(
        self,
        given: onnx.ModelProto,
        proto: onnx.ModelProto,
        tensors: dict[str, NDArray[np.float32]],
        session: _Session,
    ) -> None:
        """Take the tensors as parameters."""
        super().__init__()
        self.given, self.proto, self.in_torch = given, proto, False
        self.inputs = [entry.name for entry in given.graph.input if entry.name not in tensors]
        statistics = {
            name
            for node in proto.graph.node
            if node.op_type == "BatchNormalization"
            for name in node.input[3:]
        }
        for name, array in tensors.items():
            # Past register_parameter, which takes no dots: a name is the file's, dots and all.
            tensor = torch.from_numpy(array)
            if name in statistics:  # no gradient may move a variance below zero
                self._buffers[name] = tensor
            else:
                self._parameters[name] = nn.Parameter(tensor)
        self._constants = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
            for tensor in proto.graph.initializer
            if tensor.data_type not in _PACKED
        }
        self._session = session

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute the outputs, in the file's order."""
        if not self.in_torch:
            return self.as_given(*tensors)
        device = tensors[0].device  # shapes stay on the CPU, where they are read
        constants = {
            name: held.to(device) if held.is_floating_point() else held
            for name, held in self._constants.items()
        }
        made = compute(self.proto.graph, constants | self._values(tensors))
        return made if len(made) > 1 else made[0]

    def as_given(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute the outputs by onnxruntime, from the file as it was given.

        Raises:
            TypeError: tensors of double precision, for which the file has no operators.
        """
        held = self._values(tensors)
        if any(tensor.dtype == torch.float64 for tensor in held.values()):
            raise TypeError("an ONNX file computes in its own precision")
        outputs = self._session.run({n: t.detach().cpu().numpy() for n, t in held.items()})
        made = tuple(map(torch.from_numpy, outputs))
        return made if len(made) > 1 else made[0]

    def _values(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        held = (*self.named_parameters(), *self.named_buffers())
        return {**dict(held), **dict(zip(self.inputs, tensors, strict=True))}

    def try_torch(self, tensors: Sequence[Tensor]) -> str:
        """Compute by torch from now on, where that gives the same; else return why it does not."""
        with torch.no_grad():
            wanted = self.as_given(*tensors)
            self.in_torch = True
            try:
                made = self(*tensors)
            except Exception as error:  # whatever torch says of an operator
                self.in_torch = False
                missing = isinstance(error, KeyError) and error.args[0]
                return f"torch lacks {missing}" if missing else first_line(error)
        several = (wanted, made) if isinstance(wanted, tuple) else ((wanted,), (made,))
        for one, other in zip(*several, strict=True):
            size = float(one.abs().max()) if one.is_floating_point() and one.numel() else 0.0
            if one.shape != other.shape or not torch.allclose(
                one, other, rtol=0, atol=_SAME * size, equal_nan=True
            ):
                self.in_torch = False
                return "torch computes something else"
        return ""


class _Session:
    """onnxruntime's session of a graph, whose tensors are fed; copies of a network share it."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._loops = any(node.op_type in ("Loop", "Scan") for node in _nodes(proto.graph))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Session:
        return self

    def run(self, held: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute the outputs.

        Raises:
            ModelError: a loop does not end.
        """
        options = onnxruntime.RunOptions()
        ended = threading.Event()
        if self._loops:
            threading.Thread(target=_stop_late, args=(options, ended), daemon=True).start()
        try:
            found: list[NDArray[Any]] = self._session.run(None, held, options)
        except Exception as error:
            if not options.terminate:
                raise
            raise ModelError(
                f"the file's loop does not end within {_LOOP_SECONDS:g} s of CPU time",
                hint="export the network with fewer rounds, or unrolled",
            ) from error
        finally:
            ended.set()
        return found


def _stop_late(options: Any, ended: threading.Event) -> None:
    """Have onnxruntime give up the run of these options that takes too long."""
    start = time.process_time()
    while not ended.wait(_LOOP_SECONDS / 60):
        options.terminate = time.process_time() - start > _LOOP_SECONDS


def read(file: IdentifiedFile) -> tuple[OnnxNetwork, tuple[TensorSpec, ...]]:
    """Read an ONNX file; return its network and its inputs.

    Raises:
        ModelError: damaged, packed or quantised already, not in float32, or hostile: a tensor that
            is not as large as it says, or that lies outside of the file's folder.
    """
    path = file.path
    if Path(path).stat().st_size >= 2**31:
        raise ModelError(
            f"{path} is larger than the 2 GiB at which an ONNX file ends",
            hint="export it with its weights as external data",
        )
    try:
        proto = onnx.ModelProto.FromString(Path(path).read_bytes())
        if not proto.graph.node:
            raise ValueError("it has no nodes")
        domains = {entry.domain for entry in (*proto.opset_import, *proto.functions)}
        if "hwprune" in domains or any(_PACKED_LAYER.fullmatch(n.name) for n in proto.graph.node):
            raise ModelError(
                f"{path} was packed by hwprune already",
                hint="give the network that it was made of; `hwprune inspect` shows what it holds",
            )
        if (what := too_large(proto)) is not None:
            raise ValueError(what)
        for tensor in _tensors(proto.graph):
            _load(tensor, Path(path))
        if inlined_nodes(proto) > MOST_NODES:
            raise ValueError(f"its functions stand for more than {MOST_NODES:,} nodes")
        if proto.functions:
            proto = inliner.inline_local_functions(proto)
        _check(proto, path)
        tensors = _take_tensors(proto.graph)
        _free_sizes(proto.graph)
        specs = _inputs(proto, tensors, path)
        session = _Session(proto)  # and so a check of all that onnxruntime checks
        known = _at_known_opset(proto, path)
        return OnnxNetwork(proto, known, tensors, session), specs
    except ModelError:
        raise
    except Exception as error:  # protobuf's, the checker's and NumPy's have no common base
        raise ModelError(
            f"{path} is an ONNX file that cannot be used: {first_line(error)}",
            hint=f"it may be truncated or damaged: copy it again, or {_AGAIN}",
        ) from error


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the graphs in its nodes."""
    yield graph
    for node in graph.node:
        for entry in node.attribute:
            for inner in (entry.g, *entry.graphs) if entry.HasField("g") else entry.graphs:
                yield from _graphs(inner)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for each in _graphs(graph):
        yield from each.node


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a graph and of the graphs in its nodes."""
    for each in _graphs(graph):
        if each.sparse_initializer:
            raise ValueError("it holds sparse tensors, which hwprune does not read")
        yield from each.initializer
        for node in each.node:
            for entry in node.attribute:
                yield from (entry.t, *entry.tensors) if entry.HasField("t") else entry.tensors


def _load(tensor: onnx.TensorProto, path: Path) -> None:
    """Make a tensor's numbers part of the message; see that there are as many as it says.

    Raises:
        ModelError: there are not, or they lie where only another file could be.
    """
    name, shape = tensor.name or "a constant", "x".join(map(str, tensor.dims))
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    size = math.prod(tensor.dims) * kind.itemsize
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"{path} holds the tensor {name} of the shape {shape}", hint=_AGAIN)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        tensor.raw_data = _external(name, entries, size, path)
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    field = "raw_data" if tensor.HasField("raw_data") else helper.tensor_dtype_to_field(
        tensor.data_type
    )  # fmt: skip
    there = len(getattr(tensor, field)) * (1 if field == "raw_data" else kind.itemsize)
    if there != size and tensor.data_type not in _PACKED:
        raise ModelError(
            f"{path} says that its tensor {name} ({shape}) takes {size:,} bytes, "
            f"and holds {there:,}",
            hint=f"it is damaged, or was made to do harm: {_AGAIN}",
        )


def _external(name: str, entries: dict[str, str], size: int, path: Path) -> bytes:
    """Read a tensor's bytes from the file beside the model that it names."""
    location = entries.get("location", "")
    place = path.parent / location
    inside = place.resolve().is_relative_to(path.parent.resolve())
    if not location or Path(location).is_absolute() or ".." in Path(location).parts or not inside:
        raise ModelError(
            f"{path} looks for its tensor {name} in {location!r}, not below its own folder",
            hint="put the file's external data beside it; it may have been made to do harm",
        )
    if not place.is_file():
        raise ModelError(
            f"{path} keeps its tensor {name} in {location}, which is not there",
            hint="copy the external data, too: the file is one half of the network",
        )
    offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
    if length != size or offset < 0 or offset + length > place.stat().st_size:
        raise ModelError(
            f"{path} says that its tensor {name} takes {size:,} bytes from {offset:,} on of "
            f"{location}, which has {place.stat().st_size:,}",
            hint="copy the external data again: it is truncated, or another file's",
        )
    with place.open("rb") as stream:
        stream.seek(offset)
        return stream.read(length)


def _check(proto: onnx.ModelProto, path: str) -> None:
    """Refuse what is quantised already, and what does not compute in float32."""
    for node in proto.graph.node:
        if any(entry.name == "training_mode" and entry.i for entry in node.attribute):
            raise ModelError(
                f"{path} was exported in training mode ({node.op_type})",
                hint="export it again in evaluation: model.eval() first",
            )
        if node.op_type.startswith(("QLinear", "DequantizeLinear", "DynamicQuantize")) or (
            node.op_type in ("ConvInteger", "MatMulInteger", "MatMulNBits")
        ):
            raise ModelError(
                f"{path} holds weights that were quantised already ({node.op_type})",
                hint="give the float file that it was made of; hwprune quantises and packs itself",
            )
    narrow = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
    for tensor in proto.graph.initializer:
        if tensor.data_type in narrow and len(tensor.dims) > 1:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
            raise ModelError(
                f"{path} has weights of {kind} ({tensor.name})", hint="export it in float32"
            )


def _at_known_opset(given: onnx.ModelProto, path: str) -> onnx.ModelProto:
    """Return a graph at an opset that the other rooms know; its inputs and outputs stay."""
    opset = next((e.version for e in given.opset_import if e.domain in ("", "ai.onnx")), 0)
    wanted = min(max(opset, OPSETS[0]), OPSETS[1])
    if opset == wanted:
        return given
    try:
        proto = onnx.version_converter.convert_version(given, wanted)
    except Exception as error:  # the converter has no class of its own for what it cannot do
        raise ModelError(
            f"{path} cannot be brought from opset {opset} to {wanted}: {first_line(error)}",
            hint=f"export it again with opset {OPSETS[0]} to {OPSETS[1]}",
        ) from error
    for field in ("input", "output"):
        proto.graph.ClearField(field)
        getattr(proto.graph, field).extend(getattr(given.graph, field))
    return proto


def _take_tensors(graph: onnx.GraphProto) -> dict[str, NDArray[np.float32]]:
    """Take the tensors of floats out of a graph, and list them behind its inputs.

    A single number, and what is too large or not finite and read by no layer, stays a constant.
    """
    for place in reversed(range(len(graph.node))):
        node = graph.node[place]
        held = [e.t for e in node.attribute if e.name == "value" and node.op_type == "Constant"]
        if held and held[0].data_type == onnx.TensorProto.FLOAT and math.prod(held[0].dims) > 1:
            held[0].name = node.output[0]
            graph.initializer.append(held[0])
            del graph.node[place]
    read = {
        node.input[slot]
        for node in graph.node
        for slot in _WEIGHTS.get(node.op_type, ())
        if slot < len(node.input)
    }
    tensors: dict[str, NDArray[np.float32]] = {}
    constants = []
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) > 1:
            array = np.array(numpy_helper.to_array(tensor))
            usual = bool((np.abs(array) <= _LARGEST).all())  # NaN is not
            if tensor.name in read or usual:
                tensors[tensor.name] = array
                continue
        constants.append(tensor)
    listed = {tensor.name for tensor in constants} | tensors.keys()
    own = [entry for entry in graph.input if entry.name not in listed]  # IR below 4 lists them all
    own += [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape)
        for name, array in tensors.items()
    ]
    for field, entries in (("input", own), ("initializer", constants)):
        graph.ClearField(field)
        getattr(graph, field).extend(entries)
    return tensors


def _free_sizes(graph: onnx.GraphProto) -> None:
    """Let sizes be any that exporters write as -1, or 0 of an input, in place."""
    for entries, most in ((graph.input, 0), (graph.output, -1), (graph.value_info, -1)):
        for entry in entries:
            for dim in entry.type.tensor_type.shape.dim:
                if dim.HasField("dim_value") and dim.dim_value <= most:
                    dim.ClearField("dim_value")


def _inputs(
    proto: onnx.ModelProto, tensors: dict[str, NDArray[np.float32]], path: str
) -> tuple[TensorSpec, ...]:
    for entry in proto.graph.output:
        if (kind := entry.type.WhichOneof("value")) not in (None, "tensor_type"):
            raise ModelError(
                f"{path} has the output {entry.name}, a {str(kind).partition('_')[0]}",
                hint="hwprune takes networks whose outputs are tensors",
            )
    specs = []
    for entry in proto.graph.input:
        if entry.name in tensors:
            continue
        tensor = entry.type.tensor_type
        known = onnx.TensorProto.DataType.DESCRIPTOR.values_by_number.get(tensor.elem_type)
        dtype = {"FLOAT": "float32"}.get(known.name, known.name.lower()) if known else "no tensor"
        if dtype not in DTYPES or not tensor.HasField("shape"):
            what = "of no stated shape" if dtype in DTYPES else f"of type {dtype}"
            raise ModelError(
                f"{path} has the input {entry.name} {what}",
                hint=f"hwprune takes tensors of {', '.join(DTYPES)}, whose number of axes is known",
            )
        shape: list[int | None] = []
        free = []
        for axis, dim in enumerate(tensor.shape.dim):
            fixed = dim.dim_value if dim.HasField("dim_value") else 0
            if not fixed and axis:
                free.append((axis, dim.dim_param or f"D{axis}"))
            shape.append(fixed or (_TRIED if axis else None))
        specs.append(TensorSpec(entry.name, tuple(shape), dtype, tuple(free)))
    return tuple(specs)


def sized(
    specs: tuple[TensorSpec, ...], given: tuple[TensorSpec, ...], path: str
) -> tuple[TensorSpec, ...]:
    """Return a file's inputs with the sizes of ``--input`` to try its dynamic ones with.

    Raises:
        ModelError: the file has no such input, or fixes another size of it.
    """
    asked = {spec.name: spec for spec in given}
    found = []
    for spec in specs:
        wish = asked.pop(spec.name, spec)
        free = {axis for axis, _ in spec.free}
        fits = len(wish.shape) == len(spec.shape) and wish.dtype == spec.dtype
        if not fits or any(
            size not in (other, None) and axis not in free
            for axis, (size, other) in enumerate(zip(spec.shape, wish.shape, strict=False))
        ):
            raise ModelError(
                f"{path} has the input {describe((spec,))}, --input says {describe((wish,))}",
                hint="leave --input out: the file says what it reads",
            )
        sizes = (
            (wish if axis in free else spec).shape[axis] or spec.shape[axis]
            for axis in range(len(spec.shape))
        )
        found.append(replace(spec, shape=tuple(sizes)))
    if asked:
        raise ModelError(
            f"{path} has no input {', '.join(asked)}; it has {describe(specs)}",
            hint="leave --input out: the file says what it reads",
        )
    return tuple(found)
