"""What one fine-tuning run is given, in one value, so that its parts can share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from hwprune.ir import Data, Split
from hwprune.sparsity import Fill, Strategy
from hwprune.training.batches import Batches
from hwprune.training.recipe import Recipe
from hwprune.training.result import Event


@dataclass(frozen=True, slots=True)
class Setting:
    """The arguments of ``finetune``, which documents them."""

    module: nn.Module
    data: Data
    names: Sequence[str]
    strategy: Strategy
    fill: Fill
    recipe: Recipe
    teacher: nn.Module | None
    seed: int
    device: str
    progress: Callable[[Event], None] | None
    train_batchnorm: bool

    def batches(self, split: Split) -> Batches:
        """Return a split as batches on the device."""
        return Batches(
            split,
            device=self.device,
            resident_bytes=self.recipe.resident_bytes,
            channels_last=self.recipe.channels_last,
        )
