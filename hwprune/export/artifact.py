"""Reading an artifact back: its layers, their packed arrays, and what the rest of the file weighs.

Never imports torch. Both forms of a file are read: nodes of domain ``hwprune`` with their
functions, and those whose functions were inlined, by hwprune or by another program (``inlined``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import google.protobuf.message
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from hwprune.encoding import VALUE_DTYPES, Bound, bound_of, check, stored_nonzeros, to_csr
from hwprune.encoding.wire import field_bytes
from hwprune.errors import ArtifactError, ExternalDataError, VerificationError
from hwprune.export.body import DOMAIN
from hwprune.export.inlined import InlinedLayers, claim_of
from hwprune.export.operators import OPERATORS, Operator, plain_name
from hwprune.files import read_ordinary
from hwprune.ir import CodecName, Packed, ValueType
from hwprune.onnx_size import MOST_NODES, inlined_nodes, too_large

if TYPE_CHECKING:
    import scipy.sparse


_TENSOR_NAME = onnx.TensorProto.DESCRIPTOR.fields_by_name["name"]


@dataclass(frozen=True, slots=True)
class ArtifactLayer:
    """One pruned tensor of an artifact.

    Attributes:
        operator: the operator that reads it, such as ``CsrConvGap8I8Bias``.
        bytes: the packed arrays in the file, with names and headers; those of all nodes that read
            them, where it is shared.
        packed: the arrays; where it is shared, with the scale of the first node that reads them.
        uses: how many nodes read it.
    """

    operator: str
    bytes: int
    packed: Packed
    uses: int = 1

    @property
    def name(self) -> str:
        """Return the parameter's name in the network it came from; the first, if it is shared."""
        return self.packed.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the dense shape."""
        return self.packed.shape

    @property
    def codec(self) -> CodecName:
        """Return how positions are stored."""
        return self.packed.codec

    @property
    def value_type(self) -> ValueType:
        """Return how values are stored."""
        return self.packed.value_type

    @property
    def nonzeros(self) -> int:
        """Return how many stored values are not zero."""
        return stored_nonzeros(self.packed)

    @property
    def weights(self) -> int:
        """Return the elements of the dense tensor."""
        return math.prod(self.packed.shape)

    @property
    def index_bytes(self) -> int:
        """Return the bytes of the index itself; 0 where there is none."""
        index = self.packed.arrays.get("index")
        return 0 if index is None else int(index.nbytes)

    @property
    def value_bytes(self) -> int:
        """Return the bytes of the values themselves."""
        return int(self.packed.arrays["values"].nbytes)

    @property
    def bound(self) -> Bound:
        """Return what no encoding gets below."""
        return bound_of(self.packed)


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """An ONNX file, read.

    Attributes:
        path: where it is.
        bytes: its size.
        sha256: its hash.
        form: ``functions``, ``inlined``, or ``dense`` where no layer is packed.
        opset: the version of the standard operators.
        ir_version: the file's.
        layers: its packed tensors.
        dense_tensors: (name, shape, bytes) of every other initializer.
        function_bytes: the bodies of domain ``hwprune``.
        graph_bytes: nodes, inputs and outputs: the graph without its initializers.
        metadata: producer and metadata properties.
        metadata_bytes: of the properties.
        model: the whole file.
    """

    path: str
    bytes: int
    sha256: str
    form: Literal["functions", "inlined", "dense"]
    opset: int
    ir_version: int
    layers: tuple[ArtifactLayer, ...]
    dense_tensors: tuple[tuple[str, tuple[int, ...], int], ...]
    function_bytes: int
    graph_bytes: int
    metadata: Mapping[str, str]
    metadata_bytes: int
    model: onnx.ModelProto

    @property
    def nonzeros(self) -> int:
        """Return the stored values of all layers that are not zero."""
        return sum(layer.nonzeros for layer in self.layers)

    @property
    def weights(self) -> int:
        """Return the elements of all packed layers' dense tensors."""
        return sum(layer.weights for layer in self.layers)


def read_artifact(path: str) -> ArtifactFile:
    """Read an ONNX file.

    Raises:
        ArtifactError: it is not there, or not an ONNX model.
        VerificationError: it refers to external data, or its packed arrays are broken.
    """
    data = _read_bytes(path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except google.protobuf.message.DecodeError:
        raise ArtifactError(
            f"{path} is not an ONNX file, or it was cut off",
            hint="give the model.onnx of an output folder",
        ) from None
    if not model.HasField("graph") or not model.opset_import:
        raise ArtifactError(
            f"{path} is not an ONNX model", hint="give the model.onnx of an output folder"
        )
    _refuse_damage(path, model)
    if (what := too_large(model)) is not None:
        raise ArtifactError(f"{path} would not load in any reasonable time or memory: {what}")
    try:
        nodes = inlined_nodes(model)
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged: {error}") from None
    if nodes > MOST_NODES:
        raise ArtifactError(
            f"{path} has more than {MOST_NODES:,} nodes once its functions are inlined: it would "
            "not load in any reasonable time"
        )
    tensors = {entry.name: entry for entry in model.graph.initializer}
    _drop_prefixes(model)
    layers, used, inlined = dict[str, ArtifactLayer](), set[str](), False
    expanded = InlinedLayers(model)
    for node in model.graph.node:
        found = _from_node(node, tensors, expanded, path)
        if found is None:
            continue
        inlined |= node.domain != DOMAIN
        layer, names = found
        # A shared tensor is stored, and counted, once; what a further use has of its own is added.
        values = names["values"]
        first = layers.setdefault(values, layer)
        if first is not layer:
            own = sum(field_bytes(tensors[n].ByteSize()) for n in names.values() if n not in used)
            layers[values] = replace(first, bytes=first.bytes + own, uses=first.uses + 1)
        used |= set(names.values())
    functions = [function for function in model.functions if function.domain == DOMAIN]
    initializer_bytes = sum(field_bytes(entry.ByteSize()) for entry in model.graph.initializer)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    metadata |= {"producer_name": model.producer_name} if model.producer_name else {}
    return ArtifactFile(
        path=path,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        form="dense" if not layers else "inlined" if inlined else "functions",
        opset=next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 0),
        ir_version=model.ir_version,
        layers=tuple(layers.values()),
        dense_tensors=tuple(
            (name, tuple(entry.dims), field_bytes(entry.ByteSize()))
            for name, entry in tensors.items()
            if name not in used
        ),
        function_bytes=sum(field_bytes(function.ByteSize(), 2) for function in functions),
        graph_bytes=model.graph.ByteSize() - initializer_bytes,
        metadata=metadata,
        metadata_bytes=sum(field_bytes(entry.ByteSize()) for entry in model.metadata_props),
        model=model,
    )


def csr_arrays(path: str) -> dict[str, scipy.sparse.csr_array]:
    """Return each packed layer of a file as a float32 matrix: its first axis by everything else.

    A tensor that several layers share is there once, under its first name, as its first use reads
    it: int8 and int4 values times that use's scales.

    Raises:
        ArtifactError, VerificationError: as ``read_artifact``.
    """
    return {layer.name: to_csr(layer.packed) for layer in read_artifact(path).layers}


def _read_bytes(path: str) -> bytes:
    try:
        return read_ordinary(Path(path), most=2**31)  # protobuf ends there
    except FileNotFoundError:
        raise ArtifactError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise ArtifactError(
            f"{path} is a folder", hint=f"give the file in it, such as {Path(path) / 'model.onnx'}"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None


def _refuse_damage(path: str, message: google.protobuf.message.Message) -> None:
    """Refuse text that is not UTF-8, and data in other files, in a message and all that it holds.

    What is not UTF-8 comes as bytes. Of tensors no more is looked at: their data would be copied.
    """
    if isinstance(message, onnx.TensorProto):
        fields: Iterable[tuple[Any, Any]] = [(_TENSOR_NAME, message.name)]
        if message.data_location == onnx.TensorProto.EXTERNAL or message.external_data:
            raise ExternalDataError(
                f"{path}: tensor {message.name!r} lies in another file; this one's size says "
                "nothing",
                hint="save the model with its data inside",
            )
    else:
        fields = message.ListFields()
    for field, value in fields:
        if field.type == field.TYPE_MESSAGE:
            for each in value if isinstance(value, Sequence) else [value]:
                _refuse_damage(path, each)
        elif field.type == field.TYPE_STRING:
            texts = [value] if isinstance(value, str | bytes) else value
            if any(isinstance(text, bytes) for text in texts):
                raise ArtifactError(f"{path} is damaged: names in it are not text")


def _drop_prefixes(model: onnx.ModelProto) -> None:
    """Give functions of our domain the names back that they had before graphs were merged."""
    nodes = [model.graph.node, *(function.node for function in model.functions)]
    for node in (node for each in nodes for node in each if node.domain == DOMAIN):
        node.op_type = plain_name(node.op_type)
    for function in model.functions:
        if function.domain == DOMAIN:
            function.name = plain_name(function.name)


def _from_node(
    node: onnx.NodeProto,
    tensors: Mapping[str, onnx.TensorProto],
    inlined: InlinedLayers,
    path: str,
) -> tuple[ArtifactLayer, dict[str, str]] | None:
    """Return the packed layer that a node reads and the names of its arrays by role, or None."""
    if node.domain == DOMAIN:
        operator = OPERATORS.get(node.op_type)
        if operator is None:
            raise VerificationError(
                f"{path}: {node.op_type} is not an operator that this version of hwprune knows",
                hint="it may come from a newer hwprune: upgrade",
            )
        said = {entry.name: entry for entry in node.attribute}
        size = tuple(said["shape"].ints) if "shape" in said else None
        number = said["count"].i if "count" in said else None
        stored = dict(zip(operator.input_roles, node.input, strict=False))
        return _layer(node.name, operator, size, number, stored, tensors, path)
    found = inlined.find(node)
    if found is None:
        return None
    claim = claim_of(node)
    name = claim.parameter if claim is not None else node.name or found.roles["values"]
    operator = found.operator if claim is None else claim.operator
    return _layer(name, operator, found.shape, found.count, found.roles, tensors, path)


def _layer(
    name: str,
    operator: Operator,
    shape: tuple[int, ...] | None,
    count: int | None,
    roles: Mapping[str, str],
    tensors: Mapping[str, onnx.TensorProto],
    path: str,
) -> tuple[ArtifactLayer, dict[str, str]]:
    arrays: dict[str, NDArray[Any]] = {}
    names: dict[str, str] = {}
    for role in operator.input_roles:
        if role in ("input", "bias", "residual"):
            continue
        stored = roles.get(role, "")
        if stored not in tensors:
            raise VerificationError(
                f"{path}: the {role} of layer {name!r} are not stored in the file"
            )
        names[role] = stored
        try:
            arrays[role] = numpy_helper.to_array(tensors[stored])
        except (ValueError, TypeError, KeyError) as error:  # KeyError: no such type
            raise VerificationError(f"{path}: tensor {stored!r} cannot be read: {error}") from None
    if operator.codec == "dense":
        shape = arrays["values"].shape
    if shape is None or not shape or min(shape) < 1:
        raise VerificationError(f"{path}: layer {name!r} does not say its shape")
    if arrays["values"].dtype != VALUE_DTYPES[operator.value_type]:
        raise VerificationError(
            f"{path}: layer {name!r} stores {arrays['values'].dtype}, "
            f"its operator says {operator.value_type}"
        )
    packed = Packed(name, shape, operator.codec, operator.value_type, arrays, count)
    check(packed)
    size = sum(field_bytes(tensors[entry].ByteSize()) for entry in set(names.values()))
    return ArtifactLayer(operator.name, size, packed), names
