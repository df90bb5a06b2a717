"""torch -> ONNX, once, without values: a network's structure, and which tensor is which parameter.

The exporter sees the parameters as graph inputs, so nothing that optimises the graph can fold,
transpose or copy one out of sight; their values are joined by name afterwards.
"""

from __future__ import annotations

import copy
import io
import logging
import re
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from hwprune.errors import ExportError
from hwprune.export.graph import Graph, value_in
from hwprune.export.registry import slices_paired_in_place, unparsed_functions
from hwprune.ir import Model, TensorSpec

# torch's exporter writes this one and ignores a wish for a lower one; lowering is ours (lower.py).
TRACE_OPSET = 18
_TRACE_BATCH = 2  # 1 would be specialised away


@dataclass(frozen=True, slots=True)
class Traced:
    """A network's structure.

    Attributes:
        graph: nodes and constants; ``graph.tensors`` holds no parameters.
        parameters: the tensors that are parameters or buffers, by their first key in the state
            dict.
        notes: sentences for the report.
        fixed: those of ``parameters`` that nothing prunes: buffers, and what is frozen.
    """

    graph: Graph
    parameters: tuple[str, ...]
    notes: tuple[str, ...] = ()
    fixed: frozenset[str] = frozenset()

    def values(self, module: Any) -> dict[str, NDArray[Any]]:
        """Return what the graph's tensors hold, the module's present ones as NumPy views."""
        present = tensors_of(module)
        return {**self.graph.tensors, **{key: present[key] for key in self.parameters}}

    def with_values(self, module: Any) -> Graph:
        """Return a copy of the graph over the module's present parameters and buffers."""
        return Graph(self.graph.structure.clone(), self.values(module))


def _named_tensors(module: Any) -> list[tuple[str, Any]]:
    """Return every parameter and buffer, under each of its names."""
    return [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]


def tensors_of(module: Any) -> dict[str, NDArray[Any]]:
    """Return every parameter and buffer as a NumPy view, under each of its names.

    Complex numbers are pairs along a last axis, as the exporter has them.
    """
    import torch

    return {
        name: (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().cpu().numpy()
        for name, tensor in _named_tensors(module)
    }


def first_names(module: Any) -> dict[str, str]:
    """Return for every name of a parameter or buffer the first name of it (tied weights)."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in _named_tensors(module)}


def trace(model: Model) -> Traced:
    """Trace a model's structure; an ONNX file's is its own graph.

    Raises:
        ExportError: torch cannot export it, or the batch comes out fixed; the message names the
            reason and the place.
    """
    import torch

    if model.kind == "onnx":
        return _of_file(model)
    for name, part in model.module.named_modules():
        if isinstance(part, torch.nn.LSTM) and part.proj_size:
            raise ExportError(
                f"{name or model.name} is an LSTM with proj_size={part.proj_size}: ONNX's LSTM has "
                "no projection, and torch exports another network",
                hint="use an LSTM without proj_size, and a linear layer behind it",
            )
    try:
        with _quiet():
            try:
                exported = _exported(model)
            except ExportError:
                raise
            except Exception as error:
                if not _is_of_attention(error):
                    raise
                # What torch makes of its fused attention has strides that a later view may not fit.
                with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                    exported = _exported(model)
    except ExportError:
        raise
    except Exception as error:
        hint = "torch.export needs a forward method without data-dependent Python control flow"
        if model.kind == "torchscript":
            hint = (
                "not every TorchScript archive can be converted; where it was made, save the "
                "weights: torch.save(model.state_dict(), 'model.pt')"
            )
        raise ExportError(
            f"torch cannot export {model.name}: {_first_line(error)}", hint=hint
        ) from error
    return _structure(exported, model)


def _exported(model: Model) -> Any:
    """Return torch's own export, an ONNX IR model with the parameters in it."""
    import torch

    args = tuple(
        _example(spec.with_batch(_TRACE_BATCH), spec.dtype, torch) for spec in model.inputs
    )
    dynamic = tuple(
        {axis: torch.export.Dim.AUTO for axis in _dynamic_axes(spec)} for spec in model.inputs
    )
    module = _exportable(model, args)
    program = torch.export.export(module, args, dynamic_shapes=dynamic, strict=False)
    _check_is_free(program, model, args, dynamic)
    with unparsed_functions():
        exported = torch.onnx.export(
            program,
            args,
            dynamo=True,
            optimize=False,
            opset_version=TRACE_OPSET,
            input_names=[spec.name for spec in model.inputs],
            output_names=_output_names(program, model),
            verbose=False,
        )
    assert exported is not None
    return exported.model


def _is_of_attention(error: BaseException | None) -> bool:
    """Return whether an error is torch's, of views that do not fit a tensor's strides."""
    while error is not None:
        if "Cannot view a tensor with shape" in str(error):
            return True
        error = error.__cause__
    return False


def _output_names(program: Any, model: Model) -> list[str] | None:
    """Return what a network that returns a dictionary or a dataclass calls its tensors."""
    spec = program.call_spec.out_spec
    # Of a named tuple torch keeps the class, of a dictionary its keys.
    keys = spec.context if spec.type in (dict, OrderedDict) else ()
    names = list(getattr(spec.context, "_fields", keys))
    taken = {input_spec.name for input_spec in model.inputs} | set(first_names(model.module))
    fits = len(names) == spec.num_leaves and taken.isdisjoint(names)
    return [str(name) for name in names] if names and fits else None


def _exportable(model: Model, args: tuple[Any, ...]) -> Any:
    """Return what torch.export takes: a TorchScript module is converted first, names and all."""
    if model.kind != "torchscript":
        return _untouched(model)
    from torch._export.converter import TS2EPConverter

    return TS2EPConverter(model.module, args).convert().module()


def _untouched(model: Model) -> Any:
    """Return a copy over the same parameters and buffers: the exporter leaves marks in a module.

    A forward method that remembers (a table for the shape that it saw last) would keep the
    exporter's stand-ins, and answer from them.
    """
    if model.kind == "exported-program":
        return model.module
    memo = {id(tensor): tensor for tensor in (*model.module.parameters(), *model.module.buffers())}
    try:
        return copy.deepcopy(model.module, memo)
    except Exception:  # it holds what cannot be copied
        return model.module


class _Fixing(logging.Handler):
    """Notes the line of the user's code at which torch gives a free size a fixed value."""

    def __init__(self) -> None:
        super().__init__()
        self.place = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Look at the stack where torch says so."""
        if self.place or not record.getMessage().startswith("set_replacement"):
            return
        for frame in reversed(traceback.extract_stack()):
            if not re.search(r"/(?:torch|logging)/|<", frame.filename) and frame.name != "emit":
                name = frame.filename.rpartition("/")[2]
                self.place = f", by {name}, line {frame.lineno}: {frame.line}"
                return


def _dynamic_axes(spec: TensorSpec) -> dict[int, str]:
    """Return the axes that are to stay dynamic, with their names in the file."""
    batch = {axis: "N" for axis, size in enumerate(spec.shape) if size is None}
    return batch | dict(spec.free)


def _check_is_free(program: Any, model: Model, args: tuple[Any, ...], dynamic: Any) -> None:
    """Refuse a program that takes the batch of this trace only."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    for name, spec in zip(program.graph_signature.user_inputs, model.inputs, strict=True):
        for axis, called in _dynamic_axes(spec).items():
            # A number, or a symbol that torch may have come to know as one.
            if str(values[name].shape[axis]).isdigit():
                what = "batch" if called == "N" else called
                raise ExportError(
                    f"{model.name} takes no other {what} than that of its example once it is "
                    f"exported{_where_fixed(model, args, dynamic)}",
                    hint="let it read the size of its input, or fix it: "
                    + ("--fixed-batch" if called == "N" else "a number in --input"),
                )


def _where_fixed(model: Model, args: tuple[Any, ...], dynamic: Any) -> str:
    """Export once more, to learn what fixed a size; empty where that does not show."""
    import torch

    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    handler, handlers = _Fixing(), log.handlers[:]
    try:
        log.handlers[:] = [handler]
        vars(log)["isEnabledFor"] = lambda level: level >= logging.INFO  # though `_quiet` holds
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = _exportable(model, args)
            torch.export.export(module, args, dynamic_shapes=dynamic, strict=False)
    except Exception:  # as it may have the first time
        return ""
    finally:
        log.handlers[:] = handlers
        del vars(log)["isEnabledFor"]
    return handler.place


def _structure(ir_model: Any, model: Model) -> Traced:
    """Take the parameters out of an exported model and optimise what is left."""
    canonical = first_names(model.module)
    parameters: dict[str, str] = {}
    for name, value in list(ir_model.graph.initializers.items()):
        key = name if name in canonical else _by_value(value, model.module)
        if key is None:
            continue
        parameters[name] = canonical[key]
        del ir_model.graph.initializers[name]
        value.const_value = None
        ir_model.graph.inputs.append(value)
    traced = _slimmed(ir_model, model, parameters, canonical)
    _bar_fully(traced.graph)
    return traced


def _bar_fully(graph: Graph) -> None:
    """Let what an attention mask leaves out be -inf, so that a row that sees nothing gives zeros.

    torch's exporter means that: it puts 0 for NaN behind the softmax. But it leaves out by
    float32's lowest number, with which such a row sees everything alike.
    """
    lowest = np.finfo(np.float32).min
    for node in graph.nodes:
        if node.op_type != "Softmax" or not any(
            reader.op_type == "IsNaN" for reader, _ in node.outputs[0].uses()
        ):
            continue
        added = value_in(node, 0).producer()
        for value in added.inputs if added is not None and added.op_type == "Add" else ():
            mask = None if value is None else value.producer()
            low = graph.tensor(mask.inputs[2]) if mask and mask.op_type == "Where" else None
            if mask and low is not None and low.size == 1 and float(low.item()) == lowest:
                infinite = graph.add_tensor("barred", np.array(-np.inf, low.dtype))
                mask.replace_input_with(2, infinite)


def _of_file(model: Model) -> Traced:
    """Return the structure of an ONNX file: its own graph."""
    proto = model.module.proto
    inferred = onnx.shape_inference.infer_shapes(proto)
    inferred.graph.ClearField("output")  # they stay as the file says
    inferred.graph.output.extend(proto.graph.output)
    names = first_names(model.module)
    return _slimmed(ir.from_proto(inferred), model, names, names)


def _slimmed(
    ir_model: Any, model: Model, parameters: Mapping[str, str], canonical: Mapping[str, str]
) -> Traced:
    """Optimise a graph whose parameters are inputs; ``parameters`` says which ones, by name."""
    import onnxscript.optimizer

    _copy_returned(ir_model.graph, parameters)
    with _quiet(), slices_paired_in_place():
        onnxscript.optimizer.optimize(ir_model)
    if ir_model.functions:
        from onnx import inliner

        ir_model = ir.from_proto(inliner.inline_local_functions(ir.to_proto(ir_model)))
    structure = ir_model.graph
    graph = Graph(structure, {})
    for name, value in structure.initializers.items():
        graph.tensors[name] = value.const_value.numpy()
        value.const_value = None
    for value in [value for value in structure.inputs if value.name in parameters]:
        # A tied weight goes by its first name everywhere, so that it is stored once.
        key = parameters[value.name]
        if key in structure.initializers:
            structure.inputs.remove(value)
            value.replace_all_uses_with(structure.initializers[key], replace_graph_outputs=True)
        else:
            value.name = key
            graph.hold([value])
    read = {name for name, value in structure.initializers.items() if value.uses()}
    keys = tuple(dict.fromkeys(key for key in parameters.values() if key in read))
    notes = _fix_batch_names(structure, model)
    for node in structure.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
        for entry in [*node.attributes.values()]:
            if entry.type == ir.AttributeType.FLOAT:  # as a file holds it
                value = float(np.float32(entry.as_float()))
                node.attributes[entry.name] = ir.AttrFloat32(entry.name, value)
    graph.drop_unread()
    buffers = frozenset(canonical[name] for name, _ in model.module.named_buffers())
    return Traced(graph, keys, notes, buffers)


def _copy_returned(structure: ir.Graph, parameters: Mapping[str, str]) -> None:
    """Give outputs that are parameters themselves a node and a name of their own."""
    for place, value in enumerate(structure.outputs):
        if value.name in parameters and value.is_graph_input():
            node = ir.Node("", "Identity", [value], num_outputs=1)
            (made,) = node.outputs
            made.name, made.type, made.shape = f"{value.name}_returned", value.type, value.shape
            structure.append(node)
            structure.outputs[place] = made


def _by_value(value: Any, module: Any) -> str | None:
    """Return the parameter whose storage this initializer shares; the exporter may rename."""
    raw: Any = getattr(value.const_value, "raw", value.const_value)
    pointer = raw.data_ptr() if hasattr(raw, "data_ptr") else None
    if not pointer:
        return None
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.data_ptr() == pointer and tuple(tensor.shape) == tuple(raw.shape):
            return str(name)
    return None


def _fix_batch_names(structure: ir.Graph, model: Model) -> tuple[str, ...]:
    """Call the shared batch N, other dynamic sizes as asked, and report where one was lost."""
    notes = []
    names: dict[str, str] = {}
    for value, spec in zip(structure.inputs, model.inputs, strict=True):
        if model.kind == "onnx":  # its names are the file's
            break
        assert value.shape is not None
        for axis, called in _dynamic_axes(spec).items():
            found = value.shape[axis]
            if isinstance(found, int):
                notes.append(f"input {spec.name}: torch.export fixed axis {axis} to {found}")
            else:
                names[str(found)] = called
    for value in (*structure.inputs, *structure.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([names.get(str(d), d) for d in value.shape])
        value.metadata_props.clear()
        value.doc_string = None
    return tuple(notes)


def _example(shape: tuple[int, ...], dtype: str, torch: Any) -> Any:
    kind = getattr(torch, dtype)
    if kind.is_floating_point:
        return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(kind)
    return torch.zeros(shape, dtype=kind)


def _first_line(error: BaseException) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:300] if lines else ''}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress, warnings and log lines off the user's screen."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
