"""From trained weights and masks to the final file: no stored zeros, nothing over budget.

Quantisation turns some survivors into zeros, and some lead nowhere: to a channel that nobody reads,
or from one that says nothing. They are dropped, channels that are dead then are removed from the
file, and the bytes are spent again, on dead connections with the largest pretrained weights, which
get the smallest value that their channel can store: a connection that was never trained may hardly
disturb the others. In a channel in which nothing lives one comes back with its pretrained value;
where that means nothing (random weights, a tensor that layers came to share) it stays dead.

The module and the masks keep the shapes of the whole network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprune.budget import TimeLimit, fit, ranking_limit
from hwprune.encoding.values import quantise, quantum
from hwprune.errors import HwpruneError
from hwprune.export.pipeline import removable_channels, renewed, weights_of
from hwprune.export.removable_channels import Removable
from hwprune.export.removal import Kept, Removal, gather_channels, scatter_channels
from hwprune.export.template import Template, Written
from hwprune.ir import Masks, Ranking, ValueType
from hwprune.sparsity import followed_by, priced, rank, rank_weights
from hwprune.steps.planning import FULL_FRACTION, module_weights

_ROUNDS = 6


@dataclass(frozen=True, slots=True)
class PackedModel:
    """The final file and how it came about.

    Attributes:
        written: the file's content.
        template: the artifact it was made of, without the dead channels.
        masks: what is stored and not zero, in the shapes of the whole network.
        dropped: survivors that quantisation turned into zeros.
        respent: connections that took the bytes of what was dropped and removed.
        useless: survivors that led nowhere.
        removed: output channels of layers that are not in the file.
        removed_bytes: what the file would weigh more with them.
    """

    written: Written
    template: Template
    masks: Masks
    dropped: int
    respent: int
    useless: int = 0
    removed: int = 0
    removed_bytes: int = 0


def pack_model(
    module: Any,
    template: Template,
    masks: Masks,
    value_type: ValueType,
    pretrained: Mapping[str, NDArray[np.float32]],
    *,
    budget_bytes: int,
    revive: bool = True,
    time: TimeLimit | None = None,
    prices: Mapping[str, float] | None = None,
) -> PackedModel:
    """Write the file for the module's present weights; the module's weights follow the final masks.

    Args:
        module: the network with its trained weights.
        template: its artifact without masks; over whatever weights.
        masks: what lives; the file may be a little over the budget only if biases or scales changed
            their type with training, and is trimmed then.
        value_type: of the stored values.
        pretrained: the dense weights, for connections that come back.
        budget_bytes: what the file may weigh.
        revive: whether the dense weights say what a connection of an empty channel is worth.
        time: what the network may take, by the model.
        prices: what a connection of each tensor costs; without, all cost the same.

    Ensures: file bytes <= budget, and no stored value is zero unless its tensor is stored dense.
    """
    dropped = respent = useless = 0
    template = renewed(template, module)
    for attempt in range(_ROUNDS):
        survivors = _without_zeros(template, masks, value_type)
        dead = _dead(template, survivors)
        alive = dead.masks
        dropped += masks.nonzeros - survivors.nonzeros
        useless += survivors.nonzeros - alive.nonzeros
        if alive.nonzeros < masks.nonzeros:
            nothing = {name: np.zeros_like(alive[name]) for name in alive}
            _write_back(module, template, alive, nothing, pretrained, value_type)
            _add(module, dead.added)
            template = renewed(template, module)
        kept = dead.removal.kept
        small = template.without(dead.removal)
        cost = small.cost(value_type)
        used = cost.encoding(_cut(alive, kept).positions(), value_type).file_bytes
        spend = used < FULL_FRACTION * budget_bytes and attempt < _ROUNDS - 1
        if used <= budget_bytes and not spend:
            masks = alive
            break
        limit = ranking_limit(cost, budget_bytes, value_type)
        scores: Mapping[str, NDArray[np.float32]] = {}
        if spend:
            scores = _worth(module, template, dead, pretrained, value_type, revive=revive)
            scores = priced(scores, prices or {})
        ranking = _alive_first(module, template, dead, scores, limit)
        # Not the masks of the fit: a tensor that is cheapest dense lives in full there, at zero.
        chosen = ranking.masks(fit(cost, ranking, budget_bytes, value_type, time).count)
        masks = _spread(chosen, kept, alive)
        grown = {name: masks[name] & ~alive[name] for name in masks}
        count = sum(int(np.count_nonzero(new)) for new in grown.values())
        respent += count
        _write_back(module, template, masks, grown, pretrained, value_type)
        template = renewed(template, module)
        if spend and not count:
            break
    small, freed = _smaller(template, dead, masks, value_type)
    written = small.write_sparse(_cut(masks, small.kept), value_type)
    if len(written.data) > budget_bytes:
        raise HwpruneError(
            f"the file has {len(written.data)} bytes, the budget is {budget_bytes}",
            hint="this is a defect of hwprune: please report it with the command",
        )
    removed = _channels(template) - _channels(small)
    return PackedModel(written, small, masks, dropped, respent, useless, removed, freed)


def _dead(template: Template, survivors: Masks) -> Removable:
    """Return what the network can do without; nothing where it is cut in two.

    A network whose outputs no longer depend on its inputs is to be mended, not to be made smaller.
    """
    found = removable_channels(template, survivors)
    return found if found.masks.nonzeros else Removable(survivors, {}, {}, Removal())


def _smaller(
    template: Template, dead: Removable, masks: Masks, value_type: ValueType
) -> tuple[Template, int]:
    """Return the artifact without its dead channels, and the bytes that this saves.

    Where it saves none (an operator changed its kind, and the file needs another body), they stay.
    """
    small = template.without(dead.removal)
    if small is template:
        return template, 0
    parts = ((template, masks), (small, _cut(masks, small.kept)))
    sizes = [
        part.cost(value_type).encoding(living.positions(), value_type).file_bytes
        for part, living in parts
    ]
    saved = sizes[0] - sizes[1]
    return (small, saved) if saved > 0 else (template, 0)


def _channels(template: Template) -> int:
    return sum(tensor.shape[tensor.channel_axis] for tensor in template.prunable)


def _cut(masks: Masks, kept: Kept) -> Masks:
    return Masks({name: gather_channels(name, masks[name], kept) for name in masks})


def _spread(masks: Masks, kept: Kept, whole: Masks) -> Masks:
    return Masks(
        {
            name: scatter_channels(name, masks[name], kept, np.zeros_like(whole[name]))
            for name in masks
        }
    )


def _without_zeros(template: Template, masks: Masks, value_type: ValueType) -> Masks:
    alive, axes = {}, template.channel_axes
    for name, weight in weights_of(template).items():
        masked = np.where(masks[name], weight, np.float32(0))
        alive[name] = quantise(masked, value_type, axes[name])[0] != 0
    return Masks(alive)


def _alive_first(
    module: Any,
    template: Template,
    dead: Removable,
    scores: Mapping[str, NDArray[np.float32]],
    limit: int,
) -> Ranking:
    """Return what lives, the best first, then what may come back; of the channels that are left."""
    kept, alive = dead.removal.kept, dead.masks
    living = {
        name: gather_channels(name, np.where(alive[name], weight, np.float32(0)), kept)
        for name, weight in module_weights(module, template).items()
    }
    first = rank_weights(living, "lamp", min(limit, alive.nonzeros))
    if not scores:
        return first
    left = {name: gather_channels(name, score, kept) for name, score in scores.items()}
    return followed_by(first, rank(left, limit=max(0, limit - len(first))))


def _worth(
    module: Any,
    template: Template,
    dead: Removable,
    pretrained: Mapping[str, NDArray[np.float32]],
    value_type: ValueType,
    *,
    revive: bool,
) -> dict[str, NDArray[np.float32]]:
    """Return the scores of what may come back, minus infinity for all else."""
    scores, axes = {}, template.channel_axes
    for name, weight in module_weights(module, template).items():
        alive, before = dead.masks[name], pretrained[name]
        out = alive | (before == 0) | ~dead.matter.get(name, np.True_)
        if not revive:  # what it was before says nothing of its size
            masked = np.where(alive, weight, np.float32(0))
            out |= quantum(masked, value_type, axes[name]) == 0
        scores[name] = np.where(out, np.float32(-np.inf), np.abs(before))
    return scores


def _write_back(
    module: Any,
    template: Template,
    masks: Masks,
    grown: Mapping[str, NDArray[np.bool_]],
    pretrained: Mapping[str, NDArray[np.float32]],
    value_type: ValueType,
) -> None:
    """Zero what is dead in the module and give grown connections one quantum of their channel."""
    import torch

    parameters = dict(module.named_parameters(remove_duplicate=False))
    axes = template.channel_axes
    for name in masks:
        parameter = parameters[name]
        weight = parameter.detach().cpu().numpy()
        masked = np.where(masks[name], weight, np.float32(0))
        least = quantum(masked, value_type, axes[name])
        start = np.where(least > 0, np.sign(pretrained[name]) * least, pretrained[name])
        values = np.where(grown[name], start, masked).astype(np.float32)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values))


def _add(module: Any, added: Mapping[str, NDArray[np.float32]]) -> None:
    """Add to the module's biases and BN means what channels gave that are gone."""
    import torch

    named = dict(module.named_parameters(remove_duplicate=False))
    named |= dict(module.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name, array in added.items():
            named[name].add_(torch.from_numpy(array).to(named[name]))
