"""How much an ONNX file stands for: its nodes with functions inlined, its texts, its tensors.

A few functions that call each other twice double the nodes, and what inlines them (onnx,
onnxruntime) cannot be interrupted; so this is asked before any work.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Sequence

import google.protobuf.message
import onnx

# Once functions are inlined; onnxruntime takes some minutes for as many.
MOST_NODES = 1_000_000
# Of a name, a note, or a text that is an attribute's.
MOST_TEXT = 16 * 1024**2
# Of one tensor, stored or declared: as many as protobuf's 2 GiB hold of 4 bits each.
MOST_ELEMENTS = 2**32


def inlined_nodes(model: onnx.ModelProto) -> int:
    """Return how many nodes a file has once its functions are inlined; at most ``MOST_NODES + 1``.

    Raises:
        ValueError: a function calls itself.
    """
    known = {(function.domain, function.name): function.node for function in model.functions}
    parts = {key: _calls(nodes, known) for key, nodes in known.items()}
    graph = ("", "the graph")
    parts[graph] = _calls(model.graph.node, known)
    sizes, entered = dict[tuple[str, str], int](), set[tuple[str, str]]()
    waiting = [graph]
    while waiting:
        key = waiting[-1]
        count, called = parts[key]
        missing = [each for each in called if each not in sizes]
        if key in sizes or not missing:
            size = count + sum(times * sizes[each] for each, times in called.items())
            sizes[key] = min(size, MOST_NODES + 1)
            waiting.pop()
        elif key in entered:
            raise ValueError(f"function {key[1]} calls itself")
        else:
            entered.add(key)
            waiting += missing
    return sizes[graph]


def too_large(message: google.protobuf.message.Message) -> str | None:
    """Return what is over ``MOST_TEXT`` or ``MOST_ELEMENTS`` in a message and all that it holds.

    Of tensors only their sizes are looked at: their data would be copied.
    """
    waiting = [message]
    while waiting:
        each = waiting.pop()
        if isinstance(each, onnx.TensorProto):
            if math.prod(size for size in each.dims if size > 0) > MOST_ELEMENTS:
                sizes = "x".join(str(size) for size in each.dims[:9])
                name = each.name[:60]
                return f"tensor {name!r} declares {sizes} elements (at most {MOST_ELEMENTS:,})"
            continue
        if isinstance(each, onnx.TensorShapeProto):
            if math.prod(size.dim_value for size in each.dim if size.dim_value > 0) > MOST_ELEMENTS:
                sizes = "x".join(str(size.dim_value) for size in each.dim[:9])
                return f"a shape declares {sizes} elements (at most {MOST_ELEMENTS:,})"
            continue
        for field, value in each.ListFields():
            if field.type == field.TYPE_MESSAGE:
                waiting += value if isinstance(value, Sequence) else [value]
            elif field.type in (field.TYPE_STRING, field.TYPE_BYTES):
                texts = [value] if isinstance(value, str | bytes) else value
                if (longest := max(map(len, texts))) > MOST_TEXT:
                    return f"a {field.name} of {longest:,} characters (at most {MOST_TEXT:,})"
    return None


def _calls(
    nodes: Iterable[onnx.NodeProto], known: Container[tuple[str, str]]
) -> tuple[int, Counter[tuple[str, str]]]:
    """Count nodes, those of subgraphs included, and among them the calls of known functions."""
    count, called, waiting = 0, Counter[tuple[str, str]](), [nodes]
    while waiting:
        for node in waiting.pop():
            count += 1
            if (key := (node.domain, node.op_type)) in known:
                called[key] += 1
            for attribute in node.attribute:
                waiting += [graph.node for graph in (attribute.g, *attribute.graphs)]
    return count, called
