"""What a device has to know beside the weights: metadata of the file, and the way to its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hwprune.encoding.wire import field_bytes
from hwprune.preprocessing import Preprocessing

# What metadata may take of the budget: the weights are what it is for.
SHARE = 0.01
# The number of nonzeros is known last, and its text always takes as much.
NONZEROS, _MOST_DIGITS = "nonzeros", 9


@dataclass(frozen=True, slots=True)
class Deployment:
    """What goes into a file beside the network.

    Attributes:
        metadata: the file's properties in their order; ``nonzeros`` is filled in.
        embedded: what the file does to its input by itself; None where the caller does it.
    """

    metadata: Mapping[str, str]
    embedded: Preprocessing | None = None

    def put_into(self, model: onnx.ModelProto, nonzeros: int, weights: int) -> None:
        """Put it into a model that holds ``nonzeros`` of ``weights``, and takes one input."""
        known = {**self.metadata}
        if NONZEROS in known:
            known[NONZEROS] = f"{nonzeros:>{len(str(weights))}}"
        for key, value in known.items():
            model.metadata_props.add(key=key, value=value)
        if self.embedded is not None:
            _embed(model.graph, self.embedded)


NOTHING_TO_SAY = Deployment({})


def chosen(
    known: Mapping[str, str], budget_bytes: int, *, embedded: Preprocessing | None = None
) -> Deployment:
    """Return what of the metadata goes into a file: in their order, while there is room.

    The whole takes at most a hundredth of the budget; an entry that is too long is left out, and
    those behind it may still go. Where preprocessing is embedded, what it is goes in any case.
    """
    room, taken = int(SHARE * budget_bytes), dict[str, str]()
    for key, value in known.items():
        longest = max(len(value.encode()), _MOST_DIGITS if key == NONZEROS else 0)
        size = field_bytes(sum(field_bytes(part) for part in (len(key.encode()), longest)))
        needed = embedded is not None and key == "preprocessing"
        if size <= room or needed:
            taken[key] = value
            room -= size
    return Deployment(taken, embedded)


def _embed(graph: onnx.GraphProto, how: Preprocessing) -> None:
    """Let a graph read uint8 in place of its float input: transposed, cast, normalised."""
    entry, taken = graph.input[0], {name for node in graph.node for name in node.output}
    taken |= {value.name for value in graph.input}
    stem = next(f"u{'_' * n}" for n in range(len(taken) + 1) if f"u{'_' * n}" not in taken)
    read, name = entry.name, stem
    dims = list(entry.type.tensor_type.shape.dim)
    nodes = []
    if how.channels_last:
        order = [0, len(dims) - 1, *range(1, len(dims) - 1)]
        dims = [dims[0], *dims[2:], dims[1]]
        nodes.append(helper.make_node("Transpose", [name], [f"{stem}t"], perm=order))
        name = f"{stem}t"
    nodes.append(helper.make_node("Cast", [name], [f"{stem}c"], to=onnx.TensorProto.FLOAT))
    factor, shift = (
        np.reshape(numbers, (-1, *(1,) * (len(dims) - 2))) if len(numbers) > 1 else numbers[0]
        for numbers in how.affine()
    )
    for kind, numbers, given, made in (
        ("Mul", factor, f"{stem}c", f"{stem}m"), ("Sub", shift, f"{stem}m", read),
    ):  # fmt: skip
        graph.initializer.append(numpy_helper.from_array(np.asarray(numbers), f"{stem}{kind[0]}"))
        nodes.append(helper.make_node(kind, [given, f"{stem}{kind[0]}"], [made]))
    entry.name, entry.type.tensor_type.elem_type = stem, onnx.TensorProto.UINT8
    entry.type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto(dim=dims))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
