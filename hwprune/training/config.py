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
    """What ``finetune`` is given.

    Attributes:
        module: the network; ends in eval mode on the device it came from.
        data: trained on ``train``, measured on ``validation``; ``test`` is not read.
        names: keys of the prunable parameters.
        strategy: what happens to the masks, and when.
        fill: (ranking, fraction of the byte budget) -> masks.
        recipe: how to train.
        teacher: the dense model that is imitated, or None; may be ``module`` itself (copied).
        seed: of the order of samples, augmentation and dropout.
        task: what the network is for: its loss and its metric.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        progress: called now and then with a sign of life.
        train_batchnorm: False keeps BN in eval mode with its statistics as they are.
        store: what weights become by being stored, or None: then they are trained as they are.
        checkpoint: where to keep the state of the run, and whether to continue from there. The
            file stays when the run has ended: ``checkpoint.discard()`` removes it.
        world: the processes that train together, all of which call this with the same arguments.
        observe: called with the module as it would be shipped, whenever a learning-rate schedule
            has ended and another follows; the trajectory holds what it returns (``observed``),
            and nothing depends on it.
        hooks: makes what else takes part, such as ``hwprune.extreme.extreme_hooks``.
    """

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
