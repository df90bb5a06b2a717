"""Shortcuts through torch's exporter and onnxscript's optimizer, with the same results.

The exporter parses the source of 500 functions at every export.

Building its registry, ``torch.onnx.export`` asks each function of onnxscript's torchlib for its
domain, and onnxscript parses the function's source to answer (``values.TracedOnnxFunction.
function_ir``): most of a second, for an answer that the function's opset
knows. Here the domain is answered at once; whatever else is asked is answered as before.

The optimizer looks for two Slices of one tensor by walking over the whole graph at each node, of
whatever kind: quadratic in the nodes. Here it does so at a Slice alone whose tensor another Slice
reads; at all others it would find nothing. Where a version of onnxscript is built differently,
nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class _Unparsed:
    """Stands for a function's IR until more than its domain is asked for."""

    domain: str
    function: Any
    original: property

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original.__get__(self.function), name)


@contextmanager
def unparsed_functions() -> Iterator[None]:
    """Let functions of onnxscript be asked for their domain without being parsed."""
    kind, original = _patchable()
    if kind is None or original is None:
        yield
        return

    def function_ir(function: Any) -> Any:
        domain = getattr(getattr(function, "opset", None), "domain", None)
        if not isinstance(domain, str):
            return original.__get__(function)
        return _Unparsed(domain, function, original)

    kind.function_ir = property(function_ir)
    try:
        yield
    finally:
        kind.function_ir = original


def _patchable() -> tuple[Any, property | None]:
    try:
        from onnxscript import values
    except ImportError:
        return None, None
    kind: Any = getattr(values, "TracedOnnxFunction", None)
    original = vars(kind).get("function_ir") if kind is not None else None
    return kind, original if isinstance(original, property) else None


@contextmanager
def slices_paired_in_place() -> Iterator[None]:
    """Let onnxscript's optimizer look for the other half of a Slice only where there is one."""
    matcher = _matcher_of_pairs()
    if matcher is None:
        yield
        return
    search = matcher.match

    def match(model: Any, graph: Any, node: Any, **options: Any) -> Any:
        sliced = node.inputs[0] if node.op_type == "Slice" and node.inputs else None
        is_pair = sliced is not None and any(
            other is not node and other.op_type == "Slice" for other in sliced.consumers()
        )
        return search(model, graph, node, **options) if is_pair else None

    matcher.match = match
    try:
        yield
    finally:
        matcher.match = search


def _matcher_of_pairs() -> Any:
    """Return what looks for Slices among the optimizer's rules, or None."""
    try:
        from onnxscript.rewriter.rules.common._basic_rules import slice_split_rule
    except ImportError:
        return None
    return getattr(slice_split_rule, "_matcher", None)
