"""``hwprune inspect``: what is in an artifact, or in any ONNX file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from hwprune.cli.main import print_json
from hwprune.cli.options import console, json_option
from hwprune.preprocessing import parse
from hwprune.units import format_bytes, format_percent

if TYPE_CHECKING:
    from onnx import FunctionProto, ValueInfoProto
    from rich.table import Table

    from hwprune.export.artifact import ArtifactFile

_MOST_DENSE = 20


@click.command("inspect")
@click.argument("artifact", type=click.Path())
@json_option
def command(*, artifact: str, as_json: bool) -> None:
    """Show what is in ARTIFACT, an ONNX file: packed layers, function bodies, dense tensors.

    And how to make its input: what the file says of the preprocessing that it was trained with.
    """
    from hwprune.export.artifact import read_artifact

    found = read_artifact(artifact)
    if as_json:
        print_json(_document(found))
    else:
        _print(found)


def _document(found: ArtifactFile) -> dict[str, Any]:
    plain = ("path", "bytes", "sha256", "form", "opset", "ir_version")
    of_layer = ("operator", "codec", "value_type", "nonzeros", "weights", "bytes", "uses",
                "index_bytes", "value_bytes")  # fmt: skip
    return {
        **{key: getattr(found, key) for key in plain},
        "metadata": dict(found.metadata),
        "inputs": [_value_info(entry) for entry in _inputs(found)],
        "outputs": [_value_info(entry) for entry in found.model.graph.output],
        "nonzeros": found.nonzeros,
        "weights": found.weights,
        "bound_bytes": round(sum(layer.bound.total for layer in found.layers)),
        "layer_bytes": sum(layer.bytes for layer in found.layers),
        "function_bytes": found.function_bytes,
        "graph_bytes": found.graph_bytes,
        "metadata_bytes": found.metadata_bytes,
        "layers": [
            {"name": layer.name, "shape": list(layer.shape)}
            | {key: getattr(layer, key) for key in of_layer}
            | {
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
    from rich.text import Text

    from hwprune.report.terminal import pairs

    out = console()
    forms = {
        "functions": "packed, with model-local functions",
        "inlined": "packed, functions inlined",
        "dense": "dense: no packed layer",
    }
    out.print(Text(f"{found.path}: {format_bytes(found.bytes)}", style="bold"), soft_wrap=True)
    lines = [("form", forms[found.form])]
    if found.weights:
        sparsity = format_percent(1 - found.nonzeros / found.weights)
        share = f"{found.nonzeros:,} of {found.weights:,} weights ({sparsity} sparse)"
        lines.append(("nonzeros", share))
    bound = sum(layer.bound.total for layer in found.layers)
    if bound:
        share = format_percent(sum(layer.bytes for layer in found.layers) / bound, 1)
        text = f"{round(bound):,} B for positions and values; the packed layers take {share} of it"
        lines.append(("entropy bound", text))
    lines += [
        ("opset", f"{found.opset}, IR version {found.ir_version}"),
        ("inputs", "; ".join(_describe(entry) for entry in _inputs(found))),
        ("outputs", "; ".join(_describe(entry) for entry in found.model.graph.output)),
        ("sha256", found.sha256),
        *_metadata(found),
    ]
    out.print(pairs(lines))
    if found.layers:
        out.print("", _layers(found))
    out.print("", _bytes(found))
    if found.dense_tensors:
        out.print("", *_dense(found))


def _metadata(found: ArtifactFile) -> Iterator[tuple[str, str]]:
    """Yield what the file says about itself: how to make its input, what its outputs are."""
    said = dict(found.metadata)
    if (how := parse(said.pop("preprocessing", None))) is not None:
        for number, step in enumerate(how.sentences(), 1):
            yield "preprocessing" if number == 1 else "", f"{number}. {step}"
    names = {"producer_name": "written by", "hwprune": "hwprune version"}
    for key, value in said.items():
        yield names.get(key, key), value.strip()


def _describe(entry: ValueInfoProto) -> str:
    info = _value_info(entry)
    shape = "×".join("?" if size is None else str(size) for size in info["shape"])
    return f"{info['name']} {info['dtype']} {shape or 'scalar'}"


def _layers(found: ArtifactFile) -> Table:
    from hwprune.report.terminal import table

    right = ("nonzeros", "weights", "sparsity", "bytes", "of\nbound")
    rows = [
        (
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
        for layer in found.layers
    ]
    return table(("layer", "shape", "codec", "values", *right), rows, right=right)


def _bytes(found: ArtifactFile) -> Table:
    """Return what the file's bytes go to; the parts add up to the file."""
    from hwprune.report.terminal import table

    layers = sum(layer.bytes for layer in found.layers)
    dense = sum(size for _, _, size in found.dense_tensors)
    bodies = [_body_name(function) for function in found.model.functions]
    listed = f" ({', '.join(bodies)})" if bodies else ""
    parts = (
        ("packed layers", layers),
        ("dense tensors", dense),
        (f"function bodies{listed}", found.function_bytes),
        ("nodes, inputs and outputs", found.graph_bytes),
        ("metadata", found.metadata_bytes),
    )
    rows = (*parts, ("file header and the rest", found.bytes - sum(size for _, size in parts)))
    made = table(
        ("where the bytes are", "bytes"), [(a, f"{b:,}") for a, b in rows], right=("bytes",)
    )
    made.add_row("file", f"{found.bytes:,}", style="bold")
    return made


def _body_name(function: FunctionProto) -> str:
    return function.name if function.domain == "hwprune" else f"{function.domain}.{function.name}"


def _dense(found: ArtifactFile) -> list[Table | str]:
    from hwprune.report.terminal import table

    largest = sorted(found.dense_tensors, key=lambda entry: -entry[2])
    rows = [
        (name, "×".join(map(str, shape)) or "scalar", f"{size:,}")
        for name, shape, size in largest[:_MOST_DENSE]
    ]
    parts: list[Table | str] = [table(("dense tensor", "shape", "bytes"), rows, right=("bytes",))]
    if len(largest) > _MOST_DENSE:
        rest = sum(size for _, _, size in largest[_MOST_DENSE:])
        parts.append(f"and {len(largest) - _MOST_DENSE} more of {rest:,} bytes together")
    return parts
