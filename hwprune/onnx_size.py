"""How many nodes an ONNX file stands for: a few functions that call each other twice double them.

What inlines functions (onnx, onnxruntime) cannot be interrupted, so that this is asked first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable

import onnx

# Once functions are inlined; onnxruntime takes some minutes for as many.
MOST_NODES = 1_000_000


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
