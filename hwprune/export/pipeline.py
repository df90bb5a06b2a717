"""The export in two steps: trace a model once, then make templates of it as its weights change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.encoding import unpack
from hwprune.export.lower import lower
from hwprune.export.passes import slim
from hwprune.export.per_use_scale import norm_for
from hwprune.export.prunable import find_prunable
from hwprune.export.removable_channels import Removable, find_removable
from hwprune.export.removal import scatter_channels
from hwprune.export.template import Template, Written
from hwprune.export.trace import Traced
from hwprune.ir import CodecName, Masks, SkippedTensor, along_axis


def template_of(
    traced: Traced,
    module: Any,
    *,
    opset: int,
    ir_version: int,
    inline: bool,
    codecs: tuple[CodecName, ...],
    fuse: bool = True,
) -> tuple[Template, tuple[SkippedTensor, ...]]:
    """Return the template of a network over the module's present weights, and what stays dense.

    Args:
        traced: the network's structure.
        module: its weights.
        opset: the version of the standard operators.
        ir_version: of the file.
        inline: write standard operators instead of functions.
        codecs: what the target can decode.
        fuse: make a layer and what follows it one node.

    Raises:
        ExportError: an operator cannot be expressed at ``opset``, or nothing can be pruned.
    """
    graph = traced.with_values(module)
    raw = dict(graph.tensors)
    lower(graph, opset)
    slim(graph, traced.parameters)
    graph = graph.copy()  # it lists the readers of a value in the order of the nodes again
    prunable, skipped = find_prunable(raw, graph, traced.parameters, traced.fixed)
    return Template(graph, prunable, ir_version, inline, codecs, fuse, traced=traced), skipped


def renewed(template: Template, module: Any) -> Template:
    """Return a whole network's template over the module's present weights."""
    made, _ = template_of(
        _traced(template),
        module,
        opset=template.graph.opset,
        ir_version=template.ir_version,
        inline=template.inline,
        codecs=template.codecs,
        fuse=template.fuse,
    )
    return replace(made, deployment=template.deployment)


def _traced(template: Template) -> Traced:
    assert template.traced is not None, "the template of a bare graph"
    return template.traced


def decoded_parameters(
    template: Template, written: Written, module: Any
) -> dict[str, NDArray[np.float32]]:
    """Return the parameters that make the torch module compute what the file computes.

    Packed weights and biases are decoded and the folding of BN is undone, so that torch runs the
    original network, BN and all, on the very values that the file holds. Channels that the file is
    without have no weights, and the module's own biases.

    Args:
        template: of the whole network, over the module's present weights.
        written: the file.
        module: its weights.

    Returns:
        new values by state-dict key, for the parameters that differ.
    """
    graph = template.graph
    raw, module_names = _traced(template).values(module), _traced(template).parameters
    values: dict[str, NDArray[np.float32]] = {}
    for name, packed in written.packed.items():
        nothing = np.zeros(graph.tensors[name].shape, np.float32)
        values[name] = scatter_channels(name, unpack(packed), written.kept, nothing)
    folded_biases = {fold.bias: fold for fold in graph.folds}
    for fold in graph.folds:
        if fold.weight in values:
            weight = values[fold.weight]
            factor = along_axis(fold.factor, fold.channel_axis, weight.ndim)
            unfolded = np.divide(weight, factor, out=np.zeros(weight.shape), where=factor != 0)
            values[fold.weight] = unfolded.astype(np.float32)
    for gain in graph.gains:
        if gain.name in written.gains:
            stored = {gain.name: written.gains[gain.name], gain.bias: written.biases[gain.bias]}
            whole = [
                scatter_channels(name, array, written.kept, graph.tensors[name])
                for name, array in stored.items()
            ]
            values |= norm_for(gain, whole[0], whole[1], raw)
    apart = {gain.bias for gain in graph.gains}
    for name, stored_bias in written.biases.items():
        if name in apart:
            continue
        bias = scatter_channels(name, stored_bias, written.kept, graph.tensors[name])
        found = folded_biases.get(name)
        if found is None:
            values[name] = bias
            continue
        _, shift, mean, _ = found.norm
        shifted = bias.astype(np.float64) - found.shift
        if shift in module_names:
            values[shift] = shifted.astype(np.float32)
        elif mean in module_names:  # a BN without parameters: its mean moves by what is missing
            moved = np.divide(raw[shift] - shifted, found.factor, out=np.zeros(shifted.shape),
                              where=found.factor != 0)  # fmt: skip
            values[mean] = (raw[mean] + moved).astype(np.float32)
    return {name: value for name, value in values.items() if name in module_names}


def weights_of(template: Template) -> Mapping[str, NDArray[np.float32]]:
    """Return the prunable weights as the file will hold them (BN folded)."""
    return {tensor.name: template.graph.tensors[tensor.name] for tensor in template.prunable}


def removable_channels(template: Template, masks: Masks) -> Removable:
    """Return what the network can do without, given which connections are kept.

    What it says must be added goes by the names of the module's parameters and buffers.

    Args:
        template: of the whole network, over the module's present weights.
        masks: what is kept.
    """
    graph, traced = template.graph, _traced(template)
    own = {name: name for name in traced.parameters if name in graph.tensors}
    shifts = [fold.norm[1] for fold in graph.folds]
    for fold in graph.folds:
        own.pop(fold.bias, None)  # it is folded: the BN's shift is what can be set
        shift = fold.norm[1]
        if shift in traced.parameters and shift not in graph.tensors and shifts.count(shift) == 1:
            own[fold.bias] = shift
    found = find_removable(graph, masks, own.keys())
    return replace(found, added={own[name]: array for name, array in found.added.items()})
