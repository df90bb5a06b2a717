"""What one fine-tuning run is given, in one value, so that its parts can share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from hwprune.ir import Data, Split
from hwprune.sparsity import Fill, Strategy
from hwprune.tasks import CLASSIFICATION, Task
from hwprune.training.batches import Batches
from hwprune.training.checkpoints import Checkpoint
from hwprune.training.distributed import SINGLE_PROCESS, World
from hwprune.training.hooks import HookMaker
from hwprune.training.masters import Quantizer
from hwprune.training.recipe import Recipe
from hwprune.training.result import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """The arguments of ``finetune``, which documents them."""

    module: nn.Module
    data: Data
    names: Sequence[str]
    strategy: Strategy
    fill: Fill
    recipe: Recipe
    teacher: nn.Module | None
    seed: int
    task: Task = CLASSIFICATION
    device: str = "cpu"
    progress: Callable[[Progress], None] | None = None
    train_batchnorm: bool = True
    store: Quantizer | None = None
    checkpoint: Checkpoint | None = None
    world: World = SINGLE_PROCESS
    observe: Callable[[nn.Module], float] | None = None
    hooks: HookMaker = lambda stage: {}

    @property
    def batch_size(self) -> int:
        """Return how many samples a step has, over all processes."""
        return min(len(self.data.train), self.recipe.batch_size)

    @property
    def rows(self) -> slice:
        """Return which samples of a step's batch are this process's."""
        return self.world.rows(self.batch_size)

    def batches(self, split: Split) -> Batches:
        """Return a split as batches on the device."""
        return Batches(
            split,
            device=self.device,
            resident_bytes=self.recipe.resident_bytes,
            channels_last=self.recipe.channels_last,
        )
