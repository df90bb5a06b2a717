"""``hwprune inspect``: what is in an artifact, or in any ONNX file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hwprune.cli.main import print_json
from hwprune.cli.options import console, json_option
from hwprune.units import format_bytes, format_percent

if TYPE_CHECKING:
    from onnx import FunctionProto, ValueInfoProto

    from hwprune.export.artifact import ArtifactFile

_MOST_DENSE = 20


@click.command("inspect")
@click.argument("artifact", type=click.Path())
@json_option
def command(*, artifact: str, as_json: bool) -> None:
    """Show what is in ARTIFACT, an ONNX file: packed layers, function bodies, dense tensors."""
    from hwprune.export.artifact import read_artifact

    found = read_artifact(artifact)
    if as_json:
        print_json(_document(found))
    else:
        _print(found)


def _document(found: ArtifactFile) -> dict[str, Any]:
    return {
        "path": found.path,
        "bytes": found.bytes,
        "sha256": found.sha256,
        "form": found.form,
        "opset": found.opset,
        "ir_version": found.ir_version,
        "metadata": dict(found.metadata),
        "inputs": [_value_info(entry) for entry in _inputs(found)],
        "outputs": [_value_info(entry) for entry in found.model.graph.output],
        "nonzeros": sum(layer.nonzeros for layer in found.layers),
        "weights": sum(layer.weights for layer in found.layers),
        "bound_bytes": round(sum(layer.bound.total for layer in found.layers)),
        "layer_bytes": sum(layer.bytes for layer in found.layers),
        "function_bytes": found.function_bytes,
        "graph_bytes": found.graph_bytes,
        "layers": [
            {
                "name": layer.name,
                "shape": list(layer.shape),
                "operator": layer.operator,
                "codec": layer.codec,
                "value_type": layer.value_type,
                "nonzeros": layer.nonzeros,
                "weights": layer.weights,
                "bytes": layer.bytes,
                "uses": layer.uses,
                "index_bytes": layer.index_bytes,
                "value_bytes": layer.value_bytes,
                "index_bound_bytes": round(layer.bound.index),
                "value_bound_bytes": round(layer.bound.values),
            }
            for layer in found.layers
        ],
        "functions": [
            {"name": function.name, "domain": function.domain, "bytes": function.ByteSize()}
            for function in found.model.functions
        ],
        "dense_tensors": [
            {"name": name, "shape": list(shape), "bytes": size}
            for name, shape, size in found.dense_tensors
        ],
    }


def _inputs(found: ArtifactFile) -> list[ValueInfoProto]:
    stored = {tensor.name for tensor in found.model.graph.initializer}  # listed in old IR versions
    return [entry for entry in found.model.graph.input if entry.name not in stored]


def _value_info(entry: ValueInfoProto) -> dict[str, Any]:
    import onnx

    tensor = entry.type.tensor_type
    shape = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in tensor.shape.dim
    ]
    known = onnx.TensorProto.DataType.DESCRIPTOR.values_by_number.get(tensor.elem_type)
    dtype = known.name.lower() if known is not None else f"unknown type {tensor.elem_type}"
    return {"name": entry.name, "shape": shape, "dtype": dtype}


# -- for people ---------------------------------------------------------------------------------


def _print(found: ArtifactFile) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    forms = {
        "functions": "packed, with model-local functions",
        "inlined": "packed, functions inlined",
        "dense": "dense: no packed layer",
    }
    out.print(Text(f"{found.path}: {format_bytes(found.bytes)}", style="bold"), soft_wrap=True)
    grid = Table.grid(padding=(0, 2))
    nonzeros = sum(layer.nonzeros for layer in found.layers)
    weights = sum(layer.weights for layer in found.layers)
    lines = [
        ("form", forms[found.form]),
        ("opset", f"{found.opset}, IR version {found.ir_version}"),
        ("inputs", "; ".join(_describe(entry) for entry in _inputs(found))),
        ("outputs", "; ".join(_describe(entry) for entry in found.model.graph.output)),
        ("sha256", found.sha256),
    ]
    if weights:
        sparsity = format_percent(1 - nonzeros / weights)
        lines.insert(1, ("nonzeros", f"{nonzeros:,} of {weights:,} weights ({sparsity} sparse)"))
    bound = sum(layer.bound.total for layer in found.layers)
    if bound:
        share = format_percent(sum(layer.bytes for layer in found.layers) / bound, 1)
        text = f"{round(bound):,} B for positions and values; the packed layers take {share} of it"
        lines.insert(2, ("entropy bound", text))
    for label, text in lines:
        grid.add_row(Text(label, style="dim"), Text(text))
    out.print(grid)
    if found.layers:
        _print_layers(found)
    _print_bytes(found)
    _print_dense(found)


def _describe(entry: ValueInfoProto) -> str:
    info = _value_info(entry)
    shape = "×".join("?" if size is None else str(size) for size in info["shape"])
    return f"{info['name']} {info['dtype']} {shape or 'scalar'}"


def _print_layers(found: ArtifactFile) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    right = ("nonzeros", "weights", "sparsity", "bytes", "of\nbound")
    for column in ("layer", "shape", "codec", "values", *right):
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for layer in found.layers:
        cells = (
            layer.name if layer.uses == 1 else f"{layer.name} ×{layer.uses}",
            "×".join(map(str, layer.shape)),
            layer.codec,
            layer.value_type,
            f"{layer.nonzeros:,}",
            f"{layer.weights:,}",
            format_percent(1 - layer.nonzeros / layer.weights, 1),
            f"{layer.bytes:,}",
            format_percent(layer.bytes / layer.bound.total, 0) if layer.bound.total else "",
        )
        table.add_row(*(Text(cell) for cell in cells))
    console().print("", table)


def _print_bytes(found: ArtifactFile) -> None:
    """Print what the file's bytes go to; the parts add up to the file."""
    from rich.table import Table

    layers = sum(layer.bytes for layer in found.layers)
    dense = sum(size for _, _, size in found.dense_tensors)
    others = found.bytes - layers - dense - found.function_bytes - found.graph_bytes
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("where the bytes are")
    table.add_column("bytes", justify="right")
    bodies = [_body_name(function) for function in found.model.functions]
    listed = f" ({', '.join(bodies)})" if bodies else ""
    for label, size in (
        ("packed layers", layers),
        ("dense tensors", dense),
        (f"function bodies{listed}", found.function_bytes),
        ("nodes, inputs and outputs", found.graph_bytes),
        ("file header and the rest", others),
    ):
        table.add_row(label, f"{size:,}")
    table.add_row("file", f"{found.bytes:,}", style="bold")
    console().print("", table)


def _body_name(function: FunctionProto) -> str:
    return function.name if function.domain == "hwprune" else f"{function.domain}.{function.name}"


def _print_dense(found: ArtifactFile) -> None:
    from rich.table import Table
    from rich.text import Text

    if not found.dense_tensors:
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("dense tensor", "shape"):
        table.add_column(column, overflow="fold")
    table.add_column("bytes", justify="right")
    largest = sorted(found.dense_tensors, key=lambda entry: -entry[2])
    for name, shape, size in largest[:_MOST_DENSE]:
        table.add_row(Text(name), "×".join(map(str, shape)) or "scalar", f"{size:,}")
    out = console()
    out.print("", table)
    if len(largest) > _MOST_DENSE:
        rest = sum(size for _, _, size in largest[_MOST_DENSE:])
        out.print(f"and {len(largest) - _MOST_DENSE} more of {rest:,} bytes together")
