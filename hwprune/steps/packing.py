"""From trained weights and masks to the final file: no stored zeros, nothing over budget.

Quantisation turns some survivors into zeros. They are dropped and their bytes are spent again, on
dead connections with the largest pretrained weights, which get the smallest value that their
channel can store: a connection that was never trained may hardly disturb the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwprune.budget import fit, ranking_limit
from hwprune.encoding.values import quantise, quantum
from hwprune.errors import HwpruneError
from hwprune.export.pipeline import weights_of
from hwprune.export.template import Template, Written
from hwprune.ir import Masks, Ranking, ValueType
from hwprune.sparsity import followed_by, rank, rank_weights
from hwprune.steps.planning import Prepared, module_weights

# At least this part of the budget is used, unless every weight is alive.
FULL_FRACTION = 0.995
_ROUNDS = 6


@dataclass(frozen=True, slots=True)
class PackedModel:
    """The final file and how it came about.

    Attributes:
        written: the file's content.
        template: the artifact it was made of.
        masks: what is stored and not zero.
        dropped: survivors that quantisation turned into zeros.
        respent: connections that took their bytes.
    """

    written: Written
    template: Template
    masks: Masks
    dropped: int
    respent: int


def pack_model(
    prepared: Prepared,
    masks: Masks,
    value_type: ValueType,
    pretrained: Mapping[str, NDArray[np.float32]],
) -> PackedModel:
    """Write the file for the module's present weights; the module's weights follow the final masks.

    Args:
        prepared: the traced model; its module holds the trained weights.
        masks: what lives; the file may be a little over the budget only if biases or scales changed
            their type with training, and is trimmed then.
        value_type: of the stored values.
        pretrained: the dense weights, for connections that come back.

    Ensures: file bytes <= budget, and no stored value is zero unless its tensor is stored dense.
    """
    dropped = respent = 0
    template = prepared.template_now()
    for attempt in range(_ROUNDS):
        alive = _without_zeros(template, masks, value_type)
        dropped += masks.nonzeros - alive.nonzeros
        cost = template.cost((value_type,))
        used = cost.encoding(alive.positions(), value_type).file_bytes
        budget = prepared.budget_bytes
        spend = used < FULL_FRACTION * budget and attempt < _ROUNDS - 1
        if used <= budget and not spend:
            if alive.nonzeros < masks.nonzeros:
                nothing = {name: np.zeros_like(alive[name]) for name in alive}
                _write_back(prepared, alive, nothing, pretrained, value_type)
                template = prepared.template_now()
            masks = alive
            break
        limit = ranking_limit(cost, budget, value_type)
        weights = module_weights(prepared)
        ranking = _alive_first(weights, alive, pretrained if spend else None, limit)
        masks = _stored(template, fit(cost, ranking, budget, value_type).masks, alive)
        grown = {name: masks[name] & ~alive[name] for name in masks}
        count = sum(int(np.count_nonzero(new)) for new in grown.values())
        respent += count
        _write_back(prepared, masks, grown, pretrained, value_type)
        template = prepared.template_now()
        if spend and not count:
            break
    written = template.write_sparse(masks, value_type)
    if len(written.data) > prepared.budget_bytes:
        raise HwpruneError(
            f"the file has {len(written.data)} bytes, the budget is {prepared.budget_bytes}",
            hint="this is a defect of hwprune: please report it with the command",
        )
    return PackedModel(written, template, masks, dropped, respent)


def _without_zeros(template: Template, masks: Masks, value_type: ValueType) -> Masks:
    alive = {}
    axes = {tensor.name: tensor.channel_axis for tensor in template.prunable}
    for name, weight in weights_of(template).items():
        masked = np.where(masks[name], weight, np.float32(0))
        alive[name] = quantise(masked, value_type, axes[name])[0] != 0
    return Masks(alive)


def _stored(template: Template, masks: Masks, alive: Masks) -> Masks:
    """Return masks in which a tensor that is stored dense lives only where it is not zero."""
    full = {name for name in masks if masks[name].all() and not alive[name].all()}
    return Masks({name: alive[name] if name in full else masks[name] for name in masks})


def _alive_first(
    weights: Mapping[str, NDArray[np.float32]],
    alive: Masks,
    pretrained: Mapping[str, NDArray[np.float32]] | None,
    limit: int,
) -> Ranking:
    living = {name: np.where(alive[name], weights[name], np.float32(0)) for name in weights}
    first = rank_weights(living, "lamp", min(limit, alive.nonzeros))
    if pretrained is None:
        return first
    dead = {
        name: np.where(
            alive[name] | (pretrained[name] == 0), np.float32(-np.inf), np.abs(pretrained[name])
        )
        for name in weights
    }
    return followed_by(first, rank(dead, limit=max(0, limit - len(first))))


def _write_back(
    prepared: Prepared,
    masks: Masks,
    grown: Mapping[str, NDArray[np.bool_]],
    pretrained: Mapping[str, NDArray[np.float32]],
    value_type: ValueType,
) -> None:
    """Zero what is dead in the module and give grown connections one quantum of their channel."""
    import torch

    parameters = dict(prepared.model.module.named_parameters(remove_duplicate=False))
    axes = {tensor.name: tensor.channel_axis for tensor in prepared.template.prunable}
    for name in masks:
        parameter = parameters[name]
        weight = parameter.detach().cpu().numpy()
        masked = np.where(masks[name], weight, np.float32(0))
        least = quantum(masked, value_type, axes[name])
        start = np.where(least > 0, np.sign(pretrained[name]) * least, pretrained[name])
        values = np.where(grown[name], start, masked).astype(np.float32)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values))
