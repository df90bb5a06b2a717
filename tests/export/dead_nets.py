"""Small networks with dead channels, and whether they compute the same without these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from export_cases import relative_error, run
from numpy.typing import NDArray

from hwprune.export.graph import Graph
from hwprune.export.prunable import find_prunable
from hwprune.export.removable_channels import Removable, find_removable
from hwprune.export.removal import gather_channels
from hwprune.export.template import Template
from hwprune.ir import CodecName, Masks

CODECS: tuple[CodecName, ...] = ("gap8", "dense")
PAD = "<pads = [1, 1, 1, 1]>"
Tensors = dict[str, NDArray[Any]]


def tensors(seed: int = 0, **shapes: tuple[int, ...]) -> Tensors:
    """Return random tensors; those of one axis positive, so that no Relu hides their constants."""
    generator = np.random.default_rng(seed)
    made: Tensors = {}
    for name, shape in shapes.items():
        array = generator.standard_normal(shape).astype(np.float32)
        made[name] = np.abs(array) + np.float32(0.1) if len(shape) < 2 else array
    return made


@dataclass(frozen=True)
class Net:
    """A network of x, and what was found in it."""

    graph: Graph
    masks: Masks
    dead: Removable
    settable: set[str]

    def template(self, graph: Graph) -> Template:
        prunable, _ = find_prunable(graph.tensors, graph, [*self.masks])
        return Template(graph, prunable, 8, False, CODECS)

    @property
    def dropped(self) -> Graph:
        """The network with its useless connections zero, and their constants added elsewhere."""
        values = dict(self.graph.tensors)
        for name in self.masks:
            values[name] = np.where(self.dead.masks[name], values[name], np.float32(0))
        for name, array in self.dead.added.items():
            values[name] = values[name] + array
        return replace(self.graph, tensors=values)

    @property
    def small(self) -> Template:
        return self.template(self.dropped).without(self.dead.removal)

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of tensors that lost something."""
        small = self.small.graph.tensors
        return {
            name: small[name].shape
            for name in self.dead.removal.kept
            if name in small  # a network may lose a tensor's last reader
        }


def net(
    text: str,
    values: Tensors,
    *,
    shape: str = "N,4,6,6",
    out: str = "N,3,6,6",
    settable: set[str] | None = None,
    opset: int = 18,
) -> Net:
    """Return a network in ONNX's textual form, after checking that removal changes nothing."""
    parsed = onnx.parser.parse_graph(f"g (float[{shape}] x) => (float[{out}] y) {{ {text} }}")
    graph = Graph.of(parsed.node, parsed.input, parsed.output, values, opset)
    matrices = [n for n in values if values[n].ndim > 1 and values[n].dtype == np.float32]
    prunable, _ = find_prunable(graph.tensors, graph, matrices)
    masks = Masks({tensor.name: values[tensor.name] != 0 for tensor in prunable})
    free = {*values} if settable is None else settable
    found = Net(graph, masks, find_removable(graph, masks, free), free)
    check(found)
    return found


def check(found: Net) -> None:
    """Check that both steps keep the function, that they are consistent, and that they end."""
    shape = found.graph.structure.inputs[0].shape
    assert shape is not None
    generator = np.random.default_rng(1)
    for batch in (1, 3):
        sizes = [batch, *(int(str(size)) for size in list(shape)[1:])]
        feeds = {"x": generator.standard_normal(sizes).astype(np.float32)}
        whole = run(found.template(found.graph).write_dense().data, feeds)
        dropped = run(found.template(found.dropped).write_dense().data, feeds)
        small = run(found.small.write_dense().data, feeds)
        assert small.shape == whole.shape
        assert relative_error(dropped, whole) < 1e-6
        assert relative_error(small, whole) < 1e-6
    kept = found.dead.removal.kept
    left = Masks(
        {name: gather_channels(name, found.dead.masks[name], kept) for name in found.masks}
    )
    assert left.nonzeros == found.dead.masks.nonzeros, "a living connection was cut off"
    assert all(min(left[name].shape) >= 1 for name in left)
    written = found.small.write_sparse(left, "fp32")  # asserts the predicted size
    assert relative_error(run(written.data, feeds), whole) < 1e-6
    again = find_removable(found.dropped, found.dead.masks, found.settable)
    assert again.masks.nonzeros == found.dead.masks.nonzeros
    assert not again.added
    assert lengths(again) == lengths(found.dead)


def lengths(dead: Removable) -> dict[str, dict[int, int]]:
    return {
        name: {axis: index.size for axis, index in axes.items()}
        for name, axes in dead.removal.kept.items()
    }


TWO = f"h = Conv {PAD} (x, a, ab)  r = Relu (h)  y = Conv {PAD} (r, b, bb)"


def two() -> Tensors:
    return tensors(a=(5, 4, 3, 3), ab=(5,), b=(3, 5, 3, 3), bb=(3,))
