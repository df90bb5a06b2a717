"""What training needs to know of the file: the values that weights become by being stored.

The file's rules (scales, codebooks, folded BN) are those of ``encoding`` and ``export``; here they
are applied on the device that the weights are on. The stored weight is the one with BN folded in,
so a weight is rounded as ``factor * weight`` with the factor of the BN's present statistics, and
divided again: exact for codebooks, too, where folding does not commute with rounding.

What lives is never rounded to zero: it takes the smallest level of its sign. So a connection that
was paid for is used, and the file holds the very weights that were trained and measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hwprune.encoding.codebook import centroids
from hwprune.encoding.values import CODEBOOK_ENTRIES, LEVELS, scales_of
from hwprune.export.graph import Fold
from hwprune.export.template import Template
from hwprune.ir import ValueType

if TYPE_CHECKING:
    import torch

# Steps between two fits of the codebooks: they follow the weights, which move slowly by then.
_REFIT = 50
# float16's smallest normal number: below it scales are rounded coarsely.
_FP16_NORMAL_MIN = 2.0**-14


def weight_quantizer(
    template: Template, module: Any, value_type: ValueType
) -> WeightQuantizer | None:
    """Return how a value type stores the prunable weights of a module; None for floats.

    Args:
        template: says which BN is folded into which layer.
        module: a network of the same structure, whose BN layers are read at each call.
        value_type: of the stored values.
    """
    if value_type not in LEVELS and value_type not in CODEBOOK_ENTRIES:
        return None
    return WeightQuantizer(template, module, value_type)


class WeightQuantizer:
    """Rounds weights as the file will hold them; a ``hwprune.training.masters.Quantizer``.

    Args:
        template: the tensors and their folds.
        module: the network in training.
        value_type: ``int8``, ``int4``, ``codebook16`` or ``codebook256``.
    """

    def __init__(self, template: Template, module: Any, value_type: ValueType) -> None:
        """Look the folds up."""
        self._module, self._kind = module, value_type
        self._axes = template.channel_axes
        self._folds = {fold.weight: fold for fold in template.graph.folds}
        self._calls = 0
        self._entries: dict[str, torch.Tensor] = {}

    @property
    def name(self) -> str:
        """Return the value type."""
        return self._kind

    @property
    def holds_norms(self) -> bool:
        """Return whether BN must not move: scales follow a channel, a codebook is the tensor's."""
        return self._kind in CODEBOOK_ENTRIES

    def __call__(
        self, weights: Mapping[str, torch.Tensor], *, final: bool = False
    ) -> dict[str, torch.Tensor]:
        """Return the stored values; see ``hwprune.training.masters.Quantizer``."""
        import torch

        with torch.no_grad():
            factors = self._factors(weights)
            if self._kind in LEVELS:
                return self._in_levels(weights, factors)
            refit = final or self._calls % _REFIT == 0
            self._calls += 1
            return {
                name: self._by_codebook(name, weight, factors[name], refit=refit)
                for name, weight in weights.items()
            }

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the codebooks and when they are fitted next; nothing for levels."""
        import torch

        if self._kind in LEVELS:
            return {}
        return {**self._entries, "//calls": torch.tensor(self._calls)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from a state."""
        if state:
            self._entries = {name: entries for name, entries in state.items() if name[:2] != "//"}
            self._calls = int(state["//calls"])

    def _factors(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return what folding multiplies each channel by, shaped to broadcast, never zero."""
        import torch

        named = dict(self._module.named_parameters(remove_duplicate=False))
        named |= dict(self._module.named_buffers(remove_duplicate=False))
        factors = {}
        for name, weight in weights.items():
            fold: Fold | None = self._folds.get(name)
            if fold is None:
                factors[name] = torch.ones((), device=weight.device)
                continue
            gamma, _, _, variance = (named[key].detach() for key in fold.norm)
            factor = gamma / torch.sqrt(variance + fold.epsilon)
            # A channel that BN switches off is stored as zeros, whatever its weights are.
            factor = torch.where(factor == 0, torch.ones_like(factor), factor)
            along = [1] * weight.ndim
            along[fold.channel_axis] = -1
            factors[name] = factor.reshape(along)
        return factors

    def _in_levels(
        self, weights: Mapping[str, torch.Tensor], factors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Round to whole multiples of each channel's scale."""
        import torch

        largest = {}
        for name, weight in weights.items():
            axes = [axis for axis in range(weight.ndim) if axis != self._axes[name]]
            highest = torch.linalg.vector_norm(weight, torch.inf, dim=axes, keepdim=True)
            largest[name] = highest * factors[name].abs()
        # Scales are few: they are found where the file's are, all in one transfer.
        flat = torch.cat([part.flatten() for part in largest.values()]).cpu().numpy()
        edges = np.cumsum([part.numel() for part in largest.values()])[:-1]
        scales = [scales_of(part, self._kind) for part in np.split(flat, edges)]
        wide = torch.from_numpy(np.concatenate(scales).astype(np.float32)).to(
            next(iter(weights.values())).device
        )
        stored = {}
        most = LEVELS[self._kind]
        for (name, weight), scale, few in zip(
            weights.items(), torch.split(wide, [len(part) for part in scales]), scales, strict=True
        ):
            step = scale.reshape(largest[name].shape) / factors[name].abs()
            magnitude = weight.abs()
            levels = (magnitude / step).round_().clamp_(1, most)
            if few.min() < _FP16_NORMAL_MIN:
                # Scales this coarse may put the largest below the last level, and so come out
                # smaller when they are derived from what is stored.
                top = magnitude * factors[name].abs() >= largest[name]
                levels.masked_fill_(top & (magnitude > 0), most)
            stored[name] = levels.mul_(step).mul_(weight.sign())
        return stored

    def _by_codebook(
        self, name: str, weight: torch.Tensor, factor: torch.Tensor, *, refit: bool
    ) -> torch.Tensor:
        """Replace what lives by the nearest entry of the tensor's codebook."""
        import torch

        folded = weight * factor
        alive = folded != 0
        values = folded[alive]
        entries = self._entries.get(name)
        if entries is None or refit:
            spare = self._kind == "codebook256"
            found = centroids(values.cpu().numpy(), CODEBOOK_ENTRIES[self._kind] - spare)
            entries = torch.from_numpy(found.astype(np.float32))
            self._entries[name] = entries
        if not len(entries):
            return weight.clone()
        entries = entries.to(weight.device)
        nearest = torch.bucketize(values, (entries[1:] + entries[:-1]) / 2)
        folded[alive] = entries[nearest]
        return folded / factor
